"""Every statistic against scipy, which has most of them, or against what it must be."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from gateway.validation import statistics
from gateway.validation.histogram import Binning, Histogram

RANDOM = np.random.default_rng(0)
PAIRS = [
    (RANDOM.multinomial(n, RANDOM.dirichlet(np.ones(bins))), RANDOM.multinomial(m, RANDOM.dirichlet(np.ones(bins))))
    for n, m, bins in ((50, 80, 3), (1000, 500, 20), (20_000, 100_000, 20), (300, 300, 7))
]


@pytest.mark.parametrize(("live", "reference"), PAIRS)
def test_jensen_shannon_is_scipys(live: statistics.Counts, reference: statistics.Counts) -> None:
    found = statistics.jensen_shannon(live, reference)
    assert found == pytest.approx(float(distance.jensenshannon(live, reference, base=2)))
    assert statistics.jensen_shannon(np.array([3, 0]), np.array([0, 9])) == pytest.approx(1.0)


@pytest.mark.parametrize(("live", "reference"), PAIRS)
def test_chi_square_is_scipys(live: statistics.Counts, reference: statistics.Counts) -> None:
    there = (live + reference) > 0
    expected = stats.chi2_contingency(np.stack([live[there], reference[there]]), correction=False)
    statistic, pvalue = statistics.chi_square(live, reference)
    assert statistic == pytest.approx(expected.statistic)
    assert pvalue == pytest.approx(expected.pvalue, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "shift"), [(500, 2000, 0.0), (3000, 3000, 0.1), (800, 50_000, 0.05)])
def test_kolmogorov_smirnov_of_raw_samples_is_scipys(n: int, m: int, shift: float) -> None:
    live, reference = RANDOM.normal(shift, size=n), RANDOM.normal(size=m)
    expected = stats.ks_2samp(live, reference, method="asymp")
    found, pvalue = statistics.kolmogorov_smirnov_raw(live, reference)
    assert found == pytest.approx(expected.statistic)
    # scipy's limit has a correction for few rows, ours has none.
    assert pvalue == pytest.approx(expected.pvalue, rel=0.15, abs=1e-6)


def test_kolmogorov_smirnov_of_bins_errs_on_the_side_of_silence() -> None:
    edges = np.quantile(RANDOM.normal(size=5000), np.linspace(0, 1, 21))
    for shift in (0.0, 0.05, 0.3):
        live, reference = RANDOM.normal(shift, size=2000), RANDOM.normal(size=5000)
        binned = statistics.kolmogorov_smirnov(Histogram.of(live, edges).counts, Histogram.of(reference, edges).counts)
        raw, _ = statistics.kolmogorov_smirnov_raw(live, reference)
        assert raw - 0.06 <= binned <= raw + 1e-12


def test_psi_is_its_formula_and_scipys_entropies() -> None:
    live, reference = np.array([200, 300, 500]), np.array([2500, 2500, 5000])
    p, q = (live + 0.5) / (live + 0.5).sum(), (reference + 0.5) / (reference + 0.5).sum()
    assert statistics.psi(live, reference) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p))
    assert statistics.psi(live, live) == 0
    assert np.isfinite(statistics.psi(np.array([0, 9]), np.array([9, 0])))


def test_a_shift_of_a_normal_column_has_the_psi_of_its_square() -> None:
    """The divergence of N(0.2, 1) from N(0, 1), both ways, is 0.04; twenty bins keep most of it."""
    edges = stats.norm.ppf(np.linspace(0.05, 0.95, 19))
    binning = Binning.between(edges.tolist())
    live, reference = (Histogram.of(RANDOM.normal(mean, size=400_000), binning).counts for mean in (0.2, 0.0))
    assert statistics.psi(live, reference) == pytest.approx(0.04, rel=0.1)


@pytest.mark.parametrize(("n", "m", "bins"), [(200, 10_000, 20), (1000, 1000, 20), (5000, 500_000, 10)])
def test_psi_of_equal_distributions_is_a_scaled_chi_square(n: int, m: int, bins: int) -> None:
    shares = np.full(bins, 1 / bins)
    found = [statistics.psi(RANDOM.multinomial(n, shares), RANDOM.multinomial(m, shares)) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(statistics.psi_noise(bins, n, m), rel=0.06)
    pvalues = np.array([statistics.psi_pvalue(one, bins, n, m) for one in found])
    for level in (0.01, 0.05, 0.2):
        assert (pvalues <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level / 4000) + 0.01)


@pytest.mark.parametrize("tests", [1, 2, 30])
def test_corrections_are_scipys_and_holms(tests: int) -> None:
    pvalues = RANDOM.random(tests) ** 3
    assert statistics.adjusted(pvalues, "bh") == pytest.approx(stats.false_discovery_control(pvalues))
    order = np.argsort(pvalues)
    expected = [
        min(1.0, max((tests - earlier) * pvalues[order[earlier]] for earlier in range(place + 1)))
        for place in range(tests)
    ]
    assert statistics.adjusted(pvalues, "holm")[order] == pytest.approx(expected)
    assert len(statistics.adjusted(np.empty(0), "holm")) == 0


def test_shares_that_differ_by_chance_are_no_shift() -> None:
    found = [
        statistics.share_shift(int(RANDOM.binomial(2000, share)), 2000, int(RANDOM.binomial(50_000, share)), 50_000)[1]
        for share in (0.0, 0.0005, 0.02, 0.5)
        for _ in range(1000)
    ]
    assert np.mean(np.array(found) < 0.01) <= 0.012
    difference, pvalue = statistics.share_shift(200, 2000, 0, 50_000)
    assert (difference, pvalue < 1e-9) == (0.1, True)
    assert statistics.share_shift(1, 1000, 0, 1_000_000)[1] > 0.05


def test_dispersion_tells_rows_that_come_together() -> None:
    shares = np.full(20, 1 / 20)
    alone = RANDOM.multinomial(1000, shares, size=10)
    together = RANDOM.multinomial(100, shares, size=10) * 10
    assert statistics.dispersion(alone) < 1.4
    assert 6 < statistics.dispersion(together) < 15
    sudden = np.concatenate([alone, RANDOM.multinomial(1000, np.roll(np.arange(20) / 190, 3), size=2)])
    assert statistics.dispersion(sudden) < 1.6
    for odd in (np.zeros((3, 5), np.int64), np.ones((1, 4), np.int64), np.array([[9, 0], [7, 0]])):
        assert statistics.dispersion(odd) == 1.0


def test_rows_that_come_together_raise_no_alarm() -> None:
    """Ten equal rows a request: without the correction most windows would be called significant."""
    shares, alarms, naive = np.full(20, 1 / 20), 0, 0
    for _ in range(300):
        panes = RANDOM.multinomial(100, shares, size=10) * 10
        reference = RANDOM.multinomial(100_000, shares)
        value, factor = statistics.psi(panes.sum(0), reference), statistics.dispersion(panes)
        alarms += statistics.psi_pvalue(value, 20, 10_000, 100_000, factor) < 0.01
        naive += statistics.psi_pvalue(value, 20, 10_000, 100_000) < 0.01
    assert naive > 250
    assert alarms <= 20


def test_sparse_bins_are_merged_with_their_neighbours() -> None:
    live, reference = np.array([1, 0, 40, 2, 1, 1]), np.array([10, 10, 400, 20, 10, 10])
    fewer, fewer_reference = statistics.pooled(live, reference, 5)
    assert fewer.sum() == live.sum()
    assert fewer_reference.sum() == reference.sum()
    assert len(fewer) == len(fewer_reference) < len(live)
    assert len(statistics.pooled(np.zeros(4, np.int64), np.zeros(4, np.int64), 5)[0]) == 1
