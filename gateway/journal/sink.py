"""Where segments go besides Parquet, and how they get there: at least once, never in the way of a prediction.

    compaction -> spill/<sink>/<segment>  ->  Spill.deliver: batch by batch  ->  Sink.deliver
                                                 `-> <segment>.offset after each

Invariants
- A batch is delivered before its offset is written: after a crash, or an outage, it may come again, with the same id.
- A sink that is down or slow holds up its own folder only. That has `bytes_max`; beyond it the oldest segments are
  deleted, and their rows counted. The segment that is being delivered stays.
- What a sink refuses for good is counted, and holds up nothing.
- Segments go in the order in which they were begun.
"""

import logging
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.journal.locks import locked
from gateway.journal.reader import SUFFIX, BadSegment, Segment, order, size_of
from gateway.journal.schema import metadata_of

_log = logging.getLogger(__name__)

BATCH_BYTES = 8 * 1024 * 1024
"""What a sink takes at once when nothing speaks for less."""
_OFFSET = ".offset"


class SinkDown(Exception):
    """The sink does not take anything now. What was to be delivered stays where it is."""


class Delivery(NamedTuple):
    """What is delivered. The same `id` always has the same rows, so a sink that has it need not take it again."""

    id: str
    model: str
    """Empty for failures."""


class Sink(Protocol):
    """Where record batches go."""

    name: str
    """Also the name of its folder."""
    batch_bytes: int
    """Batches of a segment are delivered together up to this size."""

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        """Take a batch for good, or raise SinkDown. Blocks; called in a process that serves nobody.

        Returns how many rows it refuses for good, whatever is done: they do not come again.
        """
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


@dataclass(slots=True)
class Delivered:
    """What was done. Counts go up while it is being done, so another thread may look at it."""

    batches: int = 0
    rows: int = 0
    segments: int = 0
    refused_rows: int = 0
    """Rows that the sink will never take."""
    dropped_rows: int = 0
    """Rows of segments that were deleted to keep `bytes_max`."""
    waiting_bytes: int = 0
    down: str = ""
    """Why the last pass ended early."""


class Spill:
    """The segments that wait for one sink. `deliver` is called in one thread, `shorten` in any."""

    def __init__(
        self, root: Path, sink: Sink, bytes_max: int, origin: str = "", queue: "SpillQueue | None" = None
    ) -> None:
        """`origin` says whose ids they are where several hosts deliver to one place; the default is the host's name."""
        self.origin = origin or platform.node()
        self.sink = sink
        self.queue = queue or SpillQueue(root, sink.name, bytes_max)

    def __repr__(self) -> str:
        return f"<Spill {self.queue}>"

    def deliver(self, done: Delivered | None = None, stopping: Callable[[], bool] = lambda: False) -> Delivered:
        """Deliver what waits until the sink is down. One process at a time does this; others find nothing to do.

        `done` is added to. `stopping` is asked between two deliveries.
        """
        done = done or Delivered()
        with locked(self.queue.folder / ".lock", wait=False) as ours:
            if not ours:
                return done
            done.down = ""
            self.queue.shorten(done)
            for path in self.queue.paths():
                if stopping():
                    break
                with self.queue.taken(path):
                    try:
                        if not self._deliver(path, done, stopping):
                            break
                    except FileNotFoundError:  # it was too old by now
                        continue
                    except SinkDown as error:
                        done.down = str(error)
                        break
            done.waiting_bytes = self.queue.bytes
        return done

    def _deliver(self, path: Path, done: Delivered, stopping: Callable[[], bool]) -> bool:
        """One segment from its offset on, then it is deleted. Returns False when it was interrupted."""
        offset_file = path.with_name(path.name + _OFFSET)
        offset = _offset_of(offset_file)
        with suppress(BadSegment), Segment(path) as segment:
            gathered: list[pa.RecordBatch] = []
            start = offset
            for batch, end in segment.read_from(offset):
                gathered.append(batch)
                if sum(one.nbytes for one in gathered) >= self.sink.batch_bytes:
                    self._send(segment, gathered, start, done)
                    gathered, start = [], end
                    _write_offset(offset_file, end)
                    if stopping():
                        return False
            if gathered:
                self._send(segment, gathered, start, done)
        path.unlink()
        offset_file.unlink(missing_ok=True)
        done.segments += 1
        return True

    def _send(self, segment: Segment, gathered: Iterable[pa.RecordBatch], start: int, done: Delivered) -> None:
        (batch,) = pa.Table.from_batches(gathered).combine_chunks().to_batches() or (None,)
        if batch is None:
            return
        delivery = Delivery(f"{self.origin}~{segment.path.stem}~{start}", _model_of(segment))
        try:
            refused = self.sink.deliver(batch, delivery)
        except (ValueError, KeyError, pa.ArrowException) as error:  # damaged rows would hold up all behind them
            _log.warning("%s cannot take %s, it is left out: %r", self.sink.name, delivery.id, error)
            refused = batch.num_rows
        done.batches += 1
        done.refused_rows += refused
        done.rows += batch.num_rows - refused


class SpillQueue:
    """The files of one sink, oldest first, and their bound. Segments are put into it by the compaction."""

    def __init__(self, root: Path, name: str, bytes_max: int) -> None:
        self.folder = root / "spill" / name
        self.bytes_max = bytes_max
        self._taken: Path | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<SpillQueue {self.folder.name} {self.bytes} bytes>"

    @property
    def bytes(self) -> int:
        """What waits."""
        return sum(map(size_of, self.paths()))

    def paths(self) -> list[Path]:
        """The segments that wait."""
        return sorted(self.folder.glob("*" + SUFFIX), key=order)

    @contextmanager
    def taken(self, path: Path) -> Iterator[None]:
        """Keep a segment from being dropped."""
        with self._lock:
            self._taken = path
        try:
            yield
        finally:
            self._taken = None

    def shorten(self, done: Delivered) -> None:
        """Drop the oldest beyond `bytes_max`, and count their rows."""
        with self._lock:
            waiting = self.paths()
            total = sum(map(size_of, waiting))
            for path in waiting:
                if total <= self.bytes_max:
                    break
                if path == self._taken:
                    continue
                total -= size_of(path)
                done.dropped_rows += self._drop(path)
            done.waiting_bytes = total

    def _drop(self, path: Path) -> int:
        rows = 0
        offset_file = path.with_name(path.name + _OFFSET)
        with suppress(BadSegment, FileNotFoundError), Segment(path) as segment:
            rows = sum(batch.num_rows for batch, _ in segment.read_from(_offset_of(offset_file)))
        path.unlink(missing_ok=True)
        offset_file.unlink(missing_ok=True)
        return rows


class ParquetSink:
    """Parquet files in a folder of their own, one for each delivery: `<folder>/model=<m>/<id>.parquet`."""

    def __init__(self, folder: Path, name: str = "parquet") -> None:
        self.name = name
        self.batch_bytes = BATCH_BYTES
        self.folder = folder

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        """Write the file under its id: a second time it is the same file again."""
        final = self.folder / path_of(delivery)
        tmp = final.with_name(f".{final.name}.tmp")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_batches([batch]), tmp, compression="zstd")
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(tmp, final)
        except OSError as error:
            with suppress(OSError):
                tmp.unlink()
            raise SinkDown(f"{self.folder} cannot be written: {error}") from error
        return 0

    def close(self) -> None:
        """Every file is closed already."""


def path_of(delivery: Delivery) -> str:
    """The name of a delivery's Parquet file or object."""
    return (
        f"model={quote(delivery.model, safe='')}/{delivery.id}.parquet"
        if delivery.model
        else f"failures/{delivery.id}.parquet"
    )


def _model_of(segment: Segment) -> str:
    try:
        return metadata_of(segment.arrow).model
    except ValueError:
        return ""


def _offset_of(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _write_offset(path: Path, offset: int) -> None:
    tmp = path.with_name(f".{path.name}.tmp")
    tmp.write_text(str(offset))
    os.replace(tmp, path)
