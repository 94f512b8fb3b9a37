"""A new version's rows beside those of the old one: whole, resumed, slowed down, and when everything breaks."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featureclient.client import FeatureClient
from featureclient.compute import ComputeOptions, Computer
from featureclient.events import ComputeRun, Event
from featureclient.load import (
    Backfill,
    BackfillOptions,
    BackfillRefused,
    BackfillReport,
    BackfillStopped,
    Pace,
    load_file,
    older_version,
)
from featureclient.load.backfilling import REASONS_MAX
from featureclient.load.pacing import BURST_S
from featureclient.schema import Catalogue, status
from featureclient.store import OnlineStore, StoreUnavailable
from featureclient.store.opening import StoreOptions, open_store
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.warmup import IdFile
from tests.conftest import RedisServer
from tests.ownredis import OwnRedis
from tests.redisfleet import Cluster
from tests.waiting import soon

ROWS = 2_500
"""Two batches and a half."""
COMPUTE = ComputeOptions(compute_modules=("tests.computing",), workers=1, breaker_open_s=0.05, isolating_runs_max=16)
QUICK = BackfillOptions(attempt_pause_s=0.1)


def catalogue_of(function: str = "lengths", **compute: Any) -> Catalogue:
    settings = {"timeout_ms": 20_000, **compute}
    said = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return Catalogue.parse(f"""
entities: {{plane: {{tailnum: string}}, hour: {{origin: string, hour: int64}}, other: {{name: string}}}}
views:
  v@1: {{entity: plane, columns: {{a: int64}}}}
  v@2:
    entity: plane
    columns: {{a: {{dtype: int64, default: -1}}, b: float32}}
    on_missing: compute
    compute: {{python: "tests.computing:{function}", {said}}}
  w@1: {{entity: plane, columns: {{c: int64}}}}
  all@1: {{entity: plane, combine: [w@1, v@1]}}
  hours@1: {{entity: hour, columns: {{a: int64}}}}
  others@3: {{entity: other, columns: {{a: int64}}}}
""")


CATALOGUE = catalogue_of()
IDS = [f"plane-{i}" for i in range(ROWS)]


@asynccontextmanager
async def opened(
    store: OnlineStore, catalogue: Catalogue = CATALOGUE, compute: ComputeOptions = COMPUTE, **more: Any
) -> AsyncIterator[tuple[FeatureClient, Computer, list[Event]]]:
    events: list[Event] = []
    async with (
        Computer(catalogue, compute, on_event=events.append) as computer,
        FeatureClient(catalogue, store, **more) as client,
    ):
        yield client, computer, events


async def write_old(client: FeatureClient, ids: list[str] = IDS) -> None:
    await client.write("v@1", {"tailnum": ids, "a": [0] * len(ids)}, event_time_ms=5)


async def check(client: FeatureClient, ids: list[str] = IDS) -> None:
    rows = await client.read("v@2", ids, timeout_s=20)
    assert rows.columns["a"].tolist() == [len(one) for one in ids]
    assert (rows.status == status.PRESENT).all()
    old = await client.read("v@1", ids, timeout_s=20)
    assert old.columns["a"].tolist() == [0] * len(ids)


def computed_ids(events: list[Event]) -> int:
    return sum(event.rows for event in events if isinstance(event, ComputeRun))


async def test_the_ids_of_the_old_version_get_rows_of_the_new_one(redis_url: str) -> None:
    told: list[int] = []
    strange = ["a|b", "100%", "{x}", "ü:é", "-nobody"]
    async with opened(RedisStore(RedisOptions(redis_url))) as (client, computer, events):
        await write_old(client, [*IDS, *strange])
        await client.write("w@1", {"tailnum": ["not of v"], "c": [1]})
        report = await Backfill(client, computer, "v@2", progress=told.append).from_stored("v@1")
        # `lengths` has no row of what begins with `-`.
        total = ROWS + len(strange)
        assert (report.ids, report.written, report.no_row, report.there) == (total, total - 1, 1, 0)
        assert report.failed.total() == report.superseded == 0
        assert told == sorted(told)
        assert told[-1] == total
        await check(client, [*IDS, *strange[:-1]])
        assert computed_ids(events) == total
        # Once more: nothing is left to do, but to ask for the one that has no row.
        again = await Backfill(client, computer, "v@2").from_stored("v@1")
        assert (again.written, again.there, again.no_row) == (0, total - 1, 1)
        assert computed_ids(events) == total + 1


async def test_ids_of_a_file_and_its_bad_lines(redis_url: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"tailnum": [*IDS, None], "more": range(ROWS + 1)}), tmp_path / "ids.parquet")
    async with opened(RedisStore(RedisOptions(redis_url))) as (client, computer, _):
        await write_old(client)
        file = IdFile(tmp_path / "ids.parquet", CATALOGUE, "v@2")
        report = await Backfill(client, computer, "v@2").from_file(file)
        assert (report.ids, report.written, report.bad_lines_total) == (ROWS, ROWS, 1)
        assert report.bad_lines[0].line == ROWS + 1
        await check(client)


async def test_what_was_written_meanwhile_stays(redis_url: str) -> None:
    """Somebody writes the new version while its rows are computed: by hand is newer, whatever the event times say."""
    async with opened(RedisStore(RedisOptions(redis_url)), catalogue_of("slow_lengths")) as (client, computer, _):
        await write_old(client)
        asked = Backfill(client, computer, "v@2")
        attempt = computer.attempt

        async def attempted(view: Any, ids: Any, give_up_at: float) -> Any:
            found = await attempt(view, ids, give_up_at)
            await client.write("v@2", {"tailnum": [ids[0]], "a": [999]}, event_time_ms=1)
            by_hand.append(ids[0])
            return found

        by_hand: list[str] = []
        asked._computes = type("Meanwhile", (), {"attempt": staticmethod(attempted), "names": computer.names})()
        report = await asked.from_stored("v@1")
        assert (report.written, report.superseded) == (ROWS - len(by_hand), len(by_hand))
        assert len(by_hand) == 3
        rows = await client.read("v@2", by_hand)
        assert rows.columns["a"].tolist() == [999] * 3


async def test_renewed_rows_replace_older_ones_and_leave_newer_ones(redis_url: str) -> None:
    async with opened(RedisStore(RedisOptions(redis_url))) as (client, computer, _):
        await write_old(client)
        soon_ms = client.now_ms() + 30_000
        await client.write("v@2", {"tailnum": IDS[:10], "a": [1] * 10}, event_time_ms=1)
        await client.write("v@2", {"tailnum": IDS[10:15], "a": [2] * 5}, event_time_ms=soon_ms)
        plain = await Backfill(client, computer, "v@2").from_stored("v@1")
        assert (plain.written, plain.there) == (ROWS - 15, 15)
        renewed = await Backfill(client, computer, "v@2", BackfillOptions(renew=True)).from_stored("v@1")
        assert (renewed.written, renewed.there, renewed.superseded) == (ROWS - 5, 0, 5)
        rows = await client.read("v@2", IDS[:20])
        assert rows.columns["a"].tolist() == [len(one) for one in IDS[:10]] + [2] * 5 + [len(one) for one in IDS[15:20]]


async def test_rows_that_readers_refuse_are_made_anew(redis_url: str) -> None:
    store = RedisStore(RedisOptions(redis_url))
    async with opened(store) as (client, computer, _):
        await write_old(client, IDS[:3])
        await store.write([b"hr:{plane:plane-0}:v:2"], [b"no row at all"], force=True, event_ms_max=2**60)
        report = await Backfill(client, computer, "v@2").from_stored("v@1")
        assert (report.written, report.there, report.superseded) == (3, 0, 0)
        await check(client, IDS[:3])


# ── Interrupted ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_redis(redis_server: RedisServer, tmp_path: Path) -> Iterator[OwnRedis]:
    server = OwnRedis(redis_server.binary, tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def interrupted(own: OwnRedis, harm: Any) -> BackfillReport:
    """A backfill whose server is harmed after the first batch."""
    options = RedisOptions(own.url, connect_timeout_s=0.3, timeout_s=0.3, write_timeout_s=0.5)
    async with opened(RedisStore(options)) as (client, computer, _):
        await write_old(client)
        backfill = Backfill(client, computer, "v@2", progress=lambda done: harm() if done == 1000 else None)
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(30):
                await backfill.from_stored("v@1")
        return backfill.report


async def test_a_stalled_server_ends_it_and_another_run_goes_on(own_redis: OwnRedis) -> None:
    report = await interrupted(own_redis, lambda: own_redis.signal(signal.SIGSTOP))
    assert report.written == report.ids == 1000
    own_redis.signal(signal.SIGCONT)
    async with opened(RedisStore(RedisOptions(own_redis.url))) as (client, computer, events):
        done = await Backfill(client, computer, "v@2").from_stored("v@1")
        assert done.ids == ROWS
        assert done.written + done.there == ROWS
        # What was sent to the server while it slept may have been done, too.
        assert done.there >= 1000
        assert computed_ids(events) == done.written
        await check(client)


async def test_a_killed_server_ends_it_and_another_run_goes_on(own_redis: OwnRedis) -> None:
    report = await interrupted(own_redis, own_redis.kill)
    assert report.written == report.ids == 1000
    own_redis.start()
    async with opened(RedisStore(RedisOptions(own_redis.url))) as (client, computer, _):
        # It kept nothing on disk; somebody loads the old version again.
        await write_old(client)
        done = await Backfill(client, computer, "v@2").from_stored("v@1")
        assert (done.ids, done.written) == (ROWS, ROWS)
        await check(client)


async def test_cancelled_it_tells_what_is_written_and_goes_on_behind_it(redis_url: str) -> None:
    async with opened(RedisStore(RedisOptions(redis_url))) as (client, computer, events):
        await write_old(client)
        backfill = Backfill(client, computer, "v@2", BackfillOptions(batch_ids=100), pace=Pace(1000))
        task = asyncio.create_task(backfill.from_stored("v@1"))
        await soon(lambda: backfill.report.ids >= 300, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        written = backfill.report.written
        assert 300 <= written < ROWS
        before = computed_ids(events)
        done = await Backfill(client, computer, "v@2").from_stored("v@1")
        assert (done.there, done.written) == (written, ROWS - written)
        assert computed_ids(events) - before == ROWS - written
        await check(client)


# ── Slowed down ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """A clock that only sleeping moves, and how many rows were written by then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rows = 0
        self.seen: list[tuple[float, int]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def count(self, rows: int) -> None:
        self.rows += rows
        self.seen.append((self.now, self.rows))

    def pace(self, rows_per_s: float) -> Pace:
        return Pace(rows_per_s, monotonic=self, sleep=self.sleep)


class CountingStore(RedisStore):
    """Counts the rows of every write."""

    clock: Clock | None = None

    async def write(self, keys: Any, values: Any, **more: Any) -> int:
        if self.clock is not None:
            self.clock.count(len(keys))
        return await super().write(keys, values, **more)


@pytest.mark.parametrize("rows_per_s", [50.0, 700.0])
async def test_no_more_rows_a_second_are_written_than_asked_for(
    redis_url: str, rows_per_s: float, tmp_path: Path
) -> None:
    store = CountingStore(RedisOptions(redis_url))
    async with opened(store) as (client, computer, _):
        await write_old(client)
        clock = store.clock = Clock()
        report = await Backfill(client, computer, "v@2", pace=clock.pace(rows_per_s)).from_stored("v@1")
        assert report.written == clock.rows == ROWS
        assert all(rows <= rows_per_s * (at + BURST_S) + 1e-6 for at, rows in clock.seen)
        assert clock.now == pytest.approx(ROWS / rows_per_s - BURST_S)
        # The same of a table.
        pq.write_table(pa.table({"tailnum": IDS, "a": [3] * ROWS, "b": [0.5] * ROWS}), tmp_path / "rows.parquet")
        clock = store.clock = Clock()
        loaded = await load_file(client, "v@2", tmp_path / "rows.parquet", pace=clock.pace(rows_per_s))
        assert loaded.rows == clock.rows == ROWS
        assert all(rows <= rows_per_s * (at + BURST_S) + 1e-6 for at, rows in clock.seen)
        assert clock.now == pytest.approx(ROWS / rows_per_s - BURST_S)


# ── On a cluster ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_ids_of_all_nodes_of_a_cluster(redis_cluster: Cluster) -> None:
    store = open_store(StoreOptions(redis_cluster.url, timeout_s=2.0))
    async with opened(store) as (client, computer, _):
        await write_old(client)
        report = await Backfill(client, computer, "v@2").from_stored("v@1")
        assert (report.ids, report.written) == (ROWS, ROWS)
        await check(client)
    # Old and new of an id are on one node, and every node has some.
    for server in redis_cluster.primaries:
        assert server.call("DBSIZE") > ROWS / 3


# ── Computations that fail ──────────────────────────────────────────────────────────────────────────────────────────


async def test_one_poisonous_id_costs_no_other_its_row(redis_url: str) -> None:
    ids = [*IDS, "poison"]
    async with opened(RedisStore(RedisOptions(redis_url)), catalogue_of("picky")) as (client, computer, _):
        await write_old(client, ids)
        report = await Backfill(client, computer, "v@2", QUICK).from_stored("v@1")
        assert (report.written, report.no_row) == (ROWS, 0)
        assert report.failed.total() == 1
        (reason,) = report.failed
        assert "poison" in reason
        assert report.samples[reason] == ["poison"]
        await check(client, IDS)


async def test_ids_that_fail_are_tried_again_in_smaller_pieces(redis_url: str) -> None:
    """A thousand ids take longer than a run may; a hundred do not."""
    catalogue = catalogue_of("takes_1_ms_an_id", timeout_ms=400)
    async with opened(RedisStore(RedisOptions(redis_url)), catalogue) as (client, computer, _):
        await write_old(client, IDS[:1000])
        report = await Backfill(client, computer, "v@2", QUICK).from_stored("v@1")
        assert (report.written, report.failed.total()) == (1000, 0)


async def test_a_computation_that_is_broken_stops_it_with_the_reason(redis_url: str) -> None:
    options = BackfillOptions(batch_ids=100, attempts_max=2, attempt_pause_s=0.1, failed_batches_max=3)
    async with opened(RedisStore(RedisOptions(redis_url)), catalogue_of("broken")) as (client, computer, _):
        await write_old(client)
        backfill = Backfill(client, computer, "v@2", options)
        with pytest.raises(BackfillStopped, match="3 batches in a row gave nothing but failures"):
            await backfill.from_stored("v@1")
        assert (backfill.report.ids, backfill.report.failed.total(), backfill.report.written) == (300, 300, 0)
        assert len(backfill.report.failed) <= REASONS_MAX


async def test_values_that_do_not_fit_are_named_and_the_others_written(redis_url: str) -> None:
    async with opened(RedisStore(RedisOptions(redis_url)), catalogue_of("early")) as (client, computer, _):
        await write_old(client, [*IDS[:50], "tomorrow"])
        report = await Backfill(client, computer, "v@2", QUICK).from_stored("v@1")
        assert (report.written, report.failed.total(), report.no_row) == (50, 1, 0)
        ((reason, ids),) = report.samples.items()
        assert ids == ["tomorrow"]
        assert "event_time_ms" in reason


# ── What cannot be asked for ────────────────────────────────────────────────────────────────────────────────────────


async def test_what_cannot_be_backfilled_is_refused(redis_url: str) -> None:
    async with opened(RedisStore(RedisOptions(redis_url))) as (client, computer, _):
        for view, why in (("v@1", "names no `compute`"), ("all@1", "combined view: fill w@1 and v@1")):
            with pytest.raises(BackfillRefused, match=why):
                Backfill(client, computer, view)
        for other in ("hours@1", "others@3"):
            with pytest.raises(BackfillRefused, match=rf"{other} is of .*, and v@2 is of tailnum: string"):
                await Backfill(client, computer, "v@2").from_stored(other)


def test_the_version_before() -> None:
    assert older_version(CATALOGUE, CATALOGUE.view("v@2")) is CATALOGUE.view("v@1")
    assert older_version(CATALOGUE, CATALOGUE.view("others@3")) is None
