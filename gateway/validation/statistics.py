"""How far two samples are apart, and how likely so much is by chance. Functions of counts per bin; nothing is kept.

    counts of a window ┐  psi, jensen_shannon, kolmogorov_smirnov ─▶ how large the difference is
    counts of the      ├─▶
    reference          ┘  psi_pvalue, chi_square, share_shift      ─▶ how likely it is by chance ─▶ adjusted

A number of rows is `n` for the window and `m` for the reference. Rows of one request, or of one hour, are more alike
than rows drawn at random, so a window holds less than n independent rows: `dispersion` measures by which factor, and
every p-value takes it. Only scipy.special is imported: scipy.stats takes half a second and 50 MB.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from gateway.validation.options import Correction

Counts = npt.NDArray[np.int64]

PSEUDO_COUNT = 0.5
"""Added to each bin before shares are compared (Jeffreys' prior), so that an empty bin has a finite logarithm."""

_BINS_MIN = 2


def shares(counts: Counts, pseudo_count: float = 0.0) -> npt.NDArray[np.float64]:
    """Return the share of each bin, float64 [bins]; all zero of no values."""
    raised = counts + pseudo_count
    total = raised.sum()
    return raised / total if total else np.zeros(len(counts))


def psi(live: Counts, reference: Counts) -> float:
    """Return the population stability index: the sum of (p - q) ln(p / q), 0 for equal shares.

    Symmetrised Kullback-Leibler divergence (Jeffreys 1946); as an index of stability: Lewis, An Introduction to Credit
    Scoring, 1994. Shares are smoothed by `PSEUDO_COUNT`.
    """
    p, q = shares(live, PSEUDO_COUNT), shares(reference, PSEUDO_COUNT)
    return float(((p - q) * np.log(p / q)).sum())


def psi_noise(bins: int, n: int, m: int, dispersion: float = 1.0) -> float:
    """Return the PSI to be expected of two samples of one distribution: (bins - 1)(1/n + 1/m).

    Yurdakul, Statistical Properties of Population Stability Index, 2018: PSI / (1/n + 1/m) tends to a chi-square
    with bins - 1 degrees of freedom. At 20 bins and 200 rows that is 0.1, the usual threshold, of nothing at all.
    """
    return (bins - 1) * (dispersion / n + 1 / m) if n and m else float("inf")


def psi_pvalue(value: float, bins: int, n: int, m: int, dispersion: float = 1.0) -> float:
    """Return the probability of at least this PSI by chance (Yurdakul 2018, see `psi_noise`)."""
    if bins < _BINS_MIN or not n or not m:
        return 1.0
    return float(special.chdtrc(bins - 1, value / (dispersion / n + 1 / m)))


def jensen_shannon(live: Counts, reference: Counts) -> float:
    """Return the Jensen-Shannon distance, base 2: 0 for equal shares, 1 for no bin in common.

    The square root of the divergence (Endres and Schindelin 2003), as scipy.spatial.distance.jensenshannon.
    """
    p, q = shares(live), shares(reference)
    middle = (p + q) / 2
    divergence = (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum() / 2
    return float(np.sqrt(max(divergence, 0.0) / np.log(2)))


def kolmogorov_smirnov(live: Counts, reference: Counts) -> float:
    """Return the largest difference of the two cumulative shares, looked at between the bins.

    Of raw values the largest difference may lie inside a bin, so this is at most the statistic of the raw samples, and
    its p-value at least theirs: it errs on the side of silence.
    """
    return float(np.abs(np.cumsum(shares(live)) - np.cumsum(shares(reference))).max(initial=0.0))


def kolmogorov_smirnov_raw(live: npt.NDArray[Any], reference: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the two-sample statistic of raw numbers, and its p-value; as scipy.stats.ks_2samp(method="asymp")."""
    live, reference = np.sort(live), np.sort(reference)
    both = np.concatenate((live, reference))
    below_live = live.searchsorted(both, "right") / len(live)
    below_reference = reference.searchsorted(both, "right") / len(reference)
    distance = float(np.abs(below_live - below_reference).max())
    return distance, kolmogorov_smirnov_pvalue(distance, len(live), len(reference))


def kolmogorov_smirnov_pvalue(distance: float, n: int, m: int, dispersion: float = 1.0) -> float:
    """Return the probability of at least this distance by chance: Kolmogorov's limiting distribution.

    Smirnov 1948; with sqrt(nm / (n + m)) times the distance. For values with ties it is conservative.
    """
    if not n or not m:
        return 1.0
    return float(special.kolmogorov(distance / np.sqrt(dispersion / n + 1 / m)))


def chi_square(live: Counts, reference: Counts, dispersion: float = 1.0) -> tuple[float, float]:
    """Return the statistic and p-value of Pearson's test that two samples are of one distribution.

    As scipy.stats.chi2_contingency(correction=False) of the two rows; bins that are empty in both do not count.
    The statistic is divided by `dispersion` (Rao and Scott 1981, first-order correction).
    """
    n, m = live.sum(), reference.sum()
    there = (live + reference) > 0
    if not n or not m or there.sum() < _BINS_MIN:
        return 0.0, 1.0
    p, q = live[there] / n, reference[there] / m
    pooled = (live[there] + reference[there]) / (n + m)
    statistic = float(((p - q) ** 2 / pooled).sum() / (dispersion / n + 1 / m))
    return statistic, float(special.chdtrc(there.sum() - 1, statistic))


def share_shift(hits: int, n: int, reference_hits: int, m: int, dispersion: float = 1.0) -> tuple[float, float]:
    """Return the difference of two shares (of nulls, of unknown categories) and its two-sided p-value.

    The interval of Agresti and Caffo 2000: one hit and one miss are added to each sample, so that a share of zero has a
    variance, and one null where the reference has none is no proof of anything.
    """
    if not n or not m:
        return 0.0, 1.0
    p, q = (hits / dispersion + 1) / (n / dispersion + 2), (reference_hits + 1) / (m + 2)
    deviation = np.sqrt(p * (1 - p) / (n / dispersion + 2) + q * (1 - q) / (m + 2))
    return hits / n - reference_hits / m, float(2 * special.ndtr(-abs(p - q) / deviation))


def pooled(live: Counts, reference: Counts, expected_min: float) -> tuple[Counts, Counts]:
    """Merge neighbouring bins until each of the window's is expected to hold `expected_min` values.

    The chi-square limit needs some values in every bin (Cochran 1954: five). Expected is what the shares of both
    samples together give the smaller one.
    """
    n, m = int(live.sum()), int(reference.sum())
    expected = (live + reference) * (min(n, m) / max(n + m, 1))
    starts, held = [0], 0.0
    for place, value in enumerate(expected.tolist()):
        if held >= expected_min:
            starts.append(place)
            held = 0.0
        held += value
    if held < expected_min and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(live, starts), np.add.reduceat(reference, starts)


def dispersion(panes: npt.NDArray[np.int64]) -> float:
    """Return by which factor counts of consecutive spans, int64 [spans, bins], vary more than independent rows do.

    1 for independent rows; about k where values come k at a time. It is Pearson's dispersion (McCullagh and Nelder,
    Generalized Linear Models, 1989, 4.5) of each span with the next, and of these the median: a sudden change is in one
    pair only, so it does not hide itself. Never below 1; dependence over more than a span is not seen.
    """
    first, second = panes[:-1], panes[1:]
    n, m = first.sum(1, keepdims=True), second.sum(1, keepdims=True)
    enough = ((n > 0) & (m > 0))[:, 0]
    if not enough.any():
        return 1.0
    first, second, n, m = first[enough], second[enough], n[enough], m[enough]
    both = first + second
    freedom = (both > 0).sum(1) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(both > 0, (first / n - second / m) ** 2 * (n + m) / both, 0.0)
    statistic = terms.sum(1) / (1 / n + 1 / m)[:, 0]
    varied = freedom > 0
    if not varied.any():
        return 1.0
    # The median of a chi-square over its degrees of freedom (Wilson and Hilferty 1931).
    usual = (1 - 2 / (9 * freedom[varied])) ** 3
    return float(max(1.0, np.median(statistic[varied] / freedom[varied] / usual)))


def adjusted(pvalues: npt.NDArray[np.float64], correction: Correction) -> npt.NDArray[np.float64]:
    """Return p-values corrected for having tried all of them, float64 [tests], in the same order.

    "holm" bounds the probability of any false alarm (Holm 1979); "bh" the expected share of false ones among the alarms
    (Benjamini and Hochberg 1995, as scipy.stats.false_discovery_control), and both the probability of an alarm where
    nothing has changed at all.
    """
    tests = len(pvalues)
    order = np.argsort(pvalues, kind="stable")
    ordered = pvalues[order]
    if correction == "holm":
        raised = np.maximum.accumulate(ordered * (tests - np.arange(tests)))
    else:
        raised = np.minimum.accumulate((ordered * tests / np.arange(1, tests + 1))[::-1])[::-1]
    result = np.empty(tests)
    result[order] = np.minimum(raised, 1.0)
    return result
