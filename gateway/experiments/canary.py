"""The steps of a canary, and what makes it go back. Pure: counts and the time are arguments.

    step 1 ──held long enough, nothing crossed──▶ step 2 ──▶ … ──▶ the last step ──▶ finished (promoted only if asked)
       └──────────── a guardrail is crossed, at any time ──────────────▶ rolled back

A guardrail is crossed when the *whole* always-valid interval lies beyond its limit: chance alone rolls a good canary
back with a probability of at most `alpha` per guardrail, however often it is looked at. The one of latency counts the
candidate's requests that take longer than `latency_ratio` times the baseline's p99: more than one in a hundred is too
many.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.experiments.health import ArmCounts, Durations, shares
from gateway.experiments.sequential import Interval, MeanTest, Moments

_TAIL = 0.01
"""What is beyond p99."""
_SIZES = (1.0, 10.0, 100.0)
"""Effects that are found fastest, as multiples of a guardrail's limit: a fault may be of any size, and a wrong unit is
a large one."""
_EFFECT_MIN = 0.01
"""Stands for a limit of 0, from which no effect could be made."""
_TAIL_REQUESTS_MIN = 500
"""Requests of the baseline before its p99 is taken for known."""


@dataclass(frozen=True, slots=True)
class Step:
    """A share of the traffic, percent, and how long it is held."""

    share: float
    hold_s: float


@dataclass(frozen=True, slots=True)
class Guardrails:
    """What the candidate may not do. None turns one off."""

    errors_above: float | None = 0.01
    """How much higher the share of requests that fail may be than the baseline's."""
    violations_above: float | None = 0.05
    """How much higher the share of rows with a violated check may be than the baseline's."""
    score_shift: float | None = 0.5
    """How far the mean score may move from the baseline's, in standard deviations of the baseline's scores."""
    latency_ratio: float | None = 1.5
    """How many times the baseline's p99 the candidate's may be. (Buckets of durations are a fifth apart.)"""
    requests_min: int = 200
    """Requests of the candidate before anything is concluded."""
    alpha: float = 0.001
    """The chance, for each guardrail, that a candidate that is as good as the baseline is ever rolled back."""

    def __post_init__(self) -> None:
        for name in ("errors_above", "violations_above", "score_shift"):
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ValueError(f"{name} must not be negative")
        if self.latency_ratio is not None and self.latency_ratio <= 1:
            raise ValueError("latency_ratio must be above 1")
        if self.requests_min < 2 or not 0 < self.alpha < 1:  # noqa: PLR2004 - one request has no variance
            raise ValueError("requests_min must be at least 2, alpha between 0 and 1")


class Health(NamedTuple):
    """How an arm does, since the canary began: moments of 0 and 1 per request, or per row, and of the scores."""

    errors: Moments = Moments()
    violations: Moments = Moments()
    scores: Moments = Moments()
    durations: Durations = Durations()

    @classmethod
    def of(cls, counts: ArmCounts) -> "Health":
        """Of what was counted."""
        return cls(
            shares(counts.errors, counts.requests), shares(counts.violations, counts.rows), counts.scores,
            counts.durations,
        )  # fmt: skip


class Verdict(NamedTuple):
    """What is to be done, and why in a sentence."""

    action: Literal["hold", "advance", "finish", "roll back"]
    why: str


@dataclass(slots=True)
class Canary:
    """Where a canary is. `step` and `since_s` are its whole state; the tests keep their smallest p by themselves."""

    steps: Sequence[Step]
    guardrails: Guardrails
    since_s: float
    step: int = 0
    _tests: dict[str, Sequence[MeanTest]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Percent of the traffic that the candidate gets now."""
        return self.steps[self.step].share

    def decide(self, now_s: float, candidate: Health, baseline: Health) -> Verdict:
        """Look at the arms. `advance` has been done when this returns."""
        requests = candidate.errors.count
        if requests >= self.guardrails.requests_min:
            for why in self._crossed(candidate, baseline):
                return Verdict("roll back", why)
        held_s = now_s - self.since_s
        step = self.steps[self.step]
        if held_s < step.hold_s:
            return Verdict("hold", f"{step.share:g} % for {step.hold_s - held_s:.0f} s more")
        if requests < self.guardrails.requests_min:
            return Verdict("hold", f"{requests} requests of {self.guardrails.requests_min} have been seen")
        if self.step + 1 == len(self.steps):
            return Verdict("finish", f"every step was held and no guardrail was crossed in {requests} requests")
        self.step += 1
        self.since_s = now_s
        return Verdict("advance", f"{step.share:g} % was held for {held_s:.0f} s; now {self.share:g} %")

    def _crossed(self, candidate: Health, baseline: Health) -> Iterator[str]:
        rails = self.guardrails
        for name, limit, what in (
            ("errors", rails.errors_above, "requests that fail"),
            ("violations", rails.violations_above, "rows with a violated check"),
        ):
            if limit is not None:
                low = self._low(name, getattr(candidate, name), getattr(baseline, name), max(limit, _EFFECT_MIN))
                if low > limit:
                    yield f"the baseline's share of {what} is exceeded by at least {low:.2%}, the limit is {limit:.2%}"
        if rails.score_shift is not None and baseline.scores.variance > 0:
            spread = baseline.scores.variance**0.5
            intervals = self._differences(
                "scores", candidate.scores, baseline.scores, max(rails.score_shift, _EFFECT_MIN) * spread
            )
            shift = max(max(interval.low, -interval.high) for interval in intervals) / spread
            if shift > rails.score_shift:
                yield (
                    f"the mean score has moved by at least {shift:.2f} standard deviations of the baseline's, "
                    f"the limit is {rails.score_shift:g}"
                )
        if rails.latency_ratio is not None and baseline.durations.total >= _TAIL_REQUESTS_MIN:
            limit_s = rails.latency_ratio * baseline.durations.quantile_s(1 - _TAIL)
            slow, of = candidate.durations.above(limit_s), candidate.durations.total
            if slow > _TAIL * of:
                estimate, enough = _estimate(shares(slow, of)), of >= rails.requests_min
                low = max(test.look(*estimate, enough=enough).low for test in self._tests_of("latency", _TAIL))
                if low > _TAIL:
                    yield (
                        f"at least {low:.1%} of the requests take longer than {limit_s * 1e3:.3g} ms, "
                        f"{rails.latency_ratio:g} times the baseline's p99; the limit is {_TAIL:.0%}"
                    )

    def _low(self, name: str, candidate: Moments, baseline: Moments, effect: float) -> float:
        """The lower end of what the candidate has more than the baseline."""
        return max(
            interval.low for interval in self._differences(name, _smoothed(candidate), _smoothed(baseline), effect)
        )

    def _differences(self, name: str, candidate: Moments, baseline: Moments, effect: float) -> list[Interval]:
        """The intervals of what the candidate has more than the baseline; each of them holds."""
        tests = self._tests_of(name, effect)
        return [test.difference(baseline, candidate, self.guardrails.requests_min) for test in tests]

    def _tests_of(self, name: str, effect: float) -> Sequence[MeanTest]:
        """Tests that find effects of several sizes fast, and are wrong with the probability `alpha` together."""
        alpha = self.guardrails.alpha / len(_SIZES)
        return self._tests.setdefault(name, [MeanTest(alpha, effect * size) for size in _SIZES])


def _estimate(moments: Moments) -> tuple[float, float]:
    """A mean and its variance."""
    smoothed = _smoothed(moments)
    return moments.mean, smoothed.mean_variance


def _smoothed(moments: Moments) -> Moments:
    """A share with one success and one failure added (Agresti and Coull 1998): all zeros have a variance then."""
    return moments + Moments(2, 0.5, 0.5) if moments.count else moments
