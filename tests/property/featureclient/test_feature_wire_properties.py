"""For any schema and any values: what was written is read, and what was damaged is not."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featureclient.client.rows import rows_of
from featureclient.schema import Catalogue, Column, DType, Entity, Id, JoinKey, Revision, View
from featureclient.wire import KeyCodec, RowReader, RowWriter

NOW_MS = 10_000
NUMBERS = ["float16", "float32", "float64", "int8", "int16", "int32", "int64"]

dtypes = st.one_of(
    st.sampled_from([*NUMBERS, "bool", "timestamp"]).map(DType.parse),
    st.tuples(st.sampled_from(NUMBERS), st.integers(1, 5)).map(lambda found: DType.parse(f"{found[0]}[{found[1]}]")),
    st.integers(1, 9).map(lambda size: DType.parse(f"string[{size}]")),
)


def scalars(dtype: DType) -> st.SearchStrategy[Any]:
    if dtype.kind == "string":
        text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=dtype.bytes_max)
        return text.filter(lambda one: len(one.encode()) <= (dtype.bytes_max or 0))
    if dtype.kind == "bool":
        return st.booleans()
    if dtype.is_float:
        return st.floats(width=dtype.numpy.itemsize * 8)  # type: ignore[arg-type]  # 16, 32 or 64
    bounds = np.iinfo(dtype.numpy)
    return st.integers(int(bounds.min) + (dtype.kind == "timestamp"), int(bounds.max))


def values(dtype: DType) -> st.SearchStrategy[Any]:
    one = scalars(dtype)
    return one if dtype.length is None else st.lists(one, min_size=dtype.length, max_size=dtype.length)


@st.composite
def tables(draw: st.DrawFn) -> tuple[View, list[str], dict[str, list[Any]]]:
    """A view, ids, and a column of values or nulls for each of its columns."""
    columns = [
        Column(f"c{i}", dtype, draw(st.none() | values(dtype).map(dtype.value_of)))
        for i, dtype in enumerate(draw(st.lists(dtypes, min_size=1, max_size=12)))
    ]
    view = View("v", 1, Entity("e", (JoinKey("k", "string"),)), tuple(columns))
    ids = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=6))
    count = len(ids)
    table = {
        column.name: draw(st.lists(st.none() | values(column.dtype), min_size=count, max_size=count))
        for column in columns
    }
    return view, ids, table


def equal(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f"))


@given(tables(), st.integers(-1, NOW_MS))
def test_what_was_written_is_read(found: tuple[View, list[str], dict[str, list[Any]]], event_ms: int) -> None:
    view, ids, table = found
    encoded = RowWriter(view, KeyCodec(view)).encode({"k": ids, **table}, event_ms, NOW_MS)
    assert not encoded.bad_rows
    admitted, invalid = RowReader(view).admit(encoded.keys, encoded.values, 1.0, NOW_MS)
    assert not invalid
    # The same, when they are so many that they are looked at together.
    assert RowReader(view).admit(list(encoded.keys) * 8, list(encoded.values) * 8, 1.0, NOW_MS) == (admitted * 8, {})
    rows = rows_of(view, ids, [row for row in admitted if row is not None], NOW_MS)
    assert rows.age_ms.tolist() == [-1 if event_ms < 0 else NOW_MS - event_ms] * len(ids)
    for column in view.columns:
        got = rows.columns[column.name]
        for position, written in enumerate(table[column.name]):
            assert rows.valid[column.name][position] == (written is not None)
            expected = column.substitute if written is None else written
            read = got[position]
            if column.dtype.kind == "timestamp":
                read = read.astype(np.int64)
            elif column.dtype.is_float:
                expected = np.asarray(expected, column.dtype.numpy)
            assert equal(expected, read), (column, written, read)


@given(tables(), st.data())
def test_any_damaged_byte_is_noticed(found: tuple[View, list[str], dict[str, list[Any]]], data: st.DataObject) -> None:
    view, ids, table = found
    encoded = RowWriter(view, KeyCodec(view)).encode({"k": ids, **table}, 5, NOW_MS)
    row = bytearray(encoded.values[0])
    row[data.draw(st.integers(0, len(row) - 1))] ^= data.draw(st.integers(1, 255))
    rows, invalid = RowReader(view).admit(encoded.keys[:1], [bytes(row)], 1.0, NOW_MS)
    assert rows == [None]
    assert set(invalid) == {0}
    together = [encoded.values[0]] * 8 + [bytes(row)]
    assert set(RowReader(view).admit([encoded.keys[0]] * 9, together, 1.0, NOW_MS).invalid) == {8}


@given(tables(), st.binary(max_size=80))
def test_garbage_is_never_a_row(found: tuple[View, list[str], dict[str, list[Any]]], garbage: bytes) -> None:
    view, _, _ = found
    rows, invalid = RowReader(view).admit([b"key"], [garbage], 1.0, NOW_MS)
    assert rows == [None]
    assert set(invalid) == {0}


@given(tables())
def test_a_row_is_nobody_elses(found: tuple[View, list[str], dict[str, list[Any]]]) -> None:
    view, ids, table = found
    encoded = RowWriter(view, KeyCodec(view)).encode({"k": ids, **table}, 5, NOW_MS)
    other = KeyCodec(view).encode([ids[0] + "x"])[1]
    assert RowReader(view).admit(other, encoded.values[:1], 1.0, NOW_MS).invalid == {0: "crc"}


@given(tables(), tables())
def test_a_row_of_one_layout_is_never_read_as_another(
    one: tuple[View, list[str], dict[str, list[Any]]], other: tuple[View, list[str], dict[str, list[Any]]]
) -> None:
    view, ids, table = one
    if view.fingerprint == other[0].fingerprint:
        return
    encoded = RowWriter(view, KeyCodec(view)).encode({"k": ids, **table}, 5, NOW_MS)
    assert len(RowReader(other[0]).admit(encoded.keys, encoded.values, 1.0, NOW_MS).invalid) == len(ids)


@given(tables(), st.permutations(range(12)), st.data())
def test_an_upgrade_keeps_what_both_revisions_have(
    found: tuple[View, list[str], dict[str, list[Any]]], order: list[int], data: st.DataObject
) -> None:
    old, ids, table = found
    shuffled = [old.columns[i] for i in order if i < len(old.columns)]
    kept = shuffled[: data.draw(st.integers(0, len(shuffled)))]
    added = Column("added", DType.parse("int16"), 7)
    new = View("v", 1, old.entity, (added, *kept), (Revision.of("v", 1, old.columns),))
    encoded = RowWriter(old, KeyCodec(old)).encode({"k": ids, **table}, 5, NOW_MS)
    admitted, invalid = RowReader(new).admit(encoded.keys, encoded.values, 1.0, NOW_MS)
    assert not invalid
    upgraded = rows_of(new, ids, [row for row in admitted if row is not None], NOW_MS)
    before = RowReader(old).admit(encoded.keys, encoded.values, 1.0, NOW_MS).rows
    plain = rows_of(old, ids, [row for row in before if row is not None], NOW_MS)
    assert upgraded.columns["added"].tolist() == [7] * len(ids)
    for column in kept:
        assert equal(upgraded.columns[column.name], plain.columns[column.name])
        assert equal(upgraded.valid[column.name], plain.valid[column.name])


CATALOGUE = Catalogue.parse(
    """
entities: {e: {a: string, b: int64, c: string}, s: {a: string}}
views:
  v@1: {entity: e, columns: {x: int8}}
  w@1: {entity: s, columns: {x: int8}}
"""
)
texts = st.text(st.sampled_from("ab%:{}|\n\0é2") | st.characters(exclude_categories=["Cs"]), max_size=6)
composite = st.tuples(texts, st.integers(-(2**63), 2**63 - 1), texts)


@given(st.lists(composite, min_size=2, max_size=20, unique=True))
def test_no_two_composite_ids_share_a_key(ids: list[Id]) -> None:
    keys = KeyCodec(CATALOGUE.view("v@1")).encode(ids)[1]
    assert len(set(keys)) == len(ids)


@given(st.lists(texts, min_size=2, max_size=20, unique=True))
def test_no_two_strings_share_a_key_and_a_batch_changes_no_key(ids: list[str]) -> None:
    codec = KeyCodec(CATALOGUE.view("w@1"))
    keys = codec.encode(ids)[1]
    assert len(set(keys)) == len(ids)
    assert keys == [codec.encode([one])[1][0] for one in ids]
    for key in keys:
        assert key.count(b"{") == key.count(b"}") == 1


@pytest.mark.parametrize("pair", [(0.0, 1e-300), (1.0, 1.0000000000000002), (1e9, float("inf"))])
def test_the_ends_of_rows_sort_as_their_bytes(pair: tuple[float, float]) -> None:
    assert struct.pack(">d", pair[0]) < struct.pack(">d", pair[1])
