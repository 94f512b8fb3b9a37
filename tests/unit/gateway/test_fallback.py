"""A request of one model, bound to the model that answers instead."""

from typing import Any

import numpy as np
import pytest

from gateway.plan import FeaturePlan, Manifest, PlanError, compile_plan
from gateway.records.request import Asked, Request
from gateway.records.signature import Signature, TensorSpec
from gateway.validation.fallback import Reroute, circle
from tests.checking import CATALOGUE, PLAN, resolve


class Waiting:
    """A caller that stays."""

    cancelled = False


def plan(outputs: tuple[str, ...] = ("label", "why", "more", "score"), **manifest: Any) -> FeaturePlan:
    signature = Signature(
        (TensorSpec("x", "float32", (None, 2)),), tuple(TensorSpec(name, "float32", (None,)) for name in outputs)
    )
    given = {"name": "simple", "views": {"weather": {"view": "weather@1"}}, "context": {"hour": "float32"}}
    return compile_plan(
        Manifest.model_validate({**given, "inputs": {"x": ["weather.temp", "hour"]}, **manifest}),
        CATALOGUE,
        signature,
        resolve,
    )


def request(asked: Asked, of: FeaturePlan) -> Request:
    bound = of.bind(asked, 10)
    return Request(Waiting(), "m", "r", 1.0, 2.0, bound.rows, *bound[1:5], True, bound.shape)


def asked(**changes: Any) -> Asked:
    context = {
        "hour": np.float32([1, 2]),
        "code": np.int64([3, 4]),
        "tag": np.array(["a", "b"], object),
    }
    entities = {"tailnum": ["N1", "N2"], "origin": ["JFK"]}
    return Asked(
        **{"entities": entities, "context": context, "overrides": {}, "outputs": (), "return_features": True} | changes
    )


def test_a_rerouted_request_is_what_the_other_model_would_have_bound() -> None:
    other = plan()
    reroute = Reroute.compile(PLAN, other)
    overrides = {"weather.temp": np.float32([5, 6]), "plane.speed": np.float32([7, 8])}
    made = reroute.request(request(asked(overrides=overrides), PLAN))
    direct = request(
        Asked(
            {"origin": ["JFK"]},
            {"hour": np.float32([1, 2])},
            {"weather.temp": overrides["weather.temp"]},
            PLAN.outputs,
            True,
        ),
        other,
    )
    assert made.model == "simple"
    assert (made.rows, made.ids, made.context) == (direct.rows, direct.ids, direct.context)
    assert made.outputs == direct.outputs == (3, 0, 1)
    assert [(one.binding, one.column) for one in made.overrides] == [(0, "temp")]
    assert (made.caller, made.request_id, made.deadline, made.return_features) == (made.caller, "r", 2.0, True)
    assert reroute.request(request(asked(outputs=("why",)), PLAN)).outputs == (1,)


def test_what_the_other_model_needs_and_the_request_has_not() -> None:
    other = plan(
        outputs=("score",),
        views={"weather": {"view": "weather@1", "keys": {"origin": "dest"}}},
        context={"hour": "float64"},
        inputs={"x": ["weather.temp", "weather.temp"]},
    )
    with pytest.raises(PlanError) as caught:
        Reroute.compile(PLAN, other)
    said = str(caught.value)
    assert "looks weather@1 up by dest, which no view of this model is" in said
    assert "takes the context column hour (float64)" in said
    assert "has no output 'label' (it has: score)" in said


def test_circles() -> None:
    assert circle({"a": "b", "b": "c"}) == []
    assert circle({"a": "a"}) == ["a", "a"]
    assert circle({"x": "a", "a": "b", "b": "a"}) == ["a", "b", "a"]
