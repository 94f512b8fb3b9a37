"""Metrics of entities: several rows of one entity are not independent, and peeking has to be allowed all the same."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gateway.experiments import metrics
from gateway.experiments.calibration import Reliability
from gateway.experiments.lift import area_difference, area_under_curve, log_loss, losses, mean
from gateway.experiments.metrics import NoMetric, Observed


def drawn(rng: np.random.Generator, entities: int, noise: float, *, first: int = 0, rows: int = 3) -> Observed:
    """Rows of entities with a chance of their own: those of one entity are alike. Rows come entity after entity."""
    odds = rng.normal(size=entities)
    return rows_of(rng, odds, odds + noise * rng.normal(size=entities), first=first, rows=rows)


def rows_of(rng: np.random.Generator, odds: Any, seen: Any, *, first: int = 0, rows: int = 3) -> Observed:
    """Rows of entities whose log odds are known, and what a model sees of them."""
    entities = len(odds)
    unit = np.repeat(np.arange(first, first + entities), rows)
    label = (rng.random(entities * rows) < 1 / (1 + np.exp(-np.repeat(odds, rows)))).astype(float)
    score = 1 / (1 + np.exp(-np.repeat(seen, rows)))
    return Observed(unit, score, label, np.repeat(odds, rows) + rng.normal(size=entities * rows))


def joined(one: Observed, other: Observed) -> Observed:
    return Observed(*(np.concatenate((a, b)) for a, b in zip(one, other, strict=True)))  # type: ignore[arg-type]  # all are there


def test_one_row_each_is_the_same_with_and_without_clusters() -> None:
    rng = np.random.default_rng(1)
    some = drawn(rng, 500, 0.5, rows=1)
    assert some.label is not None
    plain, clustered = (area_under_curve(some.label, some.score, units) for units in (None, some.unit))
    assert clustered.value == plain.value
    assert clustered.variance == pytest.approx(plain.variance, rel=0.01)
    assert mean(some.score, some.unit).variance == pytest.approx(mean(some.score).variance)


@pytest.mark.parametrize("metric", ["auc", "log_loss", "column"])
def test_the_variance_of_clusters_is_that_of_repeated_samples(metric: str) -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(300):
        some = drawn(rng, 150, 0.5, rows=6)
        assert some.label is not None
        assert some.values is not None
        if metric == "column":
            found.append(mean(some.values, some.unit))
        else:
            figure: Callable[..., object] = area_under_curve if metric == "auc" else log_loss
            found.append(figure(some.label, some.score, some.unit))  # type: ignore[arg-type]  # both give estimates
    spread = np.var([one.value for one in found])
    assert np.mean([one.variance for one in found]) == pytest.approx(spread, rel=0.25)
    assert (found[0].rows, found[0].units) == (900, 150)


def test_rows_that_are_taken_for_independent_would_be_too_sure() -> None:
    some = drawn(np.random.default_rng(3), 100, 0.0, rows=20)
    assert some.values is not None
    assert mean(some.values, some.unit).variance > 5 * mean(some.values).variance


def test_the_paired_difference_of_areas_has_the_variance_of_repeated_samples() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(300):
        some = drawn(rng, 120, 0.0, rows=4)
        assert some.label is not None
        other = some.score + rng.normal(0, 0.2, len(some.score))
        found.append(area_difference(some.label, some.score, other, some.unit))
        if len(found) == 1:
            apart = area_under_curve(some.label, other).value - area_under_curve(some.label, some.score).value
            assert found[0].value == pytest.approx(apart)
    spread = np.var([one.value for one in found])
    assert np.mean([one.variance for one in found]) == pytest.approx(spread, rel=0.25)


Batches = Iterator[tuple[Observed, Observed]]


def unlike(rng: np.random.Generator, looks: int, gain: float = 0.0) -> Batches:
    """Two arms, of new entities in every batch."""
    for look in range(looks):
        yield drawn(rng, 60, 1.0, first=60 * look), drawn(rng, 60, 1.0 - gain, first=60 * look)


def returning(rng: np.random.Generator, looks: int) -> Batches:
    """Two arms of 150 entities each, which come again and again: most batches have a row of half of them."""
    odds = rng.normal(size=(2, 150))
    seen = odds + rng.normal(size=(2, 150))
    for _ in range(looks):
        sides = []
        for arm in range(2):
            here = np.flatnonzero(rng.random(150) < 0.5)
            some = rows_of(rng, odds[arm, here], seen[arm, here], rows=1)
            sides.append(some._replace(unit=here))
        yield sides[0], sides[1]


def pairs(rng: np.random.Generator, looks: int) -> Batches:
    """The same rows, scored by two models of the same worth: what one sees more of an entity, the other sees less."""
    for look in range(looks):
        some = drawn(rng, 60, 1.0, first=60 * look)
        logit = np.log(some.score / (1 - some.score))
        apart = np.repeat(rng.normal(0, 0.5, 60), 3)
        yield tuple(some._replace(score=1 / (1 + np.exp(-logit - sign * apart))) for sign in (1, -1))  # type: ignore[misc]  # two


def alarms(experiments: int, metric: str, batches: Callable[[np.random.Generator], Batches]) -> float:
    """The share of experiments in which the interval ever excludes zero, looking after every batch."""
    rng = np.random.default_rng(17)
    measure = metrics.paired if batches is paired_batches else metrics.unpaired
    wrong = 0
    for _ in range(experiments):
        seen: tuple[Observed, Observed] | None = None
        for batch in batches(rng):
            seen = batch if seen is None else (joined(seen[0], batch[0]), joined(seen[1], batch[1]))
            if measure(metric, *seen, alpha=0.05, effect=0.05).interval.decided:
                wrong += 1
                break
    return wrong / experiments


def paired_batches(rng: np.random.Generator) -> Batches:
    return pairs(rng, 10)


@pytest.mark.parametrize("metric", ["auc", "log_loss", "column"])
def test_peeking_keeps_the_level_for_every_metric(metric: str) -> None:
    assert alarms(60, metric, lambda rng: unlike(rng, 12)) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["auc", "log_loss", "column"])
def test_peeking_keeps_the_level_over_a_thousand_experiments(metric: str) -> None:
    assert alarms(1000, metric, lambda rng: unlike(rng, 12)) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_peeking_keeps_the_level_of_pairs_over_a_thousand_experiments(metric: str) -> None:
    assert alarms(1000, metric, paired_batches) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["auc", "log_loss", "column"])
def test_peeking_keeps_the_level_where_entities_return(metric: str) -> None:
    assert alarms(1000, metric, lambda rng: returning(rng, 16)) <= 0.05


def test_a_gain_is_found() -> None:
    assert alarms(20, "auc", lambda rng: unlike(rng, 20, gain=1.0)) > 0.9
    assert alarms(20, "log_loss", lambda rng: unlike(rng, 20, gain=1.0)) > 0.9


def test_without_enough_entities_or_labels_nothing_is_concluded() -> None:
    rng = np.random.default_rng(5)
    few = metrics.unpaired("auc", drawn(rng, 90, 0.0), drawn(rng, 90, 3.0), alpha=0.05, effect=0.1)
    assert not few.interval.decided
    assert few.interval.low == -math.inf
    one, two = drawn(rng, 300, 0.0), drawn(rng, 300, 3.0)
    rare = one._replace(label=np.where(np.arange(900) < 20, 1.0, 0.0))
    assert metrics.unpaired("auc", rare, two, alpha=0.05, effect=0.1).interval.low == -math.inf


def test_rows_without_a_label_or_a_score_are_left_out() -> None:
    rng = np.random.default_rng(6)
    one, two = drawn(rng, 200, 0.5), drawn(rng, 200, 0.5)
    assert one.label is not None
    known = np.arange(600) % 2 == 0
    half = one._replace(label=np.where(known, one.label, math.nan))
    found = metrics.unpaired("log_loss", half, two, alpha=0.05, effect=0.1)
    assert found.baseline.rows == 300
    assert found.baseline.value == pytest.approx(log_loss(one.label[known], one.score[known]).value)
    assert found.better == "lower"
    assert found.gain.estimate == -found.interval.estimate


def test_metrics_that_cannot_be_had() -> None:
    rng = np.random.default_rng(7)
    one = drawn(rng, 20, 0.5)
    for wrong, metric, said in (
        (one._replace(label=None), "auc", "no labels"),
        (one._replace(values=None), "revenue", "no column revenue"),
        (one._replace(score=one.score * 9), "log_loss", "not between 0 and 1"),
        (one._replace(label=one.score), "auc", "0 or 1"),
    ):
        with pytest.raises(NoMetric, match=said):
            metrics.unpaired(metric, wrong, one, alpha=0.05, effect=0.1)
    with pytest.raises(NoMetric, match="both variants of a shadow"):
        metrics.paired("revenue", one, one, alpha=0.05, effect=0.1)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        losses([1, 0], [1.5, 0.5])


def test_calibration_merges_and_is_that_of_the_rows() -> None:
    rng = np.random.default_rng(8)
    scores = rng.random(5000)
    labels = (rng.random(5000) < scores**2).astype(float)
    whole, one, two = Reliability(), Reliability(), Reliability()
    whole.add(labels, scores)
    one.add(labels[:1000], scores[:1000])
    two.add(labels[1000:], scores[1000:])
    one += two
    assert [tuple(a) for a in one.bins] == [pytest.approx(tuple(b)) for b in whole.bins]
    assert sum(found.rows for found in whole.bins) == 5000
    seventh = whole.bins[7]
    inside = (scores >= 0.7) & (scores < 0.8)
    assert seventh == pytest.approx((inside.sum(), scores[inside].mean(), labels[inside].mean()))
    assert whole.error == pytest.approx(1 / 6, abs=0.02)  # the integral of s - s²
    assert Reliability().error == 0.0


def test_scores_that_are_no_chances_are_not_calibrated() -> None:
    some = Reliability()
    some.add([1, 0, 1, 1], [math.nan, -0.1, 1.1, 1.0])
    assert [found.rows for found in some.bins] == [1]
