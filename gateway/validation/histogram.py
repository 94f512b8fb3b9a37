"""A column as counts: how many values fell into each bin, how many rows had no value, and the sum of the values.

    profile's edges, categories ─▶ Binning ──values──▶ Histogram ─ + ─▶ Histogram of both

Invariants
- Two histograms of one binning add up to the histogram of both samples together, whoever counted them and in whichever
  order. Windows, workers and replicas are merged by this and never by averages.
- Every value falls into exactly one bin: the outer bins are open, so what lies outside the reference's range is counted
  and not lost. NaN, infinities and null are counted as nulls: a profile has no bins for infinities either.
- A bin is [lower, upper). Edges that are equal in the reference, since many of its values are, become one bin for that
  value, so a change in the share of a frequent value is seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

OTHER = "(other)"
"""The last bin of a column of categories: what the reference does not know."""

AGE_EDGES_MS = (0.0, 1e3, 1e4, 6e4, 6e5, 3.6e6, 2.16e7, 8.64e7, 6.048e8, 2.592e9)
"""Ages of rows have no training data to take edges from: unknown, then 1 s, 10 s, 1 min, 10 min, 1 h, 6 h, 1 d, 7 d
and 30 d."""


@dataclass(frozen=True, slots=True, eq=False)
class Binning:
    """The bins of one column: `edges` between them, float64 ascending and distinct, or the names of categories.

    There is one bin more than there are edges or categories.
    """

    edges: npt.NDArray[np.float64]
    categories: tuple[str, ...] = ()

    @classmethod
    def numeric(cls, edges: Sequence[float] | npt.NDArray[np.float64]) -> Self:
        """Return the bins of quantile edges (lowest and highest value included), which may repeat or be not finite."""
        given = np.asarray(edges, np.float64)
        given = given[~np.isnan(given)]
        inner = given[1:-1] if len(given) > 1 else given
        if len(given) > 1 and given[-1] == given[-2]:
            # The highest value fills a bin of its own; what is above it falls into the next.
            inner = np.append(inner, [given[-1], np.nextafter(given[-1], np.inf)])
        inner = np.unique(inner)
        return cls(inner[np.isfinite(inner)])

    @classmethod
    def between(cls, edges: Sequence[float]) -> Self:
        """Return the bins between these edges, with open ends."""
        return cls(np.asarray(edges, np.float64))

    @classmethod
    def named(cls, categories: Iterable[str]) -> Self:
        """Return a bin for each category and one for all others."""
        return cls(np.empty(0), tuple(categories))

    def __len__(self) -> int:
        return (len(self.categories) or len(self.edges)) + 1

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Binning) and self.categories == other.categories
        return same and isinstance(other, Binning) and np.array_equal(self.edges, other.edges)

    def __hash__(self) -> int:
        return hash((self.edges.tobytes(), self.categories))

    def names(self) -> list[str]:
        """Return what the bins are called, in order."""
        if self.categories:
            return [*self.categories, OTHER]
        edges = [f"{edge:.4g}" for edge in self.edges]
        if not edges:
            return ["all"]
        inner = [f"{low} to {high}" for low, high in pairwise(edges)]
        return [f"< {edges[0]}", *inner, f"≥ {edges[-1]}"]

    def spread(self, edges: Sequence[float], shares: Sequence[float], count: int) -> npt.NDArray[np.int64]:
        """Return the counts that a reference's shares between `edges` mean in these bins, int64 [bins]."""
        given = np.asarray(edges, np.float64)[:-1]
        places = np.searchsorted(self.edges, given, side="right")
        summed = np.bincount(places, np.asarray(shares, np.float64) * count, len(self))
        return np.rint(summed).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of one column: int64 [bins]; the sum `total` is of the `finite` values."""

    counts: npt.NDArray[np.int64]
    nulls: int = 0
    total: float = 0.0
    finite: int = 0

    @classmethod
    def empty(cls, binning: Binning) -> Self:
        """Return the histogram of no values, which adds nothing."""
        return cls(np.zeros(len(binning), np.int64))

    @classmethod
    def of(
        cls,
        values: npt.NDArray[Any],
        binning: Binning | npt.NDArray[np.float64],
        nulls: npt.NDArray[np.bool_] | None = None,
    ) -> Self:
        """Count numbers [rows] in the bins, or in those of a profile's edges; `nulls` marks those that are no values.

        The values are sorted once, and the edges looked up in them: cheaper than to look up each value, and that is how
        `np.histogram` does it too. The sorted array also tells NaN and infinities, at its ends.
        """
        binning = binning if isinstance(binning, Binning) else Binning.numeric(binning)
        rows = len(values)
        if nulls is not None and nulls.any():
            values = values[~nulls]
        if values.dtype.kind not in "fiu":
            values = values.astype(np.float64)
        ordered = np.sort(values)
        if values.dtype.kind == "f":
            first = int(ordered.searchsorted(values.dtype.type(-np.inf), "right"))
            ordered = ordered[first : int(ordered.searchsorted(values.dtype.type(np.inf)))]
        known = len(ordered)
        cuts = ordered.searchsorted(_as(binning.edges, values.dtype))
        return cls(np.diff(cuts, prepend=0, append=known), rows - known, float(ordered.sum(dtype=np.float64)), known)

    @classmethod
    def of_categories(cls, names: Iterable[str | None], counts: Iterable[int], binning: Binning) -> Self:
        """Count values that were counted by name already; None is null."""
        places = {name: place for place, name in enumerate(binning.categories)}
        result = np.zeros(len(binning), np.int64)
        nulls = 0
        for name, count in zip(names, counts, strict=True):
            if name is None:
                nulls += count
            else:
                result[places.get(name, -1)] += count
        return cls(result, nulls)

    def __add__(self, other: "Histogram") -> "Histogram":
        if len(self.counts) != len(other.counts):
            raise ValueError(f"histograms of {len(self.counts)} and of {len(other.counts)} bins cannot be merged")
        return Histogram(
            self.counts + other.counts,
            self.nulls + other.nulls,
            self.total + other.total,
            self.finite + other.finite,
        )

    def __repr__(self) -> str:
        return f"<Histogram {self.count} values in {len(self.counts)} bins, {self.nulls} nulls>"

    @property
    def count(self) -> int:
        """How many values there are, nulls excepted."""
        return int(self.counts.sum())

    @property
    def null_share(self) -> float:
        """The share of nulls among all rows; 0 of no rows."""
        rows = self.count + self.nulls
        return self.nulls / rows if rows else 0.0

    @property
    def mean(self) -> float:
        """The mean of the finite values; NaN where there are none."""
        return self.total / self.finite if self.finite else float("nan")

    def plain(self) -> list[Any]:
        """Return it as what JSON can hold."""
        return [self.counts.tolist(), self.nulls, self.total, self.finite]

    @classmethod
    def from_plain(cls, given: Sequence[Any]) -> Self:
        """Return what `plain` gave. Raises ValueError or TypeError for something else."""
        counts, nulls, total, finite = given
        return cls(np.asarray(counts, np.int64), int(nulls), float(total), int(finite))


def _as(edges: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the edges in the values' own dtype, rounded up: `value >= edge` says the same before and after.

    With edges of another dtype, numpy would convert all values instead.
    """
    if dtype.kind != "f":
        return edges
    with np.errstate(over="ignore"):
        rounded = edges.astype(dtype)
    below: npt.NDArray[Any] = np.where(rounded < edges, np.nextafter(rounded, dtype.type(np.inf)), rounded)
    return below
