"""What a variant gained once the labels are known: area under the curve, log loss, or any column of numbers.

Each figure comes as an estimate with the variance of that estimate, which is all that `sequential.MeanTest` needs.

Rows of one entity are not independent, and entities are what is assigned. With `clusters` the variance is that of
entities: each row's influence on the figure is added up per entity, and the spread of those sums counts (the delta
method of Deng, Knoblich, Lu: "Applying the Delta method in metric analytics", KDD 2018; for the area Obuchowski:
"Nonparametric analysis of clustered ROC curve data", Biometrics 53, 1997).
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from gateway.experiments.sequential import Moments

_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 in the log loss, so that one certain mistake is not infinite."""

_Floats = npt.NDArray[np.float64]
Clusters = npt.NDArray[np.int64] | None
"""[rows] the number of each row's entity, any numbers from 0 on; None where every row is an entity of its own."""


class Estimate(NamedTuple):
    """A figure and the variance of it, from so many rows of so many independent units."""

    value: float
    variance: float
    rows: int
    units: int

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference to the same figure of an independent sample."""
        return Estimate(
            self.value - other.value,
            self.variance + other.variance,
            min(self.rows, other.rows),
            min(self.units, other.units),
        )


def area_under_curve(labels: npt.ArrayLike, scores: npt.ArrayLike, clusters: Clusters = None) -> Estimate:
    """The area under the ROC curve with DeLong's variance.

    `labels` [rows] of 0 and 1, `scores` [rows]. DeLong, DeLong, Clarke-Pearson: "Comparing the areas under two or more
    correlated receiver operating characteristic curves", Biometrics 44, 1988, by midranks (Sun and Xu, IEEE Signal
    Processing Letters 21, 2014). NaN when all labels are the same.
    """
    truth, given = _pair(labels, scores)
    value, influence = _area(truth, given)
    if math.isnan(value):
        return Estimate(math.nan, math.nan, len(given), _units(given, clusters))
    if clusters is not None:
        return _clustered(value, influence, clusters)
    positive, negative = influence[truth == 1], influence[truth == 0]
    # DeLong divides by one less than each class has; without clusters it is done exactly so.
    variance = len(positive) * Moments.of(positive).variance + len(negative) * Moments.of(negative).variance
    return Estimate(value, variance, len(given), len(given))


def area_difference(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, clusters: Clusters = None
) -> Estimate:
    """The area of `second` minus that of `first`, both of the same rows: they are correlated, and that is used."""
    truth, one = _pair(labels, first)
    _, two = _pair(labels, second)
    area, influence = _area(truth, one)
    other, moved = _area(truth, two)
    return _clustered(other - area, moved - influence, clusters)


def log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike, clusters: Clusters = None) -> Estimate:
    """The mean negative log likelihood of `labels` (0 and 1) under the probabilities `scores`, both [rows]."""
    return mean(losses(labels, scores), clusters)


def losses(labels: npt.ArrayLike, scores: npt.ArrayLike) -> _Floats:
    """The negative log likelihood of each row."""
    truth, given = _pair(labels, scores)
    if given.size and (given.min() < 0 or given.max() > 1):
        raise ValueError("the log loss is of probabilities, and some scores are not between 0 and 1")
    chance = np.clip(given, _CLIP, 1 - _CLIP)
    return -np.where(truth == 1, np.log(chance), np.log1p(-chance))


def mean(values: npt.ArrayLike, clusters: Clusters = None) -> Estimate:
    """The mean over rows of a metric column: revenue, minutes, clicks."""
    array = np.asarray(values, np.float64).ravel()
    if not array.size:
        return Estimate(math.nan, math.nan, 0, 0)
    value = float(array.mean())
    return _clustered(value, (array - value) / array.size, clusters)


def _area(truth: _Floats, given: _Floats) -> tuple[float, _Floats]:
    """The area, and each row's influence on it: how far it would move without that row's share."""
    positive, negative = truth == 1, truth == 0
    m, n = int(positive.sum()), int(negative.sum())
    influence = np.full(len(given), math.nan)
    if not m or not n:
        return math.nan, influence
    ranks = stats.rankdata(given)
    above = (ranks[positive] - stats.rankdata(given[positive])) / n
    below = 1 - (ranks[negative] - stats.rankdata(given[negative])) / m
    area = float(above.mean())
    influence[positive] = (above - area) / m
    influence[negative] = (below - area) / n
    return area, influence


def _clustered(value: float, influence: _Floats, clusters: Clusters) -> Estimate:
    sums = influence if clusters is None else np.bincount(_dense(clusters), influence)
    units = len(sums)
    variance = float(np.square(sums).sum()) * units / (units - 1) if units > 1 else math.nan
    return Estimate(value, variance, len(influence), units)


def _dense(clusters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = np.unique(clusters, return_inverse=True)[1]
    return numbers


def _units(given: _Floats, clusters: Clusters) -> int:
    return len(given) if clusters is None else len(np.unique(clusters))


def _pair(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[_Floats, _Floats]:
    truth, given = np.asarray(labels, np.float64).ravel(), np.asarray(scores, np.float64).ravel()
    if truth.shape != given.shape:
        raise ValueError(f"there are {truth.size} labels for {given.size} scores")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels of a two-class metric have to be 0 or 1")
    if not np.isfinite(given).all():
        raise ValueError("a score is not finite")
    return truth, given
