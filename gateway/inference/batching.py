"""How batches of a model are made: its `Execution`, and the sizes in which the graph gets its rows. Pure.

A run of a batch is one run of the graph, unless the batch has more rows than the graph may get at once, or the graph
takes certain numbers of rows only. Then it is cut, and what is too short is padded by repeating its last row:

    rows ──▶ Sizes.cuts ──▶ (start, stop, size) ... ──▶ one run of the graph each ──▶ outputs, cut again and joined

Invariants
- The graph sees at most `max_batch_rows` rows, and where there are buckets or a fixed first dimension, no other sizes.
- A padded row is a copy of a row of the same batch, so it cannot make a run fail that would not have failed anyway.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gateway.plan.manifest import ExecutionUse
from gateway.records.request import Array

LEVELS_MAX = 16
BUCKETS_MAX = 64


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model is run."""

    max_batch_rows: int = 4096
    """Rows that the graph gets at once. A request with more is run in several parts."""
    instances: int = 1
    """Runs of the model at one time, each in a thread of its own. A run that is short enough for the event loop stays
    there, and then there is one at a time."""
    buckets: tuple[int, ...] = ()
    """The only numbers of rows that the graph gets, ascending; a batch is padded up to the next. For accelerators that
    prepare for each new shape. None by default."""
    queue_rows_max: int = 65536
    """Rows that wait for the model. Beyond it requests are refused."""
    priority_levels: int = 1
    """Levels of priority that a request may name; 1 is served first."""
    default_priority: int = 1
    """The level of requests that name none."""
    merge: bool = True
    """Whether requests may share a run. `max_batch_size: 0` in config.pbtxt says no; a manifest cannot."""

    def __post_init__(self) -> None:
        for name in ("max_batch_rows", "instances", "queue_rows_max", "priority_levels", "default_priority"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.priority_levels > LEVELS_MAX:
            raise ValueError(f"priority_levels must be at most {LEVELS_MAX}")
        if self.default_priority > self.priority_levels:
            raise ValueError("default_priority must be one of the priority_levels")
        if len(self.buckets) > BUCKETS_MAX:
            raise ValueError(f"there may be at most {BUCKETS_MAX} buckets")
        if list(self.buckets) != sorted({*self.buckets}) or (self.buckets and self.buckets[0] < 1):
            raise ValueError("buckets must be ascending numbers of rows")
        if self.buckets and self.buckets[-1] > self.max_batch_rows:
            raise ValueError("no bucket may be larger than max_batch_rows")

    @classmethod
    def of(cls, use: ExecutionUse | None) -> "Execution":
        """The manifest's section over the defaults. Raises ValueError for what contradicts itself."""
        return cls(**use.model_dump(exclude_none=True)) if use is not None else cls()


class Cut(NamedTuple):
    """The rows from `start` to `stop`, which the graph gets as `size` rows."""

    start: int
    stop: int
    size: int


class Sizes:
    """In which sizes a graph gets its rows. `fixed_rows` is the graph's first dimension where it is a number."""

    __slots__ = ("_buckets", "rows_max")

    def __init__(self, execution: Execution, fixed_rows: int | None = None) -> None:
        self._buckets = execution.buckets if fixed_rows is None else (fixed_rows,)
        self.rows_max = self._buckets[-1] if self._buckets else execution.max_batch_rows
        """Rows of one run of the graph."""

    def __repr__(self) -> str:
        return f"<Sizes {', '.join(map(str, self._buckets)) or f'up to {self.rows_max}'}>"

    @property
    def warm_ups(self) -> tuple[int, ...]:
        """The sizes that are worth a first run before the model serves."""
        return self._buckets

    def fits(self, rows: int) -> bool:
        """Whether so many rows are one run of the graph without padding."""
        return rows <= self.rows_max and (not self._buckets or rows in self._buckets)

    def cuts(self, rows: int) -> Iterator[Cut]:
        """The runs of the graph that so many rows take."""
        for start in range(0, rows, self.rows_max):
            stop = min(start + self.rows_max, rows)
            size = next((size for size in self._buckets if size >= stop - start), stop - start)
            yield Cut(start, stop, size)

    def padding(self, rows: int) -> int:
        """Rows that are added to so many."""
        return 0 if self.fits(rows) else sum(cut.size - (cut.stop - cut.start) for cut in self.cuts(rows))

    def run(
        self, session_run: Callable[[Mapping[str, Array]], Sequence[Array]], inputs: Mapping[str, Array], rows: int
    ) -> Sequence[Array]:
        """Run the graph on `rows` rows, in as many runs as it takes.

        Raises ValueError when an output of a run that was cut or padded has not one entry for each row: cutting it
        again would hide that.
        """
        if self.fits(rows):
            return session_run(inputs)
        parts: list[Sequence[Array]] = []
        for start, stop, size in self.cuts(rows):
            outputs = session_run({name: padded(array[start:stop], size) for name, array in inputs.items()})
            if not by_rows(outputs, size):
                raise ValueError(f"the outputs have the shapes {shapes(outputs)} for {size} rows")
            parts.append([output[: stop - start] for output in outputs])
        return parts[0] if len(parts) == 1 else [np.concatenate(same) for same in zip(*parts, strict=True)]


def by_rows(outputs: Sequence[Array], rows: int) -> bool:
    """Whether each output has one entry for each row: they are dealt out to requests by position."""
    for output in outputs:  # noqa: SIM110 - a generator costs as much again
        if np.shape(output)[:1] != (rows,):
            return False
    return True


def shapes(outputs: Sequence[Array]) -> str:
    """The shapes of outputs, for a message."""
    return ", ".join(str(list(np.shape(output))) for output in outputs)


def padded(array: Array, rows: int) -> Array:
    """The array with its last row repeated until there are `rows`; itself where there are."""
    missing = rows - len(array)
    return array if missing == 0 else np.concatenate((array, np.repeat(array[-1:], missing, axis=0)))
