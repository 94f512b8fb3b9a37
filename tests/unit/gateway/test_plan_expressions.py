"""Expressions: what they compute, and that nothing but arithmetic on columns gets through."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featureclient.schema import Catalogue, DType, View
from gateway.plan import FeaturePlan, Manifest, PlanError, compile_plan
from gateway.plan.expression import EXPRESSION_CHARACTERS_MAX, NODES_MAX, Expression, ExpressionError
from gateway.plan.offline import derive
from gateway.plan.transform import TransformError
from gateway.records.errors import InvalidRequest
from gateway.records.request import Array, Asked, Request
from gateway.records.signature import Signature, TensorSpec

COLUMNS = {
    "distance": DType.parse("float32"),
    "plane.air_time": DType.parse("int32"),
    "late": DType.parse("bool"),
    "maker": DType.parse("string[8]"),
    "emb": DType.parse("float32[3]"),
}
CATALOGUE = Catalogue.parse(
    """
entities:
  plane: {tailnum: string}
views:
  plane@1:
    entity: plane
    columns: {seats: int32, late: bool, speed: {dtype: float32, default: 1.5}, maker: "string[8]"}
"""
)


def expression(text: str, dtype: str = "float64") -> Expression:
    return Expression.compile(text, DType.parse(dtype), COLUMNS)


def value(text: str, *arrays: Any, dtype: str = "float64") -> list[Any]:
    found: list[Any] = expression(text, dtype).evaluate([np.asarray(array) for array in arrays]).tolist()
    return found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os').system('x')", "is not a function here"),
        ("distance.__class__", "no column 'distance.__class__'"),
        ("distance.a.b", "is not a column"),
        ("(lambda: 1)()", "is not a function here"),
        ("[distance for distance in 1]", "an expression has columns, numbers"),
        ("(yield)", "at column 2: an expression has"),
        ("f'{distance}'", "an expression has columns"),
        ("distance[0]", "an expression has columns"),
        ("distance @ 2", "an expression has columns"),
        ("distance if late else 2", r"write where\(condition, this, that\)"),
        ("distance in late", "comparisons are"),
        ("maker + 1", r"'maker' at column 1: is string\[8\]"),
        ("2 * emb", r"'emb' at column 5: is float32\[3\]"),
        ("'a' + distance", "only numbers can be written here"),
        ("True + distance", "only numbers"),
        ("2j * distance", "only numbers"),
        ("1e999 * distance", "is not a finite float64"),
        (f"1{'0' * 400} * distance", "is not a finite float64"),
        ("2 * nope", r"'nope' at column 5: no column 'nope' \(there are: distance, plane.air_time, late, maker, emb\)"),
        ("sqrt + distance", "is a function; call it with 1"),
        ("sqrt(distance, 2)", "sqrt takes 1 argument"),
        ("hypot(distance)", "hypot takes 2 arguments"),
        ("where(distance, 1, 2)", "at column 7: is a number where a condition is needed"),
        ("not distance", "is a number where a condition is needed"),
        ("distance & late", "is a number where a condition is needed"),
        ("where(*distance)", "where takes 3 arguments"),
        ("sqrt(x=distance)", "sqrt takes 1 argument"),
        ("distance)(1", "is not an expression: .* at column 9"),
        ("distance; 1", "is not an expression"),
        ("distance := 1", "is not an expression"),
        ("distance\0", "is not an expression"),
        ("distance # twice", "has a comment"),
        ("1 + 1", "reads no column"),
        ("1 / 0 * distance", "cannot be computed: ZeroDivisionError"),
        ("10.0 ** 400.0 * distance", "cannot be computed: OverflowError"),
        ("distance\n  * nope", "'nope' at column 14"),
        ("x" * (EXPRESSION_CHARACTERS_MAX + 1), f"the limit is {EXPRESSION_CHARACTERS_MAX}"),
        ("+".join(["distance"] * (NODES_MAX // 2 + 1)), f"more than {NODES_MAX} parts"),
        ("(" * 900 + "distance" + ")" * 900, "is not an expression"),
    ],
)
def test_what_is_no_arithmetic_on_columns_is_refused(text: str, said: str) -> None:
    with pytest.raises(ExpressionError, match=said):
        expression(text)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("string[4]", "gives numbers"),
        ("float32[2]", "gives numbers"),
        ("timestamp", "gives"),
        ("bool", "dtype is bool"),
    ],
)
def test_dtypes_that_an_expression_cannot_give(dtype: str, said: str) -> None:
    with pytest.raises(ExpressionError, match=said):
        expression("distance + 1", dtype)


def test_everything_is_a_float64_and_a_bool_counts_as_one() -> None:
    assert value("plane.air_time / 2 + late", np.int32([3, 2**31 - 1]), [True, False]) == [2.5, (2**31 - 1) / 2]
    assert value("distance * 10", np.float32([3e38]))[0] == pytest.approx(3e39)
    assert value("distance * 10", np.float32([3e38]), dtype="float32") == [math.inf]


def test_ieee_arithmetic() -> None:
    assert value("distance / plane.air_time", [1.0, -1.0, 0.0], [0, 0, 0])[:2] == [math.inf, -math.inf]
    assert math.isnan(value("distance / plane.air_time", [0.0], [0])[0])
    assert math.isnan(value("log(distance)", [-1.0])[0])
    assert math.isnan(value("minimum(distance, 1)", [math.nan])[0])
    assert value("distance < 1", [math.nan, 0.5], dtype="bool") == [False, True]
    assert value("where(isnan(distance), -1, distance)", [math.nan, 2.0]) == [-1.0, 2.0]
    assert value("where(plane.air_time > 0, distance / plane.air_time, 0)", [0, 4], [6.0, 8.0]) == [0.0, 2.0]


def test_remainder_floor_and_rounding() -> None:
    assert value("distance % 24", [-1.0, 25.0]) == [23.0, 1.0]
    assert value("distance // 2", [-3.0, 3.0]) == [-2.0, 1.0]
    assert value("round(distance)", [0.5, 1.5, -0.6]) == [0.0, 2.0, -1.0]


def test_conditions() -> None:
    assert value("0 < distance < 3 and not late or distance == 9", [1.0, 1.0, 9.0], [False, True, True]) == [1.0, 0, 1]
    assert value("~late | (distance != 1)", [True, True], [1.0, 2.0], dtype="bool") == [False, True]


def test_integers_saturate() -> None:
    given_ = [1.9, -1.9, math.nan, math.inf, -math.inf, 3e9, 2.0**63]
    assert value("distance", given_, dtype="int32") == [1, -1, 0, 2**31 - 1, -(2**31), 2**31 - 1, 2**31 - 1]
    assert value("distance", given_, dtype="int64") == [1, -1, 0, 2**63 - 1, -(2**63), 3 * 10**9, 2**63 - 1]


FLOATS = st.floats(width=32)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=70))
def test_a_row_does_not_depend_on_its_batch(rows: list[tuple[float, float]]) -> None:
    found = expression("where(distance > plane.air_time, sqrt(abs(distance)) / exp(plane.air_time), sin(distance) % 3)")
    a, b = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    whole = found.evaluate([a, b] if found.names[0] == "distance" else [b, a])
    for row in range(len(rows)):
        assert found.evaluate([a[row : row + 1], b[row : row + 1]]).tobytes() == whole[row : row + 1].tobytes()


@given(FLOATS, FLOATS)
def test_arithmetic_is_that_of_numpy(first: float, second: float) -> None:
    a, b = np.float64([first]), np.float64([second])
    with np.errstate(all="ignore"):
        for text, expected in (
            ("distance + plane.air_time", a + b),
            ("distance - plane.air_time", a - b),
            ("distance * plane.air_time", a * b),
            ("distance / plane.air_time", a / b),
        ):
            np.testing.assert_array_equal(expression(text).evaluate([a, b]), expected)


class Waiting:
    """A caller that stays."""

    cancelled = False


def doubled(*, value: Array) -> Mapping[str, Array]:
    return {"twice": value * np.float32(2)}


def resolve(reference: str) -> Any:
    if reference != "t:doubled":
        raise TransformError(f"no {reference}")
    return doubled


MANIFEST = {
    "name": "m",
    "views": {"plane": {"view": "plane@1"}},
    "context": {"distance": "float32"},
    "transforms": [{"function": "t:doubled", "inputs": {"value": "plane.speed"}, "outputs": {"twice": "float32"}}],
    "derive": {
        "hours": {"expression": "where(twice > 0, distance / twice, 0)", "dtype": "float32"},
        "per_seat": {"expression": "hours / plane.seats + plane.late", "dtype": "float32"},
    },
    "inputs": {"x": ["plane.seats", "hours", "per_seat"]},
}


def compiled(**changes: Any) -> FeaturePlan:
    signature = Signature((TensorSpec("x", "float32", (None, 3)),), (TensorSpec("score", "float32", (None, 1)),))
    return compile_plan(Manifest.model_validate({**MANIFEST, **changes}), CATALOGUE, signature, resolve)


def problems(**changes: Any) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(PlanError) as caught:
        compiled(**changes)
    return dict(caught.value.problems)


def row(view: View, seats: int, late: bool, speed: float) -> bytes:
    block = np.zeros(1, view.layout.block_dtype)
    for name, one in (("seats", seats), ("late", late), ("speed", speed)):
        place = view.layout.places[name]
        block[place.run][0, place.start] = one
    return block.tobytes()


def test_served_and_offline_values_are_the_same_bits() -> None:
    plan, view = compiled(), CATALOGUE.view("plane@1")
    chance = np.random.default_rng(5)
    seats, speed = chance.integers(0, 4, 100), chance.normal(0, 3, 100).astype(np.float32)
    late, distance = chance.random(100) < 0.5, chance.random(100) * 1000
    asked = Asked({"tailnum": [str(i) for i in range(100)]}, {"distance": distance.astype(np.float32)}, {}, (), False)
    bound = plan.bind(asked, 1000)
    request = Request(
        Waiting(), "m", "", 0.0, 9.9, bound.rows, bound.ids, bound.context, bound.overrides, bound.outputs, False
    )
    stored = [row(view, *one) for one in zip(seats.tolist(), late.tolist(), speed.tolist(), strict=True)]
    served = plan.assemble([request], [stored], 0).inputs["x"]
    table = {"plane.seats": seats, "plane.late": late, "plane.speed": speed, "distance": distance, "unused": "x"}
    offline = derive(Manifest.model_validate(MANIFEST), CATALOGUE, table, resolve)
    assert list(offline) == ["twice", "hours", "per_seat"]
    assert offline["hours"].tobytes() == np.ascontiguousarray(served[:, 1]).tobytes()
    assert offline["per_seat"].tobytes() == np.ascontiguousarray(served[:, 2]).tobytes()
    assert np.isinf(served).any()  # seats are 0 somewhere, and the division is one
    assert np.isfinite(served).any()


def test_problems_are_named_with_their_place() -> None:
    said = problems(
        derive={
            "early": {"expression": "later + 1", "dtype": "float32"},
            "later": {"expression": "distance", "dtype": "float33"},
            "distance": {"expression": "twice", "dtype": "float32"},
        }
    )
    assert said[("derive", "early", "expression")].startswith(
        "'later' at column 1: no column 'later' (there are: plane."
    )
    assert "float33" in said[("derive", "later", "dtype")]
    assert said[("derive", "distance")] == "the name 'distance' is taken"


def test_an_offline_table_has_to_have_what_is_read() -> None:
    manifest = Manifest.model_validate(MANIFEST)
    good = {"plane.seats": [1], "plane.late": [True], "plane.speed": [2.0], "distance": [4.0]}
    assert derive(manifest, CATALOGUE, good, resolve)["hours"].tolist() == [1.0]
    with pytest.raises(InvalidRequest, match="the table has no column 'distance'"):
        derive(manifest, CATALOGUE, {name: good[name] for name in good if name != "distance"}, resolve)
    with pytest.raises(InvalidRequest, match="different lengths"):
        derive(manifest, CATALOGUE, {**good, "distance": [1.0, 2.0]}, resolve)
    with pytest.raises(InvalidRequest, match=r"needs int32"):
        derive(manifest, CATALOGUE, {**good, "plane.seats": [1.5]}, resolve)
    with pytest.raises(PlanError, match="transform_modules"):
        derive(manifest, CATALOGUE, good)
