"""Warming on a real Redis: restarts that stay warm, counts of several replicas, files, budgets, schedules."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, Id, UnknownView, View
from featureclient.store import StoreUnavailable
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.warmup import (
    CountsLoaded,
    CountsSaved,
    HotKeys,
    IdFile,
    IdFileError,
    Room,
    Schedule,
    ScheduledWarming,
    Warmer,
    WarmingAdvanced,
    WarmingEnded,
    WarmupEvent,
    WarmupOptions,
)
from featureclient.warmup.repeating import repeat
from featureclient.warmup.saved import LIST_NAME
from loadtest.warmup import measure

CATALOGUE = Catalogue.parse(
    """
entities:
  plane: {tailnum: string}
  hour: {origin: string, hour: int64}
  shop: {shop: int64}
views:
  plane_stats@1: {entity: plane, columns: {number: {dtype: int64, default: -1}}}
  weather@1: {entity: hour, columns: {temp: float32}}
  shop@1: {entity: shop, columns: {size: int16}}
"""
)
PLANE = CATALOGUE.view("plane_stats@1")
DAY_S = 86_400.0
START = datetime(2026, 6, 1, 3, 0, tzinfo=UTC)


class Asked:
    """A `warm` that remembers what it was asked for, in order."""

    def __init__(self, answer: Callable[[View, Sequence[Id]], Awaitable[int]] | None = None) -> None:
        self.batches: list[tuple[str, list[Id]]] = []
        self._answer = answer

    async def __call__(self, view: View, ids: Sequence[Id], give_up_at: float) -> int:
        self.batches.append((view.ref, list(ids)))
        return len(ids) if self._answer is None else await self._answer(view, ids)

    def ids(self, view: str) -> list[Id]:
        return [one for ref, ids in self.batches for one in ids if ref == view]


class Clock:
    """Time that passes only while somebody sleeps. The wall and the monotonic clock agree."""

    def __init__(self, end: float = 0.0) -> None:
        self.seconds = 0.0
        self.ended = asyncio.Event()
        self._end = end

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds >= self._end:
            self.ended.set()
        await asyncio.sleep(0)


class Opened:
    """A warmer and what it said."""

    def __init__(
        self, url: str, warm: Asked, options: WarmupOptions, clock: Clock | None = None, room: Room | None = None
    ) -> None:
        self.events: list[WarmupEvent] = []
        self.store = RedisStore(RedisOptions(url))
        self.clock = Clock() if clock is None else clock
        more = {} if room is None else {"room": room}
        self.warmer = Warmer(
            CATALOGUE, self.store, warm, options, on_event=self.events.append, monotonic=self.clock.monotonic,
            wall=self.clock.wall, sleep=self.clock.sleep, **more,
        )  # fmt: skip

    def said(self, kind: type[WarmupEvent]) -> list[WarmupEvent]:
        return [event for event in self.events if isinstance(event, kind)]


Opens = Callable[..., Opened]


@pytest.fixture
async def opens(redis_url: str) -> AsyncIterator[Opens]:
    """Warmers on one store."""
    made: list[Opened] = []

    def make(*given: Any, **more: Any) -> Opened:
        made.append(Opened(redis_url, *given, **more))
        return made[-1]

    yield make
    for one in made:
        await one.store.close()


# ── Restarts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_restart_keeps_nine_tenths_of_the_hit_rate(redis_url: str) -> None:
    found = await measure(
        redis_url, ids=10_000, cache_share=0.15, lookups=60_000, first=3_000,
        options=WarmupOptions(replica="one", keys_max=5_000, sample_ids_per_s_max=10**9), seed=1,
    )  # fmt: skip
    assert found.steady > 0.7
    assert found.warm >= 0.9 * found.steady
    assert found.cold < 0.8 * found.steady  # so there was something to win
    assert 0 < found.prefetched < 10_000 * 0.25


@pytest.mark.slow
@pytest.mark.parametrize("cache_share", [0.1, 0.2])
async def test_a_restart_keeps_nine_tenths_of_the_hit_rate_of_many_ids(redis_url: str, cache_share: float) -> None:
    options = WarmupOptions(replica="one", sample_every=2, sample_ids_per_s_max=10**9)
    found = await measure(
        redis_url, ids=50_000, cache_share=cache_share, lookups=250_000, first=5_000, options=options, seed=1
    )
    assert found.steady > 0.75
    assert found.warm >= 0.9 * found.steady
    assert found.cold < 0.75 * found.steady


async def test_counts_of_all_replicas_are_merged_and_the_hottest_come_first(opens: Opens) -> None:
    for replica, ids in (("a", ["x"] * 5 + ["y"] * 40), ("b", ["x"] * 50 + ["z"] * 12)):
        opened = opens(Asked(), WarmupOptions(replica=replica))
        opened.warmer.hot.offer(PLANE.ref, ids)
        opened.warmer.hot.offer("weather@1", [("JFK", 5)] * 3)
        assert await opened.warmer.save()
    asked = Asked()
    opened = opens(asked, WarmupOptions(replica="c", batch_ids=1))
    warmed = await opened.warmer.prefetch()
    assert [(one.why, one.ids, one.cached) for one in warmed] == [("done", 4, 4)]
    first = [("plane_stats@1", ["x"]), ("plane_stats@1", ["y"]), ("plane_stats@1", ["z"]), ("weather@1", [("JFK", 5)])]
    # Once to read, and once more, the hottest last, for the cache to know.
    assert asked.batches == [*first, *reversed(first)]
    assert opened.events[0] == CountsLoaded(2, 0, 4, 0.0, None)
    assert opened.events[-1] == WarmingEnded("hot", "done", 4, 4, 0, 0, 0.0)
    assert [event.ids for event in opened.said(WarmingAdvanced)] == [1, 2, 3, 4]


async def test_a_replica_goes_on_with_its_own_counts_and_counts_nobody_twice(opens: Opens) -> None:
    for replica, one in (("a", "x"), ("b", "y")):
        opened = opens(Asked(), WarmupOptions(replica=replica))
        opened.warmer.hot.offer(PLANE.ref, [one] * 10)
        await opened.warmer.save()
    for _ in range(3):
        opened = opens(Asked(), WarmupOptions(replica="a"))
        await opened.warmer.prefetch()
        assert opened.warmer.hot.ranked(PLANE.ref, 9) == [("x", 10.0)]
        await opened.warmer.save()
        merged = await opened.warmer.load(opened.clock.seconds + 5)
        assert merged.ranked(PLANE.ref, 9) == [("x", 10.0), ("y", 10.0)]


async def test_two_who_save_at_once_are_both_listed(opens: Opens) -> None:
    some = [opens(Asked(), WarmupOptions(replica=f"r{i}")) for i in range(2)]
    for opened in some:
        opened.warmer.hot.offer(PLANE.ref, ["x"])
    for _ in range(3):
        assert all(await asyncio.gather(*[opened.warmer.save() for opened in some]))
    merged = await some[0].warmer.load(5.0)
    assert merged.count(PLANE.ref, "x") == 2.0


async def test_old_counts_fade_and_stale_replicas_are_left_out(opens: Opens) -> None:
    options = WarmupOptions(replica="old", half_life_s=DAY_S, keep_s=3 * DAY_S, replicas_max=2)
    opened = opens(Asked(), options)
    opened.warmer.hot.offer(PLANE.ref, ["x"] * 8)
    await opened.warmer.save()
    opened.clock.seconds = 2 * DAY_S
    assert (await opened.warmer.load(opened.clock.seconds + 5)).count(PLANE.ref, "x") == pytest.approx(2.0)
    opened.clock.seconds = 4 * DAY_S
    assert len(await opened.warmer.load(opened.clock.seconds + 5)) == 0
    for replica in ("b", "c", "d"):
        one = opens(Asked(), WarmupOptions(replica=replica, replicas_max=2), opened.clock)
        one.warmer.hot.offer(PLANE.ref, [replica])
        await one.warmer.save()
        opened.clock.seconds += 1
    merged = await opened.warmer.load(opened.clock.seconds + 5)
    assert set(merged.hottest(PLANE.ref, 9)) == {"c", "d"}


async def test_garbage_in_the_store_is_counted_and_overwritten(opens: Opens) -> None:
    good = opens(Asked(), WarmupOptions(replica="good"))
    good.warmer.hot.offer(PLANE.ref, ["x"])
    bad = opens(Asked(), WarmupOptions(replica="bad"))
    bad.warmer.hot.offer(PLANE.ref, ["y"])
    assert await good.warmer.save()
    assert await bad.warmer.save()
    await good.store.put_blob("warmup:counts:bad", b"HRHOT\x01garbage")
    opened = opens(Asked(), WarmupOptions(replica="bad"))
    await opened.warmer.prefetch()
    assert opened.events[0] == CountsLoaded(1, 1, 1, 0.0, None)
    for garbage in (b"\xff", b"[]", b'{"format": 9}', b'{"format": 1, "replicas": {"a": "b"}}', b"x" * 100_000):
        await good.store.put_blob(LIST_NAME, garbage)
        assert len(await opened.warmer.load(5.0)) == 0
    assert await opened.warmer.save()
    assert [event.error for event in opened.said(CountsSaved)] == [None]


async def test_ids_that_fit_their_entity_no_more_are_left_out(opens: Opens, redis_url: str) -> None:
    async with FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url))) as client:
        await client.write("shop@1", {"shop": [7], "size": [1]})
        opened = opens(Asked(lambda view, ids: client.warm(view, ids, client_until)), WarmupOptions(batch_ids=1))
        client_until = time.monotonic() + 30
        opened.warmer.hot.offer("shop@1", ["a", "b", "c", "d", "e"] * 9)
        opened.warmer.hot.offer("shop@1", [7])
        assert await opened.warmer.save()
        warmed = await opened.warmer.warm_hottest(give_up_at=30)
        assert (warmed.why, warmed.ids, warmed.cached, warmed.failures) == ("done", 1, 1, 0)
        together = opens(Asked(lambda view, ids: client.warm(view, ids, client_until)), WarmupOptions())
        warmed = await together.warmer.warm_hottest(give_up_at=30)
        assert (warmed.why, warmed.ids, warmed.cached, warmed.failures) == ("done", 1, 1, 0)


async def test_events_say_why(opens: Opens, tmp_path: Path) -> None:
    opened = opens(Asked(), WarmupOptions())
    await opened.warmer.warm_file(tmp_path / "none.txt")
    (ended,) = opened.said(WarmingEnded)
    assert isinstance(ended, WarmingEnded)
    assert (ended.why, "there is no such file" in ended.problem) == ("failed", True)
    away = Warmer(CATALOGUE, RedisStore(RedisOptions("redis://127.0.0.1:1")), Asked(), on_event=opened.events.append)
    assert not await away.save()
    await away.load(time.monotonic() + 5)
    for event in (*opened.said(CountsSaved), *opened.said(CountsLoaded)):
        assert isinstance(event, CountsSaved | CountsLoaded)
        assert event.error == "StoreUnavailable"
        assert "127.0.0.1:1" in event.why


async def test_switched_off_nothing_is_read_or_saved(opens: Opens) -> None:
    asked = Asked()
    opened = opens(asked, WarmupOptions(enabled=False, files=("none.txt",)))
    async with opened.warmer as warmer:
        assert [one.why for one in await warmer.prefetch()] == ["off"]
    assert asked.batches == []
    assert await opened.store.get_blob(LIST_NAME) is None


async def test_a_warmer_saves_while_it_runs_and_when_it_ends(redis_url: str) -> None:
    asked = Asked()
    client = FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url)))
    events: list[WarmupEvent] = []
    saved = asyncio.Event()

    def note(event: WarmupEvent) -> None:
        events.append(event)
        saved.set()

    async with client:
        options = WarmupOptions(replica="one", save_every_s=0.01)
        async with Warmer(CATALOGUE, client.store, asked, options, on_event=note) as warmer:
            assert warmer.sampler.due()
            warmer.offer(PLANE.ref, ["x", "x", "y"])
            async with asyncio.timeout(20):
                await saved.wait()
            warmer.offer(PLANE.ref, ["z"])
        data = await client.store.get_blob("warmup:counts:one")
        assert data is not None
        assert set(HotKeys.from_bytes(data, 10).hottest(PLANE.ref, 9)) == {"x", "y", "z"}
        assert {type(event) for event in events} == {CountsSaved}


# ── Bounds of a warming ──────────────────────────────────────────────────────────────────────────────────────────────


async def saved_counts(opens: Opens, planes: int) -> None:
    opened = opens(Asked(), WarmupOptions(replica="before"))
    for i in range(planes):
        opened.warmer.hot.offer(PLANE.ref, [f"N{i}"] * (planes - i))
    opened.warmer.hot.offer("shop@1", [7])
    await opened.warmer.save()


async def test_a_warming_ends_with_its_budget(opens: Opens) -> None:
    await saved_counts(opens, 100)
    clock = Clock()

    async def answer(view: View, ids: Sequence[Id]) -> int:
        clock.seconds += 1.0
        return len(ids)

    asked = Asked(answer)
    opened = opens(asked, WarmupOptions(replica="one", batch_ids=10, budget_s=5.0), clock)
    (warmed,) = await opened.warmer.prefetch()
    assert (warmed.why, warmed.ids, warmed.seconds) == ("budget", 50, 5.0)
    assert asked.ids(PLANE.ref)[0] in {"N0", "N1", "N2", "N3", "N4"}


async def test_a_warming_ends_where_the_cache_is_full(opens: Opens) -> None:
    await saved_counts(opens, 100)
    asked = Asked()
    left = {PLANE.ref: 25, "shop@1": 1000}

    async def answer(view: View, ids: Sequence[Id]) -> int:
        await asyncio.sleep(0)
        left[view.ref] -= len(ids)
        return len(ids)

    asked = Asked(answer)
    options = WarmupOptions(replica="one", batch_ids=10)
    opened = opens(asked, options, room=lambda view: left[view.ref])
    (warmed,) = await opened.warmer.prefetch()
    assert (warmed.why, warmed.ids) == ("full", 26)
    assert len(set(asked.ids(PLANE.ref))) == 25
    assert asked.ids("shop@1") == [7, 7]


@pytest.mark.parametrize("raises", [True, False])
async def test_a_warming_gives_up_when_nothing_can_be_read(opens: Opens, raises: bool) -> None:
    await saved_counts(opens, 100)

    async def answer(view: View, ids: Sequence[Id]) -> int:
        if raises:
            raise StoreUnavailable("gone")
        return 0

    asked = Asked(answer)
    opened = opens(asked, WarmupOptions(replica="one", batch_ids=10))
    (warmed,) = await opened.warmer.prefetch()
    assert (warmed.why, warmed.ids) == ("failed", 0)
    assert 3 <= warmed.failures <= 4


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXT = """\
# what the morning needs
plane_stats@1 N1
weather@1 JFK 5

plane_stats@1
plane_stats@2 N9
shop@1 07
shop@1 7
plane_stats@1 N2
"""
CSV = """\
view,tailnum,origin,hour,shop,note
plane_stats@1,N1,,,,"a, b"
weather@1,,JFK,5,,
plane_stats@1
plane_stats@2,N9,,,,
shop@1,,,,07,
shop@1,,,,7,
plane_stats@1,N2,,,,
"""
JSON = """\
{"view": "plane_stats@1", "ids": ["N1", "N2"]}
{"view": "weather@1", "id": ["JFK", 5]}
{"view": "plane_stats@1"}
{"view": "plane_stats@2", "id": "N9"}
{"view": "shop@1", "id": 7.5}
{"view": "shop@1", "id": 7}
nonsense
[1]
"""


def read(path: Path, view: str | None = None, **bounds: int) -> tuple[dict[str, list[Id]], list[str]]:
    found: dict[str, list[Id]] = {}
    bad: list[str] = []
    for piece in IdFile(path, CATALOGUE, view, **bounds).pieces():
        bad += map(str, piece.bad_lines)
        if piece.view is not None:
            found.setdefault(piece.view.ref, []).extend(piece.ids)
    return found, bad


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("ids.txt", TEXT, [(5, "0 values; an id of plane_stats@1 is tailnum"),
                           (6, "no view 'plane_stats@2'; there are"), (7, "canonical")]),
        ("ids.csv", CSV, [(4, "1 cells; the header has 6"), (5, "no view 'plane_stats@2'"), (6, "canonical")]),
        ("ids.jsonl", JSON, [(3, "it needs `id`"), (4, "no view 'plane_stats@2'"), (5, "is an int64"), (7, "not JSON"),
                             (8, "not an object")]),
    ],
)  # fmt: skip
def test_files_in_every_format_and_wrong_lines_by_number(
    tmp_path: Path, name: str, content: str, bad: list[tuple[int, str]]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    found, said = read(path)
    assert found == {"plane_stats@1": ["N1", "N2"], "weather@1": [("JFK", 5)], "shop@1": [7]}
    assert [line.split(":")[0] for line in said] == [f"line {number}" for number, _ in bad]
    for line, (_, why) in zip(said, bad, strict=True):
        assert why in line


def test_parquet_and_a_view_for_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "planes.parquet"
    pa.parquet.write_table(pa.table({"tailnum": ["N1", None, "N2"], "number": [1, 2, 3]}), path)
    found, said = read(path, "plane_stats@1")
    assert found == {"plane_stats@1": ["N1", "N2"]}
    assert said == ["line 2: plane_stats@1: id at position 0: tailnum is a string, not None"]
    with pytest.raises(IdFileError, match="no column view; there are: tailnum, number"):
        read(path)
    with pytest.raises(IdFileError, match="no column origin, hour"):
        read(path, "weather@1")
    text = tmp_path / "planes"
    text.write_text("N1\nN2\n")
    assert read(text, "plane_stats@1")[0] == {"plane_stats@1": ["N1", "N2"]}
    path.write_bytes(b"PAR1 garbage")
    with pytest.raises(IdFileError, match="cannot be read"):
        read(path, "plane_stats@1")


def test_a_file_is_bounded_in_lines_and_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"N" * 200_000 + b"\nN1\n\xff\xfe\n" + b"".join(b"N%d\n" % i for i in range(2, 2000)))
    found, said = read(path, "plane_stats@1", piece_ids=100, ids_max=1000)
    assert found["plane_stats@1"] == [f"N{i}" for i in range(1, 1001)]
    assert said == ["line 1: longer than LINE_BYTES_MAX (65536)", "line 3: not UTF-8"]
    sizes = [len(piece.ids) for piece in IdFile(path, CATALOGUE, "plane_stats@1", piece_ids=100).pieces()]
    assert max(sizes) == 100


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IdFileError, match=r"the name has to end with \.txt"):
        IdFile(tmp_path / "ids.xlsx", CATALOGUE)
    with pytest.raises(IdFileError, match="there is no such file"):
        IdFile(tmp_path / "ids.txt", CATALOGUE)
    with pytest.raises(UnknownView):
        IdFile(tmp_path / "ids.txt", CATALOGUE, "gone@1")


async def test_a_file_warms_the_cache_of_a_client(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("".join(f"plane_stats@1 N{i}\n" for i in range(2000)) + "oops\n" * 50)
    async with FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url))) as client:
        await client.write(PLANE, {"tailnum": [f"N{i}" for i in range(1500)], "number": list(range(1500))})
        warmer = Warmer(CATALOGUE, client.store, client.warm, WarmupOptions(files=(str(path), "gone.txt")))
        of_file, gone, hot = await warmer.prefetch()
        assert (of_file.why, of_file.bad_lines_total, len(of_file.bad_lines)) == ("done", 50, 20)
        assert str(of_file.bad_lines[0]).startswith("line 2001: no view 'oops'")
        assert of_file.cached == 1500
        assert client.snapshot()[PLANE.ref].entries == 1500
        assert (gone.why, gone.problem) == ("failed", "gone.txt: there is no such file")
        assert (hot.why, hot.ids) == ("done", 0)


async def test_warmings_take_turns(opens: Opens, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("N1\n")
    running = most = 0

    async def answer(view: View, ids: Sequence[Id]) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return len(ids)

    opened = opens(Asked(answer), WarmupOptions(replica="one"))
    await asyncio.gather(*[opened.warmer.warm_file(path, PLANE.ref) for _ in range(5)])
    assert most == 1
    assert [event.ids for event in opened.said(WarmingEnded)] == [1] * 5
    # Who cannot wait for a turn has no warming.
    async with opened.warmer._turn:
        assert (await opened.warmer.warm_hottest(give_up_at=opened.clock.seconds + 0.01)).why == "budget"


# ── The schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Runs:
    """What a schedule does, on a clock of its own, until the clock ends."""

    def __init__(self, cron: str, zone: str, *, until_s: float, lasts_s: Sequence[float]) -> None:
        self.clock = Clock(until_s)
        self.started: list[str] = []
        self.skipped: list[int] = []
        self._schedule = Schedule(cron, zone)
        self._lasts_s = lasts_s

    async def __call__(self) -> None:
        task = asyncio.create_task(
            repeat(
                self._schedule,
                self._run,
                wall=self.clock.wall,
                sleep=self.clock.sleep,
                on_skipped=self.skipped.append,
            )
        )
        async with asyncio.timeout(20):
            await self.clock.ended.wait()
        task.cancel()

    async def _run(self) -> None:
        lasts_s = self._lasts_s[len(self.started) % len(self._lasts_s)]
        self.started.append(self.clock.wall().strftime("%d %H:%M"))
        self.clock.seconds += lasts_s


async def test_a_schedule_runs_every_morning_at_six_where_the_users_are() -> None:
    runs = Runs("0 6 * * *", "Europe/Berlin", until_s=3 * DAY_S, lasts_s=[60.0])
    await runs()
    assert runs.started == ["01 04:00", "02 04:00", "03 04:00"]
    assert runs.skipped == []


async def test_moments_that_pass_during_a_run_are_left_out_and_counted() -> None:
    runs = Runs("*/10 * * * *", "UTC", until_s=7000, lasts_s=[0.0, 1500.0, 60.0])
    await runs()
    assert runs.started == ["01 03:10", "01 03:20", "01 03:50", "01 04:00", "01 04:10", "01 04:40", "01 04:50"]
    assert runs.skipped == [2, 2]


async def test_after_a_long_suspension_a_schedule_runs_once_and_goes_on() -> None:
    runs = Runs("* * * * *", "UTC", until_s=30 * DAY_S + 300, lasts_s=[30 * DAY_S] + [0.0] * 10)
    await runs()
    assert runs.started[:2] == ["01 03:01", "01 03:02"]
    assert 3 <= len(runs.started) <= 6
    assert runs.skipped == [1000]


async def test_a_clock_that_is_set_back_repeats_no_moment() -> None:
    runs = Runs("0 4 * * *", "UTC", until_s=2 * DAY_S, lasts_s=[-1800.0])
    await runs()
    assert runs.started == ["01 04:00", "02 04:00"]


async def test_a_warmer_keeps_its_schedule(opens: Opens, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("N1\n")
    warmed = asyncio.Event()

    async def answer(view: View, ids: Sequence[Id]) -> int:
        warmed.set()
        return len(ids)

    asked = Asked(answer)
    entry = ScheduledWarming("* * * * *", "UTC", str(path), PLANE.ref)
    opened = opens(asked, WarmupOptions(replica="one", schedule=(entry,)))
    async with asyncio.timeout(20), opened.warmer:
        await warmed.wait()
    assert asked.batches[0] == (PLANE.ref, ["N1"])
