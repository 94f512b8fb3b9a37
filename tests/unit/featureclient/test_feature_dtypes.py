"""Dtypes: their texts, their sizes, their defaults, and what may be widened to what."""

import math

import numpy as np
import pytest

from featureclient.schema import DType


@pytest.mark.parametrize(
    ("text", "size", "element"),
    [
        ("float16", 2, "<f2"),
        ("float64", 8, "<f8"),
        ("int8", 1, "|i1"),
        ("int64", 8, "<i8"),
        ("bool", 1, "|b1"),
        ("timestamp", 8, "<i8"),
        ("string[24]", 24, "|S24"),
        ("float32[16]", 64, "<f4"),
    ],
)
def test_a_dtype_reads_its_own_text_and_knows_its_size(text: str, size: int, element: str) -> None:
    dtype = DType.parse(text)
    assert (str(dtype), dtype.bytes, dtype.numpy.str) == (text, size, element)


@pytest.mark.parametrize(
    "text", ["float33", "string", "string[0]", "float32[0]", "bool[2]", "timestamp[3]", "uint8", ""]
)
def test_a_text_that_is_no_dtype_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        DType.parse(text)


@pytest.mark.parametrize(
    ("text", "written", "value"),
    [
        ("int8", -128, -128),
        ("int32", 3.0, 3),
        ("float32", 1, 1.0),
        ("float32[3]", 2, (2.0, 2.0, 2.0)),
        ("int16[2]", [1, 2], (1, 2)),
        ("string[3]", "añ", "añ"),
        ("bool", True, True),
        ("timestamp", 5, 5),
        ("timestamp", "2013-10-01T00:00:00Z", 1_380_585_600_000),
        ("timestamp", "2013-10-01", 1_380_585_600_000),
    ],
)
def test_a_default_becomes_the_dtypes_value(text: str, written: object, value: object) -> None:
    assert DType.parse(text).value_of(written) == value


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("int8", 128),
        ("int8", 1.5),
        ("int8", True),
        ("float16", 70000),
        ("float32", "1"),
        ("float32[3]", [1, 2]),
        ("string[3]", "añb"),
        ("string[3]", "a\0"),
        ("string[3]", 1),
        ("bool", 1),
        ("timestamp", "yesterday"),
        ("timestamp", 2**63),
    ],
)
def test_a_default_that_the_dtype_cannot_hold_is_refused(text: str, written: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        DType.parse(text).value_of(written)


def test_what_stands_for_nothing() -> None:
    fill = DType.parse("float32").fill
    assert isinstance(fill, float)
    assert math.isnan(fill)
    assert [DType.parse(text).fill for text in ("int8[2]", "bool", "string[2]", "timestamp")] == [(0, 0), False, "", 0]


@pytest.mark.parametrize(
    ("older", "newer", "may"),
    [
        ("int8", "int64", True),
        ("int64", "int8", False),
        ("float16", "float32", True),
        ("int16", "float32", True),
        ("int32", "float32", False),
        ("int32", "float64", True),
        ("int64", "float64", False),
        ("float32", "int64", False),
        ("bool", "int8", False),
        ("string[4]", "string[8]", True),
        ("string[8]", "string[4]", False),
        ("float32[4]", "float64[4]", True),
        ("float32[4]", "float32[5]", False),
        ("timestamp", "int64", False),
    ],
)
def test_only_what_keeps_every_value_is_a_widening(older: str, newer: str, may: bool) -> None:
    assert DType.parse(older).widens_to(DType.parse(newer)) is may


@pytest.mark.parametrize(("older", "newer"), [("int8", "float16"), ("int16", "float32"), ("int32", "float64")])
def test_integers_survive_widening_to_floats(older: str, newer: str) -> None:
    bounds = np.iinfo(older)
    values = np.array([bounds.min, bounds.min + 1, -1, 0, 1, bounds.max - 1, bounds.max], older)
    assert (values.astype(newer).astype(older) == values).all()
