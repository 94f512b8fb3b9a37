"""Closed segments -> Parquet files, oldest first; and how much of the past is kept. Synchronous, for a process apart.

    parquet/model=<m>/date=<YYYY-MM-DD>/<first segment>.parquet      failures: parquet-failures/date=<...>/

    1. the segments of one folder, up to `GROUP_BYTES`, are read and written to temporary files, one for each day
    2. a manifest is written that names these files and the segments: from here on the compaction is done
    3. the files get their names, the segments are deleted (or handed to the sinks), the manifest is deleted

Invariants
- Every row is in a segment or in a Parquet file, and after a crash in exactly one of them: without a manifest the
  temporary files are deleted, with one step 3 is done again, and doing it twice is the same as once.
- Who reads under the lock `compaction/reading` sees no step 3 half done.
- One process compacts a journal at a time; the lock ends with it.
- The disk keeps `free_bytes_min` free: without room the oldest Parquet files go first, then nothing is written.
- The oldest go before the writers run out of room: what they may write until the next pass is kept free.
- A file goes by age only where its day and its own time are both old, so that a clock that was wrong loses nothing.
"""

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gateway.journal.locks import is_locked, locked
from gateway.journal.options import JournalOptions
from gateway.journal.reader import BadSegment, Segment, failures, segments, size_of
from gateway.journal.schema import metadata_of
from gateway.journal.segment import NEW, sync_folders
from gateway.journal.streams import USAGE, used_bytes

_log = logging.getLogger(__name__)

GROUP_BYTES = 256 * 1024 * 1024
"""Segments that become Parquet together."""
ROW_GROUP_BYTES = 32 * 1024 * 1024
"""What is held in memory before it is written as a row group."""


_TIME_MAX_MS = 253_402_300_800_000
"""The year 10000. Times that are beyond, or before 1970, are damaged; their rows are kept under 1970-01-01."""
_DAMAGE = (BadSegment, pa.ArrowException, ValueError, OverflowError)
_DAY_S = 86_400
_FRESH_S = 60.0
"""How long a segment may be without a lock after it was made."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
_WORK = "compaction"
_TMP = ".tmp"
_READERS_WAIT_S = 5.0
"""How long a pass waits for who reads; the next one goes on."""
_READERS_LOOK_S = 0.05


class _Reading(Exception):
    """Somebody reads for so long that step 3 is left to the next pass."""


@dataclass(slots=True)
class Compacted:
    """What one pass did."""

    segments: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    repeated: int = 0
    """Compactions of an earlier process that were finished."""
    lost_bytes: int = 0
    """Bytes behind the last whole batch of segments whose writer died."""
    bad: list[str] = field(default_factory=list)
    """Files that are no segments, or too damaged. They were put aside under `bad/`; rows before the damage are kept."""
    deleted_files: int = 0
    deleted_bytes: int = 0
    stopped: str = ""
    """Why not all was compacted: `busy` (another process does it), `readers` (somebody holds the reading lock),
    `disk_full`, `quota`; empty when all was."""


def compact(
    options: JournalOptions,
    *,
    now_s: float,
    sinks: Iterable[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Compacted:
    """One pass over all closed segments. `sinks` are the names of those that the segments are handed to; without them,
    those of the options.

    `progress` is called with the segments done and their total, `alive` after each batch and each file: how long a
    group takes has no bound. Raises OSError when the folder cannot be used.
    """
    named = list(options.sinks if sinks is None else sinks)
    done = Compacted()
    root = options.path
    if not root.is_dir():
        return done
    with locked(root / _WORK / "lock", wait=False) as ours:
        if not ours:
            done.stopped = "busy"
            return done
        try:
            _finish_earlier(root, done, alive)
            alive()
            retain(options, now_s=now_s, done=done)
            _sweep(root, now_s)
            groups = [*_groups(root)]
            total = sum(map(len, groups))
            for group in groups:
                if not _has_room(options, group, done):
                    break
                _compact_group(root, group, named, done, alive)
                if progress is not None:
                    progress(done.segments, total)
        except _Reading:
            done.stopped = "readers"
        retain(options, now_s=now_s, done=done)
    return done


def retain(options: JournalOptions, *, now_s: float, done: Compacted) -> None:
    """Delete what is older than `keep_days`, then the oldest until the writers have room for their next segments."""
    root, reserve = options.path, options.reserve_bytes
    files = _oldest_first(root)
    if options.keep_days:
        oldest_s = now_s - options.keep_days * _DAY_S
        first = datetime.fromtimestamp(oldest_s, UTC).date().isoformat()
        for path in [path for path in files if _date_of(path) < first and _changed_s(path) < oldest_s]:
            files.remove(path)
            _delete(path, done)
    _publish(root, files)
    used = used_bytes(root)
    while files and (
        used + reserve > options.disk_bytes_max or shutil.disk_usage(root).free < options.free_bytes_min + reserve
    ):
        used -= size_of(files[0])
        _delete(files.pop(0), done)
    _publish(root, files)


def _has_room(options: JournalOptions, group: Sequence[Path], done: Compacted) -> bool:
    """Whether the group may be written: it takes its own size once more at most. Deletes the oldest files for it."""
    needed = sum(map(size_of, group))
    files = _oldest_first(options.path)
    while shutil.disk_usage(options.path).free - needed < options.free_bytes_min:
        if not files:
            done.stopped = "disk_full"
            _log.warning("no room to compact %d bytes: free_bytes_min leaves %d", needed, options.free_bytes_min)
            return False
        _delete(files.pop(0), done)
    return True


def _groups(root: Path) -> Iterator[list[Path]]:
    """Closed segments of one folder each, oldest first, up to `GROUP_BYTES`."""
    by_folder: dict[Path, list[Path]] = {}
    for path in [*segments(root), *failures(root)]:
        with suppress(FileNotFoundError):
            if not is_locked(path):
                by_folder.setdefault(path.parent, []).append(path)
    for paths in by_folder.values():
        group: list[Path] = []
        size = 0
        for path in paths:
            if group and size + size_of(path) > GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(path)
            size += size_of(path)
        yield group


def _compact_group(
    root: Path, group: Sequence[Path], sinks: Sequence[str], done: Compacted, alive: Callable[[], None]
) -> None:
    files = _DayFiles(root)
    taken: list[Path] = []
    bad: list[Path] = []
    rows = 0
    try:
        for path in group:
            try:
                with Segment(path) as segment:
                    rows += _pour(segment, files, alive)
                    done.lost_bytes += segment.tail.lost
                    if segment.tail.lost:
                        _log.warning("%s ends %d bytes early: %s", path, segment.tail.lost, segment.tail.why)
                taken.append(path)
            except _DAMAGE as error:
                bad.append(path)
                done.bad.append(f"{path}: {error}")
        made = files.close(alive)
    except BaseException:
        files.abandon()
        raise
    manifest = root / _WORK / f"{group[0].stem}.json"
    named = {
        "files": [[str(tmp.relative_to(root)), str(final.relative_to(root))] for tmp, final in made],
        "segments": [str(path.relative_to(root)) for path in taken],
        "bad": [str(path.relative_to(root)) for path in bad],
        "sinks": list(sinks),
    }
    _write_whole(manifest, json.dumps(named))
    _finish(root, manifest, alive)
    done.rows += rows
    done.segments += len(taken)
    done.files += len(made)
    done.bytes += sum(size_of(final) for _, final in made)


_Day: TypeAlias = tuple[str, pa.Schema]


class _DayFiles:
    """The temporary Parquet files of one group, one for each day."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writers: dict[_Day, tuple[pq.ParquetWriter, Path, Path]] = {}
        self._waiting: dict[_Day, list[pa.Table]] = {}

    def add(self, segment: Segment, table: pa.Table, day: str) -> None:
        """Take the rows of one day. A segment whose schema is damaged gets a file of its own."""
        of = (day, table.schema)
        if of not in self._writers:
            folder = partition(self.root, segment.arrow) / f"date={day}"
            folder.mkdir(parents=True, exist_ok=True)
            final = folder / f"{segment.path.parent.name}-{segment.path.stem}.parquet"
            tmp = final.with_name(f".{final.name}{_TMP}")
            strings = [one.name for one in table.schema if pa.types.is_string(one.type)]
            writer = pq.ParquetWriter(tmp, table.schema, compression="zstd", use_dictionary=strings or False)
            self._writers[of] = (writer, tmp, final)
        waiting = self._waiting.setdefault(of, [])
        waiting.append(table)
        if sum(one.nbytes for one in waiting) >= ROW_GROUP_BYTES:
            self._flush(of)

    def close(self, alive: Callable[[], None]) -> list[tuple[Path, Path]]:
        """Write the rest and wait until all is on the disk; return (temporary, final) of each file."""
        for of, (writer, tmp, _) in self._writers.items():
            self._flush(of)
            writer.close()
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            alive()
        return [(tmp, final) for _, tmp, final in self._writers.values()]

    def abandon(self) -> None:
        """Delete what was written."""
        for writer, tmp, _ in self._writers.values():
            with suppress(OSError, pa.ArrowException):
                writer.close()
            tmp.unlink(missing_ok=True)

    def _flush(self, of: "_Day") -> None:
        waiting = self._waiting.pop(of, [])
        if waiting:
            self._writers[of][0].write_table(pa.concat_tables(waiting))


def _pour(segment: Segment, files: _DayFiles, alive: Callable[[], None]) -> int:
    """Give the rows of a segment to the files of their days."""
    rows = 0
    for batch, _ in segment.read_from():
        table = pa.Table.from_batches([with_version(batch)])
        times = table["time"].cast(pa.int64())
        known = pc.and_(pc.greater_equal(times, 0), pc.less(times, _TIME_MAX_MS))
        days = pc.if_else(known, times, 0).cast(pa.timestamp("ms")).cast(pa.date32())
        for day in pc.unique(days).to_pylist():
            some = table.filter(pc.equal(days, pa.scalar(day, pa.date32())))
            files.add(segment, some, day.isoformat())
        rows += table.num_rows
        alive()
    return rows


def with_version(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With what the folder of the segment says of its rows, and the folder of a Parquet file does not."""
    try:
        schema = metadata_of(batch.schema)
    except ValueError:  # failures
        return batch
    rows = batch.num_rows
    batch = batch.append_column("version", pa.repeat(pa.scalar(schema.version, pa.int32()), rows))
    return batch.append_column("variant", pa.repeat(pa.scalar(schema.variant, pa.string()), rows))


def partition(root: Path, arrow: pa.Schema) -> Path:
    """The folder of a model's Parquet files."""
    try:
        return root / "parquet" / f"model={quote(metadata_of(arrow).model, safe='')}"
    except ValueError:
        return root / "parquet-failures"


def _finish_earlier(root: Path, done: Compacted, alive: Callable[[], None]) -> None:
    """What a compactor that died has decided is done; what it had not decided is undone."""
    for manifest in sorted((root / _WORK).glob("*.json")):
        _finish(root, manifest, alive)
        done.repeated += 1
    for folder in ("parquet", "parquet-failures"):
        for tmp in (root / folder).rglob(f".*{_TMP}"):
            tmp.unlink(missing_ok=True)
    for tmp in (root / _WORK).glob(f".*{_TMP}"):
        tmp.unlink(missing_ok=True)


@contextmanager
def _without_readers(root: Path, alive: Callable[[], None]) -> Iterator[None]:
    """Hold the reading lock alone. Raises `_Reading` where that cannot be had soon."""
    give_up_at = time.monotonic() + _READERS_WAIT_S
    while True:
        with locked(reading_lock(root), wait=False) as ours:
            if ours:
                yield
                return
        alive()
        if time.monotonic() >= give_up_at:
            raise _Reading
        time.sleep(_READERS_LOOK_S)


def _finish(root: Path, manifest: Path, alive: Callable[[], None]) -> None:
    """Step 3. Whatever of it is done already is left as it is."""
    named = json.loads(manifest.read_text())
    with _without_readers(root, alive):
        for tmp, final in named["files"]:
            with suppress(FileNotFoundError):
                os.replace(root / tmp, root / final)
        for folder in {(root / final).parent for _, final in named["files"]}:
            sync_folders(folder, 2)
        for path in named["segments"]:
            for sink in named["sinks"]:
                _hand_over(root, root / path, sink)
            (root / path).unlink(missing_ok=True)
        for path in named["bad"]:
            with suppress(FileNotFoundError):
                _put_aside(root, root / path)
        sync_folders(root, 1)
        manifest.unlink()


def unfinished(root: Path) -> tuple[set[Path], list[Path]]:
    """What a compactor that died has decided and not done: segments whose rows are in Parquet files, and those of
    these files that have not got their names. For who only reads, under the reading lock; it changes nothing."""
    named = [json.loads(path.read_text()) for path in (root / _WORK).glob("*.json")]
    nameless = [root / tmp for one in named for tmp, _ in one["files"] if (root / tmp).exists()]
    return {root / path for one in named for path in [*one["segments"], *one["bad"]]}, nameless


def reading_lock(root: Path) -> Path:
    """The lock that readers share while they list files."""
    return root / _WORK / "reading"


def _hand_over(root: Path, path: Path, sink: str) -> None:
    """Give a segment to a sink: another name for the same file, in the sink's own folder; a copy where the file system
    knows no second names."""
    folder = root / "spill" / sink
    folder.mkdir(parents=True, exist_ok=True)
    stem = path.parent.relative_to(root).as_posix().replace("/", "~")
    given = folder / f"{path.stem}~{stem}{path.suffix}"
    with suppress(FileExistsError, FileNotFoundError):
        try:
            os.link(path, given)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not given.exists():
                _copy(path, given)


def _copy(path: Path, given: Path) -> None:
    """A whole copy or none."""
    tmp = given.with_name(f".{given.name}{_TMP}")
    shutil.copyfile(path, tmp)
    with tmp.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(tmp, given)


def _put_aside(root: Path, path: Path) -> None:
    """Keep a file that is no segment for who wants to know why; nobody reads it again."""
    (root / "bad").mkdir(exist_ok=True)
    os.replace(path, root / "bad" / f"{path.parent.name}-{path.name}")


def _sweep(root: Path, now_s: float) -> None:
    """Segments whose writer died before they had a schema. One that was made just now may not be locked yet."""
    for path in [*(root / "segments").glob(f"*/*/.*{NEW}"), *(root / "failures").glob(f".*{NEW}")]:
        with suppress(FileNotFoundError):
            if _changed_s(path) < now_s - _FRESH_S and not is_locked(path):
                path.unlink()


def _write_whole(path: Path, text: str) -> None:
    tmp = path.with_name(f".{path.name}{_TMP}")
    with tmp.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)
    sync_folders(path.parent, 1)


def _parquet(root: Path) -> list[Path]:
    return [*(root / "parquet").glob("model=*/date=*/*.parquet"), *(root / "parquet-failures").glob("date=*/*.parquet")]


def _oldest_first(root: Path) -> list[Path]:
    return sorted(_parquet(root), key=lambda path: (_date_of(path), path.name))


def _changed_s(path: Path) -> float:
    """When a file was written; that of one that is gone is now, and nothing is done with it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _date_of(path: Path) -> str:
    """The day of a file; today's format sorts as text."""
    day = path.parent.name.removeprefix("date=")
    with suppress(ValueError):
        return date.fromisoformat(day).isoformat()
    return "9999"


def _delete(path: Path, done: Compacted) -> None:
    done.deleted_bytes += size_of(path)
    done.deleted_files += 1
    path.unlink(missing_ok=True)
    with suppress(OSError):  # it has other files
        path.parent.rmdir()


def _publish(root: Path, files: Iterable[Path]) -> None:
    """Tell the writers what the Parquet files have, so that they need not look."""
    tmp = root / f".{USAGE}{_TMP}"
    tmp.write_text(str(sum(map(size_of, files))))
    os.replace(tmp, root / USAGE)
