"""What callers may write: every form of a column, and every value that is refused."""

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featureclient.schema import Catalogue, DType, InvalidTable
from featureclient.wire import EncodedRows, KeyCodec, RowWriter
from featureclient.wire.columns import ColumnError, convert, given

VIEW = Catalogue.parse(
    """
entities: {route: {origin: string, hour: int64}}
views:
  v@1:
    entity: route
    columns: {i: int8, f: float32, s: "string[4]", b: bool, t: timestamp, e: "float32[2]"}
"""
).view("v@1")


def values_of(text: str, column: Any) -> tuple[list[Any], list[bool], dict[int, str]]:
    dtype = DType.parse(text)
    values, null, bad = convert(dtype, given(column))
    nulls = [False] * len(values) if null is None else null.tolist()
    assert values.dtype == dtype.numpy or values.dtype.kind == dtype.numpy.kind
    return values.tolist(), nulls, bad


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("int8", [1, 2], [1, 2]),
        ("int8", (1, -128), [1, -128]),
        ("int8", np.array([1.0, 2.0]), [1, 2]),
        ("int64", np.array([2**63 - 1], np.uint64), [2**63 - 1]),
        ("int64", [2**63 - 1], [2**63 - 1]),
        ("float32", np.array([1, 2], np.int64), [1.0, 2.0]),
        ("float32", [1, 2.5], [1.0, 2.5]),
        ("float64", pd.Series([1.5, 2.5]), [1.5, 2.5]),
        ("bool", [True, False], [True, False]),
        ("string[4]", ["a", "ñé"], [b"a", "ñé".encode()]),
        ("string[4]", np.array(["a", "b"]), [b"a", b"b"]),
        ("timestamp", np.array([5, 6]), [5, 6]),
        ("timestamp", np.array(["1970-01-01T00:00:01"], "M8[s]"), [1000]),
        ("timestamp", [datetime.datetime(1970, 1, 1, 0, 0, 2, tzinfo=datetime.UTC)], [2000]),
        ("float32[2]", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("float32[2]", np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        ("int8", pa.array([1, 2]), [1, 2]),
        ("int8", pa.chunked_array([[1], [2]]), [1, 2]),
        ("float16", pa.array([0.5]), [0.5]),
        ("string[4]", pa.array(["a", "b"]).dictionary_encode(), [b"a", b"b"]),
        ("string[4]", pa.array(["a"], pa.large_string()), [b"a"]),
        ("timestamp", pa.array([5_000], pa.timestamp("us", "UTC")), [5]),
        ("timestamp", pa.array([1], pa.date32()), [86_400_000]),
        ("bool", pa.array([True, False]), [True, False]),
        ("float32[2]", pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), [[1, 2]]),
        ("float32[2]", pa.array([[0.0, 0.0], [1.0, 2.0]], pa.list_(pa.float32(), 2)).slice(1), [[1, 2]]),
        ("float32[2]", pa.array([[1.0, 2.0]], pa.list_(pa.float64())), [[1, 2]]),
    ],
)
def test_forms_of_a_column(text: str, column: Any, expected: list[Any]) -> None:
    values, nulls, bad = values_of(text, column)
    assert (values, any(nulls), bad) == (expected, False, {})


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("int8", [1, None]),
        ("string[4]", ["a", None]),
        ("bool", [True, None]),
        ("float32", np.ma.masked_array([1.0, 2.0], [False, True])),
        ("float32[2]", np.ma.masked_array([[1, 2], [3, 4]], [[False, False], [True, True]])),
        ("timestamp", np.array([5, "NaT"], "M8[ms]")),
        ("float32[2]", [[1, 2], None]),
        ("int64", pa.array([1, None])),
        ("float64", pa.array([1.0, None])),
        ("string[4]", pa.array(["a", None])),
        ("timestamp", pa.array([5, None], pa.timestamp("ms"))),
        ("float32[2]", pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))),
        ("float32[2]", pa.array([[1.0, 2.0], None], pa.list_(pa.float32()))),
    ],
)
def test_forms_of_a_null(text: str, column: Any) -> None:
    _, nulls, bad = values_of(text, column)
    assert (nulls, bad) == ([False, True], {})


def test_an_arrow_null_beside_a_nan() -> None:
    values, nulls, _ = values_of("float64", pa.array([float("nan"), None]))
    assert np.isnan(values[0])
    assert nulls == [False, True]
    assert values_of("int8", pa.array([None, None]))[1] == [True, True]


@pytest.mark.parametrize(
    ("text", "column", "bad"),
    [
        ("int8", np.array([1, 128]), [1]),
        ("int8", np.array([1, 200], np.uint8), [1]),
        ("int8", np.array([1.5, 2.0]), [0]),
        ("int8", np.array([np.nan, 2.0]), [0]),
        ("int64", np.array([2.0**63, 0]), [0]),
        ("int64", np.array([2**63, 0], np.uint64), [0]),
        ("int8", [1, True], [1]),
        ("int8", [1, "2"], [1]),
        ("float32", np.array([16_777_217, 1]), [0]),
        ("float32", np.array([2**63 - 1, 1]), [0]),
        ("float64", np.array([2**63 - 1, 1]), [0]),
        ("float64", np.array([2**64 - 1, 1], np.uint64), [0]),
        ("float32", np.array([1e39, np.inf]), [0]),
        ("float16", [70000.0, 1.0], [0]),
        ("string[4]", ["abcde", "abcd"], [0]),
        ("string[4]", ["ééé", "éé"], [0]),
        ("string[4]", ["a\0", "a"], [0]),
        ("string[4]", ["a", "\ud800"], [1]),
        ("string[4]", ["a", 1], [1]),
        ("bool", [True, 1], [1]),
        ("timestamp", [5, "x"], [1]),
        ("float32[2]", [[1, 2], [1, 2, 3]], [1]),
        ("float32[2]", [[1, None], [1, 2]], [0]),
        ("float32[2]", np.array([[1e39, 1], [1, 1]]), [0]),
        ("float32[2]", pa.array([[1.0, None], [1.0, 2.0]], pa.list_(pa.float32(), 2)), [0]),
        ("float32[2]", pa.array([[1.0], [1.0, 2.0]]), [0]),
    ],
)
def test_values_that_are_refused_one_by_one(text: str, column: Any, bad: list[int]) -> None:
    assert list(values_of(text, column)[2]) == bad


def test_a_null_is_never_a_bad_value() -> None:
    assert values_of("int8", np.ma.masked_array([1, 1000], [False, True]))[2] == {}


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("int8", np.array(["a"])),
        ("float32", np.array([True])),
        ("bool", np.array([1])),
        ("string[4]", np.array([1])),
        ("string[4]", np.array([b"a"])),
        ("int64", np.array(["2020-01-01"], "M8[s]")),
        ("float32[2]", np.array([1.0])),
        ("float32[2]", np.ones((1, 3))),
        ("float32", np.ones((2, 1))),
        ("float32", "abc"),
        ("float32", 3),
        ("float32", np.array([1j])),
    ],
)
def test_columns_that_are_refused_as_a_whole(text: str, column: Any) -> None:
    with pytest.raises(ColumnError):
        values_of(text, column)


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode(table: dict[str, Any], times: Any = 5, first_row: int = 0, bad_rows_max: int = 20) -> EncodedRows:
    writer = RowWriter(VIEW, KeyCodec(VIEW), bad_rows_max)
    return writer.encode(table, times, 1000, first_row=first_row)


def test_bad_rows_of_all_columns_are_named_together_and_left_out() -> None:
    encoded = encode(
        {
            "origin": ["a", None, "c", "d", "e" * 600],
            "hour": [1, 2, "03", 4, 5],
            "i": [1000, 2, 3, 4, 5],
            "s": ["ok", "ok", "ok", "too long", "ok"],
        },
        first_row=10,
    )
    assert encoded.bad_rows_total == 5
    assert [(bad.row, bad.column) for bad in encoded.bad_rows] == [
        (10, "i"),
        (11, "origin"),
        (12, "hour"),
        (13, "s"),
        (14, ""),
    ]
    assert list(encoded.ids) == []
    good = encode({"origin": ["a", "b"], "hour": [1, 2], "i": [1000, 2]})
    assert list(good.ids) == [("b", 2)]
    assert len(good.keys) == len(good.values) == 1
    assert good.keys[0] == b"hr:{route:b|2}:v:1"


def test_as_many_bad_rows_are_named_as_were_asked_for() -> None:
    encoded = encode({"origin": ["a"] * 9, "hour": range(9), "i": [1000] * 9}, bad_rows_max=3)
    assert (len(encoded.bad_rows), encoded.bad_rows_total) == (3, 9)


@pytest.mark.parametrize("times", [1001, -2, [5, 1001], np.array([1, 2000]), np.array([5, "NaT"], "M8[ms]")])
def test_events_of_the_future_are_bad_rows(times: Any) -> None:
    encoded = encode({"origin": ["a", "b"], "hour": [1, 2]}, times)
    assert encoded.bad_rows[-1].column == "event_time_ms"


@pytest.mark.parametrize("times", ["now", [1, 2, 3], 1.5, [1.5, 2.5]])
def test_event_times_that_are_none(times: Any) -> None:
    with pytest.raises(InvalidTable):
        encode({"origin": ["a", "b"], "hour": [1, 2]}, times)


def test_problems_of_whole_columns_are_named_together() -> None:
    with pytest.raises(InvalidTable) as caught:
        encode({"origin": ["a"], "i": np.array(["x"]), "zz": [1], "b": [1.5]})
    said = str(caught.value)
    assert "no column 'zz'; there are: origin, hour, i, f, s, b, t, e" in said
    assert "hour: the join key is required" in said
    assert "i: <U1 values for a column of int8" in said
    with pytest.raises(InvalidTable, match="different lengths"):
        encode({"origin": ["a"], "hour": [1, 2]})


def test_a_table_without_rows_is_no_trouble() -> None:
    assert encode({"origin": [], "hour": []}).keys == []
