"""A journal compared with its profiles, after the fact: all rows of a span of time, cut into parts of equal length.

    segments, Parquet files ─▶ batches of a model within the span ─▶ a pane for each part ─▶ verdict, and PSI over time

Memory holds one batch and `parts` histograms per column, whatever the journal's size. Rows may come in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.journal.compaction import reading_lock
from gateway.journal.locks import locked
from gateway.journal.reader import BadSegment, Segment, segments
from gateway.journal.schema import JournalSchema, metadata_of
from gateway.monitor.columns import Counter
from gateway.records.drift import StreamKey, WindowDrift
from gateway.validation import statistics
from gateway.validation.drift import Reference, judge, references
from gateway.validation.options import DriftOptions
from gateway.validation.profile import FILE, Profile, ProfileError
from gateway.validation.windows import Pane, Window

PARTS = 24
_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Span:
    """From and until when, milliseconds since the epoch; the end is not within."""

    start_ms: int
    end_ms: int


class Stream:
    """One stream's panes."""

    def __init__(self, schema: JournalSchema, arrow: pa.Schema, profile: Profile, columns_max: int) -> None:
        self.key = StreamKey(schema.model, schema.version, schema.variant)
        self.known: dict[str, Reference] = references(profile)
        self._counter = Counter(schema, arrow, self.known, columns_max)
        self.panes: dict[int, Pane] = {}

    def add(self, batch: pa.RecordBatch, span: Span) -> None:
        """Count the rows of a batch that are within the span."""
        batch = self._counter.narrowed(batch, None)
        times = batch.column("time").cast(pa.int64()).to_numpy()
        parts = (times - span.start_ms) * PARTS // max(span.end_ms - span.start_ms, 1)
        for part in np.unique(parts[(parts >= 0) & (parts < PARTS)]).tolist():
            here = parts == part
            some = batch if here.all() else batch.filter(pa.array(here))
            within = times[here]
            pane = self.panes.setdefault(part, Pane())
            pane.add(self._counter.count(some), len(some), int(within.min()), int(within.max()))

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
    journal: Path,
    models: Path,
    model: str,
    span: Span,
    *,
    version: int | None = None,
    variant: str | None = None,
    columns_max: int = 500,
) -> list[Stream]:
    """Return the streams of a model within a span. Raises `ProfileError` where a version has no profile that fits."""
    streams: dict[StreamKey, Stream] = {}
    for schema, batch in _batches(journal, model):
        key = StreamKey(schema.model, schema.version, schema.variant)
        if version not in {None, key.version} or variant not in {None, key.variant}:
            continue
        if key not in streams:
            profile = Profile.load(models / model / str(key.version) / FILE)
            views = {binding.ref: binding.fingerprint for binding in schema.bindings}
            if wrong := profile.mismatches(key.model, key.version, views, {}):
                raise ProfileError(f"the profile does not fit the journal: {'; '.join(wrong)}")
            streams[key] = Stream(schema, batch.schema, profile, columns_max)
        streams[key].add(batch, span)
    return [stream for _, stream in sorted(streams.items()) if stream.panes]


def whole_span(journal: Path, model: str) -> Span | None:
    """Return from the first to the last row of a model; None when there is none."""
    first, last = [], []
    for _, batch in _batches(journal, model, ["time"]):
        times = batch.column("time").cast(pa.int64()).to_numpy()
        if len(times):
            first.append(int(times.min()))
            last.append(int(times.max()) + 1)
    return Span(min(first), max(last)) if first else None


def _batches(
    journal: Path, model: str, columns: list[str] | None = None
) -> Iterator[tuple[JournalSchema, pa.RecordBatch]]:
    """Every batch of a model, of Parquet files and of segments, while nothing is moved from one to the other."""
    with locked(reading_lock(journal), shared=True):
        for path in sorted((journal / "parquet" / f"model={quote(model, safe='')}").glob("date=*/*.parquet")):
            with pq.ParquetFile(path) as file:
                schema = metadata_of(file.schema_arrow)
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    yield schema, batch.replace_schema_metadata(file.schema_arrow.metadata)
        for path in segments(journal):
            try:
                with Segment(path) as segment:
                    schema = segment.schema
                    if schema.model == model:
                        yield from ((schema, batch) for batch, _ in segment.read_from())
            except (BadSegment, FileNotFoundError):
                continue
