"""Whatever bytes come to ModelInfer, each call ends with the right code, and its neighbours are answered."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from headrace.inference import grpc_service_pb2 as pb
from headrace.inference import grpc_service_pb2_grpc as pb_grpc
from tests.conftest import RedisServer
from tests.oipsite import running_models
from tests.running import WEIGHTS, Running

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
TIMEOUT_S = 20
RECORDED = Path(__file__).with_name("oip_recorded.py")
PYTHON = Path(__file__).resolve().parents[3] / ".venv-oip" / "bin" / "python"
Change = Callable[[pb.ModelInferRequest], None]


@pytest.fixture(scope="module", params=["fast", "grpcio"])
def gateway(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("oip")
    with running_models(
        folder, redis_server.url, {"transport": request.param, "predict": {"rows_max": 100}}
    ) as running:
        yield running


@pytest.fixture
def call(gateway: Running) -> Iterator["grpc.UnaryUnaryMultiCallable[bytes, bytes]"]:
    with grpc.insecure_channel(gateway.target) as channel:
        yield channel.unary_unary(METHOD)


def good(model: str = "plain") -> pb.ModelInferRequest:
    x = np.ones((1, 7), np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=x.shape)
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[x.tobytes()])


def by_ids() -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="ranker")
    made.inputs.add(name="user", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"u1")
    made.inputs.add(name="item", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
    made.inputs.add(name="hour", datatype="FP32", shape=[1]).contents.fp32_contents.append(12)
    return made


def set_shape(*shape: int) -> Change:
    def change(made: pb.ModelInferRequest) -> None:
        made.inputs[0].shape[:] = shape

    return change


def set_raw(raw: bytes) -> Change:
    def change(made: pb.ModelInferRequest) -> None:
        made.raw_input_contents[0] = raw

    return change


def set_typed(datatype: str, field: str, *values: Any) -> Change:
    def change(made: pb.ModelInferRequest) -> None:
        del made.raw_input_contents[:]
        made.inputs[0].datatype = datatype
        getattr(made.inputs[0].contents, field).extend(values)

    return change


def set_parameter(name: str, **value: Any) -> Change:
    def change(made: pb.ModelInferRequest) -> None:
        made.parameters[name].CopyFrom(pb.InferParameter(**value))

    return change


def both_contents(made: pb.ModelInferRequest) -> None:
    made.inputs[0].contents.fp32_contents.append(1)


def classes(made: pb.ModelInferRequest) -> None:
    made.outputs.add(name="score").parameters["classification"].int64_param = 10**12


BAD = {
    "a name of nobody's": (lambda made: made.ClearField("model_name"), "NOT_FOUND", "no model ''"),
    "a path": (lambda made: setattr(made, "model_name", "../plain"), "NOT_FOUND", "no model"),
    "no such version": (lambda made: setattr(made, "model_version", "99"), "NOT_FOUND", "no version 99"),
    "no such label": (lambda made: setattr(made, "model_version", "1x"), "NOT_FOUND", "no label"),
    "a version of many digits": (lambda made: setattr(made, "model_version", "9" * 5000), "NOT_FOUND", "no label"),
    "no inputs": (lambda made: made.ClearField("inputs"), "INVALID_ARGUMENT", "raw_input_contents has 1 entries for 0"),
    "nothing at all": (
        lambda made: [made.ClearField("inputs"), made.ClearField("raw_input_contents")], "INVALID_ARGUMENT", "missing",
    ),
    "too short": (set_raw(bytes(27)), "INVALID_ARGUMENT", "27 raw bytes"),
    "too long": (set_raw(bytes(32)), "INVALID_ARGUMENT", "32 raw bytes"),
    "huge": (set_shape(2**40, 2**22), "RESOURCE_EXHAUSTED", "rows_max is 100"),
    "huge rows": (set_shape(1, 2**62, 2**62), "INVALID_ARGUMENT", "needs"),
    "negative": (set_shape(-1, 7), "INVALID_ARGUMENT", "negative"),
    "no rows": (set_shape(0, 7), "INVALID_ARGUMENT", "no rows"),
    "a scalar": (set_shape(), "INVALID_ARGUMENT", "no rows"),
    "nine dimensions": (set_shape(1, 1, 1, 1, 1, 1, 1, 1, 7), "INVALID_ARGUMENT", "9 dimensions"),
    "another rank": (set_shape(1, 7, 1), "INVALID_ARGUMENT", "the shape [1, 7, 1]"),
    "an unknown datatype": (
        lambda made: setattr(made.inputs[0], "datatype", "BF16"), "INVALID_ARGUMENT", "'BF16', which is unknown",
    ),
    "raw and typed": (both_contents, "INVALID_ARGUMENT", "contents beside raw_input_contents"),
    "one raw too many": (
        lambda made: made.raw_input_contents.append(b""), "INVALID_ARGUMENT", "2 entries for 1 inputs",
    ),
    "typed by half": (set_typed("FP32", "fp32_contents", 1, 2, 3), "INVALID_ARGUMENT", "3 elements"),
    "typed in another field": (set_typed("FP32", "fp64_contents", 1), "INVALID_ARGUMENT", "needs fp32_contents"),
    "typed FP16": (set_typed("FP16", "fp32_contents", *range(7)), "INVALID_ARGUMENT", "FP16"),
    "an input twice": (
        lambda made: [made.inputs.append(made.inputs[0]), made.raw_input_contents.append(bytes(28))],
        "INVALID_ARGUMENT", "there twice",
    ),
    "a long id": (lambda made: setattr(made, "id", "x" * 300), "RESOURCE_EXHAUSTED", "request_id_bytes_max"),
    "a priority below 0": (set_parameter("priority", int64_param=-1), "INVALID_ARGUMENT", "priority"),
    "a timeout of text": (set_parameter("timeout", string_param="soon"), "INVALID_ARGUMENT", "timeout"),
    "an empty parameter": (set_parameter("timeout"), "INVALID_ARGUMENT", "timeout"),
    "a sequence": (set_parameter("sequence_id", string_param="s"), "INVALID_ARGUMENT", "state"),
    "classes without end": (classes, "INVALID_ARGUMENT", "from 1 to 1000"),
    "an output of nobody's": (lambda made: made.outputs.add(name="y"), "INVALID_ARGUMENT", "no output 'y'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]", name: str) -> None:
    change, code, words = BAD[name]
    made = good()
    change(made)
    with pytest.raises(grpc.RpcError) as caught:
        call(made.SerializeToString(), timeout=TIMEOUT_S)
    assert caught.value.code().name == code, caught.value.details()
    assert words in caught.value.details()


BAD_IDS: dict[str, tuple[Callable[[pb.ModelInferRequest], object], str]] = {
    "a float for an id": (
        lambda made: [
            setattr(made.inputs[0], "datatype", "FP32"),
            made.inputs[0].contents.CopyFrom(pb.InferTensorContents(fp32_contents=[1])),
        ],
        "entity ids are BYTES or INT64",
    ),
    "an id that is no text": (
        lambda made: made.inputs[0].contents.CopyFrom(pb.InferTensorContents(bytes_contents=[b"\xff"])), "UTF-8",
    ),
    "a column left out": (lambda made: made.inputs.pop(1), "item is missing"),
    "a column of the graph": (lambda made: made.inputs.add(name="x", datatype="FP32", shape=[1]), "0 elements"),
    "a square of ids": (
        lambda made: [
            made.inputs[0].shape.append(2),
            made.inputs[0].contents.bytes_contents.append(b"u2"),
        ],
        "[rows] or [rows, 1]",
    ),
    "another number of rows": (
        lambda made: [
            setattr(made.inputs[1], "datatype", "INT64"),
            made.inputs[1].shape.__setitem__(0, 3),
            made.inputs[1].contents.int64_contents.extend([2, 3]),
            made.inputs[0].shape.__setitem__(0, 2),
            made.inputs[0].contents.bytes_contents.append(b"u2"),
        ],
        "each needs 1 or 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IDS)
def test_what_is_wrong_with_ids_is_said(call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]", name: str) -> None:
    change, words = BAD_IDS[name]
    made = by_ids()
    change(made)
    with pytest.raises(grpc.RpcError) as caught:
        call(made.SerializeToString(), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_garbage_harms_nobody_beside_it(call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]") -> None:
    random = np.random.default_rng(7)
    body = good().SerializeToString()
    futures = []
    for number in range(300):
        sent = bytearray(body if number % 3 == 0 else random.bytes(int(random.integers(0, 200))))
        if number % 3 == 1:
            sent = bytearray(body)
            sent[int(random.integers(len(sent)))] ^= 0xFF
        futures.append((number, call.future(bytes(sent), timeout=TIMEOUT_S)))
    for number, future in futures:
        if number % 3 == 0:
            answer = pb.ModelInferResponse.FromString(future.result())
            score = np.frombuffer(answer.raw_output_contents[0], np.float32)
            np.testing.assert_allclose(score, 2 * WEIGHTS.sum(axis=0), rtol=1e-5)
        elif future.exception() is not None:
            assert future.code().name in {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}, future.details()


def test_typed_contents_are_what_raw_ones_are(call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]") -> None:
    values = {
        "BOOL": ("bool_contents", [True, False]), "INT8": ("int_contents", [-128, 127]),
        "INT16": ("int_contents", [-5, 5]), "INT32": ("int_contents", [-5, 5]),
        "INT64": ("int64_contents", [-(2**63), 5]), "UINT8": ("uint_contents", [0, 255]),
        "UINT16": ("uint_contents", [0, 5]), "UINT32": ("uint_contents", [0, 5]),
        "UINT64": ("uint64_contents", [0, 2**64 - 1]), "FP32": ("fp32_contents", [0.5, -1]),
        "FP64": ("fp64_contents", [1e-300, 0]), "BYTES": ("bytes_contents", [b"", "✓".encode()]),
    }  # fmt: skip
    made = pb.ModelInferRequest(model_name="echo")
    for datatype, (field, elements) in values.items():
        getattr(made.inputs.add(name=f"in_{datatype}", datatype=datatype, shape=[1, 2]).contents, field).extend(
            elements
        )
    with pytest.raises(grpc.RpcError) as caught:  # FP16 has no typed contents, so this model is asked raw
        call(made.SerializeToString(), timeout=TIMEOUT_S)
    assert "in_FP16 is missing" in caught.value.details()
    answer = pb.ModelInferResponse.FromString(call(by_ids().SerializeToString(), timeout=TIMEOUT_S))
    assert answer.outputs[0].datatype == "FP32"
    made.inputs[1].contents.int_contents[0] = 300
    with pytest.raises(grpc.RpcError) as caught:
        call(made.SerializeToString(), timeout=TIMEOUT_S)
    assert "a value outside INT8" in caught.value.details()


def test_a_stream_goes_on_after_garbage(gateway: Running) -> None:
    body = good()
    body.id = "after"
    with grpc.insecure_channel(gateway.target) as channel:
        stream = channel.stream_stream(STREAM)
        sent = [b"\xff\xff", body.SerializeToString(), b"", body.SerializeToString()]
        answers = [pb.ModelStreamInferResponse.FromString(one) for one in stream(iter(sent), timeout=TIMEOUT_S)]
    assert [bool(answer.error_message) for answer in answers] == [True, False, True, False]
    assert answers[1].infer_response.id == "after"
    assert len(answers[3].infer_response.raw_output_contents) == 1


def test_a_stream_that_is_cut_harms_nobody(
    gateway: Running, call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
) -> None:
    body = good().SerializeToString()
    for _ in range(5):
        with grpc.insecure_channel(gateway.target) as channel:
            stream = channel.stream_stream(STREAM)(iter([body] * 500), timeout=TIMEOUT_S)
            next(stream)
            stream.cancel()
    assert call(body, timeout=TIMEOUT_S)


def test_unknown_rpcs_of_the_service_are_refused(gateway: Running) -> None:
    with grpc.insecure_channel(gateway.target) as channel:
        missing = channel.unary_unary("/inference.GRPCInferenceService/TraceSetting")
        with pytest.raises(grpc.RpcError) as caught:
            missing(b"", timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert pb_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest()).live


def test_bytes_of_real_clients_are_answered(call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]") -> None:
    """As perf_analyzer and tritonclient send them."""
    if not PYTHON.exists():
        pytest.fail("the client's own Python is missing: make .venv-oip/.installed")
    done = subprocess.run([str(PYTHON), str(RECORDED)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    recorded = {name: bytes.fromhex(text) for name, text in json.loads(done.stdout).items()}
    assert len(recorded) >= 4
    for body in recorded.values():
        for _ in range(6):
            answer = pb.ModelInferResponse.FromString(call(body, timeout=TIMEOUT_S))
            assert len(answer.raw_output_contents) == len(answer.outputs) > 0


def test_reflection_knows_the_service(gateway: Running) -> None:
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
    ]
    with grpc.insecure_channel(gateway.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, found = stub.ServerReflectionInfo(iter(asked), timeout=TIMEOUT_S)
    assert "inference.GRPCInferenceService" in {one.name for one in listed.list_services_response.service}
    assert b"ModelInfer" in found.file_descriptor_response.file_descriptor_proto[0]
