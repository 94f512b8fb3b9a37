"""Checks in a gateway that serves: what a caller gets for a value that is out of its range, by policy."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.client import BlockingClient, CallFailed
from gateway.inference.loading import ModelsNotLoaded
from tests.running import MANIFEST, WEIGHTS, make_site, running, write_graph

CHECKED = MANIFEST.replace("name: ranker", "name: {name}") + "validation: {validation}\n"
HOUR = "columns: {hour: {range: {min: 0, max: 23}, policy: %s}}"
NAMES = {
    "clipped": "{" + HOUR % "clip" + "}",
    "refused": "{" + HOUR % "reject" + "}",
    "emptied": "{reject: row, " + HOUR % "reject" + "}",
    "constant": "{fallback: {constant: {score: -7}}, " + HOUR % "fallback" + "}",
    "elsewhere": "{fallback: {model: ranker}, " + HOUR % "fallback" + "}",
}


@pytest.fixture
def client(redis_url: str, tmp_path: Path) -> Iterator[BlockingClient]:
    site = make_site(tmp_path, redis_url)
    for name in NAMES:
        site.add_model(name, checked(name), WEIGHTS * 2)
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        yield client


def checked(name: str) -> str:
    return CHECKED.replace("{name}", name).replace("{validation}", NAMES[name])


def ask(client: BlockingClient, model: str, *hours: float) -> "np.ndarray":
    found = client.predict(model, {"user": ["u"], "item": [1]}, context={"hour": np.float32(hours)})
    return found.outputs["score"].ravel()


def test_policies_on_the_wire(client: BlockingClient) -> None:
    once = ask(client, "ranker", 5, 23, 99, 7)
    twice = once * 2
    np.testing.assert_allclose(ask(client, "clipped", 5, 99, 7), twice[[0, 1, 3]], rtol=1e-6)
    np.testing.assert_allclose(ask(client, "emptied", 5, 99, 7), [twice[0], np.nan, twice[3]], rtol=1e-6)
    np.testing.assert_allclose(ask(client, "constant", 5, 99, 7), [twice[0], -7, twice[3]], rtol=1e-6)
    np.testing.assert_allclose(ask(client, "elsewhere", 5, 23, 99, 7), once, rtol=1e-6)
    np.testing.assert_allclose(ask(client, "elsewhere", 5, 23, 7), twice[[0, 1, 3]], rtol=1e-6)
    with pytest.raises(CallFailed) as caught:
        ask(client, "refused", 5, 99)
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
    assert "row 1 is refused: hour is above its range (1 rows in all)" in str(caught.value)
    np.testing.assert_allclose(ask(client, "refused", 5), twice[:1], rtol=1e-6)


def test_a_circle_of_fallbacks_is_not_loaded(redis_url: str, tmp_path: Path) -> None:
    """The ranker is changed while `elsewhere`, which falls back to it, serves."""
    site = make_site(tmp_path, redis_url)
    for name in ("ranker", "elsewhere"):
        site.add_model(name, checked(name) if name == "elsewhere" else MANIFEST, WEIGHTS)
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        site.add_model(
            "ranker",
            MANIFEST
            + "validation: {fallback: {model: elsewhere}, columns: {hour: {range: {min: 0}, policy: fallback}}}\n",
            WEIGHTS * 2,
        )
        load = gateway.gateway.models.load("ranker")
        with pytest.raises(ModelsNotLoaded, match=r"in a circle: .*ranker -> elsewhere"):
            asyncio.run_coroutine_threadsafe(load, gateway.loop).result(30)
        assert ask(client, "elsewhere", 5, 99).shape == (2,)


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        (f"{{reject: row, {HOUR % 'reject'}}}", np.nan),
        (f"{{fallback: {{constant: {{score: -7}}}}, {HOUR % 'fallback'}}}", -7.0),
    ],
)
def test_a_value_that_would_break_the_run_does_not_reach_the_model(
    redis_url: str, tmp_path: Path, validation: str, told: float
) -> None:
    """The graph looks the hour up in a table of 24; beyond it a run fails, and every row of it."""
    site = make_site(tmp_path, redis_url)
    cast, take = (
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["t", "i"], ["score"]),
    )
    graph = helper.make_graph(
        [cast, take],
        "hours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.arange(24, dtype=np.float32) * 2, "t")],
    )
    write_graph(site.models / "hours" / "1" / "model.onnx", graph)
    manifest = f"name: hours\ncontext: {{hour: float32}}\ninputs: {{x: [hour]}}\nvalidation: {validation}\n"
    (site.models / "hours" / "model.yaml").write_text(manifest)
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        found = client.predict("hours", {}, {"hour": np.float32([5, 99, 7])})
    np.testing.assert_array_equal(found.outputs["score"], [10, told, 14])
