"""Rows that the store has not, computed: from a worker process to the caller, to the cache and back to the store."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from featureclient.cache import CacheOptions
from featureclient.client import ClientOptions, FeatureClient, Rows
from featureclient.compute import ComputeOptions, Computer
from featureclient.events import ComputeDropped, ComputeRun, Event, StoreRead, StoreWrite
from featureclient.schema import Catalogue, Id, status
from featureclient.store.redis import RedisOptions, RedisStore
from tests import waiting
from tests.computing import Gate

ABSENT = status.DEFAULTED | status.ABSENT
LONG = ClientOptions(cache=CacheOptions(expire_s=600.0, absent_expire_s=600.0), read_timeout_s=20.0)
UNWATCHED = replace(LONG, watch=False)
SOON_S = 15.0
soon = partial(waiting.soon, wait_s=SOON_S)


def catalogue_of(**views: str) -> Catalogue:
    """Views of planes with the columns a and b, each with what is given."""
    text = "entities: {plane: {tailnum: string}, hour: {origin: string, hour: int64}}\nviews:\n"
    for name, rest in views.items():
        entity = "hour" if name.startswith("hour") else "plane"
        columns = "{a: {dtype: int64, default: -1}, b: {dtype: float32, default: 0.5}}"
        text += f"  {name}@1: {{entity: {entity}, {rest}}}\n".replace("COLUMNS", f"columns: {columns}")
    return Catalogue.parse(text)


def computed(function: str, mode: str = "compute", **limits: Any) -> str:
    """A view whose rows a function of tests/computing.py gives."""
    more = "".join(f", {name}: {str(value).lower()}" for name, value in {"timeout_ms": 20000, **limits}.items())
    return f'COLUMNS, on_missing: {mode}, compute: {{python: "tests.computing:{function}"{more}}}'


class Opened:
    """A client with a computer of its own, and what both have told."""

    def __init__(self, client: FeatureClient, events: list[Event]) -> None:
        self.client, self.events = client, events

    async def read(self, *ids: Id, view: str = "v@1", timeout_s: float | None = None) -> Rows:
        return await self.client.read(view, ids, timeout_s)

    async def one(self, one: Id, view: str = "v@1") -> tuple[int, int]:
        rows = await self.client.read(view, [one])
        return int(rows.status[0]), int(rows.columns["a"][0])

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    async def written_back(self, count: int = 1) -> None:
        await soon(lambda: len(self.told(StoreWrite)) >= count)


@asynccontextmanager
async def opened(
    catalogue: Catalogue, redis_url: str, options: ClientOptions = LONG, *, computes: bool = True
) -> AsyncIterator[Opened]:
    events: list[Event] = []
    limits = ComputeOptions(compute_modules=("tests.computing",), workers=1)
    async with Computer(catalogue, limits, on_event=events.append) as computer:
        store = RedisStore(RedisOptions(redis_url))
        given = computer if computes else None
        async with FeatureClient(catalogue, store, options, computes=given, on_event=events.append) as client:
            if options.watch:
                await soon(lambda: client.watched)
            yield Opened(client, events)


@asynccontextmanager
async def plain(catalogue: Catalogue, redis_url: str) -> AsyncIterator[FeatureClient]:
    """Another client, of somebody who computes nothing."""
    async with FeatureClient(catalogue, RedisStore(RedisOptions(redis_url)), LONG) as client:
        yield client


async def soon_reads(it: Opened, one: Id, expected: tuple[int, int], view: str = "v@1") -> None:
    give_up_at = time.monotonic() + SOON_S
    while (found := await it.one(one, view)) != expected:
        assert time.monotonic() < give_up_at, f"still {status.describe(found[0])} {found[1]}"
        await asyncio.sleep(0.002)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


# ── What a row that is missing becomes ───────────────────────────────────────────────────────────────────────────────


async def test_every_mode(redis_url: str) -> None:
    catalogue = catalogue_of(
        default="COLUMNS",
        reject="COLUMNS, on_missing: reject",
        compute=computed("lengths"),
        later=computed("lengths", "default_now_compute_later"),
        hours=computed("by_route"),
    )
    async with opened(catalogue, redis_url) as it:
        found = {name: await it.read("abc", "-", view=f"{name}@1") for name in ("default", "reject", "compute")}
        assert found["default"].status.tolist() == [ABSENT, ABSENT]
        assert found["reject"].status.tolist() == [status.MISSING | status.ABSENT] * 2
        assert found["compute"].status.tolist() == [status.COMPUTED, ABSENT]
        assert found["compute"].columns["a"].tolist() == [3, -1]
        assert found["compute"].columns["b"].tolist() == [0.5, 0.5]
        assert found["compute"].valid["b"].tolist() == [False, False], "a column that is not computed is null"
        assert found["compute"].valid["a"].tolist() == [True, False]
        assert 0 <= found["compute"].age_ms[0] < 60_000
        hours = await it.read(("JFK", 4), ("E:|", -3), view="hours@1")
        assert hours.columns["a"].tolist() == [8, -6]
        assert (await it.one("abc", "later@1")) == (ABSENT, -1)
        give_up_at = time.monotonic() + SOON_S
        while (later := await it.one("abc", "later@1"))[1] == -1:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.002)
        assert later[0] in {status.COMPUTED, status.PRESENT}, "stored already, or not yet"


async def test_a_client_without_a_computer_gives_defaults(redis_url: str) -> None:
    async with opened(catalogue_of(v=computed("lengths")), redis_url, computes=False) as it:
        assert await it.one("abc") == (ABSENT, -1)
        assert it.told(ComputeRun) == []


async def test_default_now_is_now_although_the_function_takes_its_time(redis_url: str, gate: Gate) -> None:
    catalogue = catalogue_of(v=computed("gated", "default_now_compute_later", write_back=False))
    one = gate.id("x")
    async with opened(catalogue, redis_url) as it:
        for _ in range(3):  # would all wait for the gate, which opens below
            assert await it.one(one) == (ABSENT, -1)
        assert it.client.computing_ids == 1
        gate.open()
        await soon_reads(it, one, (status.COMPUTED, 7))
        assert len(it.told(ComputeRun)) == 1


# ── Stored and cached ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_computed_then_stored_then_present(redis_url: str) -> None:
    catalogue = catalogue_of(v=computed("lengths") + ", ttl: 1h")
    async with opened(catalogue, redis_url, UNWATCHED) as it:
        assert await it.one("abc") == (status.COMPUTED, 3)
        assert await it.one("abc") == (status.COMPUTED, 3), "from the cache, which says where it came from"
        await it.written_back()
        assert [event.error for event in it.told(StoreWrite)] == [None]
        async with plain(catalogue, redis_url) as other:
            rows = await other.read("v@1", ["abc"])
        assert rows.status.tolist() == [status.PRESENT]
        assert rows.columns["a"].tolist() == [3]
        assert len(it.told(ComputeRun)) == 1
    with redis.Redis.from_url(redis_url) as connection:
        assert 3_500_000 < connection.pttl("hr:{plane:abc}:v:1") <= 3_600_000


async def test_who_is_told_of_changes_reads_the_stored_row(redis_url: str) -> None:
    async with opened(catalogue_of(v=computed("lengths")), redis_url) as it:
        assert await it.one("abc") == (status.COMPUTED, 3)
        await soon_reads(it, "abc", (status.PRESENT, 3))
        assert len(it.told(ComputeRun)) == 1


async def test_what_is_not_written_back_is_computed_by_everybody(redis_url: str) -> None:
    catalogue = catalogue_of(v=computed("lengths", write_back=False))
    async with opened(catalogue, redis_url) as it, opened(catalogue, redis_url) as other:
        assert await it.one("abc") == await other.one("abc") == (status.COMPUTED, 3)
        assert await it.one("abc") == (status.COMPUTED, 3)
        assert len(it.told(ComputeRun)) == len(other.told(ComputeRun)) == 1
        assert it.told(StoreWrite) == []
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.dbsize() == 0


async def test_an_id_that_nobody_knows_is_remembered(redis_url: str) -> None:
    async with opened(catalogue_of(v=computed("lengths")), redis_url) as it:
        assert await it.one("-") == (ABSENT, -1)
        reads = len(it.told(StoreRead))
        for _ in range(3):
            assert await it.one("-") == (ABSENT, -1)
        assert len(it.told(StoreRead)) == reads
        assert len(it.told(ComputeRun)) == 1
        assert it.client.snapshot()["v@1"].negatives == 1
        # … until it is written.
        async with plain(it.client.catalogue, redis_url) as other:
            await other.write("v@1", {"tailnum": ["-"], "a": [5]})
        await soon_reads(it, "-", (status.PRESENT, 5))


async def test_a_column_without_a_default_is_missing(redis_url: str) -> None:
    catalogue = catalogue_of(v=computed("lengths").replace("COLUMNS", "columns: {a: int64}"))
    async with opened(catalogue, redis_url) as it:
        rows = await it.read("ab", "-")
        assert rows.status.tolist() == [status.COMPUTED, status.MISSING | status.ABSENT]


async def test_rows_that_are_there_are_not_computed(redis_url: str) -> None:
    async with opened(catalogue_of(v=computed("lengths")), redis_url, UNWATCHED) as it:
        await it.client.write("v@1", {"tailnum": ["a", "c"], "a": [100, 300]})
        rows = await it.read("a", "bb", "c", "dddd", "bb")
        present, made = status.PRESENT, status.COMPUTED
        assert rows.status.tolist() == [present, made, present, made, made]
        assert rows.columns["a"].tolist() == [100, 2, 300, 4, 2]
        assert [run.rows for run in it.told(ComputeRun)] == [2]


async def test_a_row_that_is_read_ahead_of_its_age_is_computed_anew(redis_url: str) -> None:
    """The store will never have it: past its soft age the function is asked again, and what it says is kept."""
    catalogue = catalogue_of(v=computed("clock", write_back=False) + ", soft_age: 50ms, hard_age: 10m")
    async with opened(catalogue, redis_url) as it:
        made, first = await it.one("x")
        assert made == status.COMPUTED
        give_up_at = time.monotonic() + SOON_S
        while (found := await it.one("x"))[1] == first:
            assert found[0] == status.COMPUTED
            assert time.monotonic() < give_up_at, "served for its hard age"
            await asyncio.sleep(0.01)


async def test_warm_computes_too(redis_url: str) -> None:
    async with opened(catalogue_of(v=computed("lengths", write_back=False)), redis_url) as it:
        assert await it.client.warm("v@1", ["a", "bb", "-"], time.monotonic() + SOON_S) == 2
        assert (await it.read("a", "bb", "-")).status.tolist() == [status.COMPUTED, status.COMPUTED, ABSENT]
        assert len(it.told(ComputeRun)) == 1


async def test_a_row_that_cannot_be_stored_costs_its_own_id_only(redis_url: str) -> None:
    async with opened(catalogue_of(v=computed("early")), redis_url, UNWATCHED) as it:
        rows = await it.read("a", "tomorrow", "-", "bb")
        assert rows.status.tolist() == [status.COMPUTED, ABSENT, ABSENT, status.COMPUTED]
        assert rows.columns["a"].tolist() == [1, -1, -1, 2]
        assert [(event.what, event.rows) for event in it.told(ComputeDropped)] == [("invalid", 1)]
        await it.written_back()
        # It is no id without a row, so it is not remembered as one.
        assert it.client.snapshot()["v@1"].negatives == 1


# ── Many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_fifty_callers_are_one_run(redis_url: str, gate: Gate) -> None:
    """Some come in the same turn of the loop, some while it is computed."""
    ids = [gate.id(name) for name in "abc"]
    async with opened(catalogue_of(v=computed("gated")), redis_url) as it:
        callers = [asyncio.create_task(it.read(*ids)) for _ in range(25)]
        await soon(lambda: it.client.computing_ids == 3)
        callers += [asyncio.create_task(it.read(ids[i % 3])) for i in range(25)]
        await soon(lambda: it.client.pending_keys == 0)
        assert it.client.computing_ids == 3
        gate.open()
        for rows in await asyncio.gather(*callers):
            assert set(rows.status.tolist()) == {status.COMPUTED}
            assert set(rows.columns["a"].tolist()) == {7}
        assert [(run.rows, run.found) for run in it.told(ComputeRun)] == [(3, 3)]


async def test_a_caller_who_leaves_costs_the_others_nothing(redis_url: str, gate: Gate) -> None:
    one = gate.id("a")
    async with opened(catalogue_of(v=computed("gated", write_back=False)), redis_url) as it:
        first, second = asyncio.create_task(it.read(one)), asyncio.create_task(it.read(one))
        await soon(lambda: it.client.computing_ids == 1)
        first.cancel()
        gate.open()
        assert (await second).status.tolist() == [status.COMPUTED]
        third = asyncio.create_task(it.read(gate.id("b")))
        await soon(lambda: it.client.computing_ids == 1 or third.done())
        third.cancel()
        await soon(lambda: it.client.computing_ids == 0)
        assert await it.one(gate.id("b")) == (status.COMPUTED, 7)
        assert len(it.told(ComputeRun)) == 2, "it was computed although nobody waited any more, and kept"


async def test_runs_are_cut_and_few_at_a_time(redis_url: str) -> None:
    catalogue = catalogue_of(v=computed("who", batch_rows_max=10, concurrency_max=1, write_back=False))
    async with opened(catalogue, redis_url) as it:
        rows = await it.read(*[f"p{i}" for i in range(95)])
        assert set(rows.status.tolist()) == {status.COMPUTED}
        assert sorted(rows.columns["b"].tolist()) == [5.0] * 5 + [10.0] * 90
        assert len(it.told(ComputeRun)) == 10


# ── Written meanwhile ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("whose", "write_back"),
    [("ours", True), ("ours", False), ("told", True), ("told", False), ("nobody tells", True)],
)
async def test_what_is_written_meanwhile_stays(redis_url: str, gate: Gate, whose: str, write_back: bool) -> None:
    """`nobody tells`: another client writes, and there is no watch; then the write-back finds out."""
    one = gate.id("x")
    catalogue = catalogue_of(v=computed("gated", write_back=write_back))
    options = UNWATCHED if whose == "nobody tells" else LONG
    async with opened(catalogue, redis_url, options) as it, plain(catalogue, redis_url) as other:
        caller = asyncio.create_task(it.one(one))
        await soon(lambda: it.client.computing_ids == 1)
        await (it.client if whose == "ours" else other).write("v@1", {"tailnum": [one], "a": [42]})
        if whose != "nobody tells":
            await soon_reads(it, one, (status.PRESENT, 42))
        writes = len(it.told(StoreWrite))
        gate.open()
        assert (await caller) in {(status.COMPUTED, 7), (status.PRESENT, 42)}
        await soon(lambda: it.client.computing_ids == 0)
        if write_back:
            await it.written_back(writes + 1)
        assert await it.one(one) == (status.PRESENT, 42)
        assert (await other.read("v@1", [one])).columns["a"].tolist() == [42]


async def test_what_a_later_read_found_is_not_computed_over(redis_url: str, gate: Gate) -> None:
    """No watch and no write-back: it is a read for somebody else that finds the row, while it is computed."""
    one = gate.id("x")
    catalogue = catalogue_of(v=computed("gated", write_back=False))
    async with opened(catalogue, redis_url, UNWATCHED) as it, plain(catalogue, redis_url) as other:
        caller = asyncio.create_task(it.one(one))
        await soon(lambda: it.client.computing_ids == 1)
        await other.write("v@1", {"tailnum": [one], "a": [42]})
        assert await it.one(one) == (status.PRESENT, 42)
        gate.open()
        await caller
        await soon(lambda: it.client.computing_ids == 0)
        assert await it.one(one) == (status.PRESENT, 42)


# ── Combined ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def combined_catalogue() -> Catalogue:
    return catalogue_of(
        v=computed("lengths"),
        w="columns: {c: {dtype: int32, default: 9}}",
        both="combine: [v@1, w@1]",
    )


async def test_combined_rows_follow(redis_url: str) -> None:
    catalogue = combined_catalogue()
    async with opened(catalogue, redis_url) as it:
        await it.client.write("w@1", {"tailnum": ["abc"], "c": [4]})
        assert (await it.read("abc", view="both@1")).columns["a"].tolist() == [-1]
        await it.read("abc")
        await soon_reads(it, "abc", (status.PRESENT, 3), "both@1")
        rows = await it.read("abc", view="both@1")
        assert rows.columns["c"].tolist() == [4]


async def test_a_client_that_closes_leaves_nothing_half_stored(redis_url: str) -> None:
    catalogue = combined_catalogue()
    async with opened(catalogue, redis_url) as it:
        assert (await it.read("abc")).status.tolist() == [status.COMPUTED]
    assert [event.error for event in it.told(StoreWrite)] == [None, None]
    async with plain(catalogue, redis_url) as other:
        for view in ("v@1", "both@1"):
            rows = await other.read(view, ["abc"])
            assert rows.status.tolist() == [status.PRESENT]
            assert rows.columns["a"].tolist() == [3]


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_rows_reach_the_ids_that_they_are_of(redis_url: str) -> None:
    """Any mix of stored, computed and unknown ids, at once, in any order, twice."""
    rng = np.random.default_rng(7)
    catalogue = catalogue_of(v=computed("lengths", batch_rows_max=16))
    names = [f"{'-' if i % 5 == 0 else ''}{'x' * (i % 40)}{i}" for i in range(300)]
    async with opened(catalogue, redis_url) as it:
        await it.client.write("v@1", {"tailnum": names[::3], "a": [1000 + len(name) for name in names[::3]]})
        stored = set(names[::3])

        async def caller() -> None:
            ids = [names[i] for i in rng.integers(0, len(names), 40)]
            rows = await it.read(*ids)
            for one, a, code in zip(ids, rows.columns["a"].tolist(), rows.status.tolist(), strict=True):
                if one in stored:
                    assert (a, code) == (1000 + len(one), status.PRESENT)
                elif one.startswith("-"):
                    assert (a, code) == (-1, ABSENT)
                else:
                    assert a == len(one)
                    assert code in {status.COMPUTED, status.PRESENT}

        await asyncio.gather(*[caller() for _ in range(60)])
