"""A histogram that is cheap to feed, one value or thousands at a time, and safe to read from another thread.

One thread feeds, any thread reads. The counts live in one `array.array`: a single value is an increment of an item,
a block of values is one vector addition on the same memory through NumPy. A reader takes a copy in one C call and
counts from that copy, so the total of what it saw always equals the sum of its buckets.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

FEW_VALUES = 12
"""Up to this many values are cheaper one by one than through NumPy's fixed costs."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a histogram held at one moment. `cumulative[i]` values were at most `bounds[i]`; the last entry is all."""

    bounds: Sequence[float]
    cumulative: Sequence[int]
    sum: float


class Histogram:
    """Counts of values by upper bound, a bound belonging to its bucket, and the sum of the values.

    `sum` is written after the counts, so a reader may see it one `add` behind them.
    """

    __slots__ = ("_bounds", "_counts", "_edges", "_sum", "_vector")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._edges = np.array(bounds, np.float64)
        self._counts = array("q", bytes(8 * (len(bounds) + 1)))
        self._vector = np.frombuffer(self._counts, np.int64)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_few(self, values: Iterable[float]) -> None:
        """Count every value, one by one."""
        bounds, counts = self._bounds, self._counts
        total = 0.0
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            total += value
        self._sum += total

    def add_block(self, values: npt.NDArray[np.float64]) -> None:
        """Count every value of a one-dimensional array."""
        buckets = self._edges.searchsorted(values)
        self._vector += np.bincount(buckets, minlength=len(self._vector))
        self._sum += float(np.add.reduce(values))

    def read(self) -> Reading:
        """Copy the counts; may be called from any thread."""
        counts = self._counts.tolist()
        return Reading(self._bounds, tuple(accumulate(counts)), self._sum)

    def __repr__(self) -> str:
        return f"<Histogram count={sum(self._counts)} sum={self._sum:g}>"


def decades(first_exponent: int, last_exponent: int, steps: Sequence[float]) -> tuple[float, ...]:
    """Return bounds at `steps` of every decade: `decades(-3, -1, (1, 2, 5))` is 0.001, 0.002, 0.005, 0.01 … 0.5."""
    return tuple(float(f"{step}e{exponent}") for exponent in range(first_exponent, last_exponent + 1) for step in steps)
