"""Reads segments: finished ones, those that a process left half-written, and those that are being written.

    batches(path)              every whole record batch, in order
    read_from(path, offset)    the same from an offset on, each with the offset after it: for who comes back for more
    segments(folder)           the segments of a journal, oldest first

A segment is an Arrow IPC stream. It ends with the stream's end mark; without one its writer is still at it, or died.
Then the segment ends after its last whole batch, and what is behind is no part of it.

Invariants
- A batch is given whole or not at all, and is checked first: what is read of a damaged file cannot harm the process.
- A file that is damaged ends like one that is half-written. `Segment.tail` says so: how many bytes were not read, and
  why.
- Files are read and not mapped: one that its writer cuts short would kill a process that has it mapped.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from gateway.journal.schema import JournalSchema, metadata_of

SUFFIX = ".arrows"
END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last 8 bytes of a finished segment."""
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)(~.*)?\.arrows")


class BadSegment(ValueError):
    """A file that is no segment, or has lost its beginning."""


class Tail(NamedTuple):
    """How a segment ends. `lost` are bytes behind the last whole batch, `why` is empty where there are none."""

    finished: bool
    lost: int
    why: str


class Segment:
    """One segment, opened. Raises BadSegment when the file has no whole schema, FileNotFoundError when it is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = pa.OSFile(str(path), "rb")
        try:
            self.arrow: pa.Schema = pa.ipc.read_schema(self._file)
            _read_names(self.arrow)
        except (pa.ArrowException, EOFError, OSError, ValueError, MemoryError) as error:
            self._file.close()
            raise BadSegment(f"{path} has no whole schema: {error}") from error
        self.start: int = self._file.tell()
        self.tail = Tail(finished=False, lost=0, why="")

    def __enter__(self) -> "Segment":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return f"<Segment {self.path.name} {self.tail}>"

    @property
    def schema(self) -> JournalSchema:
        """What the file says of its model. Raises BadSegment for a segment of failures, or of another version."""
        try:
            return metadata_of(self.arrow)
        except ValueError as error:
            raise BadSegment(f"{self.path}: {error}") from error

    def read_from(self, offset: int = 0) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield every whole batch from `offset` on (0: the first), with the offset after it. `tail` is set after."""
        at = max(offset, self.start)
        size: int = self._file.size()
        if at > size:
            self.tail = Tail(finished=False, lost=0, why=f"it is shorter than {at} bytes")
            return
        self._file.seek(at)
        while True:
            try:
                message = pa.ipc.read_message(self._file)
                batch = pa.ipc.read_record_batch(message, self.arrow)
                batch.validate(full=True)
            except EOFError:
                ended = self._file.tell()
                why = "" if ended == size else "an end mark stands in the middle"
                self.tail = Tail(finished=ended - at == len(END) and not why, lost=size - ended, why=why)
                return
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                self.tail = Tail(finished=False, lost=size - at, why=str(error))
                return
            at = self._file.tell()
            yield batch, at


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield every whole record batch of a segment. Raises as `Segment` does."""
    with Segment(path) as segment:
        for batch, _ in segment.read_from():
            yield batch


def read_from(path: Path, offset: int = 0) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield the whole batches from an offset on, each with the offset after it. Start with 0, go on with the last."""
    with Segment(path) as segment:
        yield from segment.read_from(offset)


def segments(folder: Path) -> list[Path]:
    """The segments under a journal's folder, in the order in which they were begun; failures are not among them."""
    return sorted((folder / "segments").glob("*/*/*" + SUFFIX), key=order)


def failures(folder: Path) -> list[Path]:
    """The segments of failures, oldest first."""
    return sorted((folder / "failures").glob("*" + SUFFIX), key=order)


def order(path: Path) -> tuple[int, int, int, str]:
    """What segments are sorted by: when they were begun, then in the order of their process."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        return (0, 0, 0, str(path))
    return (int(named[1]), int(named[2]), int(named[3]), str(path))


def _read_names(nested: Iterable[pa.Field]) -> None:
    """Look at every name: one that is not UTF-8 raises UnicodeDecodeError (a ValueError) when it is looked at."""
    for field in nested:
        assert isinstance(field.name, str)
        _read_names([field.type.field(place) for place in range(field.type.num_fields)])


def size_of(path: Path) -> int:
    """Bytes of a file; 0 when it is gone."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
