"""Journals compared with their profiles, after the fact: all rows of a span of time, cut into parts of equal length.

    segments, Parquet files ─▶ batches of a model within the span ─▶ a pane for each part ─▶ verdict, and PSI over time

Memory holds one batch and `parts` histograms per column, whatever the journals' size. Rows may come in any order. The
journals of replicas are counted one after the other: their histograms add up. A file that cannot be read or counted is
named, and the others are read.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.journal.compaction import reading_lock, unfinished
from gateway.journal.locks import locked
from gateway.journal.reader import BadSegment, Segment, segments
from gateway.journal.schema import JournalSchema, metadata_of
from gateway.monitor.columns import Counters
from gateway.records.drift import StreamKey, WindowDrift
from gateway.validation import statistics
from gateway.validation.drift import Reference, judge
from gateway.validation.options import DriftOptions
from gateway.validation.profile import FILE, Profile, ProfileError
from gateway.validation.windows import Pane, Window

PARTS = 24
_BATCH_ROWS = 65_536
OPEN_MAX = 512
"""With more segments than that the journal stays locked until they are read: they cannot all be open."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Span:
    """From and until when, milliseconds since the epoch; the end is not within."""

    start_ms: int
    end_ms: int


class Stream:
    """One stream's panes."""

    def __init__(self, key: StreamKey, profile: Profile, columns_max: int) -> None:
        self.key = key
        self._counters = Counters(profile, columns_max)
        self.known: dict[str, Reference] = self._counters.known
        self.panes: dict[int, Pane] = {}

    def add(self, batch: pa.RecordBatch, span: Span) -> None:
        """Count the rows of a batch that are within the span. Raises as `Counters.of` does."""
        counter = self._counters.of(batch.schema)
        if counter is None:
            return
        batch = counter.narrowed(batch, None)
        times = batch.column("time").cast(pa.int64()).to_numpy()
        parts = (times - span.start_ms) * PARTS // max(span.end_ms - span.start_ms, 1)
        for part in np.unique(parts[(parts >= 0) & (parts < PARTS)]).tolist():
            here = parts == part
            some = batch if here.all() else batch.filter(pa.array(here))
            within = times[here]
            pane = self.panes.setdefault(part, Pane())
            pane.add(counter.count(some), len(some), int(within.min()), int(within.max()))

    @property
    def window(self) -> Window:
        """All panes together."""
        return Window.of("tumbling", [self.panes[part] for part in sorted(self.panes)])

    def judge(self, options: DriftOptions) -> WindowDrift:
        """Compare all rows with the profile."""
        return judge(self.window, self.known, options)

    def over_time(self, column: str, rows_min: int) -> list[float | None]:
        """Return the PSI of each part, less what sampling gives; None where a part has fewer rows."""
        known = self.known[column].histogram
        found: list[float | None] = []
        for part in range(PARTS):
            live = self.panes[part].columns.get(column) if part in self.panes else None
            if live is None or live.count < rows_min or not known.count:
                found.append(None)
                continue
            noise = statistics.psi_noise(len(known.counts), live.count, known.count)
            found.append(max(0.0, statistics.psi(live.counts, known.counts) - noise))
        return found


def compare(
    journals: Sequence[Path],
    models: Path,
    model: str,
    span: Span,
    *,
    version: int | None = None,
    variant: str | None = None,
    columns_max: int = 500,
    problem: Callable[[str], None] = log.warning,
) -> list[Stream]:
    """Return the streams of a model within a span. `problem` is told once of each profile, schema or file that cannot
    be used. Raises `ProfileError` where nothing was counted for that."""
    streams: dict[StreamKey, Stream | None] = {}
    refused: list[ProfileError] = []
    for path, schema, batch in _batches(journals, model, problem=problem):
        key = StreamKey(schema.model, schema.version, schema.variant)
        if version not in {None, key.version} or variant not in {None, key.variant}:
            continue
        try:
            if key not in streams:
                streams[key] = None
                streams[key] = Stream(key, Profile.load(models / model / str(key.version) / FILE), columns_max)
            if (stream := streams[key]) is not None:
                stream.add(batch, span)
        except ProfileError as error:
            refused.append(error)
            problem(f"{key.model}/{key.version} {key.variant}, schema {schema.hash}, is left out: {error}")
        except Exception as error:  # whatever a file holds, the others are compared
            log.debug("%s", path, exc_info=True)
            problem(f"rows of {path} cannot be counted: {error!r}")
    found = [stream for _, stream in sorted(streams.items()) if stream is not None and stream.panes]
    if refused and not found:
        raise refused[0]
    return found


def whole_span(
    journals: Sequence[Path],
    model: str,
    *,
    within: Span | None = None,
    version: int | None = None,
    variant: str | None = None,
) -> Span | None:
    """Return from the first to the last row of a model, of those within a span; None when there is none."""
    first, last = [], []
    for _, schema, batch in _batches(journals, model, ["time"]):
        if version not in {None, schema.version} or variant not in {None, schema.variant}:
            continue
        times = batch.column("time").cast(pa.int64()).to_numpy()
        if within is not None:
            times = times[(times >= within.start_ms) & (times < within.end_ms)]
        if len(times):
            first.append(int(times.min()))
            last.append(int(times.max()) + 1)
    return Span(min(first), max(last)) if first else None


def _batches(
    journals: Sequence[Path],
    model: str,
    columns: list[str] | None = None,
    *,
    problem: Callable[[str], None] = log.debug,
) -> Iterator[tuple[Path, JournalSchema, pa.RecordBatch]]:
    """Every batch of a model, of Parquet files and of segments; each row once, whatever the compactor does meanwhile"""
    for journal in journals:
        with ExitStack() as stack:
            parquet, opened = _files(journal, model, stack)
            for path in parquet:
                try:
                    with pq.ParquetFile(path) as file:
                        schema = metadata_of(file.schema_arrow)
                        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                            yield path, schema, batch.replace_schema_metadata(file.schema_arrow.metadata)
                except FileNotFoundError:  # it was too old
                    continue
                except (pa.ArrowException, OSError, ValueError) as error:
                    problem(f"{path} cannot be read: {error}")
            for segment in opened:
                yield from ((segment.path, segment.schema, batch) for batch, _ in segment.read_from())


def _files(journal: Path, model: str, stack: ExitStack) -> tuple[list[Path], list[Segment]]:
    """The Parquet files of a model, and its segments, opened: these are deleted when they have become Parquet."""
    with locked(reading_lock(journal), shared=True):
        done, nameless = unfinished(journal)
        partition = f"model={quote(model, safe='')}"
        parquet = sorted((journal / "parquet" / partition).glob("date=*/*.parquet"))
        parquet += [path for path in nameless if path.parent.parent.name == partition]
        waiting = [path for path in segments(journal) if path not in done]
        if nameless or len(waiting) > OPEN_MAX:
            stack.enter_context(locked(reading_lock(journal), shared=True))
        opened = []
        for path in waiting:
            try:
                segment = stack.enter_context(Segment(path))
                if segment.schema.model == model:
                    opened.append(segment)
            except (BadSegment, FileNotFoundError):
                continue
    return parquet, opened
