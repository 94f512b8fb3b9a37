"""What every OnlineStore has to do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio

from featureclient.store import OnlineStore, StoreRefused
from featureclient.store.opening import StoreOptions, open_store
from tests.redisfleet import row

LATEST = 10_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of store: its url, and a server to look into it by the reference client."""

    url: str
    server: str
    is_cluster: bool = False


@pytest.fixture(params=["single", "sentinel", "cluster"])
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "sentinel":
        fleet = request.getfixturevalue("redis_sentinels")
        return Kind(fleet.url, fleet.primary.url)
    if request.param == "cluster":
        cluster = request.getfixturevalue("redis_cluster")
        return Kind(cluster.url, cluster.primaries[0].url, is_cluster=True)
    url = request.getfixturevalue("redis_url")
    return Kind(url, url)


@pytest.fixture
async def store(kind: Kind) -> AsyncIterator[OnlineStore]:
    made = open_store(StoreOptions(kind.url, timeout_s=2.0, write_rows_max=3, write_runs_max=2))
    yield made
    await made.close()


@pytest.fixture
async def raw(kind: Kind) -> "AsyncIterator[redis.asyncio.Redis]":
    client = redis.asyncio.RedisCluster if kind.is_cluster else redis.asyncio.Redis
    async with client.from_url(kind.server) as made:
        yield made


async def test_values_come_in_the_order_of_their_keys(store: OnlineStore) -> None:
    await store.ping()
    assert await store.write([b"a", b"b"], [row(1, "a"), row(1, "b")], event_ms_max=LATEST) == 2
    assert await store.read([b"b", b"x", b"a", b"b"]) == [row(1, "b"), None, row(1, "a"), row(1, "b")]
    assert await store.read_primary([b"b", b"x", b"a", b"b"]) == [row(1, "b"), None, row(1, "a"), row(1, "b")]
    assert await store.delete([b"a", b"x"]) == 1
    assert await store.delete([]) == 0
    assert await store.read([b"a"]) == [None]


async def test_a_large_write_goes_in_many_runs(store: OnlineStore) -> None:
    keys = [str(i).encode() for i in range(20)]
    values = [row(1, str(i)) for i in range(20)]
    assert await store.write(keys, values, event_ms_max=LATEST) == 20
    assert await store.read(keys) == values
    assert await store.delete(keys) == 20


async def test_a_row_does_not_wait_for_a_bulk_load(store: OnlineStore) -> None:
    keys = [str(i).encode() for i in range(2000)]
    bulk = asyncio.create_task(store.write(keys, [row(1)] * 2000, event_ms_max=LATEST))
    await asyncio.sleep(0)
    assert await store.write([b"a"], [row(1)], event_ms_max=LATEST) == 1
    assert not bulk.done()
    assert await bulk == 2000
    assert await store.delete(keys) == 2000


async def test_two_writes_of_one_round_trip_each_happen_in_their_order(store: OnlineStore) -> None:
    keys = [b"a", b"b", b"c"]
    writes = [store.write(keys, [row(1, str(i))] * 3, event_ms_max=LATEST) for i in range(50)]
    assert await asyncio.gather(*writes) == [3] * 50
    assert await store.read(keys) == [row(1, "49")] * 3


@pytest.mark.parametrize(
    ("stored", "newer", "force", "stays"),
    [
        (5, 6, False, False),
        (6, 5, False, True),
        (6, 5, True, False),
        (5, 5, False, False),
        (-1, 0, False, False),
        (0, -1, False, True),
        (LATEST, LATEST - 1, False, True),
        (LATEST + 1, 1, False, False),
    ],
)
async def test_event_time_decides(store: OnlineStore, stored: int, newer: int, force: bool, stays: bool) -> None:
    await store.write([b"k"], [row(stored, "first")], event_ms_max=2**53)
    written = await store.write([b"k"], [row(newer, "second")], force=force, event_ms_max=LATEST)
    assert written == (0 if stays else 1)
    assert await store.read([b"k"]) == [row(stored, "first") if stays else row(newer, "second")]


async def test_milliseconds_are_compared_exactly(store: OnlineStore) -> None:
    now = 1_763_900_000_123
    await store.write([b"k"], [row(now)], event_ms_max=now + 9)
    assert await store.write([b"k"], [row(now - 1)], event_ms_max=now + 9) == 0
    assert await store.write([b"k"], [row(now + 1)], event_ms_max=now + 9) == 1


async def test_of_two_rows_in_one_write_the_later_one_stays(store: OnlineStore) -> None:
    written = await store.write([b"k"] * 4, [row(5, "a"), row(7, "b"), row(7, "c"), row(6, "d")], event_ms_max=LATEST)
    assert written == 3
    assert await store.read([b"k"]) == [row(7, "c")]


@pytest.mark.parametrize("garbage", [b"", b"short", b"\2" + row(9)[1:], b"not a row, however long it may be"])
async def test_what_is_not_a_row_is_overwritten(store: OnlineStore, raw: "redis.asyncio.Redis", garbage: bytes) -> None:
    await raw.set("k", garbage)
    assert await store.write([b"k"], [row(1)], event_ms_max=LATEST) == 1
    await raw.delete("k")
    await raw.rpush("k", "a list")
    assert await store.read([b"k"]) == [None]
    assert await store.write([b"k"], [row(1)], event_ms_max=LATEST) == 1
    assert await store.read([b"k"]) == [row(1)]


async def test_only_what_is_absent(store: OnlineStore, raw: "redis.asyncio.Redis") -> None:
    await store.write([b"a"], [row(1, "old")], event_ms_max=LATEST)
    await raw.rpush("list", "x")
    keys = [b"a", b"list", *[str(i).encode() for i in range(20)], b"0"]
    values = [row(9, str(i)) for i in range(len(keys))]
    assert await store.write(keys, values, only_absent=True, ttl_ms=60_000, event_ms_max=LATEST) == 20
    assert await store.read(keys) == [row(1, "old"), None, *values[2:22], values[2]]
    assert 0 < await raw.pttl("0") <= 60_000
    assert await raw.pttl("a") == -1
    assert await store.write([b"b"], [row(1)], only_absent=True, event_ms_max=LATEST) == 1
    assert await raw.pttl("b") == -1
    assert await store.write([], [], only_absent=True, event_ms_max=LATEST) == 0
    with pytest.raises(ValueError, match="only_absent"):
        await store.write([b"c"], [row(1)], only_absent=True, force=True, event_ms_max=LATEST)


async def test_of_many_who_find_nothing_one_stores(store: OnlineStore) -> None:
    counts = await asyncio.gather(
        *[store.write([b"k"], [row(1, str(i))], only_absent=True, event_ms_max=LATEST) for i in range(50)]
    )
    assert sorted(counts) == [0] * 49 + [1]
    assert await store.read([b"k"]) == [row(1, str(counts.index(1)))]


async def test_keys_expire_when_they_are_told_to(store: OnlineStore, raw: "redis.asyncio.Redis") -> None:
    await store.write([b"a"], [row(1)], ttl_ms=60_000, event_ms_max=LATEST)
    assert 0 < await raw.pttl("a") <= 60_000
    await store.write([b"a"], [row(2)], event_ms_max=LATEST)
    assert await raw.pttl("a") == -1
    await store.write([b"a"], [row(3)], ttl_ms=30, event_ms_max=LATEST)
    await asyncio.sleep(0.1)
    assert await store.read([b"a"]) == [None]


async def test_blobs(store: OnlineStore, raw: "redis.asyncio.Redis") -> None:
    assert await store.get_blob("one") is None
    await store.put_blob("one", b"\0data")
    await store.put_blob("two", b"data", ttl_ms=50_000)
    assert await store.get_blob("one") == b"\0data"
    assert 0 < await raw.pttl("hr:blob:two") <= 50_000
    await store.put_blob("one", b"")
    assert await store.get_blob("one") is None


async def test_300_concurrent_callers_are_all_answered(store: OnlineStore) -> None:
    await store.write([b"k"], [row(1)], event_ms_max=LATEST)
    answers = await asyncio.gather(*[store.read([b"k"]) for _ in range(300)])
    assert answers == [[row(1)]] * 300
    counts = await asyncio.gather(*[store.write([b"k"], [row(1)], event_ms_max=LATEST) for _ in range(300)])
    assert counts == [1] * 300


async def test_a_cancelled_read_does_not_leave_its_answer_to_the_next(store: OnlineStore) -> None:
    await store.write([b"a", b"b"], [row(1, "a"), row(1, "b")], event_ms_max=LATEST)
    for turns in range(12):
        task = asyncio.create_task(store.read([b"a"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.gather(*[store.read([b"b"]) for _ in range(4)]) == [[row(1, "b")]] * 4


async def test_a_refusal_is_no_loss_of_connection(kind: Kind, store: OnlineStore, raw: "redis.asyncio.Redis") -> None:
    everywhere: dict[str, Any] = {"target_nodes": "all"} if kind.is_cluster else {}
    await raw.config_set("maxmemory", "1", **everywhere)
    try:
        with pytest.raises(StoreRefused, match="maxmemory"):
            await store.write([b"k"], [row(1)], event_ms_max=LATEST)
        assert await store.read([b"k"]) == [None]
    finally:
        await raw.config_set("maxmemory", "0", **everywhere)
    assert await store.write([b"k"], [row(1)], event_ms_max=LATEST) == 1
