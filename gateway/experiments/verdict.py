"""What the figures of an experiment say is to be done, in plain sentences. Pure.

    traffic not as planned ──▶ keep running, and trust nothing until that is mended
    the candidate does harm (no finite scores, violated checks, a worse metric) ──▶ roll back
    the metric is better, or surely no worse than `margin` ──▶ promote
    the metric surely moves less than `effect` ──▶ roll back: there is nothing to gain
    all else ──▶ keep running

Every interval is always valid (`sequential`), so a verdict may be asked for at any time and acted upon at once.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from gateway.experiments.form import CompareForm
from gateway.experiments.lift import Estimate
from gateway.experiments.sequential import Interval

Action = Literal["promote", "keep running", "roll back"]
Better = Literal["higher", "lower"]
MISMATCH_P = 0.001
"""A p-value of the split's shares below this is a mismatch."""
VIOLATIONS_ABOVE = 0.05
"""How much higher the candidate's share of rows with a violated check may be, with certainty."""
_PAIRS_MIN = 100
"""Pairs of independent units before equal answers are called equal."""


class Verdict(NamedTuple):
    """What is to be done, and why: a sentence each."""

    action: Action
    why: tuple[str, ...]


class Lift(NamedTuple):
    """One metric of both sides. `interval` is of candidate minus baseline, `better` says which sign is good."""

    metric: str
    better: Better
    baseline: Estimate
    candidate: Estimate
    interval: Interval
    detectable: float
    """The smallest effect that a test of one look would find with probability 0.8, with the rows as they are."""
    units_needed: float
    """About how many units of the smaller side it takes until `effect` is that size."""

    @property
    def gain(self) -> Interval:
        """The interval with the sign that makes more of it better."""
        if self.better == "higher":
            return self.interval
        return Interval(-self.interval.estimate, -self.interval.high, -self.interval.low, self.interval.p)


class Harm(NamedTuple):
    """What is wrong whatever the metric says: shares of rows, and the difference of violations with its interval."""

    not_finite: float
    """The candidate's share of rows whose score is no finite number, above the baseline's."""
    violations: Interval


class Equality(NamedTuple):
    """What a paired comparison says of the scores."""

    units: int
    beyond: float
    """Share of rows whose scores differ by more than the tolerance."""
    flips: float
    """Share of rows whose decision flips; NaN where there is no threshold."""
    shift: Interval
    """Of the mean score."""


def judge(
    options: CompareForm,
    *,
    lift: Lift | None,
    harm: Harm,
    mismatch_p: float | None = None,
    equality: Equality | None = None,
) -> Verdict:
    """The verdict. `mismatch_p` is of splits, `equality` of shadows; `lift` is None as long as there are no labels."""
    if mismatch_p is not None and mismatch_p < MISMATCH_P:
        why = (
            f"the entities are not split as planned (p = {mismatch_p:.2g}): something loses or moves entities of one "
            "arm, so no figure here can be trusted until the cause is found"
        )
        return Verdict("keep running", (why,))
    if wrong := tuple(_harms(harm)):
        return Verdict("roll back", wrong)
    if lift is not None:
        return _of_lift(lift, options)
    if equality is not None:
        return _of_equality(equality)
    return Verdict("keep running", ("there are no labels yet, so nothing says which variant is better (--labels)",))


def _harms(harm: Harm) -> Iterator[str]:
    if harm.not_finite > 0:
        yield f"{harm.not_finite:.2%} more of the candidate's scores than of the baseline's are no finite numbers"
    if harm.violations.low > VIOLATIONS_ABOVE:
        yield (
            f"the candidate's share of rows with a violated check is higher by at least {harm.violations.low:.2%}, "
            f"the limit is {VIOLATIONS_ABOVE:.0%}"
        )


def _of_lift(lift: Lift, options: CompareForm) -> Verdict:
    gain, name = lift.gain, lift.metric
    surely = f"with a certainty of {1 - options.alpha:.0%}, however often this is looked at"
    said = f"the {name} is {lift.candidate.value:.4g}, the baseline's is {lift.baseline.value:.4g}"
    moved = f"{said}: better by {gain.low:.3g} to {gain.high:.3g}, {surely}"
    if not math.isfinite(gain.low):
        return Verdict("keep running", (f"{said}; there are too few entities with labels to conclude anything",))
    if gain.low > 0:
        return Verdict("promote", (moved,))
    if options.margin and gain.low > -options.margin:
        return Verdict(
            "promote",
            (f"{said}: worse by at most {-gain.low:.3g}, {surely}, and up to {options.margin:g} is accepted",),
        )
    if gain.high < -options.margin:
        return Verdict("roll back", (f"{said}: worse by {-gain.high:.3g} to {-gain.low:.3g}, {surely}",))
    if max(gain.high, -gain.low) < options.effect:
        return Verdict(
            "roll back",
            (
                f"{said}: they differ by less than {options.effect:g}, {surely}; there is nothing to gain. Where no "
                "worse is good enough, say so with compare.margin",
            ),
        )
    needed = f"about {lift.units_needed:,.0f}" if math.isfinite(lift.units_needed) else "more"
    return Verdict(
        "keep running",
        (
            f"{said}: that may be chance (from {gain.low:.3g} to {gain.high:.3g})",
            f"an effect of {options.effect:g} takes {needed} entities in each arm, the smaller has "
            f"{min(lift.baseline.units, lift.candidate.units):,}; looking early and often takes some more",
        ),
    )


def _of_equality(equality: Equality) -> Verdict:
    if equality.units < _PAIRS_MIN:
        return Verdict("keep running", (f"only {equality.units} entities have been answered by both",))
    if not equality.beyond:
        return Verdict("promote", ("both give the same scores, within the tolerance, for every row",))
    flips = "" if math.isnan(equality.flips) else f", and {equality.flips:.2%} of the decisions flip"
    shift = equality.shift
    moved = f"the mean score moves by {shift.low:.3g} to {shift.high:.3g}" if shift.decided else (
        "the mean score has not surely moved"
    )  # fmt: skip
    return Verdict(
        "keep running",
        (
            f"{equality.beyond:.1%} of the scores differ by more than the tolerance{flips}; {moved}",
            "nothing says yet which of the two is right: labels would (--labels), or a split",
        ),
    )
