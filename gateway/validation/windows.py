"""Windows over a stream of predictions: what was counted lately, and what was counted in each span before.

    counted rows ─▶ open pane ──full, or old enough──▶ the last panes ─▶ sliding window (at every pane's end)
                                                                      └▶ tumbling window (at every `panes`-th)

One stream is one variant of one version of a model. A window is the sum of its panes, so it is never counted twice, and
windows of several workers or replicas add up with `+`. Time is the rows' own, in milliseconds since the epoch.

Invariants
- At most `panes` closed panes and one open one are held, each with one histogram per column: memory does not grow.
- A pane holds at most `pane_rows` rows. Whoever counts asks `room` first and cuts what does not fit.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from gateway.validation.histogram import Histogram
from gateway.validation.options import WindowOptions

WindowKind = Literal["sliding", "tumbling"]


@dataclass(slots=True, eq=False)
class Pane:
    """What was counted in one part: rows, from when to when, and a histogram per column."""

    start_ms: int = 0
    end_ms: int = 0
    rows: int = 0
    columns: dict[str, Histogram] = field(default_factory=dict)

    def add(self, columns: Mapping[str, Histogram], rows: int, start_ms: int, end_ms: int) -> None:
        """Add what was counted."""
        self.start_ms = min(self.start_ms, start_ms) if self.rows else start_ms
        self.end_ms = max(self.end_ms, end_ms) if self.rows else end_ms
        self.rows += rows
        for name, histogram in columns.items():
            there = self.columns.get(name)
            self.columns[name] = histogram if there is None else there + histogram

    def plain(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        columns = {name: histogram.plain() for name, histogram in self.columns.items()}
        return {"start_ms": self.start_ms, "end_ms": self.end_ms, "rows": self.rows, "columns": columns}

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Self:
        """Return what `plain` gave. Raises KeyError, TypeError or ValueError for something else."""
        columns = {name: Histogram.from_plain(histogram) for name, histogram in given["columns"].items()}
        return cls(int(given["start_ms"]), int(given["end_ms"]), int(given["rows"]), columns)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Consecutive panes and their sum."""

    kind: WindowKind
    panes: tuple[Pane, ...]
    whole: Pane

    @classmethod
    def of(cls, kind: WindowKind, panes: Sequence[Pane]) -> Self:
        """Return the window of these panes."""
        whole = Pane()
        for pane in panes:
            if pane.rows:
                whole.add(pane.columns, pane.rows, pane.start_ms, pane.end_ms)
        return cls(kind, tuple(panes), whole)

    def __add__(self, other: "Window") -> "Window":
        """Return the window of both, as of two replicas."""
        return Window.of(self.kind, (*self.panes, *other.panes))

    def series(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column's counts in each pane, nulls as one more bin: int64 [panes that have it, bins + 1]."""
        found = [pane.columns[name] for pane in self.panes if name in pane.columns]
        return np.array([[*one.counts.tolist(), one.nulls] for one in found], np.int64)


class Windows:
    """The windows of one stream."""

    def __init__(self, options: WindowOptions) -> None:
        self._options = options
        self._open = Pane()
        self._closed: deque[Pane] = deque(maxlen=options.panes)
        self._since_tumbling = 0

    def __repr__(self) -> str:
        return f"<Windows {len(self._closed)} panes, {self._open.rows} rows in the open one>"

    @property
    def room(self) -> int:
        """How many rows still fit into the open pane; at least 1."""
        return self._options.pane_rows - self._open.rows

    def add(self, columns: Mapping[str, Histogram], rows: int, start_ms: int, end_ms: int) -> list[Window]:
        """Add counted rows, at most `room`; return the windows that are complete by that.

        A row whose time lies before the open pane's, since a clock went back, is counted where it arrives.
        """
        if rows > self.room:
            raise ValueError(f"{rows} rows do not fit into a pane with room for {self.room}")
        done: list[Window] = []
        if self._open.rows and start_ms - self._open.start_ms >= self._options.pane_ms:
            done = self._close()
        self._open.add(columns, rows, start_ms, end_ms)
        if self.room <= 0 or end_ms - self._open.start_ms >= self._options.pane_ms:
            done += self._close()
        return done

    def flush(self) -> list[Window]:
        """Close the open pane, however little is in it; return the windows that are complete by that."""
        return self._close() if self._open.rows else []

    def passed(self, now_ms: int) -> list[Window]:
        """Close the open pane when its time is over, though no row came."""
        return self._close() if self._open.rows and now_ms - self._open.start_ms >= self._options.pane_ms else []

    def _close(self) -> list[Window]:
        self._closed.append(self._open)
        self._open = Pane()
        self._drop_old()
        done = [Window.of("sliding", tuple(self._closed))]
        self._since_tumbling += 1
        if self._since_tumbling == self._options.panes:
            self._since_tumbling = 0
            done.append(Window.of("tumbling", tuple(self._closed)))
        return done

    def _drop_old(self) -> None:
        """A stream that paused does not mix what was before with what is now."""
        newest_ms = self._closed[-1].end_ms
        while len(self._closed) > 1 and newest_ms - self._closed[0].start_ms > self._options.seconds * 1000:
            self._closed.popleft()

    def plain(self) -> dict[str, Any]:
        """Return the state as what JSON can hold."""
        return {
            "open": self._open.plain(),
            "closed": [pane.plain() for pane in self._closed],
            "since_tumbling": self._since_tumbling,
        }

    def restore(self, given: Mapping[str, Any]) -> None:
        """Go on from what `plain` gave. Raises KeyError, TypeError or ValueError for something else."""
        opened = Pane.from_plain(given["open"])
        closed = [Pane.from_plain(pane) for pane in given["closed"]]
        since = int(given["since_tumbling"])
        if opened.rows >= self._options.pane_rows or since >= self._options.panes:
            raise ValueError("the state is of longer windows")
        self._open, self._since_tumbling = opened, since
        self._closed = deque(closed, self._options.panes)
