"""What a variant gained once the labels are known: area under the curve, log loss, or any column of numbers.

Each figure comes as an estimate with the variance of that estimate, which is all that `sequential.MeanTest` needs.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from gateway.experiments.sequential import Moments

_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 in the log loss, so that one certain mistake is not infinite."""


class Estimate(NamedTuple):
    """A figure and the variance of it, from so many rows."""

    value: float
    variance: float
    rows: int

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference to the same figure of an independent sample."""
        return Estimate(self.value - other.value, self.variance + other.variance, min(self.rows, other.rows))


def area_under_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Estimate:
    """The area under the ROC curve with DeLong's variance.

    `labels` [rows] of 0 and 1, `scores` [rows]. DeLong, DeLong, Clarke-Pearson: "Comparing the areas under two or more
    correlated receiver operating characteristic curves", Biometrics 44, 1988, by midranks (Sun and Xu, IEEE Signal
    Processing Letters 21, 2014). NaN when all labels are the same.
    """
    truth, given = _pair(labels, scores)
    positive, negative = given[truth == 1], given[truth == 0]
    m, n = len(positive), len(negative)
    if not m or not n:
        return Estimate(math.nan, math.nan, len(given))
    ranks = stats.rankdata(np.concatenate((positive, negative)))
    above = (ranks[:m] - stats.rankdata(positive)) / n
    below = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    return Estimate(float(above.mean()), Moments.of(above).mean_variance + Moments.of(below).mean_variance, m + n)


def log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Estimate:
    """The mean negative log likelihood of `labels` (0 and 1) under the probabilities `scores`, both [rows]."""
    truth, given = _pair(labels, scores)
    chance = np.clip(given, _CLIP, 1 - _CLIP)
    return mean(-np.where(truth == 1, np.log(chance), np.log1p(-chance)))


def mean(values: npt.ArrayLike) -> Estimate:
    """The mean of a metric column: revenue, minutes, clicks."""
    moments = Moments.of(values)
    return Estimate(moments.mean if moments.count else math.nan, moments.mean_variance, moments.count)


def _pair(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    truth, given = np.asarray(labels, np.float64).ravel(), np.asarray(scores, np.float64).ravel()
    if truth.shape != given.shape:
        raise ValueError(f"there are {truth.size} labels for {given.size} scores")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels of a two-class metric have to be 0 or 1")
    if not np.isfinite(given).all():
        raise ValueError("a score is not finite")
    return truth, given
