"""What every OnlineStore has to do."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from featureclient.store import OnlineStore, StoreRefused
from featureclient.store.redis import RedisOptions, RedisStore

LATEST = 10_000


def row(event_ms: int, text: str = "") -> bytes:
    return struct.pack("<BBHIqII", 1, 0, 0, 7, event_ms, 0, 0) + text.encode()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[OnlineStore]:
    made = RedisStore(RedisOptions(redis_url, write_rows_max=3, write_runs_max=2))
    yield made
    await made.close()


@pytest.fixture
async def raw(redis_url: str) -> "AsyncIterator[redis.asyncio.Redis]":
    async with redis.asyncio.Redis.from_url(redis_url) as made:
        yield made


async def test_values_come_in_the_order_of_their_keys(store: OnlineStore) -> None:
    await store.ping()
    assert await store.write([b"a", b"b"], [row(1, "a"), row(1, "b")], event_ms_max=LATEST) == 2
    assert await store.read([b"b", b"x", b"a", b"b"]) == [row(1, "b"), None, row(1, "a"), row(1, "b")]
    assert await store.delete([b"a", b"x"]) == 1
    assert await store.delete([]) == 0
    assert await store.read([b"a"]) == [None]


async def test_a_large_write_goes_in_many_runs(store: OnlineStore) -> None:
    keys = [str(i).encode() for i in range(20)]
    values = [row(1, str(i)) for i in range(20)]
    assert await store.write(keys, values, event_ms_max=LATEST) == 20
    assert await store.read(keys) == values
    assert await store.delete(keys) == 20


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


async def test_a_refusal_is_no_loss_of_connection(store: OnlineStore, raw: "redis.asyncio.Redis") -> None:
    await raw.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreRefused, match="maxmemory"):
            await store.write([b"k"], [row(1)], event_ms_max=LATEST)
        assert await store.read([b"k"]) == [None]
    finally:
        await raw.config_set("maxmemory", "0")
    assert await store.write([b"k"], [row(1)], event_ms_max=LATEST) == 1
