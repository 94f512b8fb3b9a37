"""The drift of one stream: batches of one schema in, verdicts out.

    batch ─▶ cut at the ends of panes ─▶ Counter ─▶ Windows ─▶ judge against the profile, and against the first window

Features and outputs have their reference in the profile. Ages and statuses of rows are a matter of serving, so their
reference is the first whole window of the stream, and is kept from then on.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gateway.journal.schema import JournalSchema
from gateway.monitor.columns import AGES, STATUSES, Counter, Counters
from gateway.monitor.options import MonitorOptions
from gateway.records.drift import StreamKey, WindowDrift
from gateway.validation.drift import AGE, STATUS, Kind, Reference, judge
from gateway.validation.histogram import Binning, Histogram
from gateway.validation.profile import Profile
from gateway.validation.windows import Window, Windows

_SERVING: tuple[tuple[str, Kind, Binning], ...] = ((AGE, "age", AGES), (STATUS, "status", STATUSES))

SETTLE_ROWS = 4096
"""As many rows are counted at once."""

log = logging.getLogger(__name__)


class StreamDrift:
    """Counts the rows of one variant of one model version, and compares its windows with the profile."""

    def __init__(
        self,
        schema: JournalSchema,
        arrow: pa.Schema,
        profile: Profile | None,
        options: MonitorOptions,
        problem: Callable[[str], None] = log.warning,
    ) -> None:
        """Raises `ProfileError` for a profile of something else. `problem` is told of rows that cannot be counted."""
        self.key = StreamKey(schema.model, schema.version, schema.variant)
        self._counters = Counters(profile, options.columns_max)
        self._counters.of(arrow)
        self.known: dict[str, Reference] = dict(self._counters.known)
        self._problem = problem
        self._options = options
        self._windows = Windows(options.windows)
        self._waiting: dict[Counter, list[pa.RecordBatch]] = {}
        self.rows_waiting = 0

    def __repr__(self) -> str:
        return f"<StreamDrift {self.key} {self._windows}>"

    def takes(self, arrow: pa.Schema) -> bool:
        """Whether batches of this schema are counted. Raises as `Counters.of` does."""
        return self._counters.of(arrow) is not None

    def add(self, batch: pa.RecordBatch, rows: npt.NDArray[np.int64] | None = None) -> list[Window]:
        """Take a batch, or only `rows` of it; return the windows that are complete by that.

        Small batches are held until there are enough rows, since counting costs by the column and not by the row then.
        """
        counter = self._counters.of(batch.schema)
        if counter is None:
            return []
        narrowed = counter.narrowed(batch, rows)
        self._waiting.setdefault(counter, []).append(narrowed)
        self.rows_waiting += len(narrowed)
        return self.settle() if self.rows_waiting >= SETTLE_ROWS else []

    def settle(self) -> list[Window]:
        """Count what is held; return the windows that are complete by that. What cannot be counted is left out."""
        waiting, self._waiting, self.rows_waiting = self._waiting, {}, 0
        done: list[Window] = []
        for counter, batches in waiting.items():
            try:
                self._count(counter, batches, done)
            except Exception as error:  # whatever a file holds, the rows of others are counted
                log.debug("rows of %s", self.key, exc_info=True)
                self._problem(f"rows of {self.key} cannot be counted: {error!r}")
        self._learn(done)
        return done

    def _count(self, counter: Counter, batches: list[pa.RecordBatch], done: list[Window]) -> None:
        (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches() or [batches[0]]
        start = 0
        while start < len(batch):
            part = batch.slice(start, self._windows.room)
            times = part.column("time").cast(pa.int64()).to_numpy()
            done += self._windows.add(counter.count(part), len(part), int(times.min()), int(times.max()))
            start += len(part)

    def passed(self, now_ms: int) -> list[Window]:
        """Return the windows that are complete since their time is over."""
        done = self._windows.passed(now_ms)
        self._learn(done)
        return done

    def flush(self) -> list[Window]:
        """Return the windows that end when no more rows come."""
        return self.settle() + self._windows.flush()

    def judge(self, window: Window) -> WindowDrift:
        """Compare a window with what is known."""
        return judge(window, self.known, self._options.drift)

    def _learn(self, done: list[Window]) -> None:
        """Take the first whole window as the reference of what no profile knows."""
        for window in done:
            if window.kind != "tumbling" or window.whole.rows < self._options.drift.rows_min:
                continue
            for name, histogram in window.whole.columns.items():
                for prefix, kind, binning in _SERVING:
                    if name.startswith(prefix) and name not in self.known:
                        self.known[name] = Reference(kind, binning, histogram)
            return

    def plain(self) -> dict[str, Any]:
        """Return the state as what JSON can hold."""
        learnt = {name: one.histogram.plain() for name, one in self.known.items() if one.kind in {"age", "status"}}
        return {"bins": self._counters.digest, "windows": self._windows.plain(), "learnt": learnt}

    def restore(self, given: Mapping[str, Any]) -> None:
        """Go on from what `plain` gave. Raises KeyError, TypeError or ValueError where it is of something else."""
        if given["bins"] != self._counters.digest:
            raise ValueError("the state is of another profile")
        learnt = {name: Histogram.from_plain(histogram) for name, histogram in given["learnt"].items()}
        windows = Windows(self._options.windows)
        windows.restore(given["windows"])
        self._windows = windows
        for name, histogram in learnt.items():
            for prefix, kind, binning in _SERVING:
                if name.startswith(prefix):
                    self.known[name] = Reference(kind, binning, histogram)
