"""Where the reader of the journal is: an offset per segment, and which segments it is done with.

    folder ─▶ segments, oldest first ─▶ whole batches from each one's offset on ─▶ (path, schema, batch)

Invariants
- A batch is given once, also across a restart when the positions were saved with what was made of the batches.
- A segment that is gone, since it was compacted, is forgotten. One that cannot be read is left out and counted once.
- More than `bytes_behind_max` are never waited for: the oldest segments are skipped first, and counted.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from gateway.journal.reader import BadSegment, Segment, segments, size_of
from gateway.journal.schema import JournalSchema

_DONE = -1


class Read(NamedTuple):
    """One batch and where it is from."""

    name: str
    """Of the segment."""
    schema: JournalSchema
    arrow: pa.Schema
    batch: pa.RecordBatch


class Tail:
    """Reads the segments of a journal, as far as they are written."""

    def __init__(self, folder: Path, bytes_behind_max: int) -> None:
        self._folder = folder
        self._bytes_behind_max = bytes_behind_max
        self._offsets: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self.bytes_skipped = 0
        self.problems = 0
        self.bytes_behind = 0

    def __repr__(self) -> str:
        return f"<Tail of {self._folder}: {len(self._offsets)} segments, {self.bytes_behind} bytes behind>"

    @property
    def offsets(self) -> Mapping[str, int]:
        """The positions, to be saved."""
        return dict(self._offsets)

    def restore(self, offsets: Mapping[str, int]) -> None:
        """Go on from saved positions."""
        self._offsets = {str(name): int(offset) for name, offset in offsets.items()}

    def start_from(self, since_ms: int) -> None:
        """Without saved positions: leave out segments whose last write is older than this."""
        for path in segments(self._folder):
            if path.stat().st_mtime * 1000 < since_ms:
                self._offsets[self._name(path)] = _DONE

    def read(self) -> Iterator[Read]:
        """Yield what was written since last time."""
        names = {self._name(path): path for path in segments(self._folder)}
        for gone in self._offsets.keys() - names.keys():
            del self._offsets[gone]
            self._sizes.pop(gone, None)
        for name, path in self._within_bound(names).items():
            try:
                yield from self._segment(name, path)
            except FileNotFoundError:
                continue
            except OSError:
                self.problems += 1
                self.give_up(name)
            except BadSegment:
                # Its schema may still be on its way; later it is damaged. Either way it is looked at when it has grown.
                continue
        self.bytes_behind = 0

    def give_up(self, name: str) -> None:
        """Read no more of a segment."""
        self._offsets[name] = _DONE

    def _segment(self, name: str, path: Path) -> Iterator[Read]:
        # What does not grow is not opened again: its writer died, or it is damaged from here on.
        self._sizes[name] = size_of(path)
        with Segment(path) as segment:
            try:
                schema = segment.schema
            except BadSegment:
                self.problems += 1
                self._offsets[name] = _DONE
                return
            for batch, offset in segment.read_from(self._offsets.get(name, 0)):
                self._offsets[name] = offset
                self.bytes_behind = max(0, self.bytes_behind - batch.nbytes)
                yield Read(name, schema, segment.arrow, batch)
                if self._offsets.get(name) == _DONE:
                    return
            if segment.tail.finished:
                self._offsets[name] = _DONE

    def _within_bound(self, names: Mapping[str, Path]) -> dict[str, Path]:
        """The segments that are to be read, newest kept where there is too much."""
        chosen: dict[str, Path] = {}
        self.bytes_behind = 0
        for name, path in reversed(list(names.items())):
            offset = self._offsets.get(name, 0)
            size = size_of(path)
            waiting = size - offset
            if offset == _DONE or waiting <= 0 or size == self._sizes.get(name):
                continue
            if chosen and self.bytes_behind + waiting > self._bytes_behind_max:
                self.bytes_skipped += waiting
                self._offsets[name] = _DONE
                continue
            self.bytes_behind += waiting
            chosen[name] = path
        return dict(reversed(list(chosen.items())))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))
