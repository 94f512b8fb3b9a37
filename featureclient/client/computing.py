"""Rows that the store has not, computed: who waits for them, the runs, the write-back.

    join ──▶ ids that nobody computes yet are queued ──▶ _kick ──▶ one run for many ids ──▶ rows, cached and handed out
                                                                                       └──▶ written back, in the rear

Ids that come while `concurrency_max` runs of the view are under way form the next run. A run belongs to the client, not
to who asked first; a caller whose time is over stops waiting, and the row is there for the next.

Invariants
- An id is computed once at a time, however many wait for it.
- A computed row is never kept over one that the store has, as far as anybody has told: not in the store
  (`only_absent`), and not in the cache, where its age counts from the read that did not find it.
- A row that cannot be stored or served costs its own id only.
- At most `computing_ids_max` ids wait or are computed, and at most `write_backs_max` write-backs are under way.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from featureclient.client.fetches import Fetch, Settled, Waiter
from featureclient.client.shared import Shared
from featureclient.client.tier import Tier
from featureclient.compute import Computed, ComputeError, ComputeTimedOut
from featureclient.events import ComputeDropped, StoreWrite
from featureclient.schema import EVENT_TIME, FeatureError, Id, InvalidTable, View, status
from featureclient.wire import EncodedRows, with_status


class Computes(Protocol):
    """What computes rows: `featureclient.compute.Computer`."""

    def names(self, view: View) -> bool:
        """The rows of this view can be computed."""
        ...

    async def attempt(self, view: View, ids: Sequence[Id], give_up_at: float) -> Computed:
        """A table of the rows of `ids`, without those that have none, and why some failed."""
        ...


class NotThere(NamedTuple):
    """Why a row is to be computed: the cause in its status, and when the read began that did not find it.

    `dirty` says that it has been written since.
    """

    cause: int
    since: float
    dirty: bool = False


class _Queue:
    """The ids of one view. `waiters` has every id that waits or is computed, `reasons` why it is."""

    __slots__ = ("dirty", "ids", "reasons", "runs", "waiters")

    def __init__(self) -> None:
        self.ids: deque[Id] = deque()
        self.waiters: dict[Id, list[Waiter]] = {}
        self.reasons: dict[Id, NotThere] = {}
        self.dirty: set[Id] = set()
        self.runs = 0

    def take(self, ids_max: int) -> list[Id]:
        return [self.ids.popleft() for _ in range(min(ids_max, len(self.ids)))]


class Computing:
    """The computed rows of one client. `tell` gets what has settled; `stored` is awaited when rows are written back."""

    def __init__(
        self,
        shared: Shared,
        computes: Computes | None,
        tell: Callable[[Settled], None],
        stored: Callable[[View, Sequence[Id]], Awaitable[None]],
    ) -> None:
        self._shared = shared
        self._computes = computes
        self._tell = tell
        self._stored = stored
        self._options = shared.options
        self._emit = shared.emit
        self._monotonic = shared.monotonic
        self._queues: dict[Tier, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._write_backs: set[asyncio.Task[None]] = set()
        self._kicks: set[Tier] = set()
        self._open = True

    def __repr__(self) -> str:
        return f"<Computing ids={len(self)} runs={len(self._tasks)} write_backs={len(self._write_backs)}>"

    def __len__(self) -> int:
        """Ids that wait or are computed."""
        return sum(len(queue.waiters) for queue in self._queues.values())

    def names(self, view: View) -> bool:
        """Rows of the view that the store has not are computed."""
        return view.compute is not None and self._computes is not None and self._computes.names(view)

    def has_time(self, tier: Tier, fetch: Fetch) -> bool:
        """The callers of a fetch wait for a row of the view to be computed."""
        return tier.view.on_missing == "compute" and fetch.compute_until > self._monotonic()

    async def close(self) -> None:
        """Compute no more; let what is under way end."""
        self._open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._write_backs, return_exceptions=True)

    def join(self, tier: Tier, one: Id, reason: NotThere, waiters: Sequence[Waiter]) -> bool:
        """Have a row computed, for these and for whoever comes later. False when there is no room."""
        queue = self._queues.get(tier)
        if queue is None:
            queue = self._queues[tier] = _Queue()
        waiting = queue.waiters.get(one)
        if waiting is None:
            if not self._open or len(self) >= self._options.computing_ids_max:
                self._emit(ComputeDropped(tier.view.ref, "ids", 1))
                return False
            waiting = queue.waiters[one] = []
            queue.reasons[one] = reason
            if reason.dirty:
                queue.dirty.add(one)
            queue.ids.append(one)
            if tier not in self._kicks:
                self._kicks.add(tier)
                asyncio.get_running_loop().call_soon(self._kick, tier)
        waiting += waiters
        return True

    def written(self, tier: Tier, ids: Sequence[Id]) -> None:
        """Rows were written, or found: what is computed of them now is for those who wait, and not kept."""
        queue = self._queues.get(tier)
        if queue is not None:
            queue.dirty.update(one for one in ids if one in queue.waiters)

    def _kick(self, tier: Tier) -> None:
        self._kicks.discard(tier)
        queue, compute = self._queues[tier], tier.view.compute
        while compute is not None and self._open and queue.ids and queue.runs < compute.concurrency_max:
            queue.runs += 1
            task = asyncio.get_running_loop().create_task(self._run(tier, queue, queue.take(compute.batch_rows_max)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, tier: Tier, queue: _Queue, ids: list[Id]) -> None:
        rows: dict[Id, bytes] = {}
        failed: Mapping[Id, Exception] = dict.fromkeys(ids, ComputeError(tier.view.ref, "the run was not finished"))
        try:
            encoded, failed = await self._compute(tier, ids)
            rows = self._admit(tier, queue, encoded)
            self._write_back(tier, encoded)
        except FeatureError as error:
            # It is in the events, and the rows say why they are not there.
            failed = dict.fromkeys(ids, error)
        finally:
            settled = Settled()
            for one in ids:
                row = rows.get(one) or self._substitute(tier, queue, one, failed.get(one))
                pending = tier.pending.get(one)
                if pending is not None and one not in failed:
                    pending.note_computed(one, row)
                for waiter in queue.waiters.pop(one):
                    settled.give(waiter, row)
                del queue.reasons[one]
                queue.dirty.discard(one)
            queue.runs -= 1
            self._tell(settled)
            self._kick(tier)

    def _substitute(self, tier: Tier, queue: _Queue, one: Id, failed: Exception | None) -> bytes:
        """What stands for a row that was not computed."""
        if failed is None:
            # Neither the store nor the computation has it.
            reason = queue.reasons[one]
            if one not in queue.dirty and reason.cause == status.ABSENT:
                tier.cache.put_absent(one, tier.cache.absent_stamp(reason.since, self._shared.chance()))
            return tier.substitutes[reason.cause]
        return tier.substitutes[status.TIMED_OUT if isinstance(failed, ComputeTimedOut) else queue.reasons[one].cause]

    async def _compute(self, tier: Tier, ids: list[Id]) -> tuple[EncodedRows, Mapping[Id, Exception]]:
        computes = self._computes
        if computes is None:
            raise ComputeError(tier.view.ref, "nothing computes rows here")
        computed = await computes.attempt(tier.view, ids, math.inf)
        table = dict(computed.table)
        times = table.pop(EVENT_TIME, self._shared.wall_ms())
        encoded = tier.writer.encode(table, times, self._shared.event_ms_max, computed=True)
        failed: dict[Id, Exception] = dict(computed.failed)
        if encoded.bad_rows_total:
            error = InvalidTable(tier.view.ref, (), encoded.bad_rows, encoded.bad_rows_total)
            failed |= dict.fromkeys(set(_ids_of(tier.view, table)).difference(encoded.ids), error)
            self._emit(ComputeDropped(tier.view.ref, "invalid", encoded.bad_rows_total))
        return encoded, failed

    def _admit(self, tier: Tier, queue: _Queue, encoded: EncodedRows) -> dict[Id, bytes]:
        """The computed rows as cached ones, by id. They are kept where nothing else came meanwhile."""
        since = min([queue.reasons[one].since for one in encoded.ids], default=0.0)
        stamp = tier.cache.stamp(since, self._shared.chance())
        stored = tier.reader.admit(encoded.keys, encoded.values, stamp, self._shared.event_ms_max).rows
        rows = [with_status(row, status.COMPUTED) for row in cast("list[bytes]", stored)]
        for one, row in zip(encoded.ids, rows, strict=True):
            if one not in queue.dirty:
                tier.cache.put(one, row)
        return dict(zip(encoded.ids, rows, strict=True))

    def _write_back(self, tier: Tier, encoded: EncodedRows) -> None:
        compute = tier.view.compute
        if compute is None or not compute.write_back or not encoded.keys:
            return
        if len(self._write_backs) >= self._options.write_backs_max:
            self._emit(ComputeDropped(tier.view.ref, "write_back", len(encoded.keys)))
            return
        task = asyncio.get_running_loop().create_task(self._store_rows(tier, encoded))
        self._write_backs.add(task)
        task.add_done_callback(self._write_backs.discard)

    async def _store_rows(self, tier: Tier, encoded: EncodedRows) -> None:
        view = tier.view
        started = self._monotonic()
        error: str | None = None
        why = ""
        latest_ms = self._shared.event_ms_max
        try:
            stored = await self._shared.store.write(
                encoded.keys, encoded.values, ttl_ms=view.ttl_ms, only_absent=True, event_ms_max=latest_ms
            )
            if stored < len(encoded.keys):
                # Somebody has written some of them, and they are what is to be served.
                tier.written(encoded.ids)
            await self._stored(view, encoded.ids)
        except FeatureError as failed:
            error, why = type(failed).__name__, str(failed)
        self._emit(StoreWrite(len(encoded.keys), self._monotonic() - started, error, why))


def _ids_of(view: View, table: Mapping[str, Any]) -> Sequence[Id]:
    """Whose rows are in a table, in canonical form, which is how the computer gives them."""
    parts: list[Sequence[Any]] = [table[key.name] for key in view.entity.join_keys]
    return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
