"""The tasks of warming: prefetch before serving, save while serving, warm when the schedule says so.

    prefetch    files of the options, then: load the counts of all replicas, decay them by their age, merge, read the
                hottest ids of each view through `warm`, the hottest first over all views
    save        every `save_every_s`: decay, pack, set the blob of this replica; also when the warmer ends
    schedule    one task an entry; runs take turns, and a moment that passes during a run is left out

`warm(view, ids, give_up_at)` is the client's: it reads these ids into its cache, until `give_up_at` (monotonic seconds)
at the latest, and returns how many of them have a row. `room(view)` says how many more rows the cache takes without
pushing out what was warmed before, which is hotter; the warming of a view ends there. See `warming`.

Invariants
- Nothing here raises because of the store, a file or the clock: trouble is an event, and a start goes on without.
- A warming ends within its budget, plus what `warm` takes past `give_up_at`. One runs at a time.
- Work on counts is done in slices of 0.1 to 0.3 ms, with pauses while the server serves.
- What is saved under this replica's name is what it counted itself, before a restart and since.
"""

import asyncio
import socket
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from featureclient.schema import Catalogue, FeatureError, Id, View
from featureclient.warmup.hotkeys import HotKeys, HotKeysInvalid, Steps
from featureclient.warmup.idfile import IdFile, Piece
from featureclient.warmup.options import ScheduledWarming, WarmupOptions
from featureclient.warmup.plan import errands
from featureclient.warmup.progress import CountsLoaded, CountsSaved, ScheduleSkipped, WarmupEvent
from featureclient.warmup.repeating import repeat
from featureclient.warmup.sampler import PERIOD_S, Sampler
from featureclient.warmup.saved import Blobs, CountsShelf
from featureclient.warmup.warming import Batch, Room, Warm, Warmed, Warming

Result = TypeVar("Result")

PAUSE_S = 0.002
"""Between two slices of work on counts while the server serves."""
CLOSE_S_MAX = 2.0
"""How long the last save may take when the warmer ends."""


def _wall() -> datetime:
    return datetime.now(UTC)


def _unknown(_view: View) -> int | None:
    return None


class Warmer:
    """Warms the caches of one client. `async with` starts saving and the schedule; leaving it saves once more.

    Whoever looks up rows asks `sampler.due()` once for each batch, and when it says yes gives the batch to `offer`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        blobs: Blobs,
        warm: Warm,
        options: WarmupOptions | None = None,
        *,
        room: Room = _unknown,
        on_event: Callable[[WarmupEvent], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = _wall,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._options = options = options if options is not None else WarmupOptions()
        self._catalogue = catalogue
        self._warm = warm
        self._room = room
        self._on_event = on_event
        self._monotonic = monotonic
        self._wall = wall
        self._sleep = sleep
        replica = options.replica or _host_name()
        self._shelf = CountsShelf(blobs, replica, replicas_max=options.replicas_max, keep_ms=int(options.keep_s * 1000))
        # Replicas that were started together do not save together.
        self._first_save_share = zlib.crc32(replica.encode()) / 2**32
        self.hot = HotKeys(options.keys_max)
        self.sampler = Sampler(options.sample_every, options.sample_ids_per_s_max)
        self._decayed_at = monotonic()
        self._own_is_loaded = False
        self._saving = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Warmer {self.hot} {self.sampler} {self._shelf} tasks={len(self._tasks)}>"

    async def __aenter__(self) -> Self:
        if self._options.enabled:
            loops = [self._keep_saving(), self._keep_adapting(), *map(self._keep_to, self._options.schedule)]
            self._tasks = [asyncio.create_task(loop) for loop in loops]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the tasks, and save once more, for at most `CLOSE_S_MAX` seconds."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            with suppress(TimeoutError):  # counts are a hint; those that were saved before are still there
                async with asyncio.timeout(CLOSE_S_MAX):
                    await self.save(pause_s=0)

    def offer(self, view_ref: str, ids: Sequence[Id]) -> None:
        """Count the ids of a batch that `sampler.due()` has chosen."""
        self.hot.offer(view_ref, self.sampler.thin(ids))

    # ── Counts ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def save(self, *, pause_s: float = PAUSE_S) -> bool:
        """Decay the counts by the time that has passed, and save them. False when that failed; the event says why."""
        async with self._saving:
            started = self._monotonic()
            error: str | None = None
            why = ""
            data = b""
            try:
                if not self._own_is_loaded:
                    # What an earlier run has saved must not be lost because the store did not answer at the start.
                    ages = dict(await self._shelf.names(self._wall_ms()))
                    with suppress(HotKeysInvalid):
                        await self._counts_of(self._shelf.replica, ages.get(self._shelf.replica, 0), pause_s)
                factor = self._factor(started - self._decayed_at)
                self._decayed_at = started
                await _in_slices(self.hot.decaying(factor), pause_s)
                data = await _in_slices(self.hot.packing(), pause_s)
                await self._shelf.save(data, self._wall_ms())
            except FeatureError as failed:
                error, why = type(failed).__name__, str(failed)
            self._emit(CountsSaved(len(data), self._monotonic() - started, error, why))
            return error is None

    async def load(self, give_up_at: float, *, pause_s: float = PAUSE_S) -> HotKeys:
        """The counts of all replicas, merged, each decayed by its age. What was read when there is trouble."""
        started = self._monotonic()
        merged = HotKeys(self._options.keys_max)
        replicas = invalid = 0
        error: str | None = None
        why = ""
        try:
            async with asyncio.timeout(max(0.0, give_up_at - started)):
                for replica, age_ms in await self._shelf.names(self._wall_ms()):
                    try:
                        counts = await self._counts_of(replica, age_ms, pause_s)
                    except HotKeysInvalid:
                        invalid += 1
                        continue
                    if counts is not None:
                        await _in_slices(merged.merging(counts), pause_s)
                        replicas += 1
        except TimeoutError:
            error, why = "TimeoutError", "the time for warming was over"
        except FeatureError as failed:
            error, why = type(failed).__name__, str(failed)
        self._emit(CountsLoaded(replicas, invalid, len(merged), self._monotonic() - started, error, why))
        return merged

    async def _counts_of(self, replica: str, age_ms: int, pause_s: float) -> HotKeys | None:
        """What a replica has saved, decayed. The first time, this replica goes on with what is its own."""
        data = await self._shelf.load(replica)
        own = replica == self._shelf.replica and not self._own_is_loaded
        counts = None
        if data is not None:
            try:
                counts = await _in_slices(HotKeys.unpacking(data, self._options.keys_max), pause_s)
            except HotKeysInvalid:
                self._own_is_loaded |= own  # there is nothing to go on with
                raise
            await _in_slices(counts.decaying(self._factor(age_ms / 1000)), pause_s)
        if own:
            self._own_is_loaded = True
            if counts is not None:
                self.hot.merge(counts)  # at once: interrupted, it could be neither repeated nor left
        return counts

    def _factor(self, seconds: float) -> float:
        return float(0.5 ** (max(0.0, seconds) / self._options.half_life_s))

    # ── Warming ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def prefetch(self, budget_s: float | None = None) -> list[Warmed]:
        """Warm the files of the options, then the hottest ids, in `budget_s` seconds together (see the options).

        To be awaited before the server says that it serves. Never raises because of the store or a file.
        """
        options = self._options
        if not options.enabled:
            off = Warmed("hot", "off")
            self._emit(off.ended())
            return [off]
        give_up_at = self._monotonic() + (options.budget_s if budget_s is None else budget_s)
        warmed = [await self.warm_file(file, give_up_at=give_up_at) for file in options.files]
        return [*warmed, await self.warm_hottest(give_up_at=give_up_at, pause_s=0)]

    async def warm_hottest(self, *, give_up_at: float | None = None, pause_s: float = PAUSE_S) -> Warmed:
        """Load the counts of all replicas, and read the hottest ids, by default for at most `run_budget_s`."""
        warmed = Warmed("hot")
        async with self._my_turn(warmed, give_up_at) as upto:
            if upto is not None:
                merged = await self.load(upto, pause_s=pause_s)
                views = self._catalogue.views
                planned = await _in_slices(errands(merged, views, self._options.batch_ids), pause_s)
                batches = iter([(views[errand.view], errand.ids) for errand in planned])

                async def draw() -> Batch | None:
                    return next(batches, None)

                await self._warming(warmed, upto).run(draw, use_again=True)
        return warmed

    async def warm_file(
        self, path: str | Path, view: str | None = None, *, give_up_at: float | None = None
    ) -> Warmed:  # fmt: skip
        """Read the ids that a file names (see `idfile`), in its order, by default for at most `run_budget_s`."""
        warmed = Warmed(str(path))
        async with self._my_turn(warmed, give_up_at) as upto:
            if upto is not None:
                try:
                    file = IdFile(path, self._catalogue, view, piece_ids=self._options.batch_ids)
                except FeatureError as error:
                    warmed.why, warmed.problem = "failed", str(error)
                else:
                    draw = _drawing(file.pieces(), warmed)
                    await self._warming(warmed, upto).run(draw)
        return warmed

    def _warming(self, warmed: Warmed, give_up_at: float) -> Warming:
        return Warming(
            warmed,
            self._warm,
            self._room,
            give_up_at=give_up_at,
            monotonic=self._monotonic,
            emit=self._emit,
        )

    @asynccontextmanager
    async def _my_turn(self, warmed: Warmed, give_up_at: float | None) -> AsyncIterator[float | None]:
        """Wait until no other warming runs; then until when this one may. None when it has no time left."""
        started = self._monotonic()
        try:
            async with asyncio.timeout(None if give_up_at is None else max(0.0, give_up_at - started)):
                await self._turn.acquire()
        except TimeoutError:
            warmed.why = "budget"
            yield None
        else:
            started = self._monotonic()
            try:
                yield started + self._options.run_budget_s if give_up_at is None else give_up_at
            finally:
                self._turn.release()
        warmed.seconds = self._monotonic() - started
        self._emit(warmed.ended())

    # ── Tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_saving(self) -> None:
        await self._sleep(self._options.save_every_s * (0.5 + 0.5 * self._first_save_share))
        while True:
            await self.save()
            await self._sleep(self._options.save_every_s)

    async def _keep_adapting(self) -> None:
        while True:
            before = self._monotonic()
            await self._sleep(PERIOD_S)
            self.sampler.adapt(self._monotonic() - before)

    async def _keep_to(self, entry: ScheduledWarming) -> None:
        async def run() -> None:
            if entry.file:
                await self.warm_file(entry.file, entry.view or None)
            else:
                await self.warm_hottest()

        def skipped(moments: int) -> None:
            self._emit(ScheduleSkipped(entry.cron, moments))

        await repeat(entry.schedule, run, wall=self._wall, sleep=self._sleep, on_skipped=skipped)

    def _wall_ms(self) -> int:
        return int(self._wall().timestamp() * 1000)

    def _emit(self, event: WarmupEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)


async def _in_slices(steps: Steps[Result], pause_s: float) -> Result:
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            result: Result = ended.value
            return result
        await asyncio.sleep(pause_s)


def _drawing(pieces: Iterator[Piece], warmed: Warmed) -> Callable[[], Awaitable[Batch | None]]:
    """The pieces of a file, read in a thread; its wrong lines go into the report."""
    reading = asyncio.Lock()  # a generator cannot be asked twice at a time

    async def draw() -> Batch | None:
        async with reading:
            try:
                piece = await asyncio.to_thread(next, pieces, None)
            except FeatureError as error:
                warmed.why, warmed.problem = "failed", str(error)
                return None
            if piece is None:
                return None
            warmed.note(piece.bad_lines)
            return piece.view, piece.ids

    return draw


def _host_name() -> str:
    letters = [letter if letter.isalnum() or letter in "._-" else "-" for letter in socket.gethostname()]
    return "".join(letters) or "replica"
