"""A client of features, for the gateway and for anybody else.

    lookup   synchronous: ids to rows out of the cache, None where there is none
    fetch    fills the Nones, and calls back: its keys join the next read of the store, and then are computed
    read     both, awaited, decoded
    warm     both, for the cache's sake
    write    a table into the store; what was cached of its rows is forgotten

This module is the face; the work is done in `reading` (the store), `computing` (rows that it has not) and `watching`
(what has changed in it).

Invariants beside theirs: after a write has returned, nobody who asks here gets what was stored before it.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from featureclient.cache import CacheSnapshot
from featureclient.client.combining import Combiner, combined_views
from featureclient.client.computing import Computes, Computing
from featureclient.client.fetches import Done, Fetch, Settled
from featureclient.client.options import ClientOptions
from featureclient.client.reading import UNEXPECTED, Reading, want_of
from featureclient.client.rows import Rows, rows_of
from featureclient.client.shared import Shared
from featureclient.client.tier import Tier
from featureclient.client.watching import Watching
from featureclient.events import Event, StoreWrite
from featureclient.schema import EVENT_TIME, Catalogue, Id, InvalidId, InvalidTable, View, status
from featureclient.store import OnlineStore, StoreError
from featureclient.warmup import Sampler
from featureclient.wire import EncodedRows, status_of


class Ask(NamedTuple):
    """Rows of one view to be fetched: the Nones of `rows`, which is what `lookup` gave for `ids`.

    `callers[i]` is the number of the caller who wants `rows[i]`; None when there is only one. Each caller of a fetch
    lacks at least one row: one who lacks nothing is not told of it alone.
    """

    view: View
    ids: Sequence[Id]
    rows: list[bytes | None]
    callers: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the rows of a write: stored, or left alone because a newer one is stored."""

    written: int
    superseded: int


COMBINE_TURNS_MAX = 20
COMBINE_PAUSE_S = 0.02
"""How often, and after how long at most, rows are combined again whose members others keep writing."""

ROOM_SHARE = 0.95
"""How full a cache is when `room` says that it is full: evicting begins a little before the bound."""

ROW_OVERHEAD_BYTES = 200
"""What a row takes in the cache beside its bytes, about."""

_THERE = frozenset([status.PRESENT, status.COMPUTED])


def _nobody(_view: str, _ids: Sequence[Id]) -> None:
    """Nobody counts."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class FeatureClient:
    """Reads and writes the rows of a catalogue's views. `async with` starts it; leaving it closes the store, too.

    `computes` computes the rows of views that name a `compute`, as `featureclient.compute.Computer` does; its owner
    starts and stops it. Without one, such views answer as those with `on_missing: default`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: OnlineStore,
        options: ClientOptions | None = None,
        *,
        computes: Computes | None = None,
        on_event: Callable[[Event], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = _wall_ms,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.catalogue = catalogue
        self._store = store
        self._options = options = options if options is not None else ClientOptions()
        self._on_event = on_event
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._shared = shared = Shared(store, options, self._emit, monotonic, wall_ms, chance)
        self._cache_share = options.cache.bytes_max // max(1, len(catalogue.views))
        self._tiers: dict[View, Tier] = {}
        self._computing = Computing(shared, computes, self._tell, self._combine)
        self._reading = Reading(shared, self._computing)
        self._watching = Watching(shared, catalogue, self._tiers, self._computing)
        self._writes: set[asyncio.Task[Any]] = set()
        self._sampler: Sampler | None = None
        self._offer: Callable[[str, Sequence[Id]], None] = _nobody
        self._loop: asyncio.AbstractEventLoop | None = None
        self._takes_writes = False

    def __repr__(self) -> str:
        state = "open" if self._loop is not None else "closed"
        return f"<FeatureClient {state} {self._reading} {self._computing} {self._watching}>"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._takes_writes = True
        self._reading.open(self._loop)
        if self._options.watch and self._options.cache.enabled:
            self._watching.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Answer every fetch as unreached, let reads and writes that are under way end, close the store."""
        if self._loop is None:
            return
        self._loop = None
        await self._watching.close()
        await self._reading.close()
        await self._computing.close()
        # Not before: what was computed is stored, and the combined rows that have what was written are made anew.
        await asyncio.gather(*self._writes, return_exceptions=True)
        self._takes_writes = False
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._store.close()

    @property
    def pending_keys(self) -> int:
        """Keys that are being read or wait for it."""
        return len(self._reading)

    @property
    def computing_ids(self) -> int:
        """Ids whose rows are being computed or wait for it."""
        return len(self._computing)

    @property
    def watched(self) -> bool:
        """The store tells of changes, so that what is cached is what it has."""
        return self._watching.on

    @property
    def store(self) -> OnlineStore:
        """The store of the client, for what the client does not do: ping, blobs."""
        return self._store

    @property
    def read_timeout_s(self) -> float:
        """How long `read` waits for the store when it is not told, in seconds."""
        return self._options.read_timeout_s

    def now_ms(self) -> int:
        """The wall clock that events are measured against, in milliseconds since the epoch."""
        return self._wall_ms()

    def snapshot(self) -> Mapping[str, CacheSnapshot]:
        """The caches of the views that were used, by reference."""
        # A copy, since metrics are scraped in another thread while the loop may add a view.
        return {view.ref: tier.cache.snapshot() for view, tier in self._tiers.copy().items()}

    def cached_ids(self, view: View, limit: int) -> list[Id]:
        """Some of the ids whose rows of a view are cached, at most so many."""
        tier = self._tiers.get(view)
        return [] if tier is None else tier.cache.some_ids(limit)

    # ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def lookup(self, view: View, ids: Sequence[Id], now: float) -> list[bytes | None]:
        """The cached rows of `ids`, in order; None where a row has to be fetched.

        Rows are bytes of `view.layout`. Ids known to be absent give the shared row of defaults. `now` is monotonic
        seconds.
        """
        tier = self._tier(view)
        rows = tier.cache.lookup(ids, now)
        if tier.cache.any_due and self._loop is not None:
            self._reading.refresh(tier, tier.cache.take_due())
        if self._sampler is not None and self._sampler.due():
            # Only ids that have a row, or are known to have none: others may be anything, of any length.
            self._offer(view.ref, [one for one, row in zip(ids, rows, strict=True) if row is not None])
        return rows

    def count_lookups(self, sampler: Sampler, offer: Callable[[str, Sequence[Id]], None]) -> None:
        """From now on give the lookups that `sampler` chooses to `offer`, as `featureclient.warmup.Warmer` wants."""
        self._sampler, self._offer = sampler, offer

    def fetch(
        self,
        asks: Sequence[Ask],
        give_up_at: float,
        done: Done,
        *,
        callers: int = 1,
        compute_until: float | None = None,
    ) -> Fetch:
        """Fill every None of the asks' lists, and call `done` with the numbers of the callers whose rows are all there.

        That is at most once for each, on the loop, never before this returns. What the store has not answered at
        `give_up_at` (monotonic seconds) becomes the row that expired, as STALE (UNREACHED), or the defaults. A view
        that computes its rows has until `compute_until` (by default, `give_up_at`) to do so.

        Raises InvalidId, with its position in the ids of its view, before anything is queued.
        """
        wants = (want_of(self._tier(ask.view), ask.ids, ask.rows, ask.callers) for ask in asks)
        return self._reading.fetch(wants, give_up_at, done, callers, compute_until)

    async def read(self, view: str | View, ids: Sequence[Id], timeout_s: float | None = None) -> Rows:
        """The rows of `ids`, in order, whether or not the store has them or answers: `Rows.status` tells.

        Waits `timeout_s` (by default `read_timeout_s`) for the store; for a view that computes its rows, half of it,
        and the rest for that. Raises UnknownView and InvalidId.
        """
        view = self._view(view)
        made = self._tier(view).keys.canonical(ids)
        timeout_s = self._options.read_timeout_s if timeout_s is None else timeout_s
        rows = await self._rows(view, made, self._monotonic() + timeout_s)
        return rows_of(view, made, rows, self._wall_ms())

    async def warm(self, view: str | View, ids: Sequence[Id], give_up_at: float) -> int:
        """Read rows so that they are cached, until `give_up_at` in monotonic seconds; how many of `ids` have a row."""
        view = self._view(view)
        rows = await self._rows(view, self._tier(view).keys.canonical(ids), give_up_at)
        return sum(status_of(row) in _THERE for row in rows)

    async def _rows(self, view: View, ids: Sequence[Id], give_up_at: float) -> list[bytes]:
        now = self._monotonic()
        rows = self.lookup(view, ids, now)
        if None in rows:
            settled = asyncio.get_running_loop().create_future()
            store_until = (now + give_up_at) / 2 if self._tier(view).computes else give_up_at
            asks = [Ask(view, ids, rows)]
            fetch = self.fetch(asks, store_until, lambda _: settled.set_result(None), compute_until=give_up_at)
            try:
                await settled
            finally:
                fetch.cancel()
        return [row for row in rows if row is not None]

    def read_ahead(self, view: View, ids: Sequence[Id]) -> None:
        """Read what is not cached of these rows, in the background: somebody is likely to ask for them."""
        tier = self._tier(view)
        missing = [one for one, row in zip(ids, tier.cache.lookup(ids, self._monotonic()), strict=True) if row is None]
        if missing and self._loop is not None:
            with suppress(InvalidId):  # a hint that cannot be followed
                self._reading.refresh(tier, missing)

    def room(self, view: View) -> int:
        """How many more rows the cache of a view takes before it evicts, with some to spare."""
        cache = self._tier(view).cache.snapshot()
        a_row = cache.bytes / cache.entries if cache.entries else view.layout.block_dtype.itemsize + ROW_OVERHEAD_BYTES
        return int((ROOM_SHARE * cache.bytes_max - cache.bytes) / a_row)

    def _tell(self, settled: Settled) -> None:
        self._reading.tell(settled.ready())

    # ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(
        self,
        view: str | View,
        table: Any,
        *,
        event_time_ms: Any = None,
        force: bool = False,
    ) -> Written:
        """Write a table: a mapping of names to arrays or lists, or a pyarrow Table or RecordBatch.

        It has the entity's join keys and the view's columns; a column left out is null. `event_time_ms` is one number
        or one a row (milliseconds, or datetime64), by default the table's column of that name, else now. A newer stored
        row is left alone, unless `force`. Rows of combined views that have this one's columns are made anew.

        Raises InvalidTable, naming the bad rows, before anything is written; StoreError when the store fails, after
        which some of the rows may be written.
        """
        view = self._view(view)
        if view.combine:
            raise InvalidTable(view.ref, [f"it is a combined view: write {' and '.join(view.combine)} instead"])
        encoded = self.encode(view, table, event_time_ms=event_time_ms)
        if encoded.bad_rows_total:
            raise InvalidTable(view.ref, (), encoded.bad_rows, encoded.bad_rows_total)
        return await self.put(view, encoded, force=force)

    def encode(self, view: View, table: Any, *, event_time_ms: Any = None, first_row: int = 0) -> EncodedRows:
        """The first half of `write`: the good rows, ready for the store; the bad ones, numbered from `first_row`."""
        columns = _columns_of(table)
        times = columns.pop(EVENT_TIME, None)
        if event_time_ms is None:
            event_time_ms = self._wall_ms() if times is None else times
        return self._tier(view).writer.encode(columns, event_time_ms, self._shared.event_ms_max, first_row=first_row)

    async def put(self, view: View, encoded: EncodedRows, *, force: bool = False, only_absent: bool = False) -> Written:
        """The second half of `write`. `only_absent` leaves alone whatever is there."""
        keys, values = encoded.keys, encoded.values
        if not keys:
            return Written(0, 0)
        latest = self._shared.event_ms_max

        async def store() -> int:
            return await self._store.write(
                keys, values, ttl_ms=view.ttl_ms, force=force, only_absent=only_absent, event_ms_max=latest
            )

        written = await self._change(view, encoded.ids, store)
        return Written(written, len(keys) - written)

    async def delete(self, view: str | View, ids: Sequence[Id]) -> int:
        """Delete the rows of `ids`, and return how many there were. Raises InvalidId, and StoreError."""
        view = self._view(view)
        made, keys = self._tier(view).keys.encode(ids)
        if not keys:
            return 0
        return await self._change(view, made, lambda: self._store.delete(keys))

    async def _combine(self, view: View, ids: Sequence[Id]) -> None:
        """Rows were written or deleted: make the rows of combined views that have them anew."""
        for combined in combined_views(self.catalogue.views, view):
            combiner = Combiner(self, combined, self._options.clock_skew_max_ms)
            left = ids
            for _ in range(COMBINE_TURNS_MAX):
                left = (await combiner.combine(left)).contended
                if not left:
                    break
                await asyncio.sleep(self._shared.chance() * COMBINE_PAUSE_S)

    async def _change(self, view: View, ids: Sequence[Id], change: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Run a change in a task of its own, so that a caller who is cancelled leaves no row half known."""
        if not self._takes_writes:
            raise RuntimeError("the client is not open: use `async with`")
        task = asyncio.get_running_loop().create_task(self._change_and_forget(view, ids, change))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    async def _change_and_forget(
        self, view: View, ids: Sequence[Id], change: Callable[[], Coroutine[Any, Any, int]]
    ) -> int:
        started = self._monotonic()
        error: str | None = UNEXPECTED
        why = ""
        try:
            changed = await change()
            error = None
        except StoreError as failed:
            error, why = type(failed).__name__, str(failed)
            raise
        finally:
            # Also after a failure, which may have changed rows all the same.
            self._watching.written(view, ids)
            self._emit(StoreWrite(len(ids), self._monotonic() - started, error, why))
            with suppress(*() if error is None else (StoreError,)):  # the first error is the one to tell
                await self._combine(view, ids)
        return changed

    # ── Both ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _view(self, view: str | View) -> View:
        return self.catalogue.view(view) if isinstance(view, str) else view

    def _tier(self, view: View) -> Tier:
        tier = self._tiers.get(view)
        if tier is None:
            computes = self._computing.names(view)
            tier = self._tiers[view] = Tier(view, self._options, self._cache_share, computes=computes)
        return tier

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception as error:  # noqa: BLE001  # reported; whoever waits for rows is not to blame
                context = {"message": "a feature client's on_event raised", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)


def _columns_of(table: Any) -> dict[str, Any]:
    if isinstance(table, Mapping):
        return dict(table)
    if hasattr(table, "column_names"):  # a pyarrow Table
        return {name: table.column(name) for name in table.column_names}
    if hasattr(table, "schema"):  # a pyarrow RecordBatch
        return {name: table.column(i) for i, name in enumerate(table.schema.names)}
    raise TypeError(f"a table is a mapping of names to columns, or a pyarrow Table, not {type(table).__name__}")
