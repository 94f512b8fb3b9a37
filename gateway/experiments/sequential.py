"""Tests that may be looked at after every batch, and stopped at any time.

A classical test holds its error level for one look at a sample size that was fixed before. Whoever looks again and
again, and stops when it says "significant", is wrong far more often. These tests are *always valid*: under no effect,
the chance that they ever say so, at any of endlessly many looks, is at most `alpha`.

- Differences of means (Johari, Koomen, Pekelis, Walsh: "Always Valid Inference: Continuous Monitoring of A/B Tests",
  Operations Research 70(3), 2022): the mixture sequential probability ratio test with a normal mixture N(0, tau²) over
  the effect. With an estimate `d` of variance `V`,

      L = sqrt(V / (V + tau²)) · exp(tau² d² / (2 V (V + tau²)))        p = min over time of 1 / L

  and the interval that inverts it, d ± sqrt(V (V + tau²) / tau² · (2 ln(1 / alpha) + ln((V + tau²) / V))). The variance
  is estimated, so the guarantee is that of a large sample (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: "Time-uniform
  central limit theory and asymptotic confidence sequences", Annals of Statistics 52(6), 2024): hence `samples_min`.
- Shares of traffic (Lindon, Malek: "Anytime-Valid Inference for Multinomial Count Data", NeurIPS 2022): a Dirichlet
  prior around the planned shares against the planned shares themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLES_MIN = 100
"""Samples an arm needs before an estimated variance is taken for the true one."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of a sample. They merge: arms, workers and days may be added up.

    Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: npt.ArrayLike) -> "Moments":
        """The moments of an array of finite numbers."""
        array = np.asarray(values, np.float64).ravel()
        if not array.size:
            return cls()
        mean = float(array.mean())
        return cls(array.size, mean, float(np.square(array - mean).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * other.count / count
        squares = self.squares + other.squares + apart * apart * self.count * other.count / count
        return Moments(count, mean, squares)

    @property
    def variance(self) -> float:
        """The unbiased variance of one observation; NaN for fewer than two."""
        return self.squares / (self.count - 1) if self.count > 1 else math.nan

    @property
    def mean_variance(self) -> float:
        """The variance of the mean; NaN for fewer than two."""
        return self.variance / self.count if self.count > 1 else math.nan


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, and a range that covers the truth at every look at once with probability 1 - `alpha`.

    `p` is always valid too: the smallest it has been. An infinite range and p = 1 say that there are too few samples.
    """

    estimate: float
    low: float
    high: float
    p: float

    @property
    def decided(self) -> bool:
        """Zero is outside of the range."""
        return self.low > 0 or self.high < 0


class MeanTest:
    """Watches an estimate that is normal in large samples: a difference of means, of losses, of two areas.

    `effect` is the size of effect that should be found fastest, in the units of the estimate (`tau`); any positive
    choice is valid, a wrong one only takes longer. The p-value is kept at its smallest.
    """

    def __init__(self, alpha: float, effect: float) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is a probability between 0 and 1, not {alpha}")
        if not 0 < effect < math.inf:
            raise ValueError(f"the effect is a positive number, not {effect}")
        self.alpha = alpha
        self.tau2 = effect * effect
        self.p = 1.0

    def __repr__(self) -> str:
        return f"<MeanTest p={self.p:.3g}>"

    def look(self, estimate: float, variance: float, *, enough: bool = True) -> Interval:
        """Take the estimate as it is now. Without `enough` samples, or a variance, nothing is concluded."""
        if not enough or not math.isfinite(estimate) or not 0 < variance < math.inf:
            return Interval(estimate, -math.inf, math.inf, self.p)
        total = variance + self.tau2
        log_ratio = 0.5 * math.log(variance / total) + self.tau2 * estimate * estimate / (2 * variance * total)
        self.p = min(self.p, math.exp(-max(log_ratio, 0.0)))
        half = math.sqrt(variance * total / self.tau2 * (2 * math.log(1 / self.alpha) + math.log(total / variance)))
        return Interval(estimate, estimate - half, estimate + half, self.p)

    def difference(self, control: Moments, treatment: Moments, samples_min: int = SAMPLES_MIN) -> Interval:
        """`treatment` minus `control`, of two independent samples."""
        variance = control.mean_variance + treatment.mean_variance
        enough = min(control.count, treatment.count) >= samples_min
        return self.look(treatment.mean - control.mean, variance, enough=enough)

    def paired(self, differences: Moments, samples_min: int = SAMPLES_MIN) -> Interval:
        """The mean of differences that were taken pair by pair."""
        return self.look(differences.mean, differences.mean_variance, enough=differences.count >= samples_min)


def share_mismatch_p(counts: Sequence[int], shares: Sequence[float], concentration: float = 100.0) -> float:
    """The always-valid p-value of "the traffic was split as planned": a sample-ratio mismatch when it is tiny.

    `counts` per arm, `shares` the planned ones, which add up to 1. Many entities are counted once each: requests of
    one entity are not independent.
    """
    from scipy import special

    observed = np.asarray(counts, np.float64)
    planned = np.asarray(shares, np.float64)
    if observed.shape != planned.shape or observed.size < 2:  # noqa: PLR2004 - one arm has no ratio
        raise ValueError("there have to be as many counts as shares, and at least two")
    if abs(planned.sum() - 1) > 1e-6 or (planned < 0).any():  # noqa: PLR2004 - rounding
        raise ValueError(f"the planned shares add up to {planned.sum():g}, not to 1")
    if observed[planned == 0].any():
        return 0.0
    observed, planned = observed[planned > 0], planned[planned > 0]
    prior = concentration * planned
    log_ratio = (
        special.gammaln(prior.sum())
        - special.gammaln(prior.sum() + observed.sum())
        + (special.gammaln(prior + observed) - special.gammaln(prior)).sum()
        - (observed * np.log(planned)).sum()
    )
    return float(np.exp(-max(log_ratio, 0.0)))


def detectable_effect(variance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest effect that a two-sided test of level `alpha` finds with probability `power`.

    `variance` is that of the estimate as it is now. It is the classical figure (z_{1-alpha/2} + z_power) · sqrt(V) for
    one look; a test that allows peeking needs about half as much again.
    """
    from scipy import stats

    return float((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * math.sqrt(variance))
