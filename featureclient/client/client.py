"""A client of features, for the gateway and for anybody else.

    lookup   synchronous: ids to rows out of the cache, None where there is none
    fetch    fills the Nones, and calls back: its keys join the next read of the store
    read     both, awaited, decoded
    write    a table into the store; what was cached of its rows is forgotten

The tick. Whoever fetches during one turn of the event loop joins one read, which starts when the turn ends. While
`reads_in_flight_max` reads are under way, newcomers queue, and form the next read when one of them is answered. So one
caller on an idle machine waits for nobody, and a busy machine reads hundreds of keys at a time, without a timer.

Invariants
- `done` is called once, on the loop, never inside `fetch`, and never after `cancel`.
- A fetch has all its rows at `give_up_at` at the latest, whatever the store does. A read is never cut short by that.
- Only a definite answer is cached: a row that was admitted, or nil. Errors and refused rows are not.
- After a write has returned, nobody who asks here gets what was stored before it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from featureclient.cache import CacheSnapshot
from featureclient.client.breaker import Breaker
from featureclient.client.fetches import Batch, Fetch, Pending, Want
from featureclient.client.options import ClientOptions
from featureclient.client.rows import Rows, rows_of
from featureclient.client.tier import Freshness, Tier
from featureclient.client.timers import GiveUpTimes
from featureclient.events import Event, ReadShed, RowInvalid, StoreRead, StoreWrite
from featureclient.schema import EVENT_TIME, Catalogue, Id, InvalidId, InvalidTable, View
from featureclient.store import OnlineStore, StoreError
from featureclient.wire import EncodedRows

Result = TypeVar("Result")

UNEXPECTED = "unexpected"
"""What events call trouble that is not a StoreError."""

TIMER_SLACK_S = 0.001
"""uvloop's clock ticks in milliseconds: a timer that fires within one of its moment is on time."""

GIVE_UP_PASSES = 4
"""Passes of the loop between a timer and giving up. A loop that was busy finds the timer before it looks at its
sockets, where the answer may have been waiting; on an idle loop the passes take microseconds."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the rows of a write: stored, or left alone because a newer one is stored."""

    written: int
    superseded: int


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class FeatureClient:
    """Reads and writes the rows of a catalogue's views. `async with` starts it; leaving it closes the store, too."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: OnlineStore,
        options: ClientOptions | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self.catalogue = catalogue
        self._store = store
        self._options = options if options is not None else ClientOptions()
        self._on_event = on_event
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._cache_share = self._options.cache.bytes_max // max(1, len(catalogue.views))
        self._tiers: dict[View, Tier] = {}
        self._pending = Pending(self._options.pending_keys_max, self._options.read_keys_max)
        self._breaker = Breaker(self._options.breaker_failures, self._options.breaker_open_s)
        self._give_up_times = GiveUpTimes()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._kick_is_due = False
        self._reads: set[asyncio.Task[None]] = set()
        self._writes: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        state = "open" if self._loop is not None else "closed"
        return f"<FeatureClient {state} reads={len(self._reads)} {self._pending} {self._breaker}>"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
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
        if self._timer is not None:
            self._timer.cancel()
        waiting = self._give_up_times.due(math.inf)
        for fetch in waiting:
            fetch.fall_back()
        self._finish(waiting)
        # The queue, which nobody waits for now, goes; what is under way ends by itself, within the store's limits.
        self._pending.take_all()
        await asyncio.gather(*self._reads, *self._writes, return_exceptions=True)
        await self._store.close()

    @property
    def pending_keys(self) -> int:
        """Keys that are being read or wait for it."""
        return len(self._pending)

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

    # ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def lookup(self, view: View, ids: Sequence[Id], now: float) -> list[bytes | None]:
        """The cached rows of `ids`, in order; None where a row has to be fetched.

        Rows are bytes of `view.layout`. Ids known to be absent give the shared row of defaults. `now` is monotonic
        seconds.
        """
        return self._tier(view).cache.lookup(ids, now)

    def fetch(
        self,
        wants: Sequence[tuple[View, Sequence[Id], list[bytes | None]]],
        give_up_at: float,
        done: Callable[[], None],
    ) -> Fetch:
        """Fill every None of the lists, which are lists of `lookup`, then call `done`.

        What is still missing at `give_up_at` (monotonic seconds) becomes the row that expired, as STALE (UNREACHED), or
        the defaults. Raises InvalidId before anything is queued.
        """
        loop = self._loop
        if loop is None:
            raise RuntimeError("the client is not open: use `async with`")
        fetch = Fetch(give_up_at, done)
        for view, ids, rows in wants:
            tier = self._tier(view)
            positions = [position for position, row in enumerate(rows) if row is None]
            if positions:
                missing = ids if len(positions) == len(ids) else [ids[position] for position in positions]
                try:
                    made, keys = tier.keys.encode(missing)
                except InvalidId as error:
                    raise InvalidId(error.view, positions[error.position], error.why) from None
                fetch.add(Want(tier, made, keys, rows, positions))
        if fetch.missing and not self._breaker.allows(self._monotonic()):
            self._emit(ReadShed(fetch.missing))
            fetch.fall_back()
        else:
            shed = sum([self._pending.join(fetch, want) for want in fetch.wants])
            if shed:
                self._emit(ReadShed(shed))
        if not fetch.missing:
            loop.call_soon(self._finish, [fetch])
            return fetch
        if self._give_up_times.push(fetch):
            self._set_timer(give_up_at)
        if not self._kick_is_due:
            self._kick_is_due = True
            loop.call_soon(self._kick)
        return fetch

    async def read(self, view: str | View, ids: Sequence[Id], timeout_s: float | None = None) -> Rows:
        """The rows of `ids`, in order, whether or not the store has them or answers: `Rows.status` tells.

        Waits `timeout_s` (by default `read_timeout_s`) for the store. Raises UnknownView and InvalidId.
        """
        view = self._view(view)
        made = self._tier(view).keys.canonical(ids)
        now = self._monotonic()
        rows = self.lookup(view, made, now)
        if None in rows:
            settled = asyncio.get_running_loop().create_future()
            give_up_at = now + (self._options.read_timeout_s if timeout_s is None else timeout_s)
            fetch = self.fetch([(view, made, rows)], give_up_at, lambda: settled.set_result(None))
            try:
                await settled
            finally:
                fetch.cancel()
        return rows_of(view, made, [row for row in rows if row is not None], self._wall_ms())

    def _kick(self) -> None:
        """Start reads for what is queued, as many as may be in flight."""
        self._kick_is_due = False
        loop = self._loop
        while loop is not None and self._pending.queued and len(self._reads) < self._options.reads_in_flight_max:
            if not self._breaker.allows(self._monotonic()):
                batches = self._pending.take_all()
                self._settle_unreached(batches)
                self._emit(ReadShed(sum(map(len, batches))))
                return
            batches = self._pending.take()
            if batches:
                self._breaker.started()
                task = loop.create_task(self._read_batches(batches))
                self._reads.add(task)

    async def _read_batches(self, batches: list[Batch]) -> None:
        """One read of the store. It belongs to the client: nobody cancels it."""
        started = self._monotonic()
        keys = [key for batch in batches for key in batch.keys]
        values: list[bytes | None] = []
        # What leaves the store and is not a StoreError is a bug. It goes on to the loop's exception handler, but not
        # before those who wait are answered.
        error: str | None = UNEXPECTED
        try:
            values = await self._store.read(keys)
            error = None
        except StoreError as refused:
            error = type(refused).__name__
        finally:
            now = self._monotonic()
            task = asyncio.current_task()
            if task is not None:
                self._reads.discard(task)
            if error is None:
                self._breaker.succeeded()
                self._settle(batches, values, started)
            else:
                self._breaker.failed(now)
                self._settle_unreached(batches)
            self._kick()
            found = len(values) - values.count(None)
            self._emit(StoreRead(len(keys), found, now - started, error))

    def _settle(self, batches: Sequence[Batch], values: list[bytes | None], read_at: float) -> None:
        """Admit the values of a read, cache them, and hand them out."""
        options = self._options
        freshness = Freshness(
            read_at + options.cache.expire_s,
            read_at + options.cache.absent_expire_s,
            self._wall_ms() + options.clock_skew_max_ms,
        )
        by_tier: dict[Tier, tuple[list[Batch], list[bytes | None]]] = {}
        start = 0
        for batch in batches:
            group = by_tier.get(batch.tier)
            if group is None:
                group = by_tier[batch.tier] = ([], [])
            group[0].append(batch)
            group[1].extend(values[start : start + len(batch)])
            start += len(batch)
        finished: list[Fetch] = []
        refused: list[RowInvalid] = []
        for tier, (some, stored) in by_tier.items():
            rows, invalid = tier.admit(some, stored, freshness)
            refused += [RowInvalid(tier.view.ref, reason) for reason in invalid]
            start = 0
            for batch in some:
                self._pending.settle(batch, rows[start : start + len(batch)], finished)
                start += len(batch)
        self._finish(finished)
        for event in refused:
            self._emit(event)

    def _settle_unreached(self, batches: Sequence[Batch]) -> None:
        finished: list[Fetch] = []
        for batch in batches:
            self._pending.settle(batch, [batch.tier.fallback(one) for one in batch.ids], finished)
        self._finish(finished)

    def _finish(self, fetches: Sequence[Fetch]) -> None:
        """Call back. One caller's error must not cost the others their answer."""
        for fetch in fetches:
            done = fetch.finish()
            if done is None:
                continue
            try:
                done()
            except Exception as error:  # noqa: BLE001  # reported, below
                context = {"message": "a fetch's done() raised", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def _set_timer(self, moment: float) -> None:
        """Have `_give_up` called at `moment`, and at no other."""
        if self._timer is not None:
            if self._timer_at <= moment:
                return
            self._timer.cancel()
        loop = self._loop
        if loop is not None:
            self._timer_at = moment
            self._timer = loop.call_later(max(0.0, moment - self._monotonic()), self._give_up)

    def _give_up(self, passes: int = GIVE_UP_PASSES) -> None:
        """Fetches whose time is over get what there is, when what has arrived meanwhile has been read."""
        loop = self._loop
        if passes and loop is not None:
            loop.call_soon(self._give_up, passes - 1)
            return
        self._timer = None
        due = self._give_up_times.due(self._monotonic() + TIMER_SLACK_S)
        for fetch in due:
            fetch.fall_back()
        self._finish(due)
        moment = self._give_up_times.next()
        if moment is not None:
            self._set_timer(moment)

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
        row is left alone, unless `force`.

        Raises InvalidTable, naming the bad rows, before anything is written; StoreError when the store fails, after
        which some of the rows may be written.
        """
        view = self._view(view)
        encoded = self.encode(view, table, event_time_ms=event_time_ms)
        if encoded.bad_rows_total:
            raise InvalidTable(view.ref, (), encoded.bad_rows, encoded.bad_rows_total)
        return await self.put(view, encoded, force=force)

    def encode(self, view: View, table: Any, *, event_time_ms: Any = None, first_row: int = 0) -> EncodedRows:
        """The first half of `write`: the good rows, ready for the store; the bad ones, numbered from `first_row`."""
        columns = _columns_of(table)
        times = columns.pop(EVENT_TIME, None)
        now_ms = self._wall_ms()
        if event_time_ms is None:
            event_time_ms = now_ms if times is None else times
        latest = now_ms + self._options.clock_skew_max_ms
        return self._tier(view).writer.encode(columns, event_time_ms, latest, first_row=first_row)

    async def put(self, view: View, encoded: EncodedRows, *, force: bool = False) -> Written:
        """The second half of `write`."""
        keys, values = encoded.keys, encoded.values
        if not keys:
            return Written(0, 0)
        latest = self._wall_ms() + self._options.clock_skew_max_ms

        async def store() -> int:
            return await self._store.write(keys, values, ttl_ms=view.ttl_ms, force=force, event_ms_max=latest)

        written = await self._change(view, encoded.ids, store)
        return Written(written, len(keys) - written)

    async def delete(self, view: str | View, ids: Sequence[Id]) -> int:
        """Delete the rows of `ids`, and return how many there were. Raises InvalidId, and StoreError."""
        view = self._view(view)
        made, keys = self._tier(view).keys.encode(ids)
        return await self._change(view, made, lambda: self._store.delete(keys)) if keys else 0

    async def _change(self, view: View, ids: Sequence[Id], change: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Run a change in a task of its own, so that a caller who is cancelled leaves no row half known."""
        if self._loop is None:
            raise RuntimeError("the client is not open: use `async with`")
        task = self._loop.create_task(self._change_and_forget(view, ids, change))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    async def _change_and_forget(
        self, view: View, ids: Sequence[Id], change: Callable[[], Coroutine[Any, Any, int]]
    ) -> int:
        started = self._monotonic()
        error: str | None = UNEXPECTED
        try:
            changed = await change()
            error = None
        except StoreError as failed:
            error = type(failed).__name__
            raise
        finally:
            # Also after a failure, which may have changed rows all the same.
            for tier in self._tiers.values():
                if tier.view.ref == view.ref:
                    tier.written(ids)
            self._emit(StoreWrite(len(ids), self._monotonic() - started, error))
        return changed

    # ── Both ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _view(self, view: str | View) -> View:
        return self.catalogue.view(view) if isinstance(view, str) else view

    def _tier(self, view: View) -> Tier:
        tier = self._tiers.get(view)
        if tier is None:
            tier = self._tiers[view] = Tier(view, self._options, self._cache_share)
        return tier

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)


def _columns_of(table: Any) -> dict[str, Any]:
    if isinstance(table, Mapping):
        return dict(table)
    if hasattr(table, "column_names"):  # a pyarrow Table
        return {name: table.column(name) for name in table.column_names}
    if hasattr(table, "schema"):  # a pyarrow RecordBatch
        return {name: table.column(i) for i, name in enumerate(table.schema.names)}
    raise TypeError(f"a table is a mapping of names to columns, or a pyarrow Table, not {type(table).__name__}")
