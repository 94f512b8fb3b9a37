"""Rows on the wire: golden bytes, what is refused, nulls, revisions, statuses and ages."""

import json
import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest

from featureclient.schema import Catalogue, View, ages_ms, apply_age, status
from featureclient.schema.status import describe
from featureclient.wire import KeyCodec, RowReader, RowWriter, refused, with_status
from featureclient.wire.reader import REASONS, REFUSALS, fresh_until_of

GOLDEN = json.loads(Path(__file__).parents[2].joinpath("data/row_format.json").read_text(encoding="utf-8"))
NOW_MS = 2_000_000_000_000


def view_of(columns: str, *revisions: str, entity: str = "plane", name: str = "plane_stats", rest: str = "") -> View:
    earlier = "".join(f"\n      - {{{revision}}}" for revision in revisions)
    text = f"""
entities: {{{entity}: {{id: string}}}}
views:
  {name}@1:
    entity: {entity}
    columns: {{{columns}}}
    {rest}
    revisions:{earlier or " []"}
"""
    return Catalogue.parse(text).view(f"{name}@1")


def golden_view() -> View:
    return view_of(", ".join(f"{name}: '{dtype}'" for name, dtype in GOLDEN["columns"].items()))


def encode(view: View, table: dict[str, Any], event_ms: int = 5) -> tuple[list[bytes], list[bytes]]:
    encoded = RowWriter(view, KeyCodec(view)).encode(table, event_ms, NOW_MS)
    assert not encoded.bad_rows
    return list(encoded.keys), list(encoded.values)


def block_of(view: View, rows: "list[bytes | None]") -> npt.NDArray[Any]:
    return np.frombuffer(b"".join([row or b"" for row in rows]), view.layout.block_dtype)


def column(view: View, block: npt.NDArray[Any], name: str) -> list[Any]:
    run, start, width = view.layout.places[name]
    values: list[Any] = block[run][:, start : start + width].tolist()
    return [value[0] if width == 1 else value for value in values]


# ── Golden bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_fingerprint_is_the_golden_one() -> None:
    assert golden_view().fingerprint == GOLDEN["fingerprint"]


@pytest.mark.parametrize("golden", [row for row in GOLDEN["rows"] if not row["computed"]], ids=lambda row: row["name"])
def test_the_writer_makes_the_golden_bytes(golden: dict[str, Any]) -> None:
    view = golden_view()
    values = [value if valid else None for value, valid in zip(golden["values"], golden["valid"], strict=True)]
    table = {"id": [golden["id"]]} | {name: [value] for name, value in zip(GOLDEN["columns"], values, strict=True)}
    keys, rows = encode(view, table, golden["event_time_ms"])
    assert keys == [golden["key"].encode()]
    # A null of a float column holds NaN when we write it, and a default when others do; readers look at the bit.
    if all(golden["valid"]):
        assert rows[0].hex() == golden["row"]


@pytest.mark.parametrize("golden", GOLDEN["rows"], ids=lambda row: row["name"])
def test_the_reader_takes_the_golden_bytes(golden: dict[str, Any]) -> None:
    view = golden_view()
    assert KeyCodec(view).encode([golden["id"]])[1] == [golden["key"].encode()]
    rows, invalid = RowReader(view).admit([golden["key"].encode()], [bytes.fromhex(golden["row"])], 1.0, NOW_MS)
    assert not invalid
    block = block_of(view, rows)
    # Also one that was computed: it is stored now, and its flag only says where it came from.
    assert block["status"].tolist() == [status.PRESENT]
    assert block["event_ms"].tolist() == [golden["event_time_ms"]]
    for name, value, valid in zip(GOLDEN["columns"], golden["values"], golden["valid"], strict=True):
        if valid:
            expected = value.encode() if isinstance(value, str) else value
            assert column(view, block, name) == [expected]


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def sealed(key: bytes, row: bytes) -> bytes:
    """The row with the crc32 that belongs to it."""
    return row[:16] + struct.pack("<I", crc32(key + row[:16] + row[20:])) + row[20:]


def refusal(view: View, key: bytes, row: bytes) -> str | None:
    """Why a row is refused: alone, and among good neighbours, where all are looked at together."""
    rows, invalid = RowReader(view).admit([key], [row], 1.0, NOW_MS)
    assert (rows[0] is None) == bool(invalid)
    (good_key,), (good,) = encode(view, {"id": ["good"]})
    some, refused = RowReader(view).admit([good_key] * 9 + [key], [good] * 9 + [row], 1.0, NOW_MS)
    assert some[9] == rows[0]
    assert None not in some[:9]
    assert refused == ({9: invalid[0]} if invalid else {})
    return invalid.get(0)


def test_every_kind_of_wrong_row_is_refused_with_its_reason() -> None:
    view = view_of("a: int32, s: 'string[4]', b: bool")
    (key,), (row,) = encode(view, {"id": ["x"], "a": [1], "s": ["ok"], "b": [True]})
    assert refusal(view, key, row) is None
    assert refusal(view, key, b"") == "length"
    assert refusal(view, key, row[:-1]) == "length"
    assert refusal(view, key, row + b"\0") == "length"
    assert refusal(view, key, sealed(key, b"\2" + row[1:])) == "format"
    assert refusal(view, key, sealed(key, row[:1] + b"\2" + row[2:])) == "format"
    assert refusal(view, key, sealed(key, row[:2] + b"\1" + row[3:])) == "format"
    assert refusal(view, key, sealed(key, row[:20] + b"\1" + row[21:])) == "format"
    assert refusal(view, key, sealed(key, row[:4] + b"\0\0\0\0" + row[8:])) == "fingerprint"
    assert refusal(view, b"another" + key, row) == "crc"
    assert refusal(view, key, row[:-1] + b"\0") == "crc"
    later = struct.pack("<q", NOW_MS + 1)
    assert refusal(view, key, sealed(key, row[:8] + later + row[16:])) == "event_time"
    assert refusal(view, key, sealed(key, row[:8] + struct.pack("<q", -2) + row[16:])) == "event_time"
    for content in (b"\xff\0\0\0", b"a\0b\0", b"\xc3\0\0\0"):
        assert refusal(view, key, sealed(key, row[:29] + content + row[33:])) == "content"
    assert refusal(view, key, sealed(key, row[:-1] + b"\2")) == "content"
    assert refusal(view, key, sealed(key, row[:29] + b"\xc3\xa9\0\0" + row[33:])) is None
    assert refusal(view, key, sealed(key, row[:1] + b"\1" + row[2:])) is None


def test_reasons_are_the_documented_ones() -> None:
    assert set(REASONS) - set(REFUSALS) == {"length", "format", "fingerprint", "crc", "event_time", "content"}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_a_store_refuses_itself_keeps_its_reason_and_is_no_row(reason: str) -> None:
    reader = RowReader(view_of("a: int32"))
    assert reader.admit([b"k"], [refused(reason)], 1.0, NOW_MS) == ([None], {0: reason})
    assert reader.admit([b"k"], [refused(reason) + b" "], 1.0, NOW_MS) == ([None], {0: "length"})


def test_one_row_cut_short_and_its_neighbour_too_long_do_not_pass_together() -> None:
    view = view_of("a: int32")
    keys, rows = encode(view, {"id": ["x", "y"], "a": [1, 2]})
    _, invalid = RowReader(view).admit(keys, [rows[0][:-1], rows[1] + b"\0"], 1.0, NOW_MS)
    assert invalid == {0: "length", 1: "length"}


def test_good_rows_are_admitted_between_bad_and_absent_ones() -> None:
    view = view_of("a: int32, b: int8, c: int32")
    table = {"id": list("wxyz"), "a": [1, 2, 3, 4], "b": [5, 6, None, 8], "c": [9, 10, 11, 12]}
    keys, rows = encode(view, table)
    stored = [rows[0], None, rows[2], rows[3][:-1]]
    admitted, invalid = RowReader(view).admit(keys, stored, 1.0, NOW_MS)
    assert [row is None for row in admitted] == [False, True, False, True]
    assert invalid == {3: "length"}
    block = block_of(view, admitted)
    assert [column(view, block, name) for name in "abc"] == [[1, 3], [5, 0], [9, 11]]


# ── Nulls and revisions ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_null_reads_as_the_readers_default_and_keeps_its_bit() -> None:
    columns = "a: {dtype: int32, default: %d}, e: 'float32[2]', s: {dtype: 'string[4]', default: none}"
    writer, reader = view_of(columns % 7), view_of(columns % 8)
    keys, rows = encode(writer, {"id": ["x", "y"], "a": [None, 1], "e": [[1, 2], None], "s": [None, "abcd"]})
    block = block_of(reader, list(RowReader(reader).admit(keys, rows, 1.0, NOW_MS).rows))
    assert column(reader, block, "a") == [8, 1]
    assert column(reader, block, "s") == [b"none", b"abcd"]
    assert column(reader, block, "e")[0] == [1, 2]
    assert np.isnan(column(reader, block, "e")[1]).all()
    assert block["valid"].tolist() == [[0b010], [0b101]]


def test_nan_is_a_value_and_not_a_null() -> None:
    view = view_of("a: {dtype: float32, default: 3}")
    keys, rows = encode(view, {"id": ["x"], "a": [float("nan")]})
    block = block_of(view, list(RowReader(view).admit(keys, rows, 1.0, NOW_MS).rows))
    assert np.isnan(column(view, block, "a")[0])
    assert block["valid"].tolist() == [[1]]


def test_rows_of_earlier_revisions_are_upgraded() -> None:
    before = "kept: int16, gone: 'string[4]', wide: float16, tag: 'string[2]'"
    now = "wide: float64, added: {dtype: int8, default: 9}, bare: int8, tag: 'string[4]', kept: int16"
    old, new = view_of(before), view_of(now, "unused: bool", before)
    table = {"id": ["x", "y"], "kept": [-3, None], "gone": ["a", "b"], "wide": [0.5, None], "tag": ["ab", "c"]}
    keys, rows = encode(old, table)
    admitted = RowReader(new).admit(keys, rows, 1.0, NOW_MS)
    assert not admitted.invalid
    block = block_of(new, list(admitted.rows))
    assert column(new, block, "kept") == [-3, 0]
    assert column(new, block, "wide")[0] == 0.5
    assert np.isnan(column(new, block, "wide")[1])
    assert column(new, block, "added") == [9, 9]
    assert column(new, block, "bare") == [0, 0]
    assert column(new, block, "tag") == [b"ab", b"c"]
    # An added column with a default has a value; without one it is null, as the value that is null in the row is.
    assert block["valid"].tolist() == [[0b11011], [0b01010]]
    assert refusal(old, *encode_one(new)) == "fingerprint"


def encode_one(view: View) -> tuple[bytes, bytes]:
    keys, rows = encode(view, {"id": ["x"]})
    return keys[0], rows[0]


def test_rows_of_both_revisions_in_one_read_keep_their_places() -> None:
    old, new = view_of("a: int8"), view_of("b: {dtype: int32, default: 1}, a: int32", "a: int8")
    keys, old_rows = encode(old, {"id": list("uvwx"), "a": [1, 2, 3, 4]})
    _, new_rows = encode(new, {"id": list("uvwx"), "a": [11, 12, 13, 14], "b": [5, 6, 7, None]})
    mixed = [old_rows[0], new_rows[1], old_rows[2], new_rows[3]]
    block = block_of(new, list(RowReader(new).admit(keys, mixed, 1.0, NOW_MS).rows))
    assert column(new, block, "a") == [1, 12, 3, 14]
    assert column(new, block, "b") == [1, 6, 1, 1]


# ── Substitutes, status, age ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("columns", "rest", "outcome"),
    [
        ("a: {dtype: int8, default: 1}", "", status.DEFAULTED),
        ("a: {dtype: int8, default: 1}, b: int8", "", status.MISSING),
        ("a: {dtype: int8, default: 1}", "on_missing: reject", status.MISSING),
    ],
)
def test_a_substitute_says_what_it_is(columns: str, rest: str, outcome: int) -> None:
    view = view_of(columns, rest=rest)
    block = block_of(view, [RowReader(view).substitute(status.UNREACHED)])
    assert block["status"].tolist() == [outcome | status.UNREACHED]
    assert block["event_ms"].tolist() == [-1]
    assert block["valid"].tolist() == [[0]]
    assert column(view, block, "a") == [1]


def test_a_cached_row_carries_its_end_and_another_status_may_be_put_on() -> None:
    view = view_of("a: int32")
    keys, rows = encode(view, {"id": ["x"], "a": [1]})
    (row,) = RowReader(view).admit(keys, rows, 12.5, NOW_MS).rows
    assert row is not None
    assert fresh_until_of(row) == 12.5
    stale = with_status(row, status.STALE | status.UNREACHED)
    block = block_of(view, [row, stale])
    assert [describe(one) for one in block["status"]] == ["PRESENT", "STALE (UNREACHED)"]
    assert block["fresh_until"].tolist() == [12.5, 12.5]
    assert column(view, block, "a") == [1, 1]


def test_ages_and_the_status_of_old_events() -> None:
    view = view_of("a: {dtype: int32, default: 0}", rest="max_age: 10s")
    reader = RowReader(view)
    times = np.array([1000, -1, 90_000])
    encoded = RowWriter(view, KeyCodec(view)).encode({"id": ["x", "y", "z"], "a": [1, 2, 3]}, times, NOW_MS)
    admitted = reader.admit(encoded.keys, encoded.values, 1.0, NOW_MS).rows
    block = block_of(view, [*admitted, reader.substitute(status.ABSENT)])
    assert ages_ms(block["event_ms"], 11_000).tolist() == [10_000, -1, 0, -1]
    assert [describe(one) for one in apply_age(view, block, 11_000)] == ["PRESENT"] * 3 + ["DEFAULTED (ABSENT)"]
    assert [describe(one) for one in apply_age(view, block, 11_001)] == [
        "STALE (EXPIRED)",
        "PRESENT",
        "PRESENT",
        "DEFAULTED (ABSENT)",
    ]
    assert block["status"].tolist()[:3] == [status.PRESENT] * 3
    forever = view_of("a: {dtype: int32, default: 0}")
    assert (apply_age(forever, block, NOW_MS) == block["status"]).all()


def test_a_status_without_a_name_is_described_by_its_number() -> None:
    assert describe(0) == "UNSET"
    assert describe(0xF7) == "7 (0xf0)"
