"""The journal of one process: what is served is offered on the loop and written by a thread.

    async with Journal(options) as journal:
        journal.offer(schema, served)             durability: interval; nobody waits
        journal.commit(schema, served, done)      durability: sync; `done` says who may be answered
        journal.fail(failed)

Invariants
- Nothing here waits or raises: what has no room is dropped and counted, or refused.
- An offer keeps references, nothing is copied on the loop; `buffer_bytes_max` bounds what they hold. Who offers what
  has been answered lets go of what came over the wire first; of a commit it is counted.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from gateway.journal.buffer import Buffer, Offer
from gateway.journal.commits import Commit, Commits, Done
from gateway.journal.options import JournalOptions
from gateway.journal.schema import JournalSchema
from gateway.journal.writer import Settled, Writer
from gateway.records.errors import Overloaded, Unavailable
from gateway.records.request import Array
from gateway.records.served import Failed, Served

_REQUEST_BYTES = 1024
"""About what a request holds, with its call and its id."""
_RUN_BYTES = 2048
"""About what the objects around the arrays of a run take."""
_ID_BYTES = 64
"""About what an id, or another short text, takes."""
FAILURES_PER_S = 2000
"""Failures that are kept of a second. Where everything is refused, to keep it all would cost more than to answer."""


@dataclass(frozen=True, slots=True)
class JournalState:
    """What a journal has done and how it is. Counters grow; rows of failures are counted apart."""

    rows: int
    batches: int
    bytes: int
    failures: int
    dropped: dict[str, int]
    """Rows that were not written, by reason: `buffer` (offered faster than written), `failures` (more than are kept of
    a second), `disk_full`, `quota`, `disk` (not writable), `failed` (a bug of ours), `closed`."""
    pending_bytes: int
    commits_waiting: int
    syncs: int
    sync_s: float
    flush_s: float
    restarts: int
    alive: bool
    error: str
    """Why the last flush did not write all; empty when it did."""


class Journal:
    """See the module. Used on the loop that entered it."""

    def __init__(
        self,
        options: JournalOptions,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.options = options
        self._buffer = Buffer(options.buffer_bytes_max)
        self._commits = Commits(monotonic)
        self._writer = Writer(options, self._buffer, self._hand_back, monotonic=monotonic, wall_s=wall_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False
        self._dropped = {"buffer": 0, "closed": 0, "failures": 0}
        self._monotonic = monotonic
        self._second = float("-inf")
        self._failures = 0
        """Failures that were offered in this second."""

    async def __aenter__(self) -> "Journal":
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._writer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what was offered, and close the segments."""
        self._open = False
        await asyncio.to_thread(self._writer.stop)
        await asyncio.sleep(0)  # what the last flush handed back is told

    def hold(self) -> None:
        """Take offers from now on; they are written once the journal is entered."""
        self._open = True

    def __repr__(self) -> str:
        return f"<Journal {self.options.path} {self._buffer!r} {self._writer!r}>"

    @property
    def healthy(self) -> bool:
        """The writer runs, and what was offered last is written."""
        return self._writer.alive and not self._writer.written.error

    def forget(self, schema: JournalSchema) -> None:
        """The model serves no more."""
        self._writer.forget(schema)

    def offer(self, schema: JournalSchema, served: Served) -> bool:
        """Keep a run. False when it was dropped, and counted."""
        rows, size = _size_of(schema, served)
        if self._open and self._buffer.put(Offer(schema, served, size, rows, None)):
            return True
        self._count_drop(rows)
        return False

    def fail(self, failed: Failed, schema: JournalSchema | None = None) -> bool:
        """Keep a request that got an error. False when it was dropped, and counted; True when none are kept.

        `schema` is that of the model that the request is bound to: it says what its ids are. Without one, none are
        written.
        """
        if not self.options.failures:
            return True
        now = self._monotonic()
        if now - self._second >= 1:
            self._second, self._failures = now, 0
        self._failures += 1
        if self._failures > FAILURES_PER_S:
            self._dropped["failures"] += 1
            return False
        size = _REQUEST_BYTES + len(failed.message)
        if self._open and self._buffer.put(Offer(schema, failed, size, 1, None)):
            return True
        self._count_drop(1)
        return False

    def commit(self, schema: JournalSchema, served: Served, done: Done) -> None:
        """Keep a run whose answers wait for it.

        `done` is called once for every request, for some or all at a time, from now or from the loop: with None when
        the record is on the disk, with `Unavailable` when it cannot be, `Overloaded` when there is no room for it, and
        `DeadlinePassed` when the caller's time is over first.
        """
        rows, size = _size_of(schema, served)
        size += sum([_payload_bytes(request.caller) for request in served.requests])
        commit = Commit(served.requests, done)
        if not self._open:
            self._count_drop(rows)
            commit.settle(Unavailable("the journal is closed"))
        elif not self._buffer.put(Offer(schema, served, size, rows, commit)):
            self._count_drop(rows)
            message = f"{self._buffer.pending_bytes} bytes wait for the journal, buffer_bytes_max is reached"
            commit.settle(Overloaded(message, limit="buffer_bytes_max"))
        else:
            self._commits.park(commit)
            self._writer.wake()

    def state(self) -> JournalState:
        """A snapshot for metrics and health."""
        written = self._writer.written
        dropped = dict(chain([*self._dropped.items()], [*written.dropped.items()]))
        return JournalState(
            rows=written.rows,
            batches=written.batches,
            bytes=written.bytes,
            failures=written.failures,
            dropped=dropped,
            pending_bytes=self._buffer.pending_bytes,
            commits_waiting=len(self._commits),
            syncs=written.syncs,
            sync_s=written.sync_s,
            flush_s=written.flush_s,
            restarts=written.restarts,
            alive=self._writer.alive,
            error=written.error,
        )

    def _count_drop(self, rows: int) -> None:
        self._dropped["buffer" if self._open else "closed"] += rows

    def _hand_back(self, settled: Settled) -> None:
        """Called by the writer's thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and so are its callers
                self._loop.call_soon_threadsafe(self._commits.settle, settled)


def _size_of(schema: JournalSchema, served: Served) -> tuple[int, int]:
    """The rows of a run, and about how many bytes it holds."""
    rows = len(served.outputs[0]) if schema.batched else len(served.requests)
    if schema.row_bytes is not None:
        size = rows * (schema.row_bytes + _ID_BYTES * len(schema.entities))
    else:
        inputs = [array.nbytes for array in served.assembled.inputs.values()]
        size = 2 * sum(inputs) + sum([array.nbytes for array in served.outputs])  # the requests have them too
    if schema.texts:
        assembled = served.assembled
        arrays = [*(assembled.context or assembled.inputs.values()), *served.outputs]
        size += sum([_text_bytes(array) for array in arrays if array.dtype.hasobject])
    return rows, size + len(served.requests) * _REQUEST_BYTES + _RUN_BYTES


def _text_bytes(array: Array) -> int:
    """About what texts take: their characters, and what each has around it."""
    return array.size * _ID_BYTES + sum(map(len, array.ravel().tolist()))


def _payload_bytes(caller: object) -> int:
    """What came over the wire, where the caller has it, or the call that it stands for."""
    return len(getattr(getattr(caller, "call", caller), "payload", b""))
