from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
from scipy import stats

from gateway.experiments.experiment import Experiment, combined, load, variant_name, variants_in
from gateway.experiments.layer import Layer
from gateway.inference.variants import IdsAt
from gateway.plan.plan import Plan
from gateway.records.request import Request


class Shape:
    versions = (1, 2)
    views: ClassVar[dict[str, str]] = {"plane": "plane_stats@1"}
    columns = ("tailnum",)
    functions = ()


TEXT = """
layers: {planes: {one: 30, two: 30}}
experiments:
  one:
    model: delay
    variants: {a: {}, b: {version: 1}}
    split: {by: tailnum, weights: {a: 50, b: 50}}
    overrides: {b: [N1]}
  two:
    model: delay
    variants: {a: {}, c: {version: 1}, d: {version: 2}}
    split: {by: tailnum, weights: {a: 20, c: 40, d: 40}}
"""
IDS = [f"N{number}" for number in range(30_000)]


def experiments(folder: Path) -> tuple[Experiment, ...]:
    path = folder / "experiments.yaml"
    path.write_text(TEXT)
    return load(path, {"delay": Shape()}, ("plane_stats@1",))


def test_a_layer_gives_each_id_one_arm_as_the_experiments_alone_would(tmp_path: Path) -> None:
    both = experiments(tmp_path)
    layer = Layer.of(both, {})
    assert layer.choices == (None, ("one", "a"), ("one", "b"), ("two", "a"), ("two", "c"), ("two", "d"))
    chosen = layer.choose(IDS)
    counts = np.bincount(chosen, minlength=6)
    shares = np.array([0.4, 0.15, 0.15, 0.06, 0.12, 0.12])
    assert stats.chisquare(counts, shares * len(IDS)).pvalue > 1e-4
    for one, first in zip(both, (1, 3), strict=True):
        assert one.assignment is not None
        for arm, choice in zip(one.assignment.assign(IDS), chosen, strict=True):
            if arm == one.assignment.nobody:
                assert not first <= choice < first + len(one.arms)
            else:
                assert choice == first + arm


def test_an_override_wins_over_the_layer_and_an_end_over_the_override(tmp_path: Path) -> None:
    both = experiments(tmp_path)
    assert Layer.of(both, {}).choose(["N1"]) == [2]
    decided = Layer.of(both, {"one": "a", "two": "d"})
    assert {*decided.choose(IDS)} == {0, 1, 5}
    before, after = Layer.of(both, {}).choose(IDS[2:]), decided.choose(IDS[2:])
    assert all((0 < old <= 2) == (new == 1) for old, new in zip(before, after, strict=True))


def test_names() -> None:
    name = combined([variant_name("one", "a"), variant_name("prices", "other")])
    assert variants_in(name) == {"one": "a", "prices": "other"}
    assert variants_in("default") == {}


def test_the_digest_is_of_what_is_compared(tmp_path: Path) -> None:
    one = experiments(tmp_path)[0]
    assert one.digest == experiments(tmp_path)[0].digest

    def changed(**fields: object) -> str:
        form = one.form.model_copy(update=fields)
        return Experiment(one.name, one.model, form, one.variants, one.arms, one.by, one.assignment).digest

    assert changed(state="stopped") == changed(everybody="a") == changed(overrides={}) == one.digest
    assert changed(salt="other") != one.digest


def test_a_column_may_be_part_of_a_key() -> None:
    bindings = [SimpleNamespace(keys=("origin", "carrier")), SimpleNamespace(keys=("tailnum",))]
    plan = cast("Plan", SimpleNamespace(bindings=bindings))
    caller: Any = None
    many = Request(
        caller, "m", "", 0.0, 1.0, 2, ([("JFK", "AA"), ("LGA", "UA")], ["N7"]), (), (), (), return_features=False
    )
    assert IdsAt.of(plan, "carrier").first([many]) == ["AA"]
    assert IdsAt.of(plan, "origin").first([many]) == ["JFK"]
    assert IdsAt.of(plan, "tailnum").first([many, many]) == ["N7", "N7"]
