"""What shadows and primaries answered, compared: scores by output, feature values by column of the views that differ.

    Shadow ──Compared──▶ offer ──(bounded)──▶ the thread: Pair.add ──▶ summaries, metrics

A thread of its own adds up, since comparing the ranks of a large request takes as long as many slices of the loop.

Invariants
- What waits is bounded: beyond `WAITING_MAX` it is counted as left out, and nobody waits.
- Summaries and metrics see whole additions: both are made under the lock that the thread holds while it adds.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from featureclient.schema import View
from gateway.experiments.paired import Paired, PairedOptions
from gateway.experiments.sequential import Moments
from gateway.inference import Model
from gateway.pipeline.copies import Compared, stacked
from gateway.records.request import Array

_log = logging.getLogger(__name__)

WAITING_MAX = 512
"""Comparisons that wait for the thread."""
PAUSE_S = 0.1
"""What comes in so long is compared together: the thread takes the interpreter's lock from the loop each time."""
PAIRS_MAX = 500
"""Pairs of experiment and variant that are compared."""
OUTPUTS_MAX = 8
COLUMNS_MAX = 200
"""Columns of features of one pair whose differences are kept."""
RANKED_ROWS_MAX = 1000
"""Rows of a request whose ranks are compared."""
_NUMBERS = "fiub"

Key = tuple[str, str]
"""Experiment and variant."""


@dataclass(frozen=True, slots=True)
class Compare:
    """What is compared of one experiment."""

    output: str | None = None
    """None: every output of numbers, up to `OUTPUTS_MAX`."""
    position: int = -1
    """Which element, where a row of the output has several."""
    paired: PairedOptions = field(default_factory=PairedOptions)


@dataclass(slots=True)
class ColumnDifference:
    """A column of a view in both versions."""

    rows: int = 0
    changed: int = 0
    difference: Moments = field(default_factory=Moments)
    """The variant's value minus the primary's, where both are finite."""

    def add(self, primary: npt.NDArray[np.generic], shadow: npt.NDArray[np.generic]) -> None:
        """Take the values of the same rows, [n] each."""
        one, other = primary.astype(np.float64), shadow.astype(np.float64)
        self.rows += len(one)
        self.changed += int(np.count_nonzero((one != other) & ~(np.isnan(one) & np.isnan(other))))
        finite = np.isfinite(one) & np.isfinite(other)
        self.difference += Moments.of(other[finite] - one[finite])

    def __iadd__(self, other: Self) -> Self:
        self.rows += other.rows
        self.changed += other.changed
        self.difference += other.difference
        return self

    def summary(self) -> dict[str, Any]:
        """As plain numbers."""
        return {
            "rows": self.rows,
            "share_changed": self.changed / self.rows if self.rows else 0.0,
            "mean_difference": self.difference.mean,
            "deviation": float(np.sqrt(self.difference.variance)) if self.difference.count > 1 else 0.0,
        }


@dataclass(slots=True)
class Pair:
    """A primary and a variant, compared. Pairs of other processes and days may be added."""

    requests: int = 0
    rows: int = 0
    replaced: int = 0
    """Rows that one of the graphs did not answer, since a check had put something in its place. Left out."""
    unpaired: int = 0
    """Rows whose outputs have not the same shapes, or that are no numbers."""
    outputs: dict[str, Paired] = field(default_factory=dict)
    columns: dict[str, ColumnDifference] = field(default_factory=dict)

    def add(self, compared: Compared, compare: Compare) -> None:
        """Take some rows."""
        answers = compared.shadow
        rows = [request.rows for request in answers.requests]
        total = sum(rows)
        self.requests += len(rows)
        self.rows += total
        kept = compared.answered
        if kept is not None:
            self.replaced += int(total - np.count_nonzero(kept))
            ends = np.cumsum(rows)[:-1]
            rows = [int(np.count_nonzero(part)) for part in np.split(kept, ends)]
        paired = False
        names = compared.primary.plan.outputs
        for name, primary, shadow in zip(names, compared.outputs, answers.outputs, strict=True):
            paired |= self._add_output(name, compare, (primary, shadow), kept, rows)
        if not paired:
            self.unpaired += sum(rows)
        for name, ours, theirs in _columns(compared):
            if name in self.columns or len(self.columns) < COLUMNS_MAX:
                self.columns.setdefault(name, ColumnDifference()).add(ours, theirs)

    def _add_output(
        self,
        name: str,
        compare: Compare,
        both: tuple[Array, Array],
        kept: npt.NDArray[np.bool_] | None,
        rows: list[int],
    ) -> bool:
        one, other = both
        if name != (compare.output or name) or (name not in self.outputs and len(self.outputs) >= OUTPUTS_MAX):
            return False
        if one.shape != other.shape or one.dtype.kind not in _NUMBERS or other.dtype.kind not in _NUMBERS:
            return False
        if not one.size:
            return False
        position = compare.position
        first, second = (scores.reshape(len(scores), -1) for scores in (one, other))
        if not -first.shape[1] <= position < first.shape[1]:
            position = -1
        first, second = first[:, position], second[:, position]
        if kept is not None:
            first, second = first[kept], second[kept]
        held = self.outputs.get(name)
        if held is None or held.options != compare.paired:  # an edit of the experiment begins anew
            held = self.outputs[name] = Paired(compare.paired)
        # A request that is too large to be ranked is so many rows.
        ranked = rows if max(rows, default=0) <= RANKED_ROWS_MAX else [1] * sum(rows)
        held.add(first, second, ranked)
        return True

    def __iadd__(self, other: Self) -> Self:
        self.requests += other.requests
        self.rows += other.rows
        self.replaced += other.replaced
        self.unpaired += other.unpaired
        for name, paired in other.outputs.items():
            held = self.outputs.setdefault(name, Paired(paired.options))
            held += paired
        for name, column in other.columns.items():
            self.columns.setdefault(name, ColumnDifference()).__iadd__(column)
        return self

    def summary(self) -> dict[str, Any]:
        """What a page shows, as plain numbers."""
        return {
            "requests": self.requests,
            "rows": self.rows,
            "replaced": self.replaced,
            "unpaired": self.unpaired,
            "outputs": {name: paired.summary() for name, paired in self.outputs.items()},
            "columns": {name: column.summary() for name, column in self.columns.items()},
        }


class Difference(NamedTuple):
    """One compared output, for metrics."""

    experiment: str
    variant: str
    output: str
    summary: Mapping[str, Any]


class Comparisons:
    """All pairs of a process. `with` starts and ends the thread; `offer` is for the loop, the rest for any thread."""

    def __init__(self, compare: Callable[[str], Compare | None]) -> None:
        """`compare` says what is compared of an experiment; None for one that is not known any more."""
        self._compare = compare
        self._pairs: dict[Key, Pair] = {}
        self._lock = threading.Lock()
        self._waiting: Queue[Compared | None] = Queue(WAITING_MAX)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="headrace-comparison", daemon=True)
        self.left_out = 0
        """Rows that were not compared, since too much waited."""

    def __repr__(self) -> str:
        return f"<Comparisons {list(self._pairs)} waiting={self._waiting.qsize()}>"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._waiting.put_nowait(None)
                break
            except Full:
                try:
                    self._waiting.get_nowait()
                except Empty:
                    continue
        self._thread.join()

    def offer(self, compared: Compared) -> None:
        """Have it compared; fits `Shadow(told=…)`."""
        try:
            self._waiting.put_nowait(compared)
        except Full:
            self.left_out += sum([request.rows for request in compared.shadow.requests])

    def forget(self, experiments: Callable[[str], bool]) -> None:
        """Forget the pairs of the experiments of which this is true."""
        with self._lock:
            self._pairs = {key: pair for key, pair in self._pairs.items() if not experiments(key[0])}

    def add(self, key: Key, pair: Pair) -> None:
        """Add what another process has compared."""
        with self._lock:
            held = self._pairs.setdefault(key, Pair())
            held += pair

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Experiment -> variant -> what was found."""
        found: dict[str, dict[str, Any]] = {}
        with self._lock:
            for (experiment, variant), pair in self._pairs.items():
                found.setdefault(experiment, {})[variant] = pair.summary()
        return found

    def differences(self) -> list[Difference]:
        """Every compared output."""
        with self._lock:
            return [
                Difference(*key, name, paired.summary())
                for key, pair in self._pairs.items()
                for name, paired in pair.outputs.items()
            ]

    def _serve(self) -> None:
        going = True
        while going:
            waiting = [self._waiting.get()]
            self._stop.wait(PAUSE_S)
            with suppress(Empty):
                while len(waiting) < WAITING_MAX:
                    waiting.append(self._waiting.get_nowait())
            going = None not in waiting
            by_pair: dict[tuple[str, Model, Model], list[Compared]] = {}
            for one in waiting:
                if one is not None:
                    by_pair.setdefault((one.experiment, one.primary, one.shadow.model), []).append(one)
            del waiting
            for alike in by_pair.values():
                try:
                    self._take(alike)
                except Exception:  # noqa: BLE001 - one comparison that cannot be made is no reason to make none
                    _log.exception("answers of %s could not be compared", alike[0].shadow.model)

    def _take(self, alike: Sequence[Compared]) -> None:
        first = alike[0]
        compare = self._compare(first.experiment)
        key = (first.experiment, first.shadow.model.variant)
        if compare is None or (key not in self._pairs and len(self._pairs) >= PAIRS_MAX):
            return
        together = [one for same in _by_shape(alike) for one in _joined(same)]
        with self._lock:
            pair = self._pairs.setdefault(key, Pair())
            for compared in together:
                pair.add(compared, compare)


def _by_shape(alike: Sequence[Compared]) -> Iterable[Sequence[Compared]]:
    """Those whose outputs are as wide, together."""
    groups: dict[Any, list[Compared]] = {}
    for one in alike:
        shapes = [output.shape[1:] for output in (*one.outputs, *one.shadow.outputs)]
        groups.setdefault(tuple(shapes), []).append(one)
    return groups.values()


def _joined(alike: Sequence[Compared]) -> Iterator[Compared]:
    """Several as one. What is compared of them is all that it has."""
    first = alike[0]
    if len(alike) == 1:
        yield first
        return
    answered = None
    if any(one.answered is not None for one in alike):
        answered = np.concatenate(
            [np.ones(len(one.outputs[0]), np.bool_) if one.answered is None else one.answered for one in alike]
        )
    indexes = list(first.blocks)
    shadow = first.shadow._replace(
        requests=[request for one in alike for request in one.shadow.requests],
        outputs=[np.concatenate(same) for same in zip(*[one.shadow.outputs for one in alike], strict=True)],
        assembled=first.shadow.assembled._replace(
            blocks=tuple(
                [
                    stacked([one.shadow.assembled.blocks[index] for one in alike]) if index in indexes else block
                    for index, block in enumerate(first.shadow.assembled.blocks)
                ]
            )
        ),
    )
    yield first._replace(
        shadow=shadow,
        outputs=[np.concatenate(same) for same in zip(*[one.outputs for one in alike], strict=True)],
        blocks={index: stacked([one.blocks[index] for one in alike]) for index in indexes},
        answered=answered,
    )


def _columns(compared: Compared) -> Iterator[tuple[str, Array, Array]]:
    """The columns of numbers that both versions of a view have: name, the primary's values, the variant's."""
    shadow = compared.shadow
    for index, block in compared.blocks.items():
        ours, theirs = compared.primary.plan.bindings[index], shadow.model.plan.bindings[index]
        for column in ours.view.columns:
            one, other = (
                _values(ours.view, column.name, block),
                _values(theirs.view, column.name, shadow.assembled.blocks[index]),
            )
            if one is not None and other is not None:
                yield f"{ours.alias}.{column.name}", one, other


def _values(view: View, name: str, block: npt.NDArray[np.void]) -> Array | None:
    column = next((column for column in view.columns if column.name == name), None)
    if column is None or column.dtype.length or column.dtype.kind == "string":
        return None
    place = view.layout.places[name]
    values: Array = block[place.run][:, place.start]
    return values
