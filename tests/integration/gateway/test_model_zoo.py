"""Real models of many kinds, served with features from a real Redis, answer what ONNX Runtime answers without us."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import numpy as np
import pytest

from featureclient.schema import status
from gateway.client import BlockingClient, Prediction
from gateway.records.tensors import pack_strings
from headrace.inference import grpc_service_pb2 as pb
from headrace.inference import grpc_service_pb2_grpc
from tests import zoo
from tests.conftest import RedisServer
from tests.running import Running, running
from tests.zoo import Array, Specimen

WRITE_ROWS = 40


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One gateway that serves all of them."""
    specimens = [zoo.specimen(name) for name in zoo.NAMES]
    site = zoo.site_of(specimens, tmp_path_factory.mktemp("zoo"), redis_server.url)
    with running(site) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Running) -> Iterator[BlockingClient]:
    with BlockingClient(gateway.target) as client:
        for name in zoo.NAMES:
            write(client, zoo.specimen(name))
        yield client


@pytest.fixture(params=zoo.NAMES)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    return zoo.specimen(request.param)


def write(client: BlockingClient, one: Specimen) -> None:
    """Store the rows of a specimen: thing i has row i."""
    for start in range(0, one.rows if one.stored else 0, WRITE_ROWS):
        span = slice(start, min(start + WRITE_ROWS, one.rows))
        columns = {name: column.values[span] for name, column in one.stored.items()}
        client.write_features(f"{one.name}@1", {"thing": [*range(span.start, span.stop)]}, columns, force=True)


def ask(client: BlockingClient, one: Specimen, rows: "list[int]", **more: bool) -> Prediction:
    context = {name: column.values[rows] for name, column in one.context.items()}
    return client.predict(one.name, {"thing": rows} if one.stored else {}, context, **more)


def assert_same(answered: Array, expected: Array, what: str) -> None:
    """Equal bit by bit, or to 1e-6: a product of matrices may be summed in another order for another batch."""
    assert answered.dtype == expected.dtype, what
    assert answered.shape == expected.shape, what
    if expected.dtype.kind == "f":
        rtol = 2e-3 if expected.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(answered, expected, rtol=rtol, atol=1e-6, err_msg=what)
    else:
        assert answered.tolist() == expected.tolist(), what


def test_every_row_answers_as_onnxruntime_does_alone(client: BlockingClient, specimen: Specimen) -> None:
    expected = zoo.offline(specimen)
    answer = ask(client, specimen, [*range(specimen.rows)])
    assert list(answer.outputs) == list(expected)
    for name, wanted in expected.items():
        assert_same(answer.outputs[name], wanted, name)
    for rows in answer.views.values():
        assert rows.status.tolist() == [status.PRESENT] * specimen.rows


def test_some_rows_in_another_order_answer_the_same(client: BlockingClient, specimen: Specimen) -> None:
    expected = zoo.offline(specimen)
    rows = [*np.random.default_rng(5).integers(0, specimen.rows, 17).tolist()]
    answer = ask(client, specimen, rows)
    for name, wanted in expected.items():
        assert_same(answer.outputs[name], wanted[rows], name)


def test_one_row_answers_the_same(client: BlockingClient, specimen: Specimen) -> None:
    expected = zoo.offline(specimen)
    row = specimen.rows - 1
    answer = ask(client, specimen, [row])
    for name, wanted in expected.items():
        assert_same(answer.outputs[name], wanted[[row]], name)


def test_the_features_come_back_as_the_model_saw_them(client: BlockingClient, specimen: Specimen) -> None:
    rows = [3, 0, 5]
    answer = ask(client, specimen, rows, return_features=True)
    assert len(answer.features) == len(specimen.columns)
    for name, column in specimen.columns.items():
        found = answer.features[f"row.{name}" if column.stored else name]
        wanted = column.values[rows]  # in the input's dtype: a double went into a float32 input as a float32
        np.testing.assert_array_equal(found, wanted.astype(found.dtype), err_msg=name)


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if zoo.specimen(name).said])
def test_the_answer_is_that_of_the_library_that_trained_it(client: BlockingClient, name: str) -> None:
    one = zoo.specimen(name)
    answer = ask(client, one, [*range(one.rows)])
    for output, wanted in one.said.items():
        found = answer.outputs[output]
        if wanted.dtype.kind in "OUi":
            assert found.tolist() == wanted.tolist(), output
        else:
            np.testing.assert_allclose(found, wanted, rtol=one.rtol, atol=1e-6, err_msg=output)


INFER = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bool": "BOOL", "object": "BYTES"}


def as_tensor(name: str, array: Array) -> tuple[pb.ModelInferRequest.InferInputTensor, bytes]:
    datatype = INFER.get(array.dtype.name, array.dtype.name.upper())
    raw = pack_strings(array.ravel().tolist()) if array.dtype.hasobject else array.tobytes()
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=array.shape), raw


def from_raw(tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes, like: Array) -> Array:
    if not like.dtype.hasobject:
        return np.frombuffer(raw, like.dtype).reshape([*tensor.shape])
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : end].decode())
        at = end
    return np.array(texts, object).reshape([*tensor.shape])


def inferred(gateway: Running, model: str, inputs: Mapping[str, Array], like: Mapping[str, Array]) -> dict[str, Array]:
    """What ModelInfer answers to the graph's own inputs."""
    tensors, raws = zip(*(as_tensor(name, array) for name, array in inputs.items()), strict=True)
    request = pb.ModelInferRequest(model_name=model, inputs=tensors, raw_input_contents=raws)
    with grpc.insecure_channel(gateway.target) as channel:
        answer = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)
    return {
        output.name: from_raw(output, raw, like[output.name])
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def test_tensors_of_its_own_answer_the_same(gateway: Running, specimen: Specimen) -> None:
    """A plain model server: the graph's inputs come from the caller, by the Open Inference Protocol."""
    expected = zoo.offline(specimen)
    rows = [4, 1, 1, 7]
    inputs = {name: np.ascontiguousarray(array[rows]) for name, array in zoo.offline_inputs(specimen).items()}
    found = inferred(gateway, specimen.name, inputs, expected)
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        assert_same(found[name], wanted[rows], name)


def test_a_graph_whose_first_dimensions_are_not_rows_takes_tensors(redis_url: str, tmp_path: Path) -> None:
    """A stateful voice detector, asked twice; its states go from one answer to the next request."""
    site = zoo.site_of([zoo.specimen("int8")], tmp_path, redis_url)
    path = site.models / "voice/1/model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(zoo.voice_activity())
    session = zoo.session_of(zoo.voice_activity())
    names = [node.name for node in session.get_outputs()]
    states = {"h": np.zeros((2, 1, 64), np.float32), "c": np.zeros((2, 1, 64), np.float32)}
    sound = np.random.default_rng(3).normal(size=(2, 1, 512)).astype(np.float32)
    with running(site) as gateway:
        for piece in sound:
            inputs = {"input": piece, "sr": np.array(16_000, np.int64), **states}
            wanted = dict(zip(names, session.run(names, inputs), strict=True))
            found = inferred(gateway, "voice", inputs, wanted)
            for name in names:
                assert_same(found[name], wanted[name], name)
            states = {"h": found["hn"], "c": found["cn"]}
