"""The open segments of a process: which there are, when they are rotated, and whether the disk has room.

    <journal>/segments/<model>/<version>-<variant>-<schema hash>/<start ms>-<pid>-<n>.arrows
    <journal>/failures/<start ms>-<pid>-<n>.arrows

Used by the writer's thread only. Time is an argument.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from gateway.journal.options import JournalOptions
from gateway.journal.schema import JournalSchema
from gateway.journal.segment import SegmentFile, sync_folders

USAGE = "parquet.bytes"
"""The file in which the compactor says how many bytes the Parquet files have."""
_LOOK_EVERY_S = 5.0
"""How often the size of the folder is looked at. Between, what is written is added."""


class NoRoom(OSError):
    """The disk, or the journal's share of it, is used up. `reason` is `disk_full` or `quota`."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def folder_of(root: Path, schema: JournalSchema | None) -> Path:
    """Where the segments of a model are; of failures without one."""
    if schema is None:
        return root / "failures"
    name = f"{schema.version}-{quote(schema.variant, safe='')}-{schema.hash}"
    # A name of dots only would be another folder.
    return root / "segments" / quote(schema.model, safe="").replace(".", "%2E") / name


class Streams:
    """At most one open segment for each schema, and one for failures."""

    def __init__(self, options: JournalOptions) -> None:
        self.options = options
        self.opened = 0
        self._open: dict[JournalSchema | None, SegmentFile] = {}
        self._used_bytes = 0
        self._looked_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Streams {len(self._open)} open, {self._used_bytes} bytes used>"

    def write(
        self, schema: JournalSchema | None, batch: pa.RecordBatch, wall_ms: int, now: float
    ) -> tuple[SegmentFile, int]:
        """Append a batch; return where, and its bytes. Raises OSError, NoRoom when there is no room for it."""
        self._check_room(batch.nbytes, now)
        file = self._open.get(schema)
        if file is None:
            self.opened += 1
            name = f"{wall_ms}-{os.getpid()}-{self.opened}"
            file = self._open[schema] = SegmentFile(folder_of(self.options.path, schema), name, batch.schema, now)
            self._used_bytes += file.size
        try:
            size = file.write(batch)
        finally:
            if file.broken:
                self._close(schema)
        self._used_bytes += size
        return file, size

    def rotate(self, now: float) -> None:
        """Close the segments that are large or old enough, and those that cannot be written any more."""
        for schema, file in [*self._open.items()]:
            old = now - file.opened_at >= self.options.segment_age_max_s
            if old or file.broken or file.size >= self.options.segment_bytes_max:
                self._close(schema)

    def close(self) -> None:
        """Close every segment."""
        for schema in [*self._open]:
            self._close(schema)

    def _close(self, schema: JournalSchema | None) -> None:
        self._open.pop(schema).close()

    def _check_room(self, size: int, now: float) -> None:
        root = self.options.path
        if not root.exists():
            root.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a folder above that is not ours to open
                sync_folders(root.parent, 1)
        disk = os.statvfs(root)
        free = disk.f_bavail * disk.f_frsize
        if free - size < self.options.free_bytes_min:
            raise NoRoom(
                f"{root} has {free} bytes free; free_bytes_min leaves {self.options.free_bytes_min}", "disk_full"
            )
        most = self.options.disk_bytes_max
        # What the compactor has deleted is seen by looking: before anything is dropped, and once in an interval then.
        wait_s = _LOOK_EVERY_S if self._used_bytes + size <= most else self.options.interval_ms / 1000
        if now - self._looked_at >= wait_s:
            self._used_bytes = used_bytes(root)
            self._looked_at = now
        if self._used_bytes + size > most:
            raise NoRoom(
                f"{root} has {self._used_bytes} bytes, disk_bytes_max is {most}; "
                "the compactor has deleted what it may, or does not run",
                "quota",
            )


def used_bytes(root: Path) -> int:
    """The bytes of a journal: its segments are looked at, its Parquet files are as large as the compactor says."""
    try:
        parquet = int((root / USAGE).read_text())
    except (FileNotFoundError, ValueError):
        parquet = 0
    return parquet + sum(sum(_sizes(root / name)) for name in ("segments", "failures", "spill", "bad"))


def _sizes(folder: Path) -> Iterator[int]:
    """The sizes of all files below a folder. What is gone meanwhile has none."""
    try:
        entries = [*os.scandir(folder)]
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(Path(entry.path))
            else:
                yield entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
