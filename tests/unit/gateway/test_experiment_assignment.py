import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gateway.experiments.assignment import Assignment, Stretches

IDS = [f"N{number}" for number in range(100_000)]
PLANNED = {"a": 50.0, "b": 30.0, "c": 20.0}


def test_weights_are_kept_to() -> None:
    counts = np.bincount(Stretches.of("exp", PLANNED).find(IDS), minlength=4)
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], np.array([*PLANNED.values()]) * len(IDS) / 100).pvalue > 1e-4


@pytest.mark.parametrize(("one", "two"), [("exp", "exp2"), ("exp", "pxe"), ("a", "b"), ("", "x")])
def test_experiments_are_independent(one: str, two: str) -> None:
    """Ids of equal length, whose hashes under a linear function would move together."""
    ids = [f"N{number:05}" for number in range(100_000)]
    table = np.zeros((3, 3))
    np.add.at(table, (Stretches.of(one, PLANNED).find(ids), Stretches.of(two, PLANNED).find(ids)), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_other_processes_agree() -> None:
    """Golden values: an id that was assigned keeps its arm after every release. Python's own hash would fail this."""
    program = (
        "from gateway.experiments.assignment import Stretches;"
        "print(Stretches.of('exp', {'a': 50.0, 'b': 30.0, 'c': 20.0}).find(['N100', 'N101', 'é', '', 7, -1]))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert answers == {f"{GOLDEN}\n"}


GOLDEN = [2, 0, 0, 0, 1, 0]


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=20), st.floats(0, 49), st.floats(0, 49))
def test_growing_one_arm_moves_only_over_the_border(ids: list[str | int], before: float, after: float) -> None:
    small, large = sorted((before, after))
    first = Stretches.of("s", {"new": small}).find(ids)
    second = Stretches.of("s", {"new": large}).find(ids)
    assert all(two == 0 for one, two in zip(first, second, strict=True) if one == 0)


def test_one_layer_excludes_and_two_do_not() -> None:
    layer = Stretches.of("layer", {"x": 40.0, "y": 60.0})
    arms = Stretches.of("x", {"control": 50.0, "new": 50.0})
    x, y = Assignment(arms, layer, 0), Assignment(Stretches.of("y", {"control": 50.0, "new": 50.0}), layer, 1)
    in_x = np.array(x.assign(IDS)) != x.nobody
    in_y = np.array(y.assign(IDS)) != y.nobody
    assert not (in_x & in_y).any()
    assert (in_x | in_y).all()
    assert abs(in_x.mean() - 0.4) < 0.01
    # Where an id stands in the layer says nothing of its arm.
    assert abs(np.mean(np.array(x.assign(IDS))[in_x]) - 0.5) < 0.01


def test_overrides_name_entities() -> None:
    arms = Stretches.of("x", {"control": 50.0, "new": 50.0})
    assigned = Assignment(arms, overrides={"N1": 1, "7": 0}).assign(["N1", 7, "7"])
    assert assigned == [1, 0, 0]


def test_nobody_is_beyond_the_weights() -> None:
    found = Stretches.of("x", {"a": 10.0}).find(IDS)
    assert abs(np.mean(np.array(found) == 0) - 0.1) < 0.005


@pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": 101.0}, {"a": 60.0, "b": 41.0}, {"a": float("nan")}])
def test_impossible_weights(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Stretches.of("x", weights)
