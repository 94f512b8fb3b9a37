"""The client on a real Redis: the right row for every id, one read for many callers, and writes that are seen."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis.asyncio

from featureclient.cache import CacheOptions
from featureclient.client import Ask, ClientOptions, FeatureClient
from featureclient.client.reading import FEW_KEYS
from featureclient.events import Event, ReadShed, RowInvalid, StoreRead, StoreWrite
from featureclient.schema import Catalogue, Id, InvalidId, InvalidTable, UnknownView, View, status
from featureclient.schema.status import describe
from featureclient.store.redis import RedisOptions, RedisStore

CATALOGUE = Catalogue.parse(
    """
entities:
  plane: {tailnum: string}
  hour: {origin: string, hour: int64}
  shop: {shop: int64}
views:
  plane_stats@1:
    entity: plane
    columns:
      number: {dtype: int64, default: -1}
      maker: {dtype: "string[12]", default: ""}
      share: {dtype: float32, default: 0.5}
  weather@1: {entity: hour, columns: {temp: float32}}
  shop@1: {entity: shop, on_missing: reject, ttl: 60s, columns: {size: {dtype: int16, default: 0}}}
"""
)
PLANE = CATALOGUE.view("plane_stats@1")
ABSENT = status.DEFAULTED | status.ABSENT
LONG_S = 5.0


class Opened:
    """A client and what it said."""

    def __init__(self, client: FeatureClient, events: list[Event]) -> None:
        self.client = client
        self.events = events

    def reads(self) -> list[int]:
        """The keys of each read of the store."""
        return [event.keys for event in self.events if isinstance(event, StoreRead)]

    def fetch(self, ids: Sequence[Id], view: View = PLANE) -> "tuple[list[bytes | None], asyncio.Future[None]]":
        now = time.monotonic()
        rows = self.client.lookup(view, ids, now)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.client.fetch([Ask(view, ids, rows)], now + LONG_S, lambda _: done.set_result(None))
        return rows, done


@pytest.fixture
async def opened(redis_url: str) -> AsyncIterator[Opened]:
    events: list[Event] = []
    async with FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url)), on_event=events.append) as client:
        yield Opened(client, events)


Open = Callable[..., Opened]


@pytest.fixture
async def open_more(redis_url: str) -> AsyncIterator[Open]:
    """Clients with options of their own."""
    made: list[FeatureClient] = []

    def make(**options: Any) -> Opened:
        events: list[Event] = []
        client = FeatureClient(
            CATALOGUE, RedisStore(RedisOptions(redis_url)), ClientOptions(**options), on_event=events.append
        )
        made.append(client)
        return Opened(client, events)

    yield make
    for client in made:
        await client.close()


async def write_planes(client: FeatureClient, numbers: Sequence[int], **options: Any) -> None:
    table = {"tailnum": [f"N{i}" for i in numbers], "number": list(numbers), "maker": [f"m{i}" for i in numbers]}
    await client.write("plane_stats@1", table | {"share": [i / 2 for i in numbers]}, **options)


# ── Reading and writing ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_rows_come_back_as_they_were_written(opened: Opened) -> None:
    client = opened.client
    table = pa.table({"tailnum": ["a", "b:{}|%"], "number": [1, None], "maker": ["é", ""], "share": [0.25, np.nan]})
    written = await client.write("plane_stats@1", table, event_time_ms=[client.now_ms() - 5000, -1])
    assert (written.written, written.superseded) == (2, 0)
    for _ in range(2):
        rows = await client.read("plane_stats@1", ["b:{}|%", "gone", "a", "a"])
        assert [describe(one) for one in rows.status] == ["PRESENT", "DEFAULTED (ABSENT)", "PRESENT", "PRESENT"]
        assert rows.columns["number"].tolist() == [-1, -1, 1, 1]
        assert rows.columns["maker"].tolist() == ["", "", "é", "é"]
        assert rows.columns["share"].tolist()[1:] == [0.5, 0.25, 0.25]
        assert rows.valid["number"].tolist() == [False, False, True, True]
        assert rows.age_ms.tolist()[:2] == [-1, -1]
        assert 5000 <= rows.age_ms[2] < 60_000
        assert len(rows) == 4
    assert opened.reads() == [3]
    snapshot = client.snapshot()["plane_stats@1"]
    assert (snapshot.hits, snapshot.misses, snapshot.entries, snapshot.negatives) == (4, 4, 2, 1)


async def test_composite_and_integer_ids(opened: Opened) -> None:
    client = opened.client
    await client.write("weather@1", {"origin": ["JFK", "JFK"], "hour": [5, 6], "temp": [1.5, 2.5]})
    batch = pa.record_batch({"shop": [7, 8], "size": [70, 80]})
    await client.write("shop@1", batch)
    rows = await client.read("weather@1", [("JFK", 6), ("LGA", 5), ("JFK", "5")])
    assert rows.columns["temp"].tolist()[::2] == [2.5, 1.5]
    assert describe(rows.status[1]) == "MISSING (ABSENT)"
    assert np.isnan(rows.columns["temp"][1])
    shops = await client.read("shop@1", ["8", 9, 7])
    assert shops.columns["size"].tolist() == [80, 0, 70]
    assert [describe(one) for one in shops.status] == ["PRESENT", "MISSING (ABSENT)", "PRESENT"]
    assert await client.delete("shop@1", ["8", 9]) == 1
    assert describe((await client.read("shop@1", [8])).status[0]) == "MISSING (ABSENT)"


async def test_event_times_decide_and_are_told(opened: Opened) -> None:
    client = opened.client
    await write_planes(client, [1, 2], event_time_ms=[1000, 3000])
    second = await client.write("plane_stats@1", {"tailnum": ["N1", "N2"], "number": [10, 20]}, event_time_ms=2000)
    assert (second.written, second.superseded) == (1, 1)
    assert (await client.read(PLANE, ["N1", "N2"])).columns["number"].tolist() == [10, 2]
    table = {"tailnum": ["N2"], "number": [30], "event_time_ms": [2500]}
    assert (await client.write(PLANE, table)).superseded == 1
    assert (await client.write(PLANE, table, force=True)).written == 1
    assert (await client.read(PLANE, ["N2"])).columns["number"].tolist() == [30]
    with pytest.raises(InvalidTable, match="in the future"):
        await client.write(PLANE, {"tailnum": ["N1"]}, event_time_ms=client.now_ms() + 3_600_000)


async def test_nothing_of_a_table_with_bad_rows_is_written(opened: Opened) -> None:
    client = opened.client
    with pytest.raises(InvalidTable) as caught:
        await client.write(PLANE, {"tailnum": ["a", "b", "c"], "maker": ["ok", "much too long", "ok"]})
    assert [(bad.row, bad.column) for bad in caught.value.bad_rows] == [(1, "maker")]
    assert (await client.read(PLANE, ["a"])).status.tolist() == [ABSENT]
    with pytest.raises(UnknownView, match="there are: plane_stats@1, shop@1, weather@1"):
        await client.read("planes@1", ["a"])
    with pytest.raises(TypeError, match="a table is"):
        await client.write(PLANE, [1, 2])


async def test_a_bad_id_is_refused_before_anything_is_queued(opened: Opened) -> None:
    now = time.monotonic()
    for wrong in ("x" * 1_000_000, 5, float("nan")):
        with pytest.raises(InvalidId) as caught:
            opened.client.fetch(
                [Ask(PLANE, ["a"], [None]), Ask(PLANE, ["b", "c", wrong], [b"there", None, None])],  # type: ignore[list-item]
                now + 1,
                lambda _: None,
            )
        assert caught.value.position == 2
    assert opened.client.pending_keys == 0
    assert (await opened.client.read(PLANE, ["a"])).status.tolist() == [ABSENT]


# ── The right row for the right id ───────────────────────────────────────────────────────────────────────────────────


async def test_the_right_row_for_any_order_duplicates_hits_misses_and_evictions(open_more: Open) -> None:
    # A cache of about 60 rows of 300, expiring every few milliseconds, so that all of it happens at once.
    cache = CacheOptions(bytes_max=3 * 15_000, expire_s=0.02, absent_expire_s=0.02)
    opened = open_more(cache=cache, read_keys_max=40)
    async with opened.client as client:
        await write_planes(client, range(300))
        chance = random.Random(7)

        async def reader() -> None:
            for _ in range(60):
                wanted = [chance.randrange(-20, 300) for _ in range(chance.choice([1, 3, 50]))]
                rows = await client.read(PLANE, [f"N{i}" for i in wanted], LONG_S)
                assert rows.columns["number"].tolist() == [max(i, -1) for i in wanted]
                assert rows.columns["maker"].tolist() == [f"m{i}" if i >= 0 else "" for i in wanted]
                assert rows.columns["share"].tolist() == [i / 2 if i >= 0 else 0.5 for i in wanted]
                assert rows.status.tolist() == [status.PRESENT if i >= 0 else ABSENT for i in wanted]

        async def writer() -> None:
            for _ in range(100):
                await write_planes(client, chance.sample(range(300), 5))
                await asyncio.sleep(0.001)

        await asyncio.gather(*[reader() for _ in range(16)], writer())
        snapshot = client.snapshot()[PLANE.ref]
        assert snapshot.evictions > 0
        assert snapshot.hits > 0
        assert snapshot.bytes <= snapshot.bytes_max
        assert client.pending_keys == 0


# ── Coalescing ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_callers_of_one_tick_share_one_read(opened: Opened) -> None:
    await write_planes(opened.client, range(50))
    fetched = [opened.fetch([f"N{i % 50}"]) for i in range(200)]
    await asyncio.gather(*[done for _, done in fetched])
    assert opened.reads() == [50]
    assert None not in [rows[0] for rows, _ in fetched]


async def test_views_share_a_read(opened: Opened) -> None:
    await asyncio.gather(
        opened.client.read(PLANE, ["a"]), opened.client.read("shop@1", [1]), opened.client.read(PLANE, ["b"])
    )
    assert opened.reads() == [3]


async def test_reads_are_cut_and_two_are_in_flight(open_more: Open) -> None:
    opened = open_more(read_keys_max=10, reads_in_flight_max=2)
    async with opened.client as client:
        rows, done = opened.fetch([f"N{i}" for i in range(45)])
        assert client.pending_keys == 45
        await done
        assert sorted(opened.reads()) == [5, 10, 10, 10, 10]
        assert None not in rows


async def test_without_a_cache_every_fetch_reads_but_a_tick_shares(open_more: Open) -> None:
    opened = open_more(cache=CacheOptions(enabled=False))
    async with opened.client as client:
        await write_planes(client, [1])
        for _ in range(3):
            rows = await asyncio.gather(*[client.read(PLANE, ["N1"]) for _ in range(5)])
            assert [one.columns["number"].tolist() for one in rows] == [[1]] * 5
        assert opened.reads() == [1, 1, 1]


async def test_done_is_called_once_and_never_inside_fetch(opened: Opened) -> None:
    calls: list[str] = []
    now = time.monotonic()
    await opened.client.read(PLANE, ["cached"])
    cached = opened.client.lookup(PLANE, ["cached"], time.monotonic())
    rows: list[bytes | None] = [None]
    opened.client.fetch([Ask(PLANE, ["cached"], cached)], now + LONG_S, lambda _: calls.append("nothing missing"))
    opened.client.fetch([Ask(PLANE, ["x"], rows)], now + LONG_S, lambda _: calls.append("missing"))
    left = opened.client.fetch([Ask(PLANE, ["y"], [None])], now + LONG_S, lambda _: calls.append("left"))
    left.cancel()
    assert calls == []
    await opened.client.read(PLANE, ["z"])
    await asyncio.sleep(0.01)
    assert calls == ["nothing missing", "missing"]
    assert rows == [opened.client.lookup(PLANE, ["x"], time.monotonic())[0]]


async def test_an_error_of_one_caller_costs_no_other_its_answer(opened: Opened) -> None:
    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))

    def fail(_: Sequence[int]) -> None:
        raise RuntimeError("mine")

    opened.client.fetch([Ask(PLANE, ["a"], [None])], time.monotonic() + LONG_S, fail)
    _, done = opened.fetch(["a"])
    await asyncio.wait_for(done, LONG_S)
    assert told == ["mine"]


async def test_a_cancelled_caller_cancels_no_shared_read(opened: Opened) -> None:
    await write_planes(opened.client, [1])
    first = asyncio.create_task(opened.client.read(PLANE, ["N1"]))
    second = asyncio.create_task(opened.client.read(PLANE, ["N1"]))
    for _ in range(3):
        await asyncio.sleep(0)
    first.cancel()
    assert (await second).columns["number"].tolist() == [1]
    assert opened.reads() == [1]


async def test_callers_beyond_the_bound_are_answered_at_once(open_more: Open) -> None:
    opened = open_more(pending_keys_max=10)
    async with opened.client as client:
        await write_planes(client, range(20))
        rows = await client.read(PLANE, [f"N{i}" for i in range(20)])
        assert rows.status.tolist() == [status.PRESENT] * 10 + [status.DEFAULTED | status.UNREACHED] * 10
        assert [event.keys for event in opened.events if isinstance(event, ReadShed)] == [10]
        assert (await client.read(PLANE, ["N15"])).status.tolist() == [status.PRESENT]


# ── What may be cached ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refused_row_is_told_and_not_cached(opened: Opened, redis_url: str) -> None:
    await write_planes(opened.client, [1, 2])
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        row = await raw.get("hr:{plane:N1}:plane_stats:1")
        assert row is not None
        await raw.set("hr:{plane:N1}:plane_stats:1", row[:-1])
        await raw.set("hr:{plane:N2}:plane_stats:1", row)
        rows = await opened.client.read(PLANE, ["N1", "N2", "N3"])
        assert rows.status.tolist() == [status.DEFAULTED | status.INVALID] * 2 + [ABSENT]
        assert [event.reason for event in opened.events if isinstance(event, RowInvalid)] == ["length", "crc"]
        await raw.set("hr:{plane:N1}:plane_stats:1", row)
    assert (await opened.client.read(PLANE, ["N1"])).status.tolist() == [status.PRESENT]


async def test_a_write_is_seen_by_the_next_read_here(opened: Opened) -> None:
    client = opened.client
    for number in range(30):
        assert (await client.read(PLANE, ["N1", "new"])).columns["number"].tolist()[0] == number - 1
        await client.write(PLANE, {"tailnum": ["N1"], "number": [number]})
    await client.write(PLANE, {"tailnum": ["new"], "number": [5]})
    assert (await client.read(PLANE, ["new"])).columns["number"].tolist() == [5]
    await client.delete(PLANE, ["new"])
    assert (await client.read(PLANE, ["new"])).status.tolist() == [ABSENT]


async def test_writes_and_their_trouble_are_told(opened: Opened) -> None:
    await write_planes(opened.client, [1, 2, 3])
    await opened.client.delete(PLANE, ["N1"])
    told = [(event.rows, event.error) for event in opened.events if isinstance(event, StoreWrite)]
    assert told == [(3, None), (1, None)]


async def test_a_row_ages_in_the_cache(redis_url: str) -> None:
    catalogue = Catalogue.parse(
        "entities: {e: {k: string}}\nviews:\n  v@1: {entity: e, max_age: 10s, columns: {a: int8}}\n"
    )
    now_ms = 1_000_000
    async with FeatureClient(catalogue, RedisStore(RedisOptions(redis_url)), wall_ms=lambda: now_ms) as client:
        await client.write("v@1", {"k": ["x"], "a": [1]})
        now_ms += 10_000
        rows = await client.read("v@1", ["x"])
        assert (describe(rows.status[0]), rows.age_ms.tolist()) == ("PRESENT", [10_000])
        now_ms += 1
        rows = await client.read("v@1", ["x"])
        assert (describe(rows.status[0]), rows.age_ms.tolist()) == ("STALE (EXPIRED)", [10_001])


async def test_a_client_that_is_not_open_says_so(redis_url: str) -> None:
    client = FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url)))
    with pytest.raises(RuntimeError, match="not open"):
        await client.read(PLANE, ["a"])
    with pytest.raises(RuntimeError, match="not open"):
        await client.write(PLANE, {"tailnum": ["a"]})
    async with client:
        await client.read(PLANE, ["a"])
    assert "closed" in repr(client)
    await client.close()


async def test_beside_a_read_few_keys_wait_for_more_but_not_for_long(open_more: Open) -> None:
    opened = open_more(reads_in_flight_max=2, cache=CacheOptions(enabled=False))
    async with opened.client as client:
        await client.read(PLANE, ["connected"])
        read, first_is_answered = client.store.read, asyncio.Event()
        begun: list[int] = []

        async def slow(keys: Sequence[bytes]) -> "list[bytes | None]":
            begun.append(len(keys))
            if len(begun) == 1:
                await first_is_answered.wait()
            return await read(keys)

        client.store.read = slow  # type: ignore[method-assign]  # a seam in time, not in what is done
        waiting = [opened.fetch(["first"])[1]]
        await asyncio.sleep(0)
        waiting.append(opened.fetch(["few"])[1])
        await asyncio.sleep(0)
        assert begun == [1]
        await asyncio.wait_for(waiting[1], LONG_S)  # although the first is still under way
        assert begun == [1, 1]
        waiting.append(opened.fetch([f"many{i}" for i in range(40)])[1])
        await asyncio.wait_for(waiting[2], LONG_S)
        assert begun == [1, 1, 40]
        first_is_answered.set()
        await asyncio.wait_for(waiting[0], LONG_S)


async def test_many_keys_do_not_wait_beside_a_read(open_more: Open) -> None:
    opened = open_more(reads_in_flight_max=2, cache=CacheOptions(enabled=False))
    async with opened.client as client:
        await client.read(PLANE, ["connected"])
        first, second = opened.fetch(["first"]), opened.fetch([f"b{i}" for i in range(3)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        third = opened.fetch([f"c{i}" for i in range(FEW_KEYS)])
        await asyncio.gather(first[1], second[1], third[1])
        assert opened.reads()[-2:] == [4, FEW_KEYS]
