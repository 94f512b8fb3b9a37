"""Statistics in one pass over batches, mergeable: two halves merged say what the whole says.

    ColumnAccumulator   counts of nulls, NaN and infinities; `Numbers` of values or norms; `Categories`
    GroupAccumulator    mean and covariance of a subset of columns

Counts, minimum and maximum are exact. Mean, variance and covariance are merged as Chan, Golub and LeVeque do ("Updating
formulae and a pairwise algorithm for computing sample variances", 1979), right to rounding. Quantiles come from a KLL
sketch of Apache DataSketches: exact up to `SKETCH_K` values, and from there on right to `RANK_ERROR` of the rows, with
99% confidence. Categories are exact up to `CATEGORIES_KEPT` different values; beyond, rare ones are dropped as by Misra
and Gries, and a share is too small by at most 1 in `CATEGORIES_KEPT`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import datasketches
import numpy as np
import numpy.typing as npt

from featureclient.schema import DType
from gateway.records.request import Array
from gateway.validation.column_check import norms
from gateway.validation.profile import EDGES, TAILS, ColumnProfile, GroupProfile, Measure, category

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

SKETCH_K = 8192
"""Of the sketch: some 180 KiB for a column."""
RANK_ERROR = 0.0005
"""What a sketch of SKETCH_K promises for its quantiles and for the shares of bins, as a share of the rows."""
CATEGORIES_KEPT = 4096
"""Different strings that are counted at a time."""
CATEGORIES_SHOWN = 1000
"""The most frequent categories, in the profile; the others are one share together."""
NUMBERS_MAX = 64
"""A column of numbers with more different values than that has no categories."""


class Numbers:
    """Finite numbers: moments, extremes and a sketch of the distribution."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        self.min = math.inf
        self.max = -math.inf
        self.sketch: Any = datasketches.kll_doubles_sketch(SKETCH_K)

    def add(self, values: Floats) -> None:
        """Take finite values [n]."""
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.mean())
            self._join(len(values), mean, float(((values - mean) ** 2).sum()))
        self.min = min(self.min, float(values.min()))
        self.max = max(self.max, float(values.max()))
        self.sketch.update(np.ascontiguousarray(values))

    def merge(self, other: "Numbers") -> None:
        """Take what another has seen."""
        if other.count:
            self._join(other.count, other.mean, other.squares)
            self.min, self.max = min(self.min, other.min), max(self.max, other.max)
            self.sketch.merge(other.sketch)

    @property
    def exact(self) -> bool:
        """The sketch still has every value."""
        return not self.sketch.is_estimation_mode()

    def profile(self) -> dict[str, Any]:
        """The fields of a `ColumnProfile`; none where there is no number."""
        if not self.count:
            return {}
        inner = self.sketch.get_quantiles([*EDGES[1:-1], *TAILS])
        edges = (self.min, *inner[: len(EDGES) - 2], self.max)
        below = [self.sketch.get_rank(edge, inclusive=False) for edge in edges[:-1]]
        shares = np.diff([0.0, *below[1:], 1.0])
        return {
            "mean": _finite(self.mean),
            "std": _finite(math.sqrt(self.squares / (self.count - 1))) if self.count > 1 else None,
            "min": self.min,
            "max": self.max,
            "edges": edges,
            "shares": tuple(shares.tolist()),
            "tails": dict(zip(TAILS, inner[len(EDGES) - 2 :], strict=True)),
        }

    def _join(self, count: int, mean: float, squares: float) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.mean += apart * count / total
        self.squares += squares + apart * apart * self.count * count / total
        self.count = total


class Categories:
    """Counts of different values in bounded memory. `limit`: give up beyond so many; None: drop the rare ones."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.counts: Counter[str] | None = Counter()
        self.total = 0

    def add(self, values: Array) -> None:
        """Take values [n]."""
        self.total += len(values)
        if self.counts is None or not len(values):
            return
        if values.dtype.hasobject:
            self.counts.update(values.tolist())
        else:
            found, counts = np.unique(values, return_counts=True)
            if self.limit is not None and len(found) > self.limit:
                self.counts = None
                return
            self.counts.update(dict(zip(map(category, found.tolist()), counts.tolist(), strict=True)))
        self._bound()

    def merge(self, other: "Categories") -> None:
        """Take what another has seen."""
        self.total += other.total
        if self.counts is None or other.counts is None:
            self.counts = None
            return
        self.counts.update(other.counts)
        self._bound()

    def profile(self) -> dict[str, Any]:
        """The fields of a `ColumnProfile`."""
        if self.counts is None:
            return {}
        shown = sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))[:CATEGORIES_SHOWN]
        shares = {name: count / self.total for name, count in shown}
        listed = sum(count for _, count in shown)
        return {"categories": shares, "other": (self.total - listed) / self.total if self.total else 0.0}

    def _bound(self) -> None:
        assert self.counts is not None
        if self.limit is not None:
            if len(self.counts) > self.limit:
                self.counts = None
        elif len(self.counts) > CATEGORIES_KEPT:
            # Misra and Gries: every count is lowered by the first that does not fit any more.
            excess = sorted(self.counts.values(), reverse=True)[CATEGORIES_KEPT]
            self.counts = Counter({name: count - excess for name, count in self.counts.items() if count > excess})


class ColumnAccumulator:
    """Everything about one column."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.count = self.nulls = self.nans = self.infinities = 0
        self.numbers = Numbers()
        self.categories: Categories | None = None
        if dtype.kind == "string":
            self.categories = Categories(None)
        elif dtype.length is None and dtype.kind != "timestamp":
            self.categories = Categories(NUMBERS_MAX)
        self.sums = np.zeros(dtype.width, np.float64)

    @property
    def measure(self) -> Measure:
        """What the numbers describe."""
        return "category" if self.dtype.kind == "string" else "value" if self.dtype.length is None else "norm"

    def add(self, values: Array, null: Bools | None = None) -> None:
        """Take a batch: [rows], or [rows, length] for a vector; strings are objects of str. `null` marks nulls."""
        self.count += len(values)
        if null is not None and null.any():
            self.nulls += int(null.sum())
            values = values[~null]
        if self.dtype.kind != "string":
            values = self._finite(values)
            with np.errstate(over="ignore"):
                wide = values.astype(np.float64)
                if self.dtype.length is not None:
                    self.sums += wide.sum(axis=0)
                    wide = norms(wide)
            self.numbers.add(wide[np.isfinite(wide)])
        if self.categories is not None:
            self.categories.add(values)

    def merge(self, other: "ColumnAccumulator") -> None:
        """Take what another, of the same dtype, has seen."""
        if other.dtype != self.dtype:
            raise ValueError(f"a column of {other.dtype} cannot be merged into one of {self.dtype}")
        self.count += other.count
        self.nulls += other.nulls
        self.nans += other.nans
        self.infinities += other.infinities
        self.numbers.merge(other.numbers)
        self.sums += other.sums
        if self.categories is not None and other.categories is not None:
            self.categories.merge(other.categories)

    def profile(self) -> ColumnProfile:
        """What has been seen so far."""
        found = {**self.numbers.profile(), **(self.categories.profile() if self.categories else {})}
        if self.dtype.length is not None and self.numbers.count and np.isfinite(self.sums).all():
            found["means"] = tuple((self.sums / self.numbers.count).tolist())
        return ColumnProfile(str(self.dtype), self.measure, self.count, self.nulls, self.nans, self.infinities, **found)

    def _finite(self, values: Array) -> Array:
        """The rows of which every element is finite; counts the others."""
        if values.dtype.kind != "f":
            return values
        finite = _rows(np.isfinite(values), every=True)
        if finite.all():
            return values
        nan = _rows(np.isnan(values), every=False)
        self.nans += int(nan.sum())
        self.infinities += int((~finite & ~nan).sum())
        return values[finite]


class GroupAccumulator:
    """Mean and covariance of several columns together."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.count = 0
        self.mean = np.zeros(len(columns))
        self.products = np.zeros((len(columns), len(columns)))

    def add(self, columns: Mapping[str, Array]) -> None:
        """Take a batch of the columns, each [rows]. Rows with a value that is not finite are left out."""
        values = np.stack([columns[name].astype(np.float64) for name in self.columns], axis=1)
        values = values[np.isfinite(values).all(axis=1)]
        if len(values):
            mean = values.mean(axis=0)
            apart = values - mean
            self._join(len(values), mean, apart.T @ apart)

    def merge(self, other: "GroupAccumulator") -> None:
        """Take what another, of the same columns, has seen."""
        if other.columns != self.columns:
            raise ValueError(f"the groups are of {self.columns} and of {other.columns}")
        if other.count:
            self._join(other.count, other.mean, other.products)

    def profile(self) -> GroupProfile:
        """What has been seen so far. Without two rows the covariance is zero."""
        covariance = self.products / max(self.count - 1, 1)
        return GroupProfile(
            self.columns, self.count, tuple(self.mean.tolist()), tuple(tuple(row) for row in covariance.tolist())
        )

    def _join(self, count: int, mean: Floats, products: Floats) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.products = self.products + products + np.outer(apart, apart) * (self.count * count / total)
        self.count = total


def _rows(marks: Bools, *, every: bool) -> Bools:
    if marks.ndim == 1:
        return marks
    return np.asarray(marks.all(axis=1) if every else marks.any(axis=1))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
