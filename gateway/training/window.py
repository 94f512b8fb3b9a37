"""A window of the journal for one model: its files by their schemas, and their rows in batches.

    opened(root, model, since, until) -> Window
        parts      files of one schema together, the newest schema last
        batches()  (schema, rows that were answered in the window), file by file

Invariants
- Files are listed under the compactor's reading lock, and segments are copied to temporary Parquet files meanwhile, so
  that no row is missing or there twice. The copies go with the window.
- A segment is read up to its last whole batch. One that has no beginning is left out, and `notes` says so.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gateway.journal.compaction import reading_lock, unfinished, with_version
from gateway.journal.locks import locked
from gateway.journal.reader import BadSegment, Segment, segments
from gateway.journal.schema import METADATA, JournalSchema, metadata_of

BATCH_ROWS = 16_384
"""Rows that are held at a time."""
_DAY = "date="


class WindowError(Exception):
    """A journal that cannot be read, or has nothing of what is asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The files of one schema. `arrow` has the types of their columns, `redacted` the policy of each that has one."""

    schema: JournalSchema
    arrow: pa.Schema
    redacted: Mapping[str, str]
    paths: list[Path] = field(default_factory=list)

    def policy(self, column: str) -> str | None:
        """What was done to a column before it was written; by its own name, or without the alias of its view."""
        return self.redacted.get(column) or self.redacted.get(column.rpartition(".")[2])


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The files of one model, from `since` on and before `until`."""

    root: Path
    model: str
    since: datetime | None
    until: datetime | None
    parts: Sequence[Part]
    notes: Sequence[str]

    @property
    def rows_max(self) -> int:
        """Rows of all files; those outside the window are among them."""
        return sum(pq.read_metadata(path).num_rows for part in self.parts for path in part.paths)

    @property
    def versions(self) -> list[int]:
        """The versions that have rows in the files, ascending."""
        return sorted({part.schema.version for part in self.parts})

    def batches(self, parts: Sequence[Part] | None = None) -> Iterator[tuple[Part, pa.RecordBatch]]:
        """Yield the rows, at most `BATCH_ROWS` at a time. Raises WindowError for a damaged Parquet file."""
        for part in self.parts if parts is None else parts:
            for path in part.paths:
                try:
                    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
                        kept = self._within(batch)
                        if kept.num_rows:
                            yield part, kept
                except (pa.ArrowException, OSError) as error:
                    raise WindowError(f"{path}: cannot be read: {error}") from error

    def _within(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        for bound, compare in ((self.since, pc.greater_equal), (self.until, pc.less)):
            if bound is not None:
                when = batch.column("time")
                batch = batch.filter(compare(when, pa.scalar(bound, when.type)))
        return batch


@contextmanager
def opened(root: Path, model: str, since: datetime | None = None, until: datetime | None = None) -> Iterator[Window]:
    """Open a window; both times have a zone. Raises WindowError when there is nothing of the model in the journal."""
    if not root.is_dir():
        raise WindowError(f"no journal in {root}")
    with tempfile.TemporaryDirectory(prefix="headrace-window-") as folder:
        notes: list[str] = []
        parts: dict[bytes, Part] = {}
        with locked(reading_lock(root), shared=True):
            for path in _files(root, model, Path(folder), notes):
                if _in_days(path, since, until):
                    _add(parts, path)
        if not parts:
            known = ", ".join(models(root)) or "none"
            span = " in this window" if model in known.split(", ") else f" (it has: {known})"
            raise WindowError(f"{root}: the journal has nothing of the model {model}{span}")
        yield Window(root, model, since, until, [*parts.values()], notes)


def models(root: Path) -> list[str]:
    """The models that have files in a journal."""
    from urllib.parse import unquote

    parquet = {unquote(path.name.removeprefix("model=")) for path in (root / "parquet").glob("model=*")}
    return sorted(parquet | {unquote(path.parent.parent.name) for path in segments(root)})


def _files(root: Path, model: str, folder: Path, notes: list[str]) -> Iterator[Path]:
    """The Parquet files of a model, oldest first; those of segments are copies in `folder`."""
    done, nameless = unfinished(root)
    named = f"model={quote(model, safe='')}"
    yield from sorted((root / "parquet" / named).glob(f"{_DAY}*/*.parquet"))
    yield from (path for path in nameless if path.parent.parent.name == named)
    for number, path in enumerate(segments(root)):
        if path in done:
            continue
        copy = folder / f"{number}.parquet"
        try:
            if _pour(path, copy, model):
                yield copy
        except FileNotFoundError:
            continue
        except BadSegment as error:
            notes.append(f"left out: {error}")


def _pour(path: Path, copy: Path, model: str) -> bool:
    """Copy a segment of the model, up to its last whole batch."""
    with Segment(path) as segment:
        if segment.schema.model != model:
            return False
        writer = None
        try:
            for batch, _ in segment.read_from():
                whole = with_version(batch)
                if writer is None:
                    writer = pq.ParquetWriter(copy, whole.schema, compression="none")
                writer.write_batch(whole)
        finally:
            if writer is not None:
                writer.close()
    return writer is not None


def _add(parts: dict[bytes, Part], path: Path) -> None:
    try:
        arrow = pq.read_schema(path)
        described = (arrow.metadata or {}).get(METADATA, b"")
        if described not in parts:
            redacted = json.loads(described or b"{}").get("redacted", {})
            parts[described] = Part(metadata_of(arrow), arrow, redacted)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WindowError(f"{path}: is no file of a journal, or is damaged: {error}") from error
    parts[described].paths.append(path)


def _in_days(path: Path, since: datetime | None, until: datetime | None) -> bool:
    """Whether a file of one day may have rows of the window; of a segment it is not known."""
    day = path.parent.name.removeprefix(_DAY) if path.parent.name.startswith(_DAY) else None
    if day is None or day == "1970-01-01":  # where rows with damaged times are
        return True
    return (since is None or day >= since.date().isoformat()) and (until is None or day <= until.date().isoformat())
