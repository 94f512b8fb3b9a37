"""Rows that the real Feast wrote, read from a real Redis without it. `tools/feast_vectors.py` has recorded them."""

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from featureclient.client import ClientOptions, FeatureClient
from featureclient.events import Event, RowInvalid
from featureclient.feast import Refusal
from featureclient.feast.registry import ImportOptions, import_registry
from featureclient.schema import Catalogue, status
from featureclient.store import Change, KeysChanged, StoreRefused
from featureclient.store.feast import WHOLE_FIELDS_MIN, FeastStore, with_feast
from featureclient.store.opening import StoreOptions, open_store
from featureclient.store.redis import RedisOptions, RedisStore
from tests.redisfleet import Cluster, SentinelFleet

DATA = Path(__file__).resolve().parents[2] / "data" / "feast"
WIDTHS = {"floats": 3, "doubles": 2, "int32s": 3, "int64s": 2, "bools": 2, "times": 2}
LENGTHS = {f"all_types:{name}": width for name, width in WIDTHS.items()} | {"all_types:a_string": 200}
LATEST_MS = 2**62
WAIT_S = 10.0
CATALOGUE_OF_OWN = (
    "entities: {driver: {driver_id: int64}}\nviews:\n  own@1: {entity: driver, columns: {score: float32}}\n"
)
REST = "\n  own@1: {entity: driver, columns: {score: float32}}\n"


def catalogue_of(key_version: int) -> Catalogue:
    options = ImportOptions(lengths=LENGTHS, key_version=key_version)
    return Catalogue.parse(import_registry((DATA / "registry.db").read_bytes(), options).catalogue + REST)


class Recorded:
    """The rows of one version of the keys, put into a Redis."""

    def __init__(self, url: str, key_version: int) -> None:
        found = json.loads((DATA / f"hashes_v{key_version}.json").read_text())
        self.rows: Mapping[str, list[Any]] = found["rows"]
        self.catalogue = catalogue_of(key_version)
        self.url = url
        self.hashes = {
            bytes.fromhex(key): {bytes.fromhex(field): bytes.fromhex(value) for field, value in fields.items()}
            for key, fields in found["hashes"].items()
        }
        self.redis = redis.Redis.from_url(url)
        for key, fields in self.hashes.items():
            self.redis.hset(key, mapping=fields)
        self.refusals: list[Refusal] = []
        self.events: list[Event] = []

    def client(self, **options: Any) -> FeatureClient:
        store = FeastStore(self.store(), self.catalogue.views.values(), on_refused=self.refusals.append)
        # The events are those of the day of recording, or of any other.
        return FeatureClient(
            self.catalogue, store, ClientOptions(read_timeout_s=WAIT_S, **options), on_event=self.events.append
        )

    def store(self) -> RedisStore:
        return RedisStore(RedisOptions(url=self.url, timeout_s=WAIT_S))

    def key(self, driver_id: int) -> bytes:
        wanted = driver_id.to_bytes(8, "little", signed=True) + b"my_project"
        return next(key for key in self.hashes if key.endswith(wanted) and b"city" not in key)

    def ids(self, view: str) -> list[Any]:
        keys = [key.name for key in self.catalogue.view(view).entity.join_keys]
        rows = [tuple(row["id"][key] for key in keys) for row in self.rows[view.partition("@")[0]]]
        return [row[0] if len(row) == 1 else row for row in rows]


@pytest.fixture(params=[3, 2])
def recorded(redis_url: str, request: pytest.FixtureRequest) -> Iterator[Recorded]:
    made = Recorded(redis_url, request.param)
    yield made
    made.redis.close()


@pytest.fixture
def latest(redis_url: str) -> Iterator[Recorded]:
    made = Recorded(redis_url, 3)
    yield made
    made.redis.close()


def as_feast(found: Any) -> Any:
    """What the recording has for one value, as a column of ours has it."""
    if isinstance(found, dict) and "time" in found:
        return int(datetime.fromisoformat(found["time"]).timestamp() * 1000)
    if isinstance(found, dict) and "bytes" in found:
        return base64.b64decode(found["bytes"]).decode()
    return [as_feast(one) for one in found] if isinstance(found, list) else found


def as_ours(name: str, found: Any) -> Any:
    if isinstance(found, np.datetime64):
        return int(found.astype(np.int64))
    if isinstance(found, np.ndarray):
        return found.tolist()
    if name in {"a_json", "strings", "bytess"}:
        return json.loads(found)
    return found.item() if isinstance(found, np.generic) else found


@pytest.mark.parametrize("name", ["driver_hourly_stats", "all_types", "zone_stats", "customer_stats", "trips"])
async def test_every_value_is_the_one_that_feast_reads(recorded: Recorded, name: str) -> None:
    view = recorded.catalogue.view(f"{name}@1")
    assert view.feast is not None
    async with recorded.client() as client:
        rows = await client.read(view, recorded.ids(view.ref))
    assert recorded.refusals == []
    assert {one & status.OUTCOME_MASK for one in rows.status.tolist()} <= {status.PRESENT, status.STALE}
    checked = 0
    for i, expected in enumerate(recorded.rows[name]):
        for column in view.columns:
            wanted = as_feast(expected["features"][view.feast.features.get(column.name, column.name)])
            assert rows.valid[column.name][i] == (wanted is not None)
            if wanted is not None:
                assert as_ours(column.name, rows.columns[column.name][i]) == wanted, column.name
                checked += 1
    assert checked >= len(view.columns)


async def test_the_event_time_is_the_rows_own(latest: Recorded) -> None:
    async with latest.client() as client:
        rows = await client.read("all_types@1", [1001, 1002])
    assert rows.block["event_ms"].tolist() == [1772368215250, 1772368215250 + 3_600_000]


async def test_no_hash_and_no_field_of_the_view_are_absent(latest: Recorded) -> None:
    # 7 has a row of trips only; -5 has a hash, in which there is nothing of all_types.
    async with latest.client() as client:
        rows = await client.read("all_types@1", [7, -5, 1001])
    assert rows.status.tolist()[:2] == [status.MISSING | status.ABSENT] * 2
    assert rows.status[2] == status.PRESENT


async def test_a_field_that_is_not_there_is_null(latest: Recorded) -> None:
    view = latest.catalogue.view("driver_hourly_stats@1")
    key = latest.key(1001)
    latest.redis.hdel(key, bytes.fromhex("6160e3da"))
    async with latest.client() as client:
        rows = await client.read(view, [1001, 1002])
    assert rows.valid["conv_rate"].tolist() == [False, True]
    assert np.isnan(rows.columns["conv_rate"][0])
    assert rows.columns["avg_daily_trips"].tolist() == [10, 200]


async def test_a_row_without_its_time_has_an_unknown_age(latest: Recorded) -> None:
    latest.redis.hdel(latest.key(1001), "_ts:driver_hourly_stats")
    async with latest.client() as client:
        rows = await client.read("driver_hourly_stats@1", [1001])
    assert rows.status.tolist() == [status.PRESENT]
    assert rows.age_ms.tolist() == [-1]


@pytest.mark.parametrize(
    ("field", "value", "reason", "column", "why"),
    [
        ("6160e3da", "200a", "type", "conv_rate", "INT64"),
        ("6160e3da", "3500", "protobuf", "conv_rate", "not a message"),
        ("6160e3da", "a20100", "type", "conv_rate", "MAP"),
        ("5f74733a6472697665725f686f75726c795f7374617473", "ff", "protobuf", "", "_ts:driver_hourly_stats"),
    ],
)
async def test_a_wrong_value_costs_its_row_only_and_says_why(
    latest: Recorded, field: str, value: str, reason: str, column: str, why: str
) -> None:
    key = latest.key(1001)
    assert latest.redis.hset(key, bytes.fromhex(field), bytes.fromhex(value)) == 0
    async with latest.client() as client:
        rows = await client.read("driver_hourly_stats@1", [1001, 1002])
    assert rows.status[0] == status.MISSING | status.INVALID
    assert rows.status[1] & status.CAUSE_MASK != status.INVALID
    assert [(one.reason, one.column, one.key) for one in latest.refusals] == [
        (reason, column, b"hr:{driver:1001}:driver_hourly_stats:1")
    ]
    assert why in latest.refusals[0].why
    assert RowInvalid("driver_hourly_stats@1", reason) in latest.events


async def test_what_is_no_hash_costs_its_row_only(latest: Recorded) -> None:
    latest.redis.set(latest.key(1001), b"text")
    async with latest.client() as client:
        small = await client.read("driver_hourly_stats@1", [1001, 1002])
        large = await client.read("all_types@1", [1001, 1002])
    for rows in (small, large):
        assert rows.status[0] == status.MISSING | status.INVALID
        assert rows.status[1] & status.CAUSE_MASK != status.INVALID
    assert [one.reason for one in latest.refusals] == ["hash", "hash"]


async def test_a_value_that_the_column_cannot_hold_is_refused(latest: Recorded) -> None:
    latest.redis.hset(latest.key(1001), bytes.fromhex("6160e3da"), b"\x35\0\0\0?")
    text = "entities:\n  driver: {driver_id: int64}\nviews:\n  v@1:\n    entity: driver\n    feast: "
    text += "{project: my_project, view: all_types}\n    columns: {a_string: 'string[3]', an_int64: int8}\n"
    catalogue = Catalogue.parse(text)
    store = FeastStore(latest.store(), catalogue.views.values(), on_refused=latest.refusals.append)
    async with FeatureClient(catalogue, store, ClientOptions(read_timeout_s=WAIT_S)) as client:
        rows = await client.read("v@1", [1001, 1002, 1003])
    assert [one & status.CAUSE_MASK for one in rows.status.tolist()] == [status.INVALID] * 3
    assert {one.reason for one in latest.refusals} == {"value"}
    assert "7 bytes of UTF-8 for a string[3]" in latest.refusals[0].why


async def test_own_rows_and_feasts_come_in_one_read_in_order(latest: Recorded) -> None:
    async with latest.client() as client:
        await client.write("own@1", {"driver_id": [1001, 1002], "score": [1.0, 2.0]}, event_time_ms=0)
        own, hourly, every = await asyncio.gather(
            client.read("own@1", [1002, 5, 1001]),
            client.read("driver_hourly_stats@1", [1002, 5, 1001]),
            client.read("all_types@1", [1003, 1001, 1003]),
        )
    assert own.columns["score"].tolist()[::2] == [2.0, 1.0]
    assert hourly.columns["conv_rate"].tolist()[::2] == [0.25, 0.5]
    assert [rows.status[1] & status.CAUSE_MASK for rows in (own, hourly)] == [status.ABSENT] * 2
    assert every.columns["an_int32"].tolist() == [2**31 - 1, 7, 2**31 - 1]


async def test_feasts_rows_are_read_only_and_a_batch_with_one_changes_nothing(latest: Recorded) -> None:
    view = latest.catalogue.view("driver_hourly_stats@1")
    before = latest.redis.hgetall(latest.key(1001))
    async with latest.client() as client:
        with pytest.raises(StoreRefused, match="driver_hourly_stats@1: Feast writes these rows"):
            await client.write(view, {"driver_id": [1001], "conv_rate": [9.0]}, event_time_ms=0)
        with pytest.raises(StoreRefused):
            await client.delete(view, [1001])
        own = b"hr:{driver:1}:own:1"
        with pytest.raises(StoreRefused):
            await client.store.write(
                [own, b"hr:{driver:1001}:driver_hourly_stats:1"], [b"x", b"y"], event_ms_max=LATEST_MS
            )
    assert latest.redis.hgetall(latest.key(1001)) == before
    assert not latest.redis.exists(own)
    assert latest.redis.dbsize() == len(latest.hashes)


async def test_a_hash_of_many_other_views_is_asked_for_fields_and_gives_the_same(latest: Recorded) -> None:
    key = latest.key(1001)
    view = latest.catalogue.view("all_types@1")
    assert len(view.columns) >= WHOLE_FIELDS_MIN
    latest.redis.hset(key, mapping={f"x{i:03}": "1" for i in range(len(view.columns) * 4)})
    store = FeastStore(latest.store(), [view])
    calls = []
    try:
        read = []
        for _ in range(2):
            latest.redis.config_resetstat()
            read.append(await store.read([f"hr:{{driver:{one}}}:all_types:1".encode() for one in range(1001, 1005)]))
            stats = latest.redis.info("commandstats")
            calls.append([stats.get(name, {}).get("calls", 0) for name in ("cmdstat_hgetall", "cmdstat_hmget")])
    finally:
        await store.close()
    assert calls == [[4, 0], [0, 4]]
    assert None not in read[0]
    assert read[0] == read[1]


async def test_every_kind_of_store_can_stand_below(redis_cluster: Cluster, redis_sentinels: SentinelFleet) -> None:
    for url in (redis_cluster.url, redis_sentinels.url):
        store = open_store(StoreOptions(url=url, timeout_s=WAIT_S, connect_timeout_s=WAIT_S))
        found = json.loads((DATA / "hashes_v3.json").read_text())
        catalogue = catalogue_of(3)
        # Written as Feast's clients do, one HSET to the node that has the key.
        await store.query(
            [
                ("HSET", bytes.fromhex(key), *(bytes.fromhex(part) for pair in fields.items() for part in pair))
                for key, fields in found["hashes"].items()
            ]
        )
        async with FeatureClient(
            catalogue,
            with_feast(store, catalogue.views.values()),
            ClientOptions(read_timeout_s=WAIT_S, watch=False),
        ) as client:
            rows = await client.read("driver_hourly_stats@1", [1002, 5, -5, 1001])
            await client.write("own@1", {"driver_id": [1001], "score": [1.0]}, event_time_ms=0)
            own = await client.read("own@1", [1001])
        assert rows.columns["avg_daily_trips"].tolist()[::2] == [200, -3], url
        assert rows.columns["conv_rate"].tolist()[-1] == 0.5
        assert rows.status[1] == status.MISSING | status.ABSENT
        assert own.columns["score"].tolist() == [1.0]


def test_a_catalogue_without_feast_leaves_the_store_as_it_is() -> None:
    store = RedisStore(RedisOptions())
    assert with_feast(store, Catalogue.parse(CATALOGUE_OF_OWN).views.values()) is store


async def test_what_feast_writes_is_told_of_as_rows_of_ours(recorded: Recorded) -> None:
    store = FeastStore(recorded.store(), recorded.catalogue.views.values())
    told: list[Change] = []
    some = asyncio.Event()

    def on_change(change: Change) -> None:
        told.append(change)
        some.set()

    await store.watch([b"hr:{driver:", b"hr:{driver_city:"], on_change)
    try:
        others = recorded.key(1001).replace(b"my_project", b"another")
        with recorded.redis.pipeline() as pipeline:
            pipeline.hset(others, "_ts:driver_hourly_stats", b"")
            pipeline.hset(recorded.key(1001), "_ts:driver_hourly_stats", b"\x08\x01")
            pipeline.execute()
        await asyncio.wait_for(some.wait(), WAIT_S)
        some.clear()
        recorded.redis.set("hr:{driver:5}:own:1", "x")
        await asyncio.wait_for(some.wait(), WAIT_S)
        some.clear()
        trip = next(key for key in recorded.hashes if b"city" in key and b"Bern" in key)
        recorded.redis.hdel(trip, "_ts:trips")
        await asyncio.wait_for(some.wait(), WAIT_S)
    finally:
        await store.close()
    keys = [sorted(change.keys) for change in told if isinstance(change, KeysChanged)]
    assert keys == [
        [b"hr:{driver:1001}:all_types:1", b"hr:{driver:1001}:driver_hourly_stats:1"],
        [b"hr:{driver:5}:own:1"],
        [b"hr:{driver_city:1001|Bern}:trips:1"],
    ]
