import math
from typing import Any

import pytest

from gateway.experiments.form import CompareForm, ExperimentForm
from gateway.experiments.lift import Estimate
from gateway.experiments.sequential import Interval
from gateway.experiments.sides import baseline_of, candidates_of
from gateway.experiments.verdict import Equality, Harm, Lift, Verdict, judge

NOTHING = Interval(0.0, -0.01, 0.01, 1.0)
FINE = Harm(0.0, NOTHING)


def lift(low: float, high: float, better: Any = "higher") -> Lift:
    side = Estimate(0.7, 1e-4, 3000, 1000)
    return Lift("auc", better, side, side, Interval((low + high) / 2, low, high, 0.5), 0.02, 4000.0)


def judged(one: Lift | None, **options: Any) -> Verdict:
    return judge(CompareForm(**options), lift=one, harm=FINE)


@pytest.mark.parametrize(
    ("low", "high", "options", "action", "said"),
    [
        (0.01, 0.03, {}, "promote", "better by 0.01 to 0.03"),
        (-0.03, -0.01, {}, "roll back", "worse by 0.01 to 0.03"),
        (-0.02, 0.03, {}, "keep running", "may be chance"),
        (-0.003, 0.004, {}, "roll back", "differ by less than 0.01"),
        (-0.003, 0.004, {"margin": 0.005}, "promote", "worse by at most 0.003"),
        (-0.006, 0.02, {"margin": 0.005}, "keep running", "may be chance"),
        (-0.03, -0.004, {"margin": 0.005}, "keep running", "may be chance"),
        (-0.03, -0.006, {"margin": 0.005}, "roll back", "worse by"),
        (-math.inf, math.inf, {}, "keep running", "too few"),
    ],
)
def test_what_a_metric_says(low: float, high: float, options: dict[str, float], action: str, said: str) -> None:
    verdict = judged(lift(low, high), **options)
    assert verdict.action == action
    assert said in verdict.why[0]


def test_lower_may_be_better() -> None:
    assert judged(lift(-0.03, -0.01, "lower")).action == "promote"
    assert judged(lift(0.01, 0.03, "lower")).action == "roll back"


def test_keep_running_says_for_how_long() -> None:
    assert "takes about 4,000 entities in each arm, the smaller has 1,000" in judged(lift(-0.02, 0.03)).why[1]


def test_harm_comes_before_a_gain_and_a_mismatch_before_both() -> None:
    gain = lift(0.01, 0.03)
    violations = Harm(0.0, Interval(0.2, 0.1, 0.3, 0.0))
    assert judge(CompareForm(), lift=gain, harm=violations).action == "roll back"
    infinite = judge(CompareForm(), lift=gain, harm=Harm(0.02, NOTHING))
    assert infinite.action == "roll back"
    assert "2.00% more" in infinite.why[0]
    mismatch = judge(CompareForm(), lift=gain, harm=violations, mismatch_p=1e-5)
    assert mismatch.action == "keep running"
    assert "not split as planned" in mismatch.why[0]
    assert judge(CompareForm(), lift=gain, harm=FINE, mismatch_p=0.01).action == "promote"


def test_without_labels_only_equality_can_be_told() -> None:
    assert judged(None).action == "keep running"
    same = Equality(500, 0.0, math.nan, NOTHING)
    assert judge(CompareForm(), lift=None, harm=FINE, equality=same).action == "promote"
    few = judge(CompareForm(), lift=None, harm=FINE, equality=same._replace(units=5))
    assert (few.action, "only 5 entities" in few.why[0]) == ("keep running", True)
    other = judge(CompareForm(), lift=None, harm=FINE, equality=same._replace(beyond=0.5, flips=0.1))
    assert other.action == "keep running"
    assert "50.0% of the scores differ" in other.why[0]
    assert "10.00% of the decisions flip" in other.why[0]
    assert "has not surely moved" in other.why[0]


def form(**kind: Any) -> ExperimentForm:
    variants = {"old": {"version": 1}, "control": {}, "month": {"version": 2}}
    return ExperimentForm.model_validate({"model": "m", "variants": variants, **kind})


def test_who_is_compared_with_whom() -> None:
    split = form(split={"by": "t", "weights": {"old": 30, "control": 30, "month": 40}})
    assert (baseline_of(split), candidates_of(split)) == ("control", ["old", "month"])
    changed = form(split={"by": "t", "weights": {"old": 30, "month": 70}})
    assert (baseline_of(changed), candidates_of(changed)) == ("old", ["month"])
    canary = form(canary={"by": "t", "baseline": "old", "candidate": "month", "steps": [{"share": 1, "hold": "1m"}]})
    assert (baseline_of(canary), candidates_of(canary)) == ("old", ["month"])
    shadow = form(shadow={"variants": ["month"]})
    assert (baseline_of(shadow), candidates_of(shadow)) == (None, ["month"])
