"""Models that must never serve, sent to a gateway that serves: each gets a clear error, and the served version goes on.

One gateway serves `ranker` while a thread asks it without a pause; every prediction of that thread has to be right.
"""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gateway.client import BlockingClient, CallFailed
from headrace.inference import grpc_service_pb2 as pb
from headrace.inference import grpc_service_pb2_grpc
from tests import zoo
from tests.conftest import RedisServer
from tests.running import MANIFEST, WEIGHTS, Running, Site, make_site, running
from tests.waiting import soon_blocking
from tests.zoo import graph

LOAD_S_MAX = 60.0
CHECK_S_MAX = 20.0
ROWS_MAX = 400
TABLE = 100
MATRIX: dict[str, tuple[str, list[int | str | None]]] = {"x": ("float32", ["rows", 7])}
SCORE: dict[str, tuple[str, list[int | str | None]]] = {"score": ("float32", ["rows", 1])}
UNKNOWN = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}


@dataclass
class Asking:
    """Asks for the same prediction again and again, in a thread."""

    target: str
    stopped: threading.Event = field(default_factory=threading.Event)
    answers: int = 0
    wrong: list[object] = field(default_factory=list)

    def run(self) -> None:
        with BlockingClient(self.target) as client:
            while not self.stopped.is_set() and not self.wrong:
                try:
                    answer = score(client)
                except CallFailed as error:
                    self.wrong.append(error)
                else:
                    self.answers += 1
                    if abs(answer - EXPECTED) > 1e-4:
                        self.wrong.append(answer)


# Nobody is stored: the defaults of the catalogue, and the hour.
EXPECTED = float(np.float32([9, -1, 0, 0, 0, 0, 2]) @ WEIGHTS[:, 0])


def score(client: BlockingClient, version: int = 1) -> float:
    answer = client.predict("ranker", {"user": "nobody", "item": 1}, {"hour": [2.0]}, version=version)
    return float(answer.outputs["score"][0, 0])


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("bad"), redis_server.url)


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Running]:
    overrides = {
        "predict": {"rows_max": ROWS_MAX},
        "inference": {"check_timeout_s": CHECK_S_MAX, "check_memory_mb": 2048},
    }
    with running(site, overrides) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Running) -> Iterator[BlockingClient]:
    with BlockingClient(gateway.target) as client:
        yield client


@pytest.fixture(scope="module")
def asking(gateway: Running) -> Iterator[Asking]:
    """The callers who must not notice."""
    asking = Asking(gateway.target)
    thread = threading.Thread(target=asking.run)
    thread.start()
    yield asking
    asking.stopped.set()
    thread.join()


@pytest.fixture(scope="module")
def repository(gateway: Running) -> Iterator[grpc_service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(gateway.target) as channel:
        yield grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(autouse=True)
def _nobody_notices(
    site: Site, asking: Asking, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub
) -> Iterator[None]:
    """What a test puts into the repository goes again, and the callers had right answers all the while."""
    before = asking.answers
    yield
    manifest = site.models / "ranker/model.yaml"
    rewritten = manifest.read_text() != MANIFEST
    changed = rewritten or (site.models / "ranker/2").exists()
    for path in site.models.iterdir():
        if path.name != "ranker":
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    for path in (site.models / "ranker").iterdir():
        if path.name.isdecimal() and path.name != "1":
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    if rewritten:
        manifest.write_text(MANIFEST)
    if changed:
        load(repository)
    soon_blocking(lambda: bool(asking.wrong) or asking.answers > before, LOAD_S_MAX)
    assert asking.wrong == []


def load(repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub, name: str = "ranker") -> None:
    repository.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name), timeout=LOAD_S_MAX)


def refused(repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub, name: str = "ranker") -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        load(repository, name)
    assert caught.value.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}
    return caught.value


def scored(nodes: list[onnx.NodeProto], weights: dict[str, Any] | None = None, **more: Any) -> bytes:
    """A graph from `x` to `score` by way of `y`: a linear model of what the nodes make of x."""
    nodes = [*nodes, helper.make_node("MatMul", ["y", "w"], ["score"])]
    return graph(nodes, MATRIX, SCORE, {"w": WEIGHTS, **(weights or {})}, **more)


def whole() -> bytes:
    return scored([helper.make_node("Identity", ["x"], ["y"])])


def newer_opset() -> bytes:
    model = onnx.load_from_string(whole())
    model.opset_import[0].version = 999
    return model.SerializeToString()


def newer_ir() -> bytes:
    model = onnx.load_from_string(whole())
    model.ir_version = 999
    return model.SerializeToString()


def custom_operator() -> bytes:
    model = onnx.load_from_string(scored([helper.make_node("Sharpen", ["x"], ["y"], domain="my.company")]))
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    return model.SerializeToString()


def unknown_operator() -> bytes:
    return scored([helper.make_node("Sharpen", ["x"], ["y"])])


def sequence_output() -> bytes:
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["many"])]
    made = helper.make_graph(
        nodes,
        "sequence",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 7])],
        [helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, ["rows", 7])],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def zipmap_output() -> bytes:
    """What scikit-learn's exporter writes when nobody says otherwise."""
    nodes = [helper.make_node("ZipMap", ["x"], ["many"], domain="ai.onnx.ml", classlabels_int64s=[*range(7)])]
    value = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    made = helper.make_graph(
        nodes,
        "zipmap",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 7])],
        [helper.make_value_info("many", helper.make_sequence_type_proto(value))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()


def only_one_row() -> bytes:
    """Says that it takes any number of rows, and fails on two."""
    return scored([helper.make_node("Reshape", ["x", "shape"], ["y"])], {"shape": np.int64([1, 7])})


def rows_of_its_own() -> bytes:
    """Says that it answers one row each, and answers three in all."""
    nodes = [helper.make_node("Gather", ["x", "first"], ["y"])]
    return scored(nodes, {"first": np.int64([0, 0, 0])})


def endless() -> bytes:
    """A loop without an end."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Add", ["value", "value"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows", 7]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, ["rows", 7]),
        ],
    )
    nodes = [helper.make_node("Loop", ["", "always", "x"], ["y"], body=body)]
    return scored(nodes, {"always": np.bool_(True)})


def greedy() -> bytes:
    """Takes 8 GiB for each row."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "zero"], ["rows"]),
        helper.make_node("Concat", ["rows", "wide"], ["wanted"], axis=0),
        helper.make_node("ConstantOfShape", ["wanted"], ["huge"]),
        helper.make_node("ReduceSum", ["huge", "last"], ["sums"], keepdims=1),
        helper.make_node("Add", ["x", "sums"], ["y"]),
    ]
    return scored(nodes, {"zero": np.int64([0]), "wide": np.int64([1 << 31]), "last": np.int64([1])})


def bfloat16_input() -> bytes:
    made = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["score"], to=TensorProto.FLOAT)],
        "brain",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["rows", 7])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", 7])],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_a_version_that_is_right_serves(
    site: Site, client: BlockingClient, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """So that the others are refused for what they are."""
    (site.models / "ranker/2").mkdir()
    (site.models / "ranker/2/model.onnx").write_bytes(whole())
    load(repository)
    assert client.predict("ranker", {"user": "nobody", "item": 1}, {"hour": [2.0]}).version == 2
    assert score(client, 2) == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"", "not an ONNX model, or it was cut short"),
        (lambda: b"PK\x03\x04" + bytes(range(256)) * 64, "not an ONNX model, or it was cut short"),
        (lambda: zoo.specimen("magika").model[:1_000_000], "not an ONNX model, or it was cut short"),
        (newer_opset, "older opset"),
        (newer_ir, "IR version"),
        (custom_operator, "custom operators are not loaded"),
        (unknown_operator, "operators that ONNX Runtime does not have"),
        (sequence_output, "ConcatFromSequence"),
        (zipmap_output, "zipmap"),
        (only_one_row, "trial run"),
        (rows_of_its_own, "first dimension must be the rows"),
        (bfloat16_input, "cast it in the graph"),
        (
            lambda: graph(
                [helper.make_node("Identity", ["z"], ["score"])], {"z": MATRIX["x"]}, {"score": MATRIX["x"]}, {}
            ),
            "z: float32[?, 7]",
        ),
    ],
    ids=[
        "empty",
        "not onnx",
        "cut short",
        "newer opset",
        "newer ir",
        "custom operator",
        "unknown operator",
        "sequence",
        "zipmap",
        "only one row",
        "rows of its own",
        "bfloat16",
        "other inputs",
    ],
)
def test_a_version_that_cannot_serve_is_refused_with_the_reason(
    site: Site,
    client: BlockingClient,
    repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub,
    make: Callable[[], bytes],
    said: str,
) -> None:
    path = site.models / "ranker/2/model.onnx"
    path.parent.mkdir()
    path.write_bytes(make())
    error = refused(repository)
    assert said in error.details()
    assert str(path) in error.details() or "model.yaml" in error.details()
    assert client.predict("ranker", {"user": "nobody", "item": 1}, {"hour": [2.0]}).version == 1
    states = repository.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=5).models
    (state,) = [one for one in states if (one.name, one.version) == ("ranker", "2")]
    assert state.state == "UNAVAILABLE"
    assert said in state.reason


@pytest.mark.slow
@pytest.mark.parametrize(("make", "said"), [(endless, "20 s"), (greedy, "memory")])
def test_a_graph_that_hangs_or_takes_all_memory_does_so_elsewhere(
    site: Site,
    client: BlockingClient,
    repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub,
    make: Callable[[], bytes],
    said: str,
) -> None:
    path = site.models / "ranker/2/model.onnx"
    path.parent.mkdir()
    path.write_bytes(make())
    assert said in refused(repository).details()
    assert client.predict("ranker", {"user": "nobody", "item": 1}, {"hour": [2.0]}).version == 1


def external(folder: Path, location: str = "weights.bin") -> Path:
    """A graph whose weights lie in a file beside it."""
    model = onnx.load_from_string(whole())
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            entry.value = location if entry.key == "location" else entry.value
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def test_external_data_is_loaded(
    site: Site, client: BlockingClient, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    external(site.models / "ranker/2")
    load(repository)
    assert score(client, 2) == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:5])], ids=["gone", "cut"]
)
def test_external_data_that_is_not_whole(
    site: Site, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub, harm: Callable[[Path], object]
) -> None:
    harm(external(site.models / "ranker/2") / "weights.bin")
    assert "external data must lie beside model.onnx" in refused(repository).details()


def test_external_data_outside_the_repository_is_not_read(
    site: Site, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    (site.folder / "secret.bin").write_bytes(WEIGHTS.tobytes())
    external(site.models / "ranker/2", "../../../secret.bin")
    refused(repository)


@pytest.mark.parametrize("what", ["model", "version", "graph", "manifest"])
def test_a_link_out_of_the_repository_is_not_followed(
    site: Site, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub, what: str
) -> None:
    outside = site.folder / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    (outside / "1").mkdir(parents=True)
    (outside / "1/model.onnx").write_bytes(whole())
    (outside / "model.yaml").write_text(MANIFEST.replace("ranker", "linked"))
    model = site.models / "linked"
    if what == "model":
        model.symlink_to(outside, target_is_directory=True)
    else:
        model.mkdir()
        shutil.copy(outside / "model.yaml", model) if what != "manifest" else (model / "model.yaml").symlink_to(
            outside / "model.yaml"
        )
        if what == "version":
            (model / "1").symlink_to(outside / "1", target_is_directory=True)
        else:
            (model / "1").mkdir()
            if what == "graph":
                (model / "1/model.onnx").symlink_to(outside / "1/model.onnx")
            else:
                shutil.copy(outside / "1/model.onnx", model / "1")
    assert "outside the model repository" in refused(repository, "linked").details()


NAMES = [
    "../ranker",
    "..",
    ".",
    "",
    "/etc/passwd",
    "ranker/../ranker",
    "ranker/1",
    "a\\b",
    "%2e%2e",
    "x" * 5000,
    "a\nb",
    "…",
]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name[:20]) for name in NAMES])
def test_a_name_is_no_path(
    client: BlockingClient, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub, name: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(repository, name)
    assert caught.value.code() in UNKNOWN
    assert len(caught.value.details()) < 1000
    with pytest.raises(grpc.RpcError) as caught:
        repository.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name), timeout=5)
    assert caught.value.code() in UNKNOWN
    with pytest.raises(grpc.RpcError) as caught:
        repository.ModelMetadata(pb.ModelMetadataRequest(name=name), timeout=5)
    assert caught.value.code() in UNKNOWN
    with pytest.raises(CallFailed) as failed:
        client.predict(name, {"user": "nobody", "item": 1}, {"hour": [2.0]})
    assert failed.value.code in UNKNOWN


def test_a_repository_that_goes_away_and_comes_back(
    site: Site, client: BlockingClient, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    away = site.folder / "away"
    site.models.rename(away)
    try:
        refused(repository)
        assert score(client) == pytest.approx(EXPECTED)
    finally:
        away.rename(site.models)
    load(repository)
    assert score(client) == pytest.approx(EXPECTED)


def test_a_folder_that_goes_away_while_it_serves(
    site: Site, client: BlockingClient, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    away = site.folder / "away"
    (site.models / "ranker").rename(away)
    try:
        refused(repository)
        assert score(client) == pytest.approx(EXPECTED)
    finally:
        away.rename(site.models / "ranker")
    load(repository)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("name: [", "is not valid YAML"),
        (MANIFEST.replace("user.age", "user.agee"), "no column 'user.agee'"),
        (MANIFEST.replace("user_stats@1", "user_stats@7"), "no view 'user_stats@7'"),
        (MANIFEST.replace("user.age, ", ""), "the graph's input x: float32[?, 7] takes 7"),
        (
            MANIFEST + "transforms: [{function: 'os:system', inputs: {a: hour}, outputs: {b: float32}}]\n",
            "transform_modules",
        ),
    ],
    ids=["not yaml", "column", "view", "width", "transform"],
)
def test_a_manifest_that_does_not_fit_any_more(
    site: Site,
    client: BlockingClient,
    repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub,
    manifest: str,
    said: str,
) -> None:
    (site.models / "ranker/model.yaml").write_text(manifest)
    error = refused(repository)
    assert said in error.details()
    assert "model.yaml:" in error.details()
    assert score(client) == pytest.approx(EXPECTED)


def test_a_run_that_fails_harms_its_own_request_only(
    site: Site, client: BlockingClient, repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """A graph that was fine with every number of rows that it was tried with."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "zero"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["known"]),  # out of bounds beyond TABLE
        helper.make_node("Add", ["x", "known"], ["y"]),
    ]
    (site.models / "brittle/1").mkdir(parents=True)
    made = scored(nodes, {"zero": np.int64([0]), "table": np.zeros(TABLE, np.float32)})
    (site.models / "brittle/1/model.onnx").write_bytes(made)
    (site.models / "brittle/model.yaml").write_text(MANIFEST.replace("ranker", "brittle"))
    load(repository, "brittle")
    ask = {"user": "nobody", "hour": 2.0}
    few = client.predict("brittle", {"user": ask["user"], "item": [1, 2]}, {"hour": [2.0]})
    assert few.outputs["score"].shape == (2, 1)
    with pytest.raises(CallFailed) as caught:
        client.predict("brittle", {"user": "nobody", "item": [*range(TABLE + 50)]}, {"hour": [2.0]})
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert "indices" not in caught.value.message  # what a graph says may show others' data; it stays in the log
    assert client.predict("brittle", {"user": "nobody", "item": [1]}, {"hour": [2.0]}).version == 1


def wanted(**changes: Any) -> pb.ModelInferRequest:
    """A right request for the graph of `ranker`, or one with something else in it."""
    array = np.zeros((2, 7), np.float32)
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [2, 7]}
    raw = changes.pop("raw", [array.tobytes()])
    name = changes.pop("model_name", "ranker")
    outputs = changes.pop("outputs", [])
    inputs = changes.pop("inputs", None)
    if inputs is None:
        inputs = [pb.ModelInferRequest.InferInputTensor(**(tensor | changes))]
    return pb.ModelInferRequest(model_name=name, inputs=inputs, outputs=outputs, raw_input_contents=raw)


@pytest.mark.parametrize(
    "request_",
    [
        wanted(shape=[2, 8]),
        wanted(shape=[14]),
        wanted(shape=[2, 7, 1]),
        wanted(shape=[-1, 7]),
        wanted(shape=[1 << 62, 1 << 62]),
        wanted(shape=[0, 7], raw=[b""]),
        wanted(shape=[]),
        wanted(shape=[1] * 40),
        wanted(datatype="FP64"),
        wanted(datatype="BYTES"),
        wanted(datatype="nonsense"),
        wanted(name="y"),
        wanted(raw=[b"\0" * 55]),
        wanted(raw=[b"\0" * 56, b"\0"]),
        wanted(raw=[]),
        wanted(inputs=[], raw=[]),
        wanted(model_name="nobody"),
        wanted(model_name="../ranker"),
        wanted(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="nothing")]),
        wanted(shape=[ROWS_MAX + 1, 7], raw=[bytes(28 * (ROWS_MAX + 1))]),
    ],
    ids=range(20),
)
def test_tensors_of_a_wrong_shape_or_dtype(
    repository: grpc_service_pb2_grpc.GRPCInferenceServiceStub, request_: pb.ModelInferRequest
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        repository.ModelInfer(request_, timeout=5)
    codes = {*UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE}
    assert caught.value.code() in codes
    assert caught.value.details()
    answer = repository.ModelInfer(wanted(), timeout=5)
    assert [*answer.outputs[0].shape] == [2, 1]


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ({"hour": np.zeros((1, 2), np.float32)}, "has the shape [1, 2], it needs [rows]"),
        ({"hour": ["noon"]}, "has the dtype string"),
        ({"hour": [1.0, 2.0, 3.0]}, "the longest column has 3"),
        ({}, "hour is missing"),
        ({"hour": [1.0], "minute": [1.0]}, "takes no context column 'minute'"),
    ],
    ids=range(5),
)
def test_context_of_a_wrong_shape_or_dtype(client: BlockingClient, context: dict[str, Any], said: str) -> None:
    with pytest.raises(CallFailed) as caught:
        client.predict("ranker", {"user": ["nobody"] * 2, "item": 1}, context)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in caught.value.message
