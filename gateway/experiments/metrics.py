"""A metric of both sides of an experiment, and the always-valid interval of their difference. Pure.

split   rows of two sets of entities ─▶ an estimate each ─▶ difference of independent samples
shadow  the same rows, two scores    ─▶ difference row by row, whose variance is far smaller
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.experiments import lift
from gateway.experiments.lift import Estimate
from gateway.experiments.sequential import SAMPLES_MIN, MeanTest, detectable_effect
from gateway.experiments.verdict import Better, Lift

OF_LABELS = ("auc", "log_loss")
"""Metrics of scores against labels of 0 and 1; every other name is that of a column of numbers."""
CLASS_MIN = 30
"""Rows of each class before the spread of an area is taken for known."""

_Floats = npt.NDArray[np.float64]


class Observed(NamedTuple):
    """Rows of one side, [rows] each: the number of their entity, score and label, or the column that is the metric."""

    unit: npt.NDArray[np.int64]
    score: _Floats
    label: _Floats | None = None
    """0 and 1; NaN where it is not known."""
    values: _Floats | None = None


class NoMetric(ValueError):
    """A metric that cannot be had of these rows. The message says why."""


def better_of(metric: str, asked: Better | None) -> Better:
    """Which sign is good."""
    return asked or ("lower" if metric == "log_loss" else "higher")


def unpaired(
    metric: str, baseline: Observed, candidate: Observed, *, alpha: float, effect: float, better: Better | None = None
) -> Lift:
    """The metric of two independent sets of entities. Raises NoMetric."""
    one, two = (_estimate(metric, _known(metric, side)) for side in (baseline, candidate))
    enough = all(_enough(metric, _known(metric, side)) for side in (baseline, candidate))
    return _lift(metric, better, (one, two), two.minus(one), alpha=alpha, effect=effect, enough=enough)


def paired(
    metric: str, baseline: Observed, candidate: Observed, *, alpha: float, effect: float, better: Better | None = None
) -> Lift:
    """The metric of two scores for the same rows and labels. Raises NoMetric."""
    if metric not in OF_LABELS:
        raise NoMetric(
            f"both variants of a shadow have the same {metric}: what came of a request is that of one answer"
        )
    both = np.isfinite(baseline.score) & np.isfinite(candidate.score)
    first = _known(metric, _only(baseline, both))
    second = _known(metric, _only(candidate, both))
    one, two = _estimate(metric, first), _estimate(metric, second)
    assert first.label is not None
    if metric == "auc":
        apart = lift.area_difference(first.label, first.score, second.score, first.unit)
    else:
        apart = lift.mean(_losses(second) - _losses(first), first.unit)
    return _lift(metric, better, (one, two), apart, alpha=alpha, effect=effect, enough=_enough(metric, first))


def available(metric: str, sides: Mapping[str, Observed]) -> str | None:
    """Why a metric cannot be had of these sides; None where it can."""
    for name, side in sides.items():
        try:
            _estimate(metric, _known(metric, side))
        except NoMetric as error:
            return f"{name}: {error}"
    return None


def _lift(
    metric: str,
    better: Better | None,
    sides: tuple[Estimate, Estimate],
    apart: Estimate,
    *,
    alpha: float,
    effect: float,
    enough: bool,
) -> Lift:
    interval = MeanTest(alpha, effect).look(apart.value, apart.variance, enough=enough and apart.units >= SAMPLES_MIN)
    detectable = detectable_effect(apart.variance, alpha) if apart.variance >= 0 else math.nan
    needed = apart.units * (detectable / effect) ** 2
    return Lift(metric, better_of(metric, better), *sides, interval, detectable, needed)


def _known(metric: str, side: Observed) -> Observed:
    """The rows that the metric can be had of."""
    if metric not in OF_LABELS:
        if side.values is None:
            raise NoMetric(f"there is no column {metric}")
        return _only(side, np.isfinite(side.values))
    if side.label is None:
        raise NoMetric("there are no labels of 0 and 1")
    return _only(side, np.isfinite(side.label) & np.isfinite(side.score))


def _only(side: Observed, kept: npt.NDArray[np.bool_]) -> Observed:
    return Observed(*(None if one is None else one[kept] for one in side))  # type: ignore[arg-type]  # as it was


def _estimate(metric: str, side: Observed) -> Estimate:
    if metric not in OF_LABELS:
        assert side.values is not None
        return lift.mean(side.values, side.unit)
    assert side.label is not None
    try:
        figure: Callable[..., Estimate] = lift.area_under_curve if metric == "auc" else lift.log_loss
        return figure(side.label, side.score, side.unit)
    except ValueError as error:
        raise NoMetric(str(error)) from error


def _losses(side: Observed) -> _Floats:
    assert side.label is not None
    return lift.losses(side.label, side.score)


def _enough(metric: str, side: Observed) -> bool:
    if metric != "auc" or side.label is None:
        return True
    ones = int(side.label.sum())
    return min(ones, len(side.label) - ones) >= CLASS_MIN
