"""Writes one segment: an Arrow IPC stream that is whole after every batch.

    .<name>.new -> lock -> schema -> rename to <name> -> batches -> end mark -> unlock

Invariants
- A file that is called `*.arrows` has its schema, and is locked (flock) for as long as its writer lives: who gets the
  lock knows that nothing will be added, whether the writer closed the file or was killed.
- A write that fails is taken back: the file is cut to the end of its last whole batch.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from gateway.journal.reader import END, SUFFIX

NEW = ".new"


class SegmentFile:
    """A segment that is being written. Making it creates the file; raises OSError."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, opened_at: float) -> None:
        self.path = folder / (name + SUFFIX)
        self.opened_at = opened_at
        self.size = 0
        self.broken = False
        self._named = False
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{name}{NEW}"
        self._file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._append(schema.serialize())
            os.rename(new, self.path)
        except BaseException:
            os.close(self._file)
            with suppress(OSError):
                new.unlink()
            raise

    def __repr__(self) -> str:
        return f"<SegmentFile {self.path.name} {self.size} bytes>"

    def write(self, batch: pa.RecordBatch) -> int:
        """Append a batch, return its bytes. Raises OSError, and then nothing of it is in the file."""
        return self._append(batch.serialize())

    def sync(self) -> None:
        """Wait until all is on the disk. Raises OSError; the file is not written to any more then."""
        try:
            os.fdatasync(self._file)
            if not self._named:
                sync_folders(self.path.parent, 4)  # of the version, of the model, of all segments, of the journal
                self._named = True
        except OSError:
            self.broken = True  # what was lost is not known, and a second try would say that nothing was
            raise

    def close(self) -> None:
        """Mark the end and give up the lock."""
        try:
            if not self.broken:
                with suppress(OSError):  # a full disk: the segment is read up to its last batch all the same
                    self._append(END)
        finally:
            os.close(self._file)

    def _append(self, content: pa.Buffer | bytes) -> int:
        rest = memoryview(content)
        size = len(rest)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            self._cut()
            raise
        self.size += size
        return size

    def _cut(self) -> None:
        try:
            os.ftruncate(self._file, self.size)
        except OSError:
            self.broken = True  # a reader stops at the half batch, so nothing may come behind it


def sync_folders(folder: Path, levels: int) -> None:
    """Wait until the names in a folder, and in so many levels from it up, are on the disk."""
    for one in [folder, *folder.parents][:levels]:
        opened = os.open(one, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
