"""What belongs to one variant that answers once more: what waits, how much of it is a slice, and what became of it.

    waiting ──next──▶ (rows missing: fetching ─▶ ready) ──▶ a slice, or a run in the thread ─▶ finished

Invariants
- `rows` are those in all stages, and each of them is counted once when it leaves.
- What is next is of one shape, counts its ages from one moment, and has as many rows as a slice may have.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from featureclient.breaker import Breaker
from gateway.inference import Model
from gateway.inference.cost import Cost
from gateway.inference.runner import Ran
from gateway.inference.variants import Target, overridable
from gateway.pipeline.beside import Beside
from gateway.pipeline.copies import Copied, fits_with, gathered, pieces, split
from gateway.pipeline.shadow_options import RESULTS, ShadowOptions
from gateway.plan import Assembled
from gateway.validation.checks import Checked

_PREPARE_S, _PREPARE_ROW_S = 100e-6, 3e-6
"""What looking up, assembling and telling is taken to cost at first."""
_TRIAL_ROWS = 64
_STRETCH = 0.25
_THREADED_SLICES = 10
"""A run in the thread has the rows of so many slices: it takes a CPU, not the loop."""


class Ready(NamedTuple):
    """A copy with all its rows."""

    copied: Copied
    stored: Sequence[Sequence[bytes]]


class Running(NamedTuple):
    """A copy that the model has got."""

    copied: Copied
    assembled: Assembled
    checked: Checked | None
    taken: float
    assembled_at: float


class Counts:
    """What became of the rows of one variant of one experiment."""

    __slots__ = ("results", "violated")

    def __init__(self) -> None:
        self.results = dict.fromkeys(RESULTS, 0)
        self.violated = 0


class Line:
    """One variant of one experiment, in the shadow of one model."""

    __slots__ = ("_cutting", "_options", "_slice_s", "beside", "breaker", "counts", "finished", "key", "known",
                 "own", "prepare", "primary", "reading", "ready", "rows", "running", "slice_rows", "stuck", "target",
                 "tried", "used", "waiting", "waiting_rows")  # fmt: skip

    def __init__(
        self, target: Target, primary: Model, options: ShadowOptions, key: tuple[str, str], counts: Counts
    ) -> None:
        variant = target.model
        self.target = target
        self.primary = primary
        self.key = key
        """Experiment and variant, as they are counted."""
        self.counts = counts
        pairs = zip(primary.plan.bindings, variant.plan.bindings, strict=True)
        self.own = [index for index, (ours, theirs) in enumerate(pairs) if ours.view is not theirs.view]
        """The numbers of the views that it has another version of."""
        self.known = overridable(primary, variant)
        """The columns that its requests may override; None: all."""
        self.beside = Beside(variant.runner)
        self.breaker = Breaker(options.breaker_failures, options.breaker_open_s)
        self.prepare = Cost(_PREPARE_S, _PREPARE_S + _TRIAL_ROWS * _PREPARE_ROW_S, _TRIAL_ROWS)
        """What a slice takes beside the run."""
        self.waiting: deque[Copied] = deque()
        self.waiting_rows = 0
        self.reading: dict[int, Copied] = {}
        """What waits for the store, by a number of its own."""
        self.ready: deque[Ready] = deque()
        self.running: Running | None = None
        """In the thread, and waited for."""
        self.finished: tuple[Running, Ran] | None = None
        self.stuck = False
        """A run in the thread has been given up, and has not ended."""
        self.tried = False
        """A run has ended well."""
        self.rows = 0
        self.used = 0.0
        self._cutting: Iterator[Copied] | None = None
        self._options = options
        self._slice_s = options.slice_us * 1e-6
        self.slice_rows = self._slice_rows()
        """How many rows make a slice."""

    def __repr__(self) -> str:
        return f"<Line {'/'.join(self.key)} rows={self.rows} {self.beside}{' stuck' if self.stuck else ''}>"

    @property
    def fetching(self) -> int:
        """Rows that wait for the store."""
        return sum([copied.rows for copied in self.reading.copy().values()])

    def allows(self, now: float) -> bool:
        """It has not failed too often, and its thread comes back."""
        return not self.stuck and self.breaker.allows(now)

    def put(self, copied: Copied) -> None:
        """Let a copy wait."""
        self.waiting.append(copied)
        self.rows += copied.rows
        self.waiting_rows += copied.rows
        self.used = copied.offered

    def count(self, result: str, rows: int) -> None:
        """What became of so many rows, which are not here any more."""
        self.counts.results[result] += rows

    def lose(self, copied: Copied, reason: str) -> None:
        """A copy will not be compared. Of a request in pieces all of it, with the first piece that is lost."""
        self.rows -= copied.rows
        if copied.piece is None:
            self.count(reason, copied.rows)
        elif not copied.piece[0].lost:
            copied.piece[0].lost = True
            self.count(reason, copied.piece[0].copied.rows)

    def drop(self, reason: str) -> None:
        """Lose what waits, but for what is being fetched or run."""
        for ready in self.ready:
            self.lose(ready.copied, reason)
        self.ready.clear()
        for copied in self._cutting or ():
            self.lose(copied, reason)
        self._cutting = None
        for copied in self.waiting:
            self.lose(copied, reason)
        self.waiting.clear()
        self.waiting_rows = 0

    def leave(self, reason: str) -> None:
        """Lose everything; nothing comes any more."""
        self.drop(reason)
        for run in (self.running, self.finished and self.finished[0]):
            if run is not None:
                self.lose(run.copied, reason)
        self.running = self.finished = None
        for copied in self.reading.values():
            self.lose(copied, reason)
        self.reading.clear()
        self.beside.close()

    def due(self, now: float) -> float:
        """When there is something to do."""
        if self.finished is not None:
            return now
        if self.running is not None:
            return inf
        return now if self.ready else self._next_due(now)

    def _next_due(self, now: float) -> float:
        if self.reading and self.fetching >= self._options.fetch_rows_max:
            return inf
        if self._cutting is not None or self.waiting_rows >= self.slice_rows:
            return now
        return self.waiting[0].offered + self._options.linger_ms / 1000 if self.waiting else inf

    @property
    def threaded(self) -> bool:
        """One row is too long for the loop, or nobody has seen yet what a run does."""
        return not self.tried or self.beside.cost.predict(1) > self._slice_s / 2

    def learn(self, rows: int, prepare_s: float) -> None:
        """A slice of so many rows took so much beside the run."""
        if rows:
            self.prepare.observe(rows, prepare_s)
        self.slice_rows = self._slice_rows()

    def _slice_rows(self) -> int:
        """How many rows are expected to be done in a slice.

        Where a slice of one row is too long already, the loop is better served by fewer slices that are a little
        longer: as many rows as take `_STRETCH` of what they share.
        """
        run, prepare = self.beside.cost, self.prepare
        shared_s, row_s = prepare.overhead_s, prepare.row_s
        if self.threaded:
            row_s = max(row_s, run.row_s / _THREADED_SLICES)
        else:
            shared_s, row_s = shared_s + run.overhead_s, row_s + run.row_s
        rows = int(max(self._slice_s - shared_s, _STRETCH * shared_s) / max(row_s, 1e-9))
        return min(max(rows, 1), self.target.model.execution.max_batch_rows, self._options.queue_rows_max)

    def next(self, now: float) -> Copied | None:
        """Take out what makes the next slice; None where nothing is left."""
        rows_max = self.slice_rows
        while self._cutting is not None or self.waiting:
            if self._cutting is not None:
                piece = self._next_piece()
                if piece is not None:
                    return piece
                continue
            first = self.waiting.popleft()
            if now - first.offered > self._options.wait_max_s:
                self.waiting_rows -= first.rows
                self.lose(first, "age")
            elif first.rows <= rows_max:
                return self._with_others(first, rows_max)
            elif len(first.requests) == 1:
                self.waiting_rows -= first.rows
                self._cutting = pieces(first, rows_max)
            else:
                self.waiting.extendleft(reversed(split(first, rows_max)))
        return None

    def _next_piece(self) -> Copied | None:
        assert self._cutting is not None
        piece = next(self._cutting, None)
        if piece is None:
            self._cutting = None
        elif piece.piece is not None and piece.piece[0].lost:
            self.lose(piece, "")  # it was counted with the one that was lost first
            return None
        return piece

    def _with_others(self, first: Copied, rows_max: int) -> Copied:
        some = [first]
        rows = first.rows
        while self.waiting and rows + self.waiting[0].rows <= rows_max and fits_with(first, self.waiting[0]):
            other = self.waiting[0]
            some.append(self.waiting.popleft())
            rows += other.rows
        self.waiting_rows -= rows
        return gathered(some)
