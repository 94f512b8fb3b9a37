import numpy as np
import pytest

from gateway.experiments.canary import Canary, Guardrails, Health, Step
from gateway.experiments.health import Durations
from gateway.experiments.sequential import Moments

STEPS = (Step(1, 60), Step(10, 60), Step(50, 60))


def durations(*seconds: float) -> Durations:
    made = Durations()
    made.add(seconds)
    return made


FAST = durations(*[0.002] * 990, *[0.01] * 10)
SLOWER = durations(*[0.002] * 900, *[0.03] * 100)
GOOD = Health(errors=Moments.of(np.zeros(1000)), scores=Moments.of(np.linspace(0, 1, 1000)), durations=FAST)


def canary(**guardrails: float) -> Canary:
    return Canary(STEPS, Guardrails(**guardrails), since_s=0.0)


def test_a_good_candidate_goes_through_every_step() -> None:
    going = canary()
    actions = [going.decide(now, GOOD, GOOD).action for now in (30, 60, 100, 120, 179, 180)]
    assert actions == ["hold", "advance", "hold", "advance", "hold", "finish"]
    assert going.share == 50


def test_without_requests_it_waits() -> None:
    going = canary()
    verdict = going.decide(1000, GOOD._replace(errors=Moments.of(np.zeros(199))), GOOD)
    assert verdict.action == "hold"
    assert "199 requests" in verdict.why


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"errors": Moments.of(np.repeat([0, 1], [800, 200]))}, "requests that fail"),
        ({"violations": Moments.of(np.repeat([0, 1], [800, 200]))}, "violated check"),
        ({"scores": Moments.of(np.linspace(0, 1, 1000) + 0.5)}, "mean score"),
        ({"durations": SLOWER}, "times the baseline's p99"),
    ],
)
def test_each_guardrail_rolls_back(bad: dict[str, object], said: str) -> None:
    baseline = GOOD._replace(violations=Moments.of(np.zeros(1000)))
    verdict = canary().decide(1, baseline._replace(**bad), baseline)
    assert verdict.action == "roll back"
    assert said in verdict.why


def test_a_guardrail_that_is_off() -> None:
    going = Canary(STEPS, Guardrails(latency_ratio=None), since_s=0.0)
    assert going.decide(1, GOOD._replace(durations=SLOWER), GOOD).action == "hold"


def test_good_candidates_are_rarely_rolled_back() -> None:
    """Three percent of requests fail in both arms, looked at after every 20 requests."""
    rng = np.random.default_rng(1)
    rolled_back = 0
    for _ in range(100):
        going = Canary((Step(50, 1e9),), Guardrails(alpha=0.01, errors_above=0.0), since_s=0.0)
        arms = [Moments(), Moments()]
        for _ in range(50):
            arms = [arm + Moments.of(rng.random(20) < 0.03) for arm in arms]
            if going.decide(1, Health(errors=arms[0]), Health(errors=arms[1])).action == "roll back":
                rolled_back += 1
                break
    assert rolled_back <= 1


@pytest.mark.parametrize("wrong", [{"errors_above": -0.1}, {"latency_ratio": 1.0}, {"requests_min": 1}, {"alpha": 0.0}])
def test_impossible_guardrails(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Guardrails(**wrong)  # type: ignore[arg-type]
