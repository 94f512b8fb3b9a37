"""ModelInfer and what a manifest says: a fallback answers under its own names, and nothing passes the checks by."""

import asyncio
import weakref
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.client import BlockingClient, CallFailed
from gateway.server.swaps import Swaps
from headrace.inference import grpc_service_pb2 as pb
from headrace.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.running import MANIFEST, make_site, running, write_graph
from tests.waiting import soon_blocking

METHOD = "/inference.GRPCInferenceService/ModelInfer"
FALLS_BACK = """
validation:
  fallback: {model: backup}
  columns: {hour: {range: {min: 0, max: 23}, policy: fallback}}
"""


def totals(path: Path, outputs: dict[str, float], columns: int = 7) -> None:
    """Per output the sum of the inputs, times a number."""
    weights = [
        numpy_helper.from_array(np.full((columns, 1), by, np.float32), f"w_{name}") for name, by in outputs.items()
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w_{name}"], [name]) for name in outputs],
        "totals",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in outputs],
        weights,
    )
    write_graph(path, graph)


def ask(target: str, made: pb.ModelInferRequest) -> pb.ModelInferResponse:
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            METHOD,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        answer: pb.ModelInferResponse = call(made, timeout=10)
        return answer


def by_ids(hour: float, *outputs: str, classes: int = 0) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="main")
    for name, datatype, raw in (
        ("user", "BYTES", b"\1\0\0\0u"),
        ("item", "INT64", np.int64(1).tobytes()),
        ("hour", "FP32", np.float32(hour).tobytes()),
    ):
        made.inputs.add(name=name, datatype=datatype, shape=[1])
        made.raw_input_contents.append(raw)
    for name in outputs:
        output = made.outputs.add(name=name)
        if classes:
            output.parameters["classification"].int64_param = classes
    return made


def numbers(answer: pb.ModelInferResponse) -> dict[str, float]:
    raws = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return {output.name: float(np.frombuffer(raw, np.float32)[0]) for output, raw in raws}


def test_a_fallback_answers_under_its_own_names_and_holds_nobody_else(redis_url: str, tmp_path: Path) -> None:
    site = make_site(tmp_path, redis_url)
    main, backup = site.models / "main", site.models / "backup"
    totals(main / "1" / "model.onnx", {"fraud": 1, "churn": 2})
    (main / "model.yaml").write_text(MANIFEST.replace("name: ranker", "name: main") + FALLS_BACK)
    totals(backup / "1" / "model.onnx", {"churn": 20, "fraud": 10})
    (backup / "model.yaml").write_text(MANIFEST.replace("name: ranker", "name: backup"))
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        own, other = ask(gateway.target, by_ids(5)), ask(gateway.target, by_ids(99))
        base = numbers(own)["fraud"] - 5
        assert (own.model_name, other.model_name) == ("main", "backup")
        assert numbers(own) == {"fraud": base + 5, "churn": 2 * (base + 5)}
        assert numbers(other) == {"fraud": 10 * (base + 99), "churn": 20 * (base + 99)}
        predicted = client.predict("main", {"user": ["u"], "item": [1]}, context={"hour": np.float32([99])}).outputs
        assert numbers(other) == {name: float(values[0, 0]) for name, values in predicted.items()}
        assert numbers(ask(gateway.target, by_ids(99, "fraud"))) == {"fraud": 10 * (base + 99)}
        ranked = ask(gateway.target, by_ids(99, "churn", classes=1))
        assert ranked.outputs[0].name == "churn"
        assert ranked.raw_output_contents[0][4:] == b"%f:0" % (20 * (base + 99))

        old = weakref.ref(gateway.gateway.models.latest("main").runner.session)
        totals(main / "1" / "model.onnx", {"fraud": 3, "churn": 2})
        asyncio.run_coroutine_threadsafe(gateway.gateway.models.load("main"), gateway.loop).result(30)
        assert numbers(ask(gateway.target, by_ids(5)))["fraud"] == 3 * (base + 5)
        soon_blocking(lambda: old() is None, 20)


def test_names_that_the_manifest_and_the_graph_share_mean_the_manifests(redis_url: str, tmp_path: Path) -> None:
    """Else whoever speaks this protocol would pass by what the manifest derives, and checks."""
    site = make_site(tmp_path, redis_url)
    totals(site.models / "twice" / "1" / "model.onnx", {"y": 1}, 1)
    (site.models / "twice" / "model.yaml").write_text(
        "name: twice\ncontext: {x: float32}\nderive: {double: {expression: x * 2, dtype: float32}}\n"
        "inputs: {x: [double]}\nvalidation: {columns: {x: {range: {max: 100}, policy: reject}}}\n"
    )

    def made(value: float, *shape: int) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(model_name="twice")
        request.inputs.add(name="x", datatype="FP32", shape=shape)
        request.raw_input_contents.append(np.float32(value).tobytes())
        return request

    with running(site) as gateway:
        assert numbers(ask(gateway.target, made(5, 1, 1))) == {"y": 10}
        assert numbers(ask(gateway.target, made(5, 1))) == {"y": 10}
        with pytest.raises(grpc.RpcError) as refused:
            ask(gateway.target, made(500, 1, 1))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with BlockingClient(gateway.target) as client, pytest.raises(CallFailed):
            client.predict("twice", {}, {"x": np.float32([500])})
        with grpc.insecure_channel(gateway.target) as channel:
            service = GRPCInferenceServiceStub(channel)
            (counted,) = service.ModelStatistics(pb.ModelStatisticsRequest(name="twice"), timeout=10).model_stats
        assert (counted.version, counted.inference_stats.fail.count) == ("1", 2), "those of Predict too"


def test_a_swap_goes_on_though_telling_of_it_fails(redis_url: str, tmp_path: Path) -> None:
    site = make_site(tmp_path, redis_url)
    totals(site.models / "m" / "1" / "model.onnx", {"y": 1}, 1)
    with running(site) as gateway:
        models = gateway.gateway.models
        (swaps,) = models.on_swap
        assert isinstance(swaps, Swaps)

        def breaks(what: object) -> None:
            raise RuntimeError(f"no ear for {what}")

        swaps.tell(breaks, breaks)
        totals(site.models / "m" / "1" / "model.onnx", {"y": 2}, 1)
        asyncio.run_coroutine_threadsafe(models.load("m"), gateway.loop).result(30)
        soon_blocking(lambda: not swaps.draining, 20)

        (site.models / "bad").mkdir()
        (site.models / "bad" / "model.yaml").write_text("name: [")
        asyncio.run_coroutine_threadsafe(models.refresh(), gateway.loop).result(30)
        with grpc.insecure_channel(gateway.target) as channel:
            index = GRPCInferenceServiceStub(channel).RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10).models
        assert {(one.name, one.version, one.state) for one in index} >= {
            ("bad", "", "UNAVAILABLE"),
            ("m", "1", "READY"),
        }
