"""Two variants that answered the same requests, compared row by row.

Every shadow answer stands beside the primary's for the same row, so the difference is the variants' and nothing else's:
far fewer rows tell what would take a split days. What is counted merges: workers, replicas and days may be added up.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gateway.experiments.sequential import Moments

RANKED_REQUESTS_MAX = 8
"""Requests of one `add` whose ranks are compared; sorting is the dearest part of it."""
RANKED_ROWS_MIN = 3
_SIGNS_ROWS_MAX = 256
"""Rows whose differences are all looked at; beyond, sorting is less work."""
_PER_DECADE = 24
_SMALLEST, _LARGEST = 1e-9, 1e9


def _edges() -> npt.NDArray[np.float64]:
    """Borders of bins over all numbers: 24 a decade on both sides of zero, so a quantile is right to five percent."""
    decades = round(math.log10(_LARGEST / _SMALLEST))
    positive = np.logspace(math.log10(_SMALLEST), math.log10(_LARGEST), decades * _PER_DECADE + 1)
    return np.concatenate((-positive[::-1], positive))


_EDGES = _edges()
_MIDDLES = np.concatenate(
    ([_EDGES[0]], np.sign(_EDGES[1:] + _EDGES[:-1]) * np.sqrt(np.abs(_EDGES[1:] * _EDGES[:-1])), [_EDGES[-1]])
)
_MIDDLES[len(_EDGES) // 2] = 0.0


@dataclass(frozen=True, slots=True)
class PairedOptions:
    """What counts as a difference that matters, for one output."""

    tolerance: float = 1e-5
    """Two scores further apart than this are counted as different."""
    threshold: float | None = None
    """The score from which a decision is taken; None where there is none."""
    top_k: int = 10
    """How many of the best rows of a request are compared."""


@dataclass(slots=True)
class Paired:
    """The comparison of one output of a primary and its shadow. Scores that are not finite are counted and left out."""

    options: PairedOptions
    rows: int = 0
    not_finite: int = 0
    beyond: int = 0
    """Rows whose scores differ by more than the tolerance."""
    difference: Moments = field(default_factory=Moments)
    primary: Moments = field(default_factory=Moments)
    shadow: Moments = field(default_factory=Moments)
    products: float = 0.0
    """Sum of products of the deviations of both scores from their means, for Pearson's correlation."""
    bins: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) + 1, np.int64))
    decisions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 2), np.int64))
    """[primary's decision, shadow's decision]: what lies off the diagonal has flipped."""
    spearman: Moments = field(default_factory=Moments)
    kendall: Moments = field(default_factory=Moments)
    overlap: Moments = field(default_factory=Moments)
    """Share of the best `top_k` rows of a request that both have."""

    def add(
        self,
        primary: npt.ArrayLike,
        shadow: npt.ArrayLike,
        rows: Sequence[int],
        ranked_max: int = RANKED_REQUESTS_MAX,
    ) -> None:
        """Take the scores of both for the same rows, [n] each; `rows` has how many belong to each request.

        The order within requests is compared for `ranked_max` of them.
        """
        first, second = np.asarray(primary, np.float64), np.asarray(shadow, np.float64)
        if first.shape != second.shape or first.ndim != 1 or sum(rows) != first.size:
            raise ValueError(f"scores of {first.shape} and {second.shape} for {sum(rows)} rows cannot be paired")
        self._rank(first, second, rows, ranked_max)
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.all():
            self.not_finite += int(first.size - np.count_nonzero(finite))
            first, second = first[finite], second[finite]
        if not first.size:
            return
        apart = second - first
        self.rows += first.size
        self.beyond += int(np.count_nonzero(np.abs(apart) > self.options.tolerance))
        self.difference += Moments.of(apart)
        self._correlate(first, second)
        self.bins += binned(apart)
        if self.options.threshold is not None:
            taken = 2 * (first >= self.options.threshold) + (second >= self.options.threshold)
            self.decisions += np.bincount(taken, minlength=4).reshape(2, 2)

    def __iadd__(self, other: Self) -> Self:
        if other.options != self.options:
            raise ValueError(f"comparisons under {other.options} and {self.options} cannot be added up")
        self.products += other.products + _between(self.primary, other.primary, self.shadow, other.shadow)
        for name in ("rows", "not_finite", "beyond", "difference", "primary", "shadow", "bins", "decisions",
                     "spearman", "kendall", "overlap"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """Quantiles of shadow minus primary, to five percent of their size; NaN where nothing was compared."""
        return quantiles_of(self.bins, levels)

    def summary(self) -> dict[str, Any]:
        """The figures that a report shows, as plain numbers."""
        spread = math.sqrt(self.primary.squares * self.shadow.squares)
        flips = int(self.decisions[0, 1] + self.decisions[1, 0])
        return {
            "rows": self.rows,
            "not_finite": self.not_finite,
            "mean_difference": self.difference.mean,
            "quantiles": dict(zip(QUANTILES, self.quantiles(QUANTILES), strict=True)),
            "share_beyond_tolerance": self.beyond / self.rows if self.rows else math.nan,
            "pearson": self.products / spread if spread else math.nan,
            "spearman_in_request": self.spearman.mean if self.spearman.count else math.nan,
            "kendall_in_request": self.kendall.mean if self.kendall.count else math.nan,
            "top_k_overlap": self.overlap.mean if self.overlap.count else math.nan,
            "decision_flips": flips / self.rows if self.rows and self.options.threshold is not None else math.nan,
            "primary_mean": self.primary.mean,
            "shadow_mean": self.shadow.mean,
        }

    def _correlate(self, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> None:
        one, two = Moments.of(first), Moments.of(second)
        inside = float(((first - one.mean) * (second - two.mean)).sum())
        self.products += inside + _between(self.primary, one, self.shadow, two)
        self.primary += one
        self.shadow += two

    def _rank(
        self, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], rows: Sequence[int], ranked_max: int
    ) -> None:
        """Compare the order of the rows within some requests of several rows."""
        for span in _some_spans(rows, ranked_max):
            one, two = first[span], second[span]
            if not (np.isfinite(one).all() and np.isfinite(two).all()):
                continue
            k = self.options.top_k
            if len(one) > k:
                best = np.intersect1d(np.argpartition(-one, k - 1)[:k], np.argpartition(-two, k - 1)[:k])
                self.overlap += Moments.of(len(best) / k)
            if np.ptp(one) > 0 and np.ptp(two) > 0:  # the correlation with a constant is not defined
                spearman, kendall = rank_correlations(one, two)
                self.spearman += Moments.of(spearman)
                self.kendall += Moments.of(kendall)


QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def rank_correlations(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's and Kendall's (tau-b) correlation of two scores of the same rows, neither of them constant.

    Both follow from the signs of all differences within each score: a row's sum of signs is twice its midrank, centred.
    """
    if len(one) > _SIGNS_ROWS_MAX:
        from scipy import stats  # only for requests that are too long for the matrices

        return float(stats.spearmanr(one, two).statistic), float(stats.kendalltau(one, two).statistic)
    a, b = (np.sign(side[:, None] - side) for side in (one, two))
    kendall = float(np.vdot(a, b)) / math.sqrt(float(np.vdot(a, a)) * float(np.vdot(b, b)))
    first, second = a.sum(axis=1), b.sum(axis=1)
    return float(first @ second) / math.sqrt(float(first @ first) * float(second @ second)), kendall


def binned(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many values are in each bin; add them up, and ask `quantiles_of`."""
    return np.bincount(np.searchsorted(_EDGES, values, side="right"), minlength=len(_EDGES) + 1)


def quantiles_of(bins: npt.NDArray[np.int64], levels: Sequence[float]) -> list[float]:
    """Quantiles of values that were `binned`, to five percent of their size; NaN where there are none."""
    total = int(bins.sum())
    if not total:
        return [math.nan] * len(levels)
    counts = np.cumsum(bins)
    return [float(_MIDDLES[np.searchsorted(counts, max(level * total, 1))]) for level in levels]


def _some_spans(rows: Sequence[int], most: int) -> Iterator[slice]:
    """Where the first few requests of enough rows stand."""
    start = left = 0
    for count in rows:
        if count >= RANKED_ROWS_MIN:
            yield slice(start, start + count)
            left += 1
            if left >= most:
                return
        start += count


def _between(a: Moments, b: Moments, c: Moments, d: Moments) -> float:
    """What merging two samples adds to the sum of products: the part between their means (Chan et al. 1979)."""
    total = a.count + b.count
    return (b.mean - a.mean) * (d.mean - c.mean) * a.count * b.count / total if total else 0.0
