"""The thread that writes: every interval it takes what was offered, makes a record batch for each schema, and appends.

    buffer.take -> by schema -> Recorder.record -> Streams.write -> (sync: fsync) -> commits settled -> bytes released

Invariants
- What cannot be written is dropped and counted by its reason, and the thread goes on. One run that cannot be recorded
  is dropped alone, and so is a model that cannot. Every offer is written or counted.
- A commit is settled with no error only when its batch was written and synced.
- The thread is started again when something unexpected ends it; what it had taken is counted as dropped.
"""

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias, cast

import pyarrow as pa

from gateway.journal.buffer import Buffer, Offer
from gateway.journal.commits import Commit
from gateway.journal.options import JournalOptions
from gateway.journal.recording import Recorder, record_failures
from gateway.journal.schema import JournalSchema
from gateway.journal.segment import SegmentFile
from gateway.journal.streams import NoRoom, Streams
from gateway.records.errors import HeadraceError, Unavailable
from gateway.records.served import Failed, Served

_log = logging.getLogger(__name__)

_RESTART_WAIT_S = 1.0
_STOP_MAX_S = 30.0
"""How long a stop waits for what is still to be written."""
_ALONE_MAX = 100
"""Runs that are recorded one by one, in one flush, to find those that cannot be."""
_SAY_EVERY_S = 60.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Settled: TypeAlias = "list[tuple[Commit, HeadraceError | None]]"


@dataclass(slots=True)
class Written:
    """What the writer has done. Only its thread changes this."""

    rows: int = 0
    batches: int = 0
    bytes: int = 0
    failures: int = 0
    syncs: int = 0
    sync_s: float = 0.0
    flush_s: float = 0.0
    """Seconds of all flushes together."""
    restarts: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that were not written, by reason: disk_full, quota, disk, failed."""
    error: str = ""
    """Why the last flush did not write all; empty when it did."""


class Writer:
    """Owns the thread and the open segments."""

    def __init__(
        self,
        options: JournalOptions,
        buffer: Buffer,
        settled: Callable[[Settled], None],
        *,
        monotonic: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        """`settled` is called in the thread."""
        self.options = options
        self.written = Written()
        self._buffer = buffer
        self._settled = settled
        self._monotonic = monotonic
        self._wall_s = wall_s
        self._streams = Streams(options)
        self._recorders: dict[JournalSchema, Recorder] = {}
        self._gone: deque[JournalSchema] = deque()
        """Of models that serve no more. What they had offered before is written first."""
        self._wake = threading.Event()
        self._stopping = False
        self._through: set[int] = set()
        """The offers of this flush, by their `id`, that were written or counted as dropped."""
        self._thread: threading.Thread | None = None
        self._said_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Writer {self._streams!r} {self.written}>"

    @property
    def alive(self) -> bool:
        """The thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, close the segments, end the thread. Blocks for `_STOP_MAX_S` at most."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_STOP_MAX_S)

    def wake(self) -> None:
        """Do not wait for the interval."""
        self._wake.set()

    def forget(self, schema: JournalSchema) -> None:
        """The model serves no more. Its segment is closed by age."""
        self._gone.append(schema)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._work()
            except Exception:  # noqa: BLE001 - whatever ends the thread's work, it begins again
                self.written.restarts += 1
                _log.exception("the journal's writer failed; it is started again")
                self._wake.wait(_RESTART_WAIT_S)
        try:
            self.flush()
        finally:
            self._streams.close()

    def _work(self) -> None:
        while not self._stopping:
            self._wake.wait(self.options.interval_ms / 1000)
            self._wake.clear()
            self.flush()

    def flush(self) -> None:
        """Write everything that was offered until now. Called by the thread, or in place of it."""
        began = self._monotonic()
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        offers = self._buffer.take()
        settled: Settled = []
        self._through.clear()
        try:
            if offers:
                self.written.error = ""
                self._write(offers, settled, began)
            self._streams.rotate(began)
        finally:
            self._buffer.release(sum([offer.size for offer in offers]))
            left = [offer for offer in offers if id(offer) not in self._through]
            if left:
                self._drop("failed", left, "the journal's writer failed", settled)
            told = {id(commit) for commit, _ in settled}
            lost = [offer.commit for offer in offers if offer.commit is not None and id(offer.commit) not in told]
            settled += [(commit, Unavailable("the journal's writer failed")) for commit in lost]
            for schema in gone:
                self._recorders.pop(schema, None)
            if settled:
                self._settled(settled)
            if offers:
                self.written.flush_s += self._monotonic() - began

    def _write(self, offers: Sequence[Offer], settled: Settled, now: float) -> None:
        groups: dict[JournalSchema | None, list[Offer]] = {}
        for offer in offers:
            groups.setdefault(None if isinstance(offer.what, Failed) else offer.schema, []).append(offer)
        unsynced: dict[SegmentFile, list[Commit]] = {}
        for schema, group in groups.items():
            made = self._failures(group, settled) if schema is None else self._recorded(schema, group, settled)
            for runs, batch in made:
                file = self._append(schema, runs, batch, settled, now)
                commits = [offer.commit for offer in runs if offer.commit is not None]
                if file is not None and commits:
                    unsynced.setdefault(file, []).extend(commits)
        for file, commits in unsynced.items():
            error = self._sync(file)
            settled += [(commit, error) for commit in commits]

    def _recorded(
        self, schema: JournalSchema, group: list[Offer], settled: Settled
    ) -> Iterator[tuple[list[Offer], pa.RecordBatch]]:
        """The group as one batch; one by one where something in it cannot be recorded."""
        try:
            recorder = self._recorder(schema)
        except Exception as error:  # noqa: BLE001 - a model that has no columns harms no other
            why = f"model {schema.model} cannot be recorded: {type(error).__name__}: {error}"
            self._drop("failed", group, why, settled)
            return
        for runs in ([group], [[offer] for offer in group]):
            bad: list[Offer] = []
            for some in runs[:_ALONE_MAX]:
                try:
                    batch = recorder.record([cast("Served", offer.what) for offer in some])
                except Exception as error:  # noqa: BLE001 - one run that is not as its schema says harms no other
                    bad += some
                    why = f"a run of {schema.model} cannot be recorded: {type(error).__name__}: {error}"
                else:
                    yield some, batch
            if not bad:
                return
            if len(runs) > 1 or len(group) == 1:
                self._drop("failed", [*bad, *chain.from_iterable(runs[_ALONE_MAX:])], why, settled)
                return

    def _recorder(self, schema: JournalSchema) -> Recorder:
        recorder = self._recorders.get(schema)
        if recorder is None:
            options = self.options
            recorder = Recorder(schema, options.redaction, options.sample_share, options.sample_by)
            self._recorders[schema] = recorder
        return recorder

    def _failures(self, group: list[Offer], settled: Settled) -> Iterator[tuple[list[Offer], pa.RecordBatch]]:
        try:
            batch = record_failures(
                [(cast("Failed", offer.what), offer.schema) for offer in group], self.options.redaction
            )
        except Exception as error:  # noqa: BLE001 - the others are written
            self._drop("failed", group, f"failures cannot be recorded: {type(error).__name__}: {error}", settled)
        else:
            yield group, batch

    def _append(
        self,
        schema: JournalSchema | None,
        runs: list[Offer],
        batch: pa.RecordBatch,
        settled: Settled,
        now: float,
    ) -> SegmentFile | None:
        """Append a batch; None where that fails, and then who waits for it is told."""
        written = self.written
        try:
            file, size = self._streams.write(schema, batch, int(self._wall_s() * 1000), now)
        except OSError as error:
            self._drop(_reason_of(error), runs, f"the journal cannot be written: {error}", settled)
            return None
        self._through.update(map(id, runs))
        written.batches += 1
        written.bytes += size
        if schema is None:
            written.failures += batch.num_rows
        else:
            written.rows += batch.num_rows
        return file

    def _sync(self, file: SegmentFile) -> HeadraceError | None:
        began = self._monotonic()
        try:
            file.sync()
        except OSError as error:
            self._say(f"the journal cannot be synced: {error}")
            return Unavailable(f"the journal cannot be synced: {error}")
        finally:
            self.written.syncs += 1
            self.written.sync_s += self._monotonic() - began
        return None

    def _drop(self, reason: str, runs: Sequence[Offer], why: str, settled: Settled) -> None:
        rows = sum(offer.rows for offer in runs)
        self._through.update(map(id, runs))
        self.written.dropped[reason] = self.written.dropped.get(reason, 0) + rows
        self._say(why)
        settled += [(offer.commit, Unavailable(why)) for offer in runs if offer.commit is not None]

    def _say(self, why: str) -> None:
        """Log what goes wrong, but not ten times a second."""
        self.written.error = why
        now = self._monotonic()
        if now - self._said_at >= _SAY_EVERY_S:
            self._said_at = now
            _log.warning("%s; what is not written is counted, and not said again for %.0f s", why, _SAY_EVERY_S)


def _reason_of(error: OSError) -> str:
    """Under which name a drop is counted."""
    if isinstance(error, NoRoom):
        return error.reason
    return "disk_full" if error.errno in _FULL else "disk"
