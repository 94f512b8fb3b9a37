"""Feast's keys and values, as bytes. The vectors are Feast's own."""

import math
import struct
from typing import Any

import numpy as np
import pytest

from featureclient.feast.keys import FeastKeys
from featureclient.feast.murmur import murmur3_32
from featureclient.feast.rows import FeastRows, field_of
from featureclient.feast.value_pb2 import (
    BoolList,
    BytesList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    StringList,
    Value,
)
from featureclient.feast.values import NAT_SECONDS, ColumnDecoder, Refused, value_of
from featureclient.schema import Catalogue, DType, View
from featureclient.wire import KeyCodec

V3 = "0100000002000000090000006472697665725f69640400000008000000e9030000000000006d795f70726f6a656374"
V2 = "020000006472697665725f69640400000008000000e9030000000000006d795f70726f6a656374"


def view_of(keys: str, feast: str = "", columns: str = "{conv_rate: float32}") -> View:
    text = f"entities: {{thing: {keys}}}\nviews:\n  v@1:\n    entity: thing\n"
    text += f"    feast: {{project: my_project, view: driver_hourly_stats{feast}}}\n    columns: {columns}\n"
    return Catalogue.parse(text).view("v@1")


def feast_key(view: View, one: Any) -> bytes:
    return FeastKeys(view).of(KeyCodec(view).encode([one])[1])[0]


@pytest.mark.parametrize(("version", "expected"), [(3, V3), (2, V2)])
def test_the_key_of_a_driver(version: int, expected: str) -> None:
    view = view_of("{driver_id: int64}", f", key_version: {version}")
    assert feast_key(view, 1001).hex() == expected


def test_the_name_of_a_field() -> None:
    assert field_of("driver_hourly_stats", "conv_rate").hex() == "6160e3da"
    assert FeastRows(view_of("{driver_id: int64}")).fields == (bytes.fromhex("6160e3da"), b"_ts:driver_hourly_stats")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 0),
        (b"a", 0x3C2569B2),
        (b"ab", 0x9BBFD75F),
        (b"abc", 0xB3DD93FA),
        (b"abcd", 0x43ED676A),
        (b"hello, world", 0x149BBB7F),
    ],
)
def test_murmur_with_every_length_of_a_last_block(text: bytes, expected: int) -> None:
    assert murmur3_32(text) == expected


def test_several_join_keys_are_sorted_by_name_and_typed() -> None:
    view = view_of("{zone: int64, city: string}", ", key_types: {zone: int32}")
    made = feast_key(view, (-2, "Bern"))
    names = struct.pack("<III4sII4s", 2, 2, 4, b"city", 2, 4, b"zone")
    values = struct.pack("<II4sIIi", 2, 4, b"Bern", 3, 4, -2)
    assert made == names + values + b"my_project"
    assert FeastKeys(view).ours(made) == b"hr:{thing:-2|Bern}:v:1"


@pytest.mark.parametrize("one", ["", "a|b", "%{}:", "é|%7B", "x" * 600])
def test_ids_with_every_escape_come_back(one: str) -> None:
    view = view_of("{name: string}")
    keys = FeastKeys(view)
    ours = KeyCodec(view, id_bytes_max=4000).encode([one])[1]
    made = keys.of(ours)[0]
    assert made == keys.prefix + struct.pack("<II", 2, len(one.encode())) + one.encode() + b"my_project"
    assert keys.ours(made) == ours[0]


def test_an_id_beyond_int32_has_no_key_of_another() -> None:
    view = view_of("{zone: int64}", ", key_types: {zone: int32}")
    assert feast_key(view, 2**31) != feast_key(view, -(2**31))
    assert FeastKeys(view).ours(feast_key(view, 2**31)) is None


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"hr:{thing:1}:v:1",
        bytes.fromhex(V3)[:-1],
        bytes.fromhex(V3).replace(b"my_project", b"another"),
        bytes.fromhex(V3).replace(b"driver_id", b"driverlid"),
        bytes.fromhex(V3)[:30] + b"my_project",
        bytes.fromhex(V3)[:-10] + b"??my_project",
    ],
)
def test_keys_of_others_are_not_taken_for_ours(key: bytes) -> None:
    assert FeastKeys(view_of("{driver_id: int64}")).ours(key) is None


# ── Values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_float_is_five_bytes() -> None:
    assert value_of(bytes.fromhex("350000003f")) == ("FLOAT", 0.5)


@pytest.mark.parametrize("message", [b"", Value(null_val=0).SerializeToString()])  # type: ignore[arg-type]  # 0 is NULL
def test_both_nulls(message: bytes) -> None:
    assert value_of(message) == ("NULL", None)


@pytest.mark.parametrize(
    ("message", "reason", "said"),
    [
        (b"\x35\0", "protobuf", "not a message"),
        (b"\xff" * 12, "protobuf", "not a message"),
        (b"\xa2\x01\x00", "type", "MAP"),
        (b"\xca\x01\x00", "type", "INT64_SET"),
        (b"\xfa\x3f\x00", "type", "1023"),
    ],
)
def test_what_is_no_value_says_so(message: bytes, reason: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        value_of(message)
    assert caught.value.trouble.reason == reason


def decoded(text: str, *messages: Value | bytes | None) -> tuple[list[Any], list[bool], dict[int, str]]:
    raw = [one.SerializeToString() if isinstance(one, Value) else one for one in messages]
    dtype = DType.parse(text)
    values, null, refused = ColumnDecoder(dtype).decode(raw)
    assert values.dtype == dtype.numpy
    assert values.shape == (len(messages), dtype.width)
    nulls = [False] * len(messages) if null is None else null.tolist()
    return values.tolist(), nulls, {i: trouble.reason for i, trouble in refused.items()}


USUAL = [
    ("float32", [Value(float_val=0.5), Value(float_val=-0.0)], [[0.5], [-0.0]]),
    ("float64", [Value(double_val=0.1), Value(double_val=1e300)], [[0.1], [1e300]]),
    ("float64", [Value(float_val=0.5), Value(float_val=1.5)], [[0.5], [1.5]]),
    ("float32", [Value(double_val=0.5), Value(double_val=1.5)], [[0.5], [1.5]]),
    ("float32", [Value(float_val=0.5), Value(double_val=1.5)], [[0.5], [1.5]]),
    ("int32", [Value(int32_val=-1), Value(int32_val=0), Value(int32_val=300)], [[-1], [0], [300]]),
    ("int32", [Value(int64_val=7), Value(int32_val=-(2**31)), Value(int32_val=2**31 - 1)],
     [[7], [-(2**31)], [2**31 - 1]]),
    ("int64", [Value(int64_val=-(2**63)), Value(int64_val=2**63 - 1)], [[-(2**63)], [2**63 - 1]]),
    ("int8", [Value(int32_val=-128), Value(int64_val=127)], [[-128], [127]]),
    ("bool", [Value(bool_val=True), Value(bool_val=False)], [[True], [False]]),
    ("timestamp", [Value(unix_timestamp_val=1), Value(unix_timestamp_val=-60)], [[1000], [-60000]]),
    ("string[6]", [Value(string_val="abc"), Value(string_val=""), Value(string_val="é")],
     [[b"abc"], [b""], ["é".encode()]]),
    ("string[200]", [Value(string_val="x" * 127), Value(string_val="x" * 128)], [[b"x" * 127], [b"x" * 128]]),
    ("string[6]", [Value(bytes_val=b"abc"), Value(uuid_val="u"), Value(json_val="[]")], [[b"abc"], [b"u"], [b"[]"]]),
    ("string[10]", [Value(string_list_val=StringList(val=["a", "é"])), Value(string_list_val=StringList())],
     [['["a","é"]'.encode()], [b"[]"]]),
    ("string[9]", [Value(bytes_list_val=BytesList(val=[b"a"]))], [[b'["a"]']]),
    ("float32[2]", [Value(float_list_val=FloatList(val=[0.5, 1.0]))] * 2, [[0.5, 1.0]] * 2),
    ("float64[2]", [Value(double_list_val=DoubleList(val=[0.1, 1.0]))] * 2, [[0.1, 1.0]] * 2),
    ("float32[2]", [Value(double_list_val=DoubleList(val=[0.5, 1.0]))] * 2, [[0.5, 1.0]] * 2),
    ("int32[2]", [Value(int32_list_val=Int32List(val=[-1, 1]))] * 2, [[-1, 1]] * 2),
    ("int64[2]", [Value(int64_list_val=Int64List(val=[-1, 2**40]))] * 2, [[-1, 2**40]] * 2),
    ("int64[2]", [Value(unix_timestamp_list_val=Int64List(val=[1, 2]))], [[1000, 2000]]),
    ("int8[2]", [Value(bool_list_val=BoolList(val=[True, False]))] * 2, [[1, 0]] * 2),
    ("int8[2]", [Value(int32_list_val=Int32List(val=[-128, 3])), Value(bool_list_val=BoolList(val=[True, False]))],
     [[-128, 3], [1, 0]]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages", "expected"), USUAL)
def test_values_of_every_type(text: str, messages: list[Value], expected: list[Any]) -> None:
    assert decoded(text, *messages) == (expected, [False] * len(messages), {})


@pytest.mark.parametrize(("text", "messages", "expected"), USUAL)
def test_nulls_between_values_of_every_type(text: str, messages: list[Value], expected: list[Any]) -> None:
    null = Value(null_val=0)  # type: ignore[arg-type]  # 0 is NULL
    values, nulls, refused = decoded(text, None, b"", *messages, null)
    assert (nulls, refused) == ([True, True, *[False] * len(messages), True], {})
    assert values[2:-1] == expected


@pytest.mark.parametrize(
    "text",
    ["float32", "float64", "int8", "int64", "bool", "timestamp", "string[4]", "float32[2]", "int32[2]", "int8[2]"],
)
def test_columns_of_nothing_but_nulls_and_of_no_rows(text: str) -> None:
    assert decoded(text, None, b"", None)[1:] == ([True] * 3, {})
    assert decoded(text) == ([], [], {})


@pytest.mark.parametrize(
    ("text", "message", "reason"),
    [
        ("float32", Value(int64_val=1), "type"),
        ("float32", Value(double_val=1e300), "value"),
        ("float32", Value(bool_val=True), "type"),
        ("float16", Value(float_val=1e5), "value"),
        ("int32", Value(int64_val=2**31), "value"),
        ("int8", Value(int32_val=128), "value"),
        ("int64", Value(float_val=1.0), "type"),
        ("int64", Value(unix_timestamp_val=1), "type"),
        ("bool", Value(int32_val=1), "type"),
        ("timestamp", Value(int64_val=1), "type"),
        ("timestamp", Value(unix_timestamp_val=2**61), "value"),
        ("string[3]", Value(string_val="abcd"), "value"),
        ("string[3]", Value(string_val="a\0"), "value"),
        ("string[3]", Value(bytes_val=b"\xff"), "value"),
        ("string[3]", Value(int64_val=1), "type"),
        ("float32[2]", Value(float_list_val=FloatList(val=[1.0])), "value"),
        ("float32[2]", Value(float_list_val=FloatList(val=[1.0] * 3)), "value"),
        ("float32[2]", Value(float_val=1.0), "type"),
        ("int32[2]", Value(bool_list_val=BoolList(val=[True, False])), "type"),
        ("int32[2]", Value(int64_list_val=Int64List(val=[2**40, 0])), "value"),
        ("float32", b"\x35\0\0", "protobuf"),
        ("int64", b"\x20" + b"\xff" * 11, "protobuf"),
        ("int64", b"\x20", "protobuf"),
        ("bool", b"\x38", "protobuf"),
        ("string[3]", b"\x12\x09a", "protobuf"),
        ("string[3]", b"\x12\x02\xff\xff", "protobuf"),
        ("string[3]", b"\x12", "protobuf"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("many", [0, 20])
def test_values_that_are_refused_and_harm_no_other(text: str, message: Value | bytes, reason: str, many: int) -> None:
    dtype = DType.parse(text)
    good = (
        next(
            messages[0]
            for kind, messages, _ in USUAL
            if kind.partition("[")[0] == dtype.kind and ("[" in kind) == ("[" in text)
        )
        if dtype.kind != "float16"
        else Value(float_val=0.5)
    )
    if dtype.kind == "string":
        good = Value(string_val="abc")
    expected = decoded(text, good)[0]
    values, nulls, refused = decoded(text, *[good] * many, message, *[good] * many)
    assert refused == {many: reason}
    assert not any(nulls)
    assert values[:many] + values[many + 1 :] == expected * (2 * many)


@pytest.mark.parametrize(
    ("text", "message", "expected"),
    [
        ("int64", b"\x20\x81\x80\x00", 1),  # a varint that is longer than it has to be
        ("int32", b"\x18\xff\xff\xff\xff\x0f", -1),  # 32 bits of an int32, which protobuf takes, too
        ("bool", b"\x38\x02", True),  # any number but 0
        ("float32", b"\x35\0\0\0\0\x35\0\0\0?", 0.5),  # twice: the last one counts
        ("string[3]", b"\x12\x81\x00a", b"a"),
    ],
)  # fmt: skip
def test_other_spellings_of_a_message_mean_the_same(text: str, message: bytes, expected: Any) -> None:
    assert Value.FromString(message).WhichOneof("val") is not None
    assert decoded(text, message, message) == ([[expected]] * 2, [False] * 2, {})


def test_feasts_nat_is_null_and_special_floats_are_values() -> None:
    assert decoded("timestamp", Value(unix_timestamp_val=NAT_SECONDS), Value(unix_timestamp_val=1))[1:] == (
        [True, False],
        {},
    )
    values, nulls, refused = decoded("float32", Value(double_val=math.inf), Value(double_val=math.nan))
    assert (nulls, refused) == ([False, False], {})
    assert values[0] == [math.inf]
    assert np.isnan(values[1][0])


def test_one_value_shorter_and_the_next_longer_is_seen() -> None:
    values = [b"\x35\0\0\0\x35", b"\x35\0\0\0?"]
    assert decoded("float32", *values)[2] == {}
    shifted = [b"\x35\0\0\0", b"?\x35\0\0\0?"]
    assert set(decoded("float32", *shifted)[2]) == {0, 1}
