"""Feast's values many at a time are what they are one at a time, whatever stands in a hash; and keys come back."""

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featureclient.feast.keys import FeastKeys
from featureclient.feast.rows import FeastRows
from featureclient.feast.value_pb2 import BoolList, DoubleList, FloatList, Int64List, StringList, Value
from featureclient.feast.values import ColumnDecoder, Refused, Trouble, element_of
from featureclient.schema import Catalogue, DType
from featureclient.wire import KeyCodec, RowReader

DTYPES = ["float32", "float64", "int8", "int32", "int64", "bool", "timestamp", "string[5]", "float32[2]", "int8[2]"]
INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
FLOATS = st.floats(width=32)

messages = st.one_of(
    st.builds(lambda one: Value(float_val=one), FLOATS),
    st.builds(lambda one: Value(double_val=one), st.floats()),
    st.builds(lambda one: Value(int32_val=one), INT32),
    st.builds(lambda one: Value(int64_val=one), INT64),
    st.builds(lambda one: Value(bool_val=one), st.booleans()),
    st.builds(lambda one: Value(unix_timestamp_val=one), INT64),
    st.builds(lambda one: Value(string_val=one), st.text(max_size=7)),
    st.builds(lambda one: Value(bytes_val=one), st.binary(max_size=7)),
    st.builds(lambda one: Value(float_list_val=FloatList(val=one)), st.lists(FLOATS, max_size=3)),
    st.builds(lambda one: Value(double_list_val=DoubleList(val=one)), st.lists(st.floats(), max_size=3)),
    st.builds(lambda one: Value(int64_list_val=Int64List(val=one)), st.lists(INT64, max_size=3)),
    st.builds(lambda one: Value(bool_list_val=BoolList(val=one)), st.lists(st.booleans(), max_size=3)),
    st.builds(lambda one: Value(string_list_val=StringList(val=one)), st.lists(st.text(max_size=2), max_size=2)),
).map(Value.SerializeToString)
spoilt = st.builds(
    lambda one, at, by: one[:at] + by + one[at + 1 :], messages, st.integers(0, 12), st.binary(max_size=2)
)
fields = st.one_of(messages, messages, spoilt, st.binary(max_size=14), st.just(b""), st.none())


def same(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def one_by_one(dtype: DType, message: bytes | None) -> tuple[Any, Trouble | None]:
    try:
        return element_of(dtype, message or b""), None
    except Refused as error:
        return None, error.trouble


@given(st.sampled_from(DTYPES), st.lists(fields, max_size=30), st.data())
def test_many_values_are_what_each_of_them_is(text: str, some: list[bytes | None], data: st.DataObject) -> None:
    dtype = DType.parse(text)
    if some and data.draw(st.booleans()):
        some = [data.draw(st.sampled_from(some))] * len(some)  # all alike, as they usually are
    values, null, refused = ColumnDecoder(dtype).decode(some)
    assert values.shape == (len(some), dtype.width)
    for i, message in enumerate(some):
        expected, trouble = one_by_one(dtype, message)
        assert refused.get(i) == trouble
        if trouble is not None:
            continue
        assert bool(null is not None and null[i]) == (expected is None)
        if expected is not None:
            wanted = np.zeros(dtype.width, dtype.numpy)
            wanted[:] = expected
            assert all(map(same, values[i].tolist(), wanted.tolist()))


VIEW = Catalogue.parse(
    "entities: {driver: {driver_id: int64}}\nviews:\n  v@1:\n    entity: driver\n    feast: {project: p, view: v}\n"
    "    columns: {a: float32, b: int64, c: 'string[5]', d: float32, e: bool, f: 'float32[2]'}\n"
).view("v@1")


@given(st.lists(st.lists(fields, min_size=7, max_size=7), min_size=1, max_size=12))
def test_whatever_is_in_a_hash_the_row_is_sound_absent_or_refused_for_a_reason(
    hashes: list[list[bytes | None]],
) -> None:
    keys = [f"hr:{{driver:{i}}}:v:1".encode() for i in range(len(hashes))]
    rows, refusals = FeastRows(VIEW).rows(keys, hashes)
    admitted = RowReader(VIEW).admit(keys, rows, 1.0, 2**63 - 1)
    said = {keys.index(refusal.key): refusal.reason for refusal in refusals}
    for i, found in enumerate(hashes):
        if not any(found):
            assert rows[i] is None
        elif i in said:
            assert admitted.invalid[i] == said[i]
        else:
            # A time before 1970 is the only thing that is left for the reader to refuse.
            assert admitted.invalid.get(i, "event_time") == "event_time"


TRIPS = {
    version: Catalogue.parse(
        "entities: {trip: {name: string, driver_id: int64}}\nviews:\n  v@1:\n    entity: trip\n"
        f"    feast: {{project: p, view: v, key_version: {version}}}\n    columns: {{a: float32}}\n"
    ).view("v@1")
    for version in (2, 3)
}


@given(st.lists(st.tuples(st.text(max_size=20), INT64), max_size=5), st.sampled_from([2, 3]))
def test_keys_come_back(ids: list[tuple[str, int]], version: int) -> None:
    view = TRIPS[version]
    ours = KeyCodec(view).encode(ids)[1]
    keys = FeastKeys(view)
    made = keys.of(ours)
    assert [keys.ours(key) for key in made] == ours
    assert len(set(made)) == len(set(ids))
