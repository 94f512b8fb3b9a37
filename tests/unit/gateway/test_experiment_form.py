from dataclasses import dataclass, field
from pathlib import Path

import pytest

from featureclient.schema import ConfigError
from gateway.experiments.experiment import Experiment, load

REFS = ("plane_stats@1", "plane_stats@2", "route_stats@1")


@dataclass
class Shape:
    versions: tuple[int, ...] = (1, 2)
    views: dict[str, str] = field(default_factory=lambda: {"plane_stats": "plane_stats@1", "route": "route_stats@1"})
    columns: tuple[str, ...] = ("tailnum", "origin")
    functions: tuple[str, ...] = ("flights:cyclical_hour",)


def read(tmp_path: Path, text: str) -> tuple[Experiment, ...]:
    path = tmp_path / "experiments.yaml"
    path.write_text(text)
    return load(path, {"delay": Shape()}, REFS)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return [f"{problem.line}: {problem.message}" for problem in caught.value.problems]


SPLIT = """
experiments:
  window:
    model: delay
    variants:
      control: {}
      month: {views: {plane_stats: plane_stats@2}}
    split: {by: tailnum, weights: {control: 50, month: 50}}
    overrides: {month: [N1, 7]}
"""


def test_a_split(tmp_path: Path) -> None:
    (window,) = read(tmp_path, SPLIT)
    assert window.running
    assert window.arms == ("control", "month")
    assert window.variants["month"].views == {"plane_stats": "plane_stats@2"}
    assert window.assignment is not None
    assert window.assignment.assign(["N1", "7"]) == [1, 1]


def test_a_canary_grows_into_the_baseline(tmp_path: Path) -> None:
    text = SPLIT.replace(
        "split: {by: tailnum, weights: {control: 50, month: 50}}",
        "canary: {by: tailnum, baseline: control, candidate: month, steps: ["
        "{share: 1, hold: 10m}, {share: 50, hold: 1h}]}",
    ).replace("    overrides: {month: [N1, 7]}\n", "")
    (window,) = read(tmp_path, text)
    assert window.arms == ("month", "control")
    assert window.assignment is not None
    month = window.assignment.assign([f"N{number}" for number in range(10_000)]).count(0)
    assert 60 < month < 140


def test_a_shadow_by_chance(tmp_path: Path) -> None:
    (window,) = read(
        tmp_path,
        "experiments: {s: {model: delay, variants: {month: {version: 2}}, shadow: {variants: [month]}}}",
    )
    assert (window.arms, window.by, window.assignment) == (("month",), None, None)


def test_every_problem_is_found_with_its_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
experiments:
  one:
    model: dela
    variants: {a: {}, b: {}}
    split: {by: tailnum, weights: {a: 50, b: 50}}
  two:
    model: delay
    variants:
      a: {version: 9}
      b: {views: {plane: plane_stats@2, route: route_stats@7}}
      c: {transforms: {"flights:other": "flights:more"}}
    split: {by: carrier, weights: {a: 50, d: 50}}
    overrides: {c: [N1]}
layers: {x: {two: 60, three: 50}}
""",
    )
    assert found == [
        "4: no model 'dela' (there are: delay)",
        "10: version 9 is not loaded (1, 2 are)",
        "11: the manifest binds no view as 'plane' (it binds: plane_stats, route)",
        "11: no view 'route_stats@7' (there are: plane_stats@1, plane_stats@2, route_stats@1)",
        "12: the manifest has no transform 'flights:other' (it has: flights:cyclical_hour)",
        "13: no variant 'd' (there are: a, b, c)",
        "13: model delay takes no ids in 'carrier' (it takes: tailnum, origin)",
        "14: 'c' is no arm of a split or canary here",
        "15: the shares add up to 110 percent, which is more than all",
        "15: no experiment 'three' (there are: one, two)",
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("split: {by: tailnum, weights: {control: 50, month: 40}}", "the weights add up to 90, not to 100"),
        ("split: {by: tailnum, weights: {control: 101, month: -1}}", "100"),
        ("state: running", "has to be one of split, canary and shadow; this is none"),
        ("canary: {by: tailnum, baseline: a, candidate: a, steps: [{share: 1, hold: 1s}]}", "the same variant"),
        ("canary: {by: tailnum, baseline: control, candidate: month, steps: ["
         "{share: 9, hold: 1s}, {share: 5, hold: 1s}]}",
         "do not grow"),
    ],
)  # fmt: skip
def test_forms_that_cannot_be(tmp_path: Path, wrong: str, said: str) -> None:
    text = SPLIT.replace("split: {by: tailnum, weights: {control: 50, month: 50}}", wrong)
    assert any(said in problem for problem in problems(tmp_path, text))


BOTH = (
    SPLIT
    + """
  other:
    model: delay
    variants: {control: {}, all: {views: {plane_stats: plane_stats@2}}}
    split: {by: tailnum, weights: {control: 50, all: 50}}
"""
)


def test_two_experiments_that_change_the_same_thing_need_one_layer(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, BOTH)
    assert "view plane_stats of model delay, which 'window' changes too" in problem
    window, other = read(tmp_path, BOTH + "layers: {planes: {window: 50, other: 50}}\n")
    assert window.assignment is not None
    assert other.assignment is not None
    ids = [f"A{number}" for number in range(1000)]
    in_both = [
        a != 2 and b != 2 for a, b in zip(window.assignment.assign(ids), other.assignment.assign(ids), strict=True)
    ]
    assert not any(in_both)


def test_a_layer_is_claimed_once(tmp_path: Path) -> None:
    found = problems(tmp_path, BOTH + "layers: {planes: {window: 50, other: 50}, again: {window: 50}}\n")
    assert "'window' is in the layer 'planes' already" in found[-1]
