"""In which sizes a graph gets its rows, and which settings contradict themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference.batching import Execution, Sizes
from gateway.plan.manifest import ExecutionUse
from gateway.records.request import Array


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_batch_rows": 0}, "max_batch_rows must be at least 1"),
        ({"instances": 0}, "instances must be at least 1"),
        ({"queue_rows_max": 0}, "queue_rows_max must be at least 1"),
        ({"priority_levels": 17}, "at most 16"),
        ({"priority_levels": 2, "default_priority": 3}, "one of the priority_levels"),
        ({"buckets": (8, 1)}, "ascending"),
        ({"buckets": (8, 8)}, "ascending"),
        ({"buckets": (0, 8)}, "ascending"),
        ({"buckets": (8,), "max_batch_rows": 4}, "larger than max_batch_rows"),
        ({"buckets": tuple(range(1, 66))}, "at most 64 buckets"),
    ],
)
def test_settings_that_contradict_themselves(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Execution(**settings)


def test_what_a_manifest_does_not_say_is_the_default() -> None:
    assert Execution.of(ExecutionUse()) == Execution.of(None) == Execution()
    assert Execution.of(ExecutionUse(instances=3, buckets=(1, 8))) == Execution(instances=3, buckets=(1, 8))


@given(
    rows=st.integers(1, 200),
    buckets=st.lists(st.integers(1, 50), max_size=4, unique=True).map(sorted),
    max_batch_rows=st.integers(50, 90),
    fixed_rows=st.none() | st.integers(1, 9),
)
def test_every_row_is_run_once_in_a_size_that_the_graph_takes(
    rows: int, buckets: list[int], max_batch_rows: int, fixed_rows: int | None
) -> None:
    sizes = Sizes(Execution(buckets=tuple(buckets), max_batch_rows=max_batch_rows), fixed_rows)
    seen: list[int] = []

    def run(inputs: Mapping[str, Array]) -> list[Array]:
        assert len(inputs["x"]) == len(inputs["s"])
        seen.append(len(inputs["x"]))
        return [inputs["x"] * 2, inputs["s"]]

    x = np.arange(rows * 3.0).reshape(rows, 3)
    s = np.array([f"row {i}" for i in range(rows)], object)
    doubled, strings = sizes.run(run, {"x": x, "s": s}, rows)
    np.testing.assert_array_equal(doubled, x * 2)
    assert strings.tolist() == s.tolist()
    allowed = {fixed_rows} if fixed_rows is not None else {*buckets}
    assert {*seen} <= allowed if allowed else max(seen) <= max_batch_rows
    assert sum(seen) == rows + sizes.padding(rows)
    assert sizes.fits(rows) == (seen == [rows])


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_an_output_that_is_not_per_row_is_not_hidden_by_cutting_it(shape: tuple[int, ...]) -> None:
    sizes = Sizes(Execution(buckets=(4,)))
    with pytest.raises(ValueError, match="for 4 rows"):
        sizes.run(lambda _: [np.zeros(shape)], {"x": np.zeros((3, 1))}, 3)
