"""Computed rows while the store is dead, hung or late, while the function fails or hangs, and at every bound."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from featureclient.cache import CacheOptions
from featureclient.client import Ask, ClientOptions, FeatureClient
from featureclient.compute import ComputeOptions, Computer
from featureclient.events import (
    ComputeDropped,
    ComputeRefused,
    ComputeRun,
    ComputeWorkerLost,
    Event,
    StoreRead,
    StoreWrite,
    Watched,
)
from featureclient.schema import Catalogue, status
from featureclient.store.redis import RedisOptions, RedisStore
from tests import waiting
from tests.computing import Gate
from tests.faultproxy import FaultProxy
from tests.ownredis import OwnRedis

ABSENT = status.DEFAULTED | status.ABSENT
UNREACHED = status.DEFAULTED | status.UNREACHED
TIMED_OUT = status.DEFAULTED | status.TIMED_OUT
STALE = status.STALE | status.UNREACHED
# What an answer may be late on a machine that is busy with other tests.
LATE_S = 0.5
SOON_S = 15.0
soon = partial(waiting.soon, wait_s=SOON_S)
OPTIONS = ClientOptions(
    cache=CacheOptions(expire_s=600.0, absent_expire_s=600.0),
    read_timeout_s=10.0,
    breaker_failures=2,
    breaker_open_s=0.2,
    watch=False,
)
COMPUTE = ComputeOptions(compute_modules=("tests.computing",), workers=1, breaker_failures=2, breaker_open_s=0.3)


def catalogue_of(function: str, mode: str = "compute", **limits: Any) -> Catalogue:
    more = "".join(f", {name}: {str(value).lower()}" for name, value in {"timeout_ms": 20000, **limits}.items())
    return Catalogue.parse(f"""
entities: {{plane: {{tailnum: string}}}}
views:
  v@1:
    entity: plane
    columns: {{a: {{dtype: int64, default: -1}}, b: {{dtype: float32, default: 0.5}}}}
    on_missing: {mode}
    compute: {{python: "tests.computing:{function}"{more}}}
""")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


class Opened:
    """A client with a computer of its own, and what both have told."""

    def __init__(self, client: FeatureClient, events: list[Event]) -> None:
        self.client, self.events = client, events

    async def one(self, one: str, timeout_s: float | None = None) -> tuple[int, int]:
        rows = await self.client.read("v@1", [one], timeout_s)
        return int(rows.status[0]), int(rows.columns["a"][0])

    async def timed(self, one: str, timeout_s: float) -> tuple[int, int, float]:
        started = time.monotonic()
        return *await self.one(one, timeout_s), time.monotonic() - started

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    def results(self) -> list[str | None]:
        return [run.error for run in self.told(ComputeRun)]


@asynccontextmanager
async def opened(
    catalogue: Catalogue,
    url: str,
    options: ClientOptions = OPTIONS,
    compute: ComputeOptions = COMPUTE,
    timeout_s: float = 0.1,
) -> AsyncIterator[Opened]:
    events: list[Event] = []
    async with Computer(catalogue, compute, on_event=events.append) as computer:
        store = RedisStore(RedisOptions(url, timeout_s=timeout_s, connect_timeout_s=timeout_s))
        async with FeatureClient(catalogue, store, options, computes=computer, on_event=events.append) as client:
            if options.watch:
                await soon(lambda: client.watched)
            yield Opened(client, events)


async def soon_reads(it: Opened, one: str, expected: tuple[int, int]) -> None:
    give_up_at = time.monotonic() + SOON_S
    while (found := await it.one(one)) != expected:
        assert time.monotonic() < give_up_at, f"still {status.describe(found[0])} {found[1]}"
        await asyncio.sleep(0.01)


async def write(url: str, catalogue: Catalogue, one: str, a: int) -> None:
    """Somebody else, at the server itself."""
    async with FeatureClient(catalogue, RedisStore(RedisOptions(url)), OPTIONS) as other:
        await other.write("v@1", {"tailnum": [one], "a": [a]})


# ── The store is away ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_dead_store_has_its_rows_computed_and_old_ones_served(own_redis: OwnRedis) -> None:
    options = replace(OPTIONS, cache=CacheOptions(expire_s=0.05))
    async with opened(catalogue_of("lengths"), own_redis.url, options) as it:
        await it.client.write("v@1", {"tailnum": ["warm"], "a": [42]})
        assert await it.one("warm") == (status.PRESENT, 42)
        own_redis.kill()
        await asyncio.sleep(0.06)
        for _ in range(5):
            assert (await it.timed("warm", 2.0))[:2] == (STALE, 42), "its own row, though old, is better"
        assert it.told(ComputeRun) == []
        made, value, took_s = await it.timed("cold", 2.0)
        assert (made, value) == (status.COMPUTED, 4)
        assert took_s < 2.0
        # It could not be stored, and nobody was harmed.
        await soon(lambda: any(event.error is not None for event in it.told(StoreWrite)))
        own_redis.start()
        await soon_reads(it, "other", (status.PRESENT, 5))


async def test_a_dead_store_is_no_proof_that_there_is_no_row(own_redis: OwnRedis) -> None:
    """The source has no row; whether the store has one cannot be known, so it is not remembered as absent."""
    catalogue = catalogue_of("lengths")
    async with opened(catalogue, own_redis.url) as it:
        own_redis.kill()
        assert await it.one("-x") == (UNREACHED, -1)
        assert it.client.snapshot()["v@1"].negatives == 0
        own_redis.start()
        await write(own_redis.url, catalogue, "-x", 42)
        await soon_reads(it, "-x", (status.PRESENT, 42))


async def test_a_hung_store_costs_half_of_the_time_and_the_rest_is_for_computing(own_redis: OwnRedis) -> None:
    catalogue = catalogue_of("lengths")
    async with opened(catalogue, own_redis.url, replace(OPTIONS, breaker_failures=100), timeout_s=5.0) as it:
        await it.one("first")  # the connection is there
        own_redis.signal(signal.SIGSTOP)
        try:
            made, value, took_s = await it.timed("cold", 1.0)
            assert (made, value) == (status.COMPUTED, 4)
            assert 0.4 < took_s < 1.0 + LATE_S
            assert await it.one("cold", 1.0) == (status.COMPUTED, 4)
            assert len(it.told(StoreRead)) == 1, "the read that hangs is not repeated"
        finally:
            own_redis.signal(signal.SIGCONT)
        await soon_reads(it, "later", (status.COMPUTED, 5))


async def test_moments_of_a_fetch(own_redis: OwnRedis, gate: Gate) -> None:
    """Until `give_up_at` it waits for the store, then for the function until `compute_until`, and no longer."""
    catalogue = catalogue_of("gated")
    async with opened(catalogue, own_redis.url, timeout_s=5.0) as it:
        view = catalogue.view("v@1")
        await it.client.read(view, [])
        own_redis.signal(signal.SIGSTOP)
        try:
            ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            rows: list[bytes | None] = [None]
            now = time.monotonic()
            it.client.fetch(
                [Ask(view, [gate.id("x")], rows)],
                now + 0.2,
                lambda _: ended.set_result(time.monotonic()),
                compute_until=now + 0.5,
            )
            await asyncio.sleep(0.1)
            assert it.client.computing_ids == 0, "the store has time still"
            await soon(lambda: it.client.computing_ids == 1)
            assert time.monotonic() >= now + 0.2 - 0.01
            assert now + 0.5 - 0.01 <= await ended < now + 0.5 + LATE_S
            assert rows[0] is not None
            gate.open()
            await soon(lambda: it.client.computing_ids == 0)
            assert await it.one(gate.id("x"), 0.2) == (status.COMPUTED, 7), "it is there for the next"
        finally:
            own_redis.signal(signal.SIGCONT)


async def test_the_budget_holds_and_the_row_is_there_for_the_next(redis_url: str, gate: Gate) -> None:
    async with opened(catalogue_of("gated", write_back=False), redis_url) as it:
        for _ in range(2):
            made, value, took_s = await it.timed(gate.id("x"), 0.2)
            assert (made, value) == (TIMED_OUT, -1)
            assert took_s < 0.2 + LATE_S
        assert it.client.snapshot()["v@1"].negatives == 0
        gate.open()
        await soon(lambda: it.client.computing_ids == 0)
        assert await it.one(gate.id("x"), 0.2) == (status.COMPUTED, 7)
        assert len(it.told(ComputeRun)) == 1


# ── The store answers late ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_row_written_while_the_store_says_that_it_has_none(
    proxy: FaultProxy, redis_url: str, gate: Gate
) -> None:
    """The answer `nil` is on its way while the row is written and the watch tells of it. What is then computed is for
    who waits, and not kept over the row."""
    catalogue = catalogue_of("gated", write_back=False)
    async with opened(catalogue, proxy.url, replace(OPTIONS, watch=True), timeout_s=10.0) as it:
        gate.open()
        proxy.hold(b"MGET")
        caller = asyncio.create_task(it.one(gate.id("x")))
        await proxy.held.wait()
        changes = len(it.events)
        await write(redis_url, catalogue, gate.id("x"), 42)
        await soon(lambda: len(it.events) > changes)
        proxy.heal()
        assert await caller == (status.COMPUTED, 7)
        assert await it.one(gate.id("x")) == (status.PRESENT, 42)


@pytest.mark.parametrize("mode", ["compute", "default_now_compute_later"])
async def test_a_read_that_ends_after_the_row_was_computed(
    proxy: FaultProxy, redis_url: str, gate: Gate, mode: str
) -> None:
    """Its `nil` is older than the computed row, which is not computed again, for nobody."""
    catalogue = catalogue_of("gated", mode, write_back=False)
    # No cache, so that the second caller has to read.
    options = replace(OPTIONS, cache=CacheOptions(enabled=False))
    async with opened(catalogue, proxy.url, options, timeout_s=10.0) as it:
        first = asyncio.create_task(it.one(gate.id("x")))
        await soon(lambda: it.client.computing_ids == 1)
        proxy.hold(b"MGET")
        second = asyncio.create_task(it.one(gate.id("x")))
        await proxy.held.wait()
        gate.open()
        await soon(lambda: it.client.computing_ids == 0)
        proxy.heal()
        assert await first == ((status.COMPUTED, 7) if mode == "compute" else (ABSENT, -1))
        assert await second == (status.COMPUTED, 7)
        assert len(it.told(ComputeRun)) == 1


async def test_our_own_write_while_the_read_hangs(proxy: FaultProxy, gate: Gate) -> None:
    """After a write has returned, nobody who asks then gets what is computed because of an earlier read."""
    catalogue = catalogue_of("gated", write_back=False)
    async with opened(catalogue, proxy.url, timeout_s=10.0) as it:
        gate.open()
        one = gate.id("x")
        proxy.hold(b"MGET")
        caller = asyncio.create_task(it.one(one, 0.5))
        await proxy.held.wait()
        await it.client.write("v@1", {"tailnum": [one], "a": [42]})
        assert await caller == (status.COMPUTED, 7)
        proxy.heal()
        assert await it.one(one) == (status.PRESENT, 42)


async def test_a_row_computed_while_nobody_told_of_changes_is_read_again(
    proxy: FaultProxy, redis_url: str, gate: Gate
) -> None:
    """The watch was lost and is back while a row is computed. It may have been written; only the store knows."""
    catalogue = catalogue_of("gated", write_back=False)
    async with opened(catalogue, proxy.url, replace(OPTIONS, watch=True), timeout_s=2.0) as it:
        caller = asyncio.create_task(it.one(gate.id("x")))
        await soon(lambda: it.client.computing_ids == 1)
        proxy.cut(0)
        await soon(lambda: not it.client.watched)
        await write(redis_url, catalogue, gate.id("x"), 42)
        proxy.heal()
        await soon(lambda: it.client.watched)
        assert [event.on for event in it.told(Watched)] == [True, False, True]
        gate.open()
        assert await caller == (status.COMPUTED, 7)
        await soon_reads(it, gate.id("x"), (status.PRESENT, 42))


# ── The function ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_function_that_fails_gives_defaults_and_is_left_alone(redis_url: str) -> None:
    catalogue = catalogue_of("picky", write_back=False)
    compute = replace(COMPUTE, isolating_runs_max=0)
    async with opened(catalogue, redis_url, compute=compute) as it:
        for _ in range(6):
            assert await it.one("poison") == (ABSENT, -1), "the store's own answer"
        assert it.results() == ["ComputeFailed"] * 2
        assert sum(event.ids for event in it.told(ComputeRefused)) == 4
        assert await it.one("fine") == (ABSENT, -1), "the breaker is the view's"
        assert it.client.snapshot()["v@1"].negatives == 0, "nobody has said that there is no row"
        await soon_reads(it, "fine", (status.COMPUTED, 4))


async def test_a_function_that_fails_while_the_store_is_away(own_redis: OwnRedis) -> None:
    compute = replace(COMPUTE, breaker_failures=5)
    async with opened(catalogue_of("picky"), own_redis.url, compute=compute) as it:
        own_redis.kill()
        assert await it.one("poison") == (UNREACHED, -1)
        rows = await it.client.read("v@1", ["poison", "fine"])
        assert rows.status.tolist() == [UNREACHED, status.COMPUTED], "one bad id costs itself alone"


async def test_a_run_that_takes_too_long(redis_url: str) -> None:
    async with opened(catalogue_of("sleeps", timeout_ms=100, write_back=False), redis_url) as it:
        made, value, took_s = await it.timed("30:x", 10.0)
        assert (made, value) == (TIMED_OUT, -1)
        assert took_s < 0.1 + LATE_S
        await soon(lambda: len(it.told(ComputeWorkerLost)) == 1)
        await soon_reads(it, "0:y", (status.COMPUTED, (await it.one("0:y"))[1]))
        assert (await it.one("0:y"))[0] == status.COMPUTED


async def test_a_worker_that_dies(redis_url: str) -> None:
    async with opened(catalogue_of("dies", write_back=False), redis_url) as it:
        assert await it.one("x") == (ABSENT, -1)
        assert it.results() == ["ComputeFailed"]
        assert len(it.told(ComputeWorkerLost)) == 1


# ── Bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_ids_beyond_the_bound_get_defaults(redis_url: str, gate: Gate) -> None:
    options = replace(OPTIONS, computing_ids_max=3)
    async with opened(catalogue_of("gated"), redis_url, options) as it:
        ids = [gate.id(str(i)) for i in range(5)]
        caller = asyncio.create_task(it.client.read("v@1", ids))
        await soon(lambda: it.client.computing_ids == 3)
        assert await it.one(gate.id("late")) == (ABSENT, -1)
        assert {(event.what, event.rows) for event in it.told(ComputeDropped)} == {("ids", 1)}
        assert len(it.told(ComputeDropped)) == 3
        gate.open()
        assert (await caller).status.tolist() == [status.COMPUTED] * 3 + [ABSENT] * 2
        assert await it.one(gate.id("late")) == (status.COMPUTED, 7), "there is room again"


async def test_rows_beyond_the_bound_are_served_and_not_stored(proxy: FaultProxy, redis_url: str) -> None:
    options = replace(OPTIONS, write_backs_max=1)
    catalogue = catalogue_of("lengths")
    async with opened(catalogue, proxy.url, options, timeout_s=10.0) as it:
        proxy.hold(b"SET")
        assert await it.one("a") == (status.COMPUTED, 1)
        await proxy.held.wait()
        assert await it.one("bb") == (status.COMPUTED, 2)
        assert [(event.what, event.rows) for event in it.told(ComputeDropped)] == [("write_back", 1)]
        proxy.heal()
        await soon(lambda: len(it.told(StoreWrite)) == 1)
        assert await it.one("ccc") == (status.COMPUTED, 3)
        await soon(lambda: len(it.told(StoreWrite)) == 2)
    with redis.Redis.from_url(redis_url) as connection:
        assert sorted(connection.keys("*:v:1")) == [b"hr:{plane:a}:v:1", b"hr:{plane:ccc}:v:1"]


async def test_a_client_that_closes_while_it_computes(redis_url: str, gate: Gate) -> None:
    """Nobody waits for the function; who waits for a row gets its defaults."""
    started = time.monotonic()
    async with opened(catalogue_of("gated"), redis_url) as it:
        caller = asyncio.create_task(it.one(gate.id("x")))
        await soon(lambda: it.client.computing_ids == 1)
        await it.client.close()
        assert (await caller)[1] == -1
    assert time.monotonic() - started < SOON_S
