"""The vectorised checks against a naive look at every cell, and what a policy may touch."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from gateway.plan import Assembled
from gateway.records.violations import CHANGED, FLAGGED, HIGH, INFINITE, LOW, NAN, NULL, OK
from tests.checking import assembled, batch, checks, column

NUMBERS = ("plane.speed", "plane.late", "plane.exact", "hour", "weather.temp")
value = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 5.0, -5.0]), st.floats(-9, 9, width=32)
)
rows = st.lists(st.fixed_dictionaries(dict.fromkeys(NUMBERS, value)), min_size=1, max_size=12)
bound = st.one_of(st.none(), st.floats(-5, 5, width=32))


@st.composite
def use(draw: st.DrawFn) -> dict[str, Any]:
    """The check of one column."""
    made: dict[str, Any] = {
        "nan": draw(st.sampled_from(["allow", "refuse"])),
        "infinite": draw(st.sampled_from(["allow", "refuse"])),
        "policy": draw(st.sampled_from(["flag", "clip", "default"])),
        "default": draw(st.floats(-5, 5, width=32)),
    }
    low, high = draw(bound), draw(bound)
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    if low is not None or high is not None:
        made["range"] = {name: one for name, one in (("min", low), ("max", high)) if one is not None}
    elif made["policy"] == "clip" or made["nan"] == made["infinite"] == "allow":
        made |= {"policy": "default", "nan": "refuse"}
    return made


def kinds_of(cell: float, asked: dict[str, Any], *, null: bool) -> int:
    """What is wrong with one cell, spelled out."""
    if null:
        return NULL
    kinds = 0
    bounds = asked.get("range", {})
    if "min" in bounds and cell < bounds["min"]:
        kinds |= LOW
    if "max" in bounds and cell > bounds["max"]:
        kinds |= HIGH
    if math.isnan(cell) and asked["nan"] == "refuse":
        kinds |= NAN
    if math.isinf(cell) and asked["infinite"] == "refuse":
        kinds |= INFINITE
    return kinds


def seen_of(cell: float, asked: dict[str, Any], kinds: int) -> float:
    """What the model sees of one cell, spelled out."""
    if not kinds or asked["policy"] == "flag":
        return cell
    if asked["policy"] == "default" or kinds & (NULL | NAN):
        return float(asked["default"])
    bounds = asked.get("range", {})
    clipped = min(max(cell, bounds.get("min", -math.inf)), bounds.get("max", math.inf))
    return float(asked["default"]) if math.isinf(clipped) else clipped


@given(rows, st.fixed_dictionaries(dict.fromkeys(NUMBERS, use())), st.data())
def test_the_checks_agree_with_a_look_at_every_cell(
    given_rows: list[dict[str, float]], asked: dict[str, Any], data: st.DataObject
) -> None:
    asked["plane.late"]["nulls"] = "refuse"
    nulls = [["plane.late"] if data.draw(st.booleans()) else [] for _ in given_rows]
    made = checks(columns=asked)
    batch_given = batch(given_rows, nulls)
    checked = made.apply(batch_given)
    wanted = np.array(
        [
            [kinds_of(row[name], asked[name], null=name in null) for name in made.names]
            for row, null in zip(given_rows, nulls, strict=True)
        ]
    )
    if not wanted.any():
        assert checked.violations is None
        assert checked.assembled is batch_given
        return
    assert checked.violations is not None
    np.testing.assert_array_equal(checked.violations.kinds, wanted)
    verdicts = [
        max(
            (FLAGGED if asked[name]["policy"] == "flag" else CHANGED)
            for name, kinds in zip(made.names, row, strict=True)
            if kinds
        )
        if row.any()
        else OK
        for row in wanted
    ]
    assert checked.violations.verdicts.tolist() == verdicts
    for index, name in enumerate(made.names):
        seen = [seen_of(row[name], asked[name], int(wanted[n, index])) for n, row in enumerate(given_rows)]
        np.testing.assert_array_equal(column(checked.assembled, name), seen)
    _filled_again(checked.assembled)


@given(rows, st.fixed_dictionaries(dict.fromkeys(NUMBERS, use())))
def test_rows_do_not_see_each_other(given_rows: list[dict[str, float]], asked: dict[str, Any]) -> None:
    made = checks(columns=asked, rows={"violations_max": 2, "policy": "reject"})
    together = made.apply(batch(given_rows))
    for number, row in enumerate(given_rows):
        alone = made.apply(batch([row]))
        for name, array in alone.assembled.inputs.items():
            np.testing.assert_array_equal(together.assembled.inputs[name][number : number + 1], array)
        mask = np.zeros(len(made.names), np.bool_) if alone.violations is None else alone.violations.mask[0]
        found = np.zeros(len(made.names), np.bool_) if together.violations is None else together.violations.mask[number]
        np.testing.assert_array_equal(found, mask)
        refused = together.refused is not None and bool(together.refused[number])
        assert refused == (alone.refused is not None)


def _filled_again(batch_seen: Assembled) -> None:
    """The inputs are those that the plan makes of the blocks and the context of the same batch."""
    for name, array in assembled(batch_seen.blocks, batch_seen.context).inputs.items():
        np.testing.assert_array_equal(array, batch_seen.inputs[name])
