"""The client while its Redis is dead, hung, slow, cut off in mid-reply, or answering late."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from featureclient.cache import CacheOptions
from featureclient.client import ClientOptions, FeatureClient, Rows
from featureclient.events import Event, ReadShed, StoreRead, StoreWrite
from featureclient.schema import Catalogue, status
from featureclient.store import StoreUnavailable
from featureclient.store.redis import RedisOptions, RedisStore
from tests.faultproxy import FaultProxy
from tests.ownredis import OwnRedis

CATALOGUE = Catalogue.parse(
    "entities: {e: {k: string}}\nviews:\n  v@1: {entity: e, columns: {a: {dtype: int64, default: -1}}}\n"
)
VIEW = CATALOGUE.view("v@1")
UNREACHED = status.DEFAULTED | status.UNREACHED
STALE = status.STALE | status.UNREACHED
BUDGET_S = 0.05
# How much later than its budget an answer may come on a machine that is busy with other tests.
LATE_S = 0.2


# Without a watch, whose beginning and end make rows be read again: it has tests of its own.
OPTIONS = ClientOptions(
    cache=CacheOptions(expire_s=30.0), read_timeout_s=BUDGET_S, breaker_failures=2, breaker_open_s=0.2, watch=False
)


@asynccontextmanager
async def opened(
    url: str, options: ClientOptions = OPTIONS, timeout_s: float = 0.1
) -> "AsyncIterator[tuple[FeatureClient, list[Event]]]":
    events: list[Event] = []
    store = RedisStore(RedisOptions(url, timeout_s=timeout_s, connect_timeout_s=timeout_s))
    async with FeatureClient(CATALOGUE, store, options, on_event=events.append) as client:
        yield client, events


async def write(client: FeatureClient, value: int, *names: str) -> None:
    await client.write("v@1", {"k": list(names), "a": [value] * len(names)})


async def timed(client: FeatureClient, *names: str) -> tuple[Rows, float]:
    started = time.monotonic()
    rows = await client.read("v@1", list(names))
    return rows, time.monotonic() - started


async def wait_until_present(client: FeatureClient, name: str) -> None:
    """Asking is all it takes: nothing is restarted."""
    give_up_at = time.monotonic() + 5
    while (await client.read("v@1", [name])).status[0] != status.PRESENT:
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.02)


# ── Dead and hung ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_killed_server_costs_nothing_and_nothing_has_to_be_restarted(own_redis: OwnRedis) -> None:
    async with opened(own_redis.url) as (client, events):
        await write(client, 1, "warm", "cold")
        await client.read("v@1", ["warm"])
        own_redis.kill()

        for _ in range(20):
            rows, took_s = await timed(client, "warm", "cold")
            assert rows.status.tolist() == [status.PRESENT, UNREACHED]
            assert rows.columns["a"].tolist() == [1, -1]
            assert took_s < BUDGET_S + LATE_S
        # The breaker keeps it from trying each time.
        assert sum(isinstance(event, StoreRead) for event in events) < 10
        assert sum(isinstance(event, ReadShed) for event in events) > 10
        with pytest.raises(StoreUnavailable):
            await write(client, 2, "warm")

        own_redis.start()
        await asyncio.sleep(OPTIONS.breaker_open_s)
        await client.read("v@1", ["cold"])
        await write(client, 3, "cold")
        await wait_until_present(client, "cold")
        assert (await client.read("v@1", ["cold"])).columns["a"].tolist() == [3]


async def test_a_dead_server_costs_microseconds(own_redis: OwnRedis) -> None:
    async with opened(own_redis.url, replace(OPTIONS, breaker_open_s=60)) as (client, _):
        own_redis.kill()
        for _ in range(5):
            await client.read("v@1", ["a"])
        started = time.process_time()
        for i in range(200):
            assert (await client.read("v@1", [f"k{i}"])).status.tolist() == [UNREACHED]
        assert (time.process_time() - started) / 200 < 0.001


async def test_a_hung_server_costs_the_budget_and_no_more(own_redis: OwnRedis) -> None:
    async with opened(own_redis.url) as (client, _):
        await write(client, 1, "warm", "cold")
        await client.read("v@1", ["warm"])
        own_redis.signal(signal.SIGSTOP)
        try:
            for _ in range(20):
                rows, took_s = await timed(client, "warm", "cold")
                assert rows.status.tolist() == [status.PRESENT, UNREACHED]
                assert took_s < BUDGET_S + LATE_S
        finally:
            own_redis.signal(signal.SIGCONT)
        await wait_until_present(client, "cold")


async def test_a_write_to_a_hung_server_ends_within_its_limit(own_redis: OwnRedis) -> None:
    store = RedisStore(RedisOptions(own_redis.url, write_timeout_s=0.1))
    async with FeatureClient(CATALOGUE, store, OPTIONS) as client:
        await write(client, 1, "a")
        own_redis.signal(signal.SIGSTOP)
        started = time.monotonic()
        try:
            with pytest.raises(StoreUnavailable, match="no answer in time"):
                await write(client, 2, "a")
        finally:
            own_redis.signal(signal.SIGCONT)
        assert time.monotonic() - started < 0.1 + LATE_S
        await write(client, 3, "a")
        await wait_until_present(client, "a")
        assert (await client.read("v@1", ["a"])).columns["a"].tolist() == [3]


async def test_a_server_that_was_restarted_while_idle_is_reached_at_once(own_redis: OwnRedis) -> None:
    async with opened(own_redis.url) as (client, events):
        await write(client, 1, "a")
        await client.read("v@1", ["a"])
        own_redis.kill()
        own_redis.start()
        await write(client, 2, "a")
        assert (await client.read("v@1", ["a"])).columns["a"].tolist() == [2]
        errors = [event.error for event in events if isinstance(event, StoreRead | StoreWrite)]
        assert errors == [None] * 4


async def test_rows_that_expired_are_served_as_stale(own_redis: OwnRedis) -> None:
    options = replace(OPTIONS, cache=CacheOptions(expire_s=0.02))
    async with opened(own_redis.url, options) as (client, _):
        await write(client, 1, "a")
        await client.read("v@1", ["a"])
        own_redis.kill()
        await asyncio.sleep(0.03)
        for _ in range(3):
            rows = await client.read("v@1", ["a", "b"])
            assert rows.status.tolist() == [STALE, UNREACHED]
            assert rows.columns["a"].tolist() == [1, -1]
            assert rows.age_ms[0] >= 0


async def test_an_error_is_never_taken_for_an_absence(own_redis: OwnRedis) -> None:
    async with opened(own_redis.url) as (client, _):
        await client.read("v@1", ["other"])
        own_redis.kill()
        assert (await client.read("v@1", ["a"])).status.tolist() == [UNREACHED]
        assert client.snapshot()["v@1"].negatives == 1
        own_redis.start()
        async with opened(own_redis.url) as (other, _):
            await write(other, 5, "a")
        await wait_until_present(client, "a")


# ── Late, cut and slow replies ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_write_while_its_row_is_read_leaves_nothing_stale(proxy: FaultProxy) -> None:
    options = replace(OPTIONS, read_timeout_s=5.0)
    async with opened(proxy.url, options, timeout_s=5.0) as (client, events):
        await write(client, 1, "a")
        proxy.hold(b"MGET")
        before = asyncio.create_task(client.read("v@1", ["a", "new"]))
        await asyncio.wait_for(proxy.held.wait(), 5)
        # The reply with the old value is on its way. Now the rows are written.
        await write(client, 2, "a", "new")
        after = asyncio.create_task(client.read("v@1", ["a", "new"]))
        await asyncio.sleep(0.05)
        proxy.heal()
        assert (await before).columns["a"].tolist() == [1, -1]
        assert (await after).columns["a"].tolist() == [2, 2]
        for _ in range(3):
            assert (await client.read("v@1", ["a", "new"])).columns["a"].tolist() == [2, 2]
        assert [event.keys for event in events if isinstance(event, StoreRead)] == [2, 2]


@pytest.mark.parametrize("stored_before", [True, False])
async def test_a_row_that_was_written_while_it_was_read_is_not_cached(proxy: FaultProxy, stored_before: bool) -> None:
    options = replace(OPTIONS, read_timeout_s=5.0)
    async with opened(proxy.url, options, timeout_s=5.0) as (client, _):
        if stored_before:
            await write(client, 1, "a")
        proxy.hold(b"MGET")
        before = asyncio.create_task(client.read("v@1", ["a"]))
        await asyncio.wait_for(proxy.held.wait(), 5)
        await write(client, 2, "a")
        proxy.heal()
        assert (await before).columns["a"].tolist() == [1 if stored_before else -1]
        assert (await client.read("v@1", ["a"])).columns["a"].tolist() == [2]


async def test_keys_that_arrive_while_two_reads_are_in_flight_form_the_next(proxy: FaultProxy) -> None:
    async with opened(proxy.url, replace(OPTIONS, read_timeout_s=5.0), timeout_s=5.0) as (client, events):
        proxy.hold(b"MGET")
        waiting = []
        for i in range(6):
            waiting.append(asyncio.create_task(client.read("v@1", [f"k{i}"])))
            await asyncio.sleep(0.01)
        assert client.pending_keys == 6
        proxy.heal()
        await asyncio.gather(*waiting)
        assert [event.keys for event in events if isinstance(event, StoreRead)] == [1, 1, 4]


async def test_a_late_reply_is_still_cached_for_the_next(proxy: FaultProxy) -> None:
    async with opened(proxy.url, timeout_s=5.0) as (client, events):
        await write(client, 1, "a")
        proxy.hold(b"MGET")
        rows, took_s = await timed(client, "a")
        assert rows.status.tolist() == [UNREACHED]
        assert BUDGET_S - 0.002 <= took_s < BUDGET_S + LATE_S
        proxy.heal()
        await asyncio.sleep(0.05)
        assert (await client.read("v@1", ["a"])).status.tolist() == [status.PRESENT]
        assert [event.keys for event in events if isinstance(event, StoreRead)] == [1]


async def test_each_caller_has_a_budget_of_its_own(proxy: FaultProxy) -> None:
    async with opened(proxy.url, timeout_s=5.0) as (client, _):
        await write(client, 1, "a")
        proxy.hold(b"MGET")
        patient = asyncio.create_task(client.read("v@1", ["a"], 5.0))
        hurried = await client.read("v@1", ["a"], 0.02)
        assert hurried.status.tolist() == [UNREACHED]
        proxy.heal()
        assert (await patient).status.tolist() == [status.PRESENT]


@pytest.mark.parametrize("after_bytes", [0, 1, 4, 30, 90])
async def test_a_reply_that_is_cut_is_asked_for_again(proxy: FaultProxy, after_bytes: int) -> None:
    options = replace(OPTIONS, read_timeout_s=2.0)
    async with opened(proxy.url, options, timeout_s=1.0) as (client, _):
        await write(client, 1, "a", "b")
        await client.read("v@1", ["x"])
        proxy.cut(after_bytes)
        asyncio.get_running_loop().call_later(0.02, proxy.heal)
        await client.read("v@1", ["a", "b"])
        await wait_until_present(client, "a")
        assert (await client.read("v@1", ["a", "b"])).columns["a"].tolist() == [1, 1]


async def test_a_reply_that_trickles_ends_with_the_budget(proxy: FaultProxy) -> None:
    async with opened(proxy.url) as (client, _):
        await write(client, 1, "a")
        proxy.trickle(0.02)
        for _ in range(5):
            rows, took_s = await timed(client, "a")
            assert rows.status.tolist() == [UNREACHED]
            assert took_s < BUDGET_S + LATE_S
        proxy.heal()
        await wait_until_present(client, "a")


async def test_many_callers_in_trouble_get_their_own_rows_afterwards(proxy: FaultProxy) -> None:
    names = [f"k{i}" for i in range(60)]
    async with opened(proxy.url, replace(OPTIONS, read_keys_max=7)) as (client, _):
        await client.write("v@1", {"k": names, "a": list(range(60))})

        async def trouble() -> None:
            for after_bytes in (3, 200, 50, 1000):
                proxy.cut(after_bytes)
                await asyncio.sleep(0.03)
                proxy.heal()
                await asyncio.sleep(0.03)

        async def reader(first: int) -> None:
            for i in range(40):
                wanted = [(first + i * step) % 60 for step in (1, 2, 3)]
                rows = await client.read("v@1", [names[one] for one in wanted])
                for one, value, row_status in zip(
                    wanted, rows.columns["a"].tolist(), rows.status.tolist(), strict=True
                ):
                    assert (value, row_status) in {(one, status.PRESENT), (-1, UNREACHED)}
                await asyncio.sleep(0.002)

        await asyncio.gather(trouble(), *[reader(first) for first in range(20)])
        await wait_until_present(client, "k0")


async def test_closing_answers_everybody(proxy: FaultProxy) -> None:
    async with opened(proxy.url, timeout_s=0.2) as (client, _):
        await write(client, 1, "a")
        proxy.hold(b"MGET")
        waiting = [asyncio.create_task(client.read("v@1", [f"k{i}"], 60.0)) for i in range(5)]
        await asyncio.wait_for(proxy.held.wait(), 5)
        late = asyncio.create_task(client.read("v@1", ["late"], 60.0))
        await asyncio.sleep(0)
        await client.close()
        for task in (*waiting, late):
            assert (await task).status.tolist() == [UNREACHED]
        assert client.pending_keys == 0


async def test_a_cancelled_writer_leaves_no_doubt(proxy: FaultProxy) -> None:
    async with opened(proxy.url, timeout_s=5.0) as (client, events):
        await write(client, 1, "a")
        assert (await client.read("v@1", ["a"], 5.0)).columns["a"].tolist() == [1]
        proxy.hold(b"EVAL")
        writer = asyncio.create_task(write(client, 2, "a"))
        await asyncio.wait_for(proxy.held.wait(), 5)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        proxy.heal()
        await asyncio.sleep(0.05)
        # The write went on to its end, and what was cached is forgotten then and not when its caller left.
        assert [event.error for event in events if isinstance(event, StoreWrite)] == [None, None]
        assert (await client.read("v@1", ["a"], 5.0)).columns["a"].tolist() == [2]


async def test_a_server_that_is_not_redis(tmp_path: Path) -> None:
    path = Path("/tmp") / f"headrace-x-{os.getpid()}"

    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(babble, path)
    try:
        async with opened(f"unix://{path}") as (client, _):
            rows, took_s = await timed(client, "a")
            assert rows.status.tolist() == [UNREACHED]
            assert took_s < BUDGET_S + LATE_S
    finally:
        server.close()
        path.unlink(missing_ok=True)


async def test_a_password_that_is_wrong_is_told(own_redis: OwnRedis) -> None:
    with redis.Redis.from_url(own_redis.url) as admin:
        admin.config_set("requirepass", "secret")
    async with opened(own_redis.url) as (client, _):
        with pytest.raises(StoreUnavailable, match=r"[Aa]uth"):
            await client.store.ping()
        assert (await client.read("v@1", ["a"])).status.tolist() == [UNREACHED]
    store = RedisStore(RedisOptions(own_redis.url, password="secret"))
    await store.ping()
    await store.close()
    assert "secret" not in repr(RedisOptions(own_redis.url, password="secret"))
