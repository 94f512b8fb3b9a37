import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from gateway.experiments.lift import area_under_curve, log_loss, mean
from gateway.experiments.paired import Paired, PairedOptions, rank_correlations
from gateway.experiments.sequential import MeanTest, Moments, detectable_effect, share_mismatch_p

FLOATS = st.lists(st.floats(-1e3, 1e3), max_size=30)


@given(FLOATS, FLOATS)
def test_moments_merge(one: list[float], two: list[float]) -> None:
    merged, whole = Moments.of(one) + Moments.of(two), Moments.of(one + two)
    assert merged.count == whole.count
    assert merged.mean == pytest.approx(whole.mean, abs=1e-9)
    assert merged.squares == pytest.approx(whole.squares, rel=1e-9, abs=1e-6)
    if whole.count > 1:
        assert whole.variance == pytest.approx(np.var(one + two, ddof=1), rel=1e-9, abs=1e-9)


def false_alarms(experiments: int, looks: int, batch: int, alpha: float, *, effect: float = 0.0) -> float:
    """The share of experiments in which the test ever says that there is a difference, looking after every batch."""
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(experiments):
        test = MeanTest(alpha, 0.1)
        control, treatment = Moments(), Moments()
        decided = False
        for _ in range(looks):
            control += Moments.of(rng.exponential(size=batch))
            treatment += Moments.of(rng.exponential(size=batch) + effect)
            interval = test.difference(control, treatment)
            decided |= interval.decided
            assert interval.decided <= (interval.p <= alpha * 1.000001)
        alarms += decided
    return alarms / experiments


def test_peeking_after_each_batch_keeps_the_level() -> None:
    assert false_alarms(200, 50, 50, 0.05) <= 0.05


def test_a_real_effect_is_found() -> None:
    assert false_alarms(50, 50, 50, 0.05, effect=0.3) > 0.95


@pytest.mark.slow
def test_peeking_keeps_the_level_over_a_thousand_experiments() -> None:
    assert false_alarms(1000, 100, 50, 0.05) <= 0.05


def test_too_few_samples_conclude_nothing() -> None:
    test = MeanTest(0.05, 0.1)
    interval = test.difference(Moments.of([0.0] * 99), Moments.of([5.0] * 99))
    assert (interval.low, interval.high, interval.p) == (-math.inf, math.inf, 1.0)


@pytest.mark.parametrize(("alpha", "effect"), [(0, 1), (1, 1), (0.05, 0), (0.05, -1), (0.05, math.inf)])
def test_impossible_tests(alpha: float, effect: float) -> None:
    with pytest.raises(ValueError, match=r"alpha|effect"):
        MeanTest(alpha, effect)


def test_a_sample_ratio_mismatch_is_seen_and_chance_is_not() -> None:
    assert share_mismatch_p([5_000, 5_000], [0.5, 0.5]) == 1
    assert share_mismatch_p([5_400, 4_600], [0.5, 0.5]) < 1e-6
    assert share_mismatch_p([10, 0, 1], [0.5, 0.5, 0.0]) == 0
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):
        counts = np.cumsum(rng.multinomial(100, [0.7, 0.3], size=50), axis=0)
        alarms += min(share_mismatch_p(row.tolist(), [0.7, 0.3]) for row in counts) < 0.05
    assert alarms / 300 <= 0.05


def test_detectable_effect_is_the_textbook_figure() -> None:
    # Two arms of 1,000 with unit variance: 2.8 standard errors.
    assert detectable_effect(2 / 1000) == pytest.approx(0.1253, abs=1e-4)


def test_area_and_log_loss_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 500)
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 2)  # rounded, so that there are ties
    assert area_under_curve(labels, scores).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    kept = np.clip(scores, 1e-7, 1 - 1e-7)
    assert log_loss(labels, scores).value == pytest.approx(sklearn_log_loss(labels, kept), abs=1e-12)


def test_the_variance_of_the_area_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(11)
    estimates = []
    for _ in range(400):
        labels = rng.integers(0, 2, 300)
        estimates.append(area_under_curve(labels, rng.normal(labels * 0.7)))
    spread = np.var([found.value for found in estimates])
    assert np.mean([found.variance for found in estimates]) == pytest.approx(spread, rel=0.2)


def test_one_class_has_no_area() -> None:
    assert math.isnan(area_under_curve([1, 1], [0.1, 0.2]).value)
    assert math.isnan(mean([]).value)


@pytest.mark.parametrize(("labels", "scores"), [([0, 1], [0.5]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, math.nan])])
def test_bad_labels(labels: list[int], scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"label|score"):
        area_under_curve(labels, scores)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=40), st.integers(0, 40))
def test_comparisons_merge(pairs: list[tuple[float, float]], cut: int) -> None:
    options = PairedOptions(tolerance=0.1, threshold=0.5)
    whole, one, two = Paired(options), Paired(options), Paired(options)
    for comparison, some in ((whole, pairs), (one, pairs[:cut]), (two, pairs[cut:])):
        first, second = [pair[0] for pair in some], [pair[1] for pair in some]
        comparison.add(first, second, [1] * len(some))
    one += two
    for name, value in whole.summary().items():
        if name != "quantiles":
            assert one.summary()[name] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True)
    assert one.summary()["quantiles"] == whole.summary()["quantiles"]


def test_what_a_comparison_says() -> None:
    paired = Paired(PairedOptions(tolerance=0.05, threshold=0.5, top_k=2))
    first = np.array([0.1, 0.2, 0.3, 0.9, 0.49])
    paired.add(first, np.array([0.1, 0.2, 0.9, 0.3, 0.51]), [4, 1])
    said = paired.summary()
    assert said["rows"] == 5
    assert said["share_beyond_tolerance"] == pytest.approx(0.4)
    assert said["decision_flips"] == pytest.approx(3 / 5)
    assert said["spearman_in_request"] == pytest.approx(0.8)
    assert said["top_k_overlap"] == 1.0
    assert said["quantiles"][0.5] == 0.0
    assert said["quantiles"][0.99] == pytest.approx(0.6, rel=0.05)


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=3, max_size=40))
def test_rank_correlations_are_those_of_scipy(pairs: list[tuple[int, float]]) -> None:
    one, two = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    if np.ptp(one) > 0 and np.ptp(two) > 0:
        found = rank_correlations(one, two)
        assert found == pytest.approx((stats.spearmanr(one, two).statistic, stats.kendalltau(one, two).statistic))


def test_rank_correlations_of_many_rows_are_the_same() -> None:
    rng = np.random.default_rng(4)
    one = rng.normal(size=256)
    two = np.round(one + rng.normal(size=256), 1)
    found = rank_correlations(one, two)
    assert found == pytest.approx((stats.spearmanr(one, two).statistic, stats.kendalltau(one, two).statistic))


def test_scores_that_are_not_finite_are_counted() -> None:
    paired = Paired(PairedOptions())
    paired.add([0.1, math.nan, math.inf], [0.1, 0.2, 0.3], [3])
    assert (paired.rows, paired.not_finite) == (1, 2)


def test_scores_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        Paired(PairedOptions()).add([0.1], [0.1, 0.2], [1])
