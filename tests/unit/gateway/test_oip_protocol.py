"""The protocol's descriptors against those that its client ships, and the rooms that need no server."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from onnx import helper

from gateway.inference import Swap
from gateway.pipeline import Answers
from gateway.plan import Assembled
from gateway.records.errors import InvalidRequest, LimitExceeded, NotAllowed
from gateway.records.report import BatchReport, FailureReport
from gateway.records.request import Request
from gateway.server import codec
from gateway.server.oip import Access, OipOptions, Statistics
from gateway.server.oip import request as requests_of
from gateway.server.oip import statistics as room
from gateway.server.oip.encoder import InferEncoder, best_classes
from headrace.inference import grpc_service_pb2, model_config_pb2
from tests.executing import Waiting, session, tensor_model
from tools import compatibility

PYTHON = Path(__file__).resolve().parents[3] / ".venv-oip" / "bin" / "python"
DUMP = """
import json
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from tritonclient.grpc import model_config_pb2, service_pb2
def said(module):
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file.SerializeToString().hex()
print(json.dumps([said(model_config_pb2), said(service_pb2)]))
"""


def facts_of(*files: FileDescriptorProto) -> dict[str, str]:
    """Names, numbers, types, without the files that they are in."""
    found = compatibility.FileDescriptorSet(file=files)
    return {name: said for name, said in compatibility.facts(found) if not said.startswith("in ")}


def own() -> dict[str, str]:
    files = [FileDescriptorProto(), FileDescriptorProto()]
    model_config_pb2.DESCRIPTOR.CopyToProto(files[0])
    grpc_service_pb2.DESCRIPTOR.CopyToProto(files[1])
    return facts_of(*files)


def test_descriptors_are_those_of_the_client() -> None:
    if not PYTHON.exists():
        pytest.fail("the client's own Python is missing: make .venv-oip/.installed")
    done = subprocess.run([str(PYTHON), "-c", DUMP], capture_output=True, text=True, check=True, timeout=60)
    config, service = (FileDescriptorProto.FromString(bytes.fromhex(text)) for text in json.loads(done.stdout))
    theirs, ours = facts_of(config, service), own()
    assert {name: theirs.get(name) for name in ours} == ours
    # Every field of a configuration is there, so that every config.pbtxt can be read.
    assert facts_of(config).keys() <= ours.keys()
    left_out = {name.split(".")[2] for name in theirs.keys() - ours.keys() if name.startswith("method")}
    assert all("SharedMemory" in name or name in {"TraceSetting", "LogSettings"} for name in left_out)


def test_the_standard_is_no_promise_of_ours() -> None:
    assert not any(file.package == "inference" for file in compatibility.current().file)


def test_a_configuration_as_text_is_read() -> None:
    text = """
    name: "m" platform: "onnxruntime_onnx" max_batch_size: 8
    input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
    instance_group [ { count: 2 kind: KIND_CPU } ]
    dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
    optimization { execution_accelerators { gpu_execution_accelerator: [ { name: "tensorrt" } ] } }
    parameters { key: "intra_op_thread_count" value { string_value: "1" } }
    """
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.instance_group[0].count == 2
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]


TOKEN = "0123456789abcdef"
RIGHT = [("authorization", f"Bearer {TOKEN}")]


@pytest.mark.parametrize(
    ("access", "peer", "metadata", "allowed"),
    [
        (Access("", local=True), "ipv4:127.0.0.1:1", [], True),
        (Access("", local=False), "unix:", [], True),
        (Access("", local=False), "ipv4:127.0.0.1:1", [], False),
        (Access("", local=False), "ipv4:127.0.0.1:1", [("authorization", "Bearer ")], False),
        (Access(TOKEN, local=False), "ipv4:10.0.0.1:1", RIGHT, True),
        (Access(TOKEN, local=False), "ipv4:10.0.0.1:1", [("authorization", f"bearer {TOKEN}")], True),
        (Access(TOKEN, local=False), "ipv4:10.0.0.1:1", [("authorization", f"Bearer {TOKEN}x")], False),
        (Access(TOKEN, local=False), "ipv4:10.0.0.1:1", [("authorization", f"Basic {TOKEN}")], False),
        (Access(TOKEN, local=False), "ipv4:10.0.0.1:1", [("authorization", "Bearer näh")], False),
        (Access(TOKEN, local=False), "ipv4:10.0.0.1:1", [("other", f"Bearer {TOKEN}")], False),
    ],
)
def test_who_may_administer(access: Access, peer: str, metadata: list[tuple[str, str | bytes]], allowed: bool) -> None:
    if allowed:
        access.check(peer, metadata)
    else:
        with pytest.raises(NotAllowed, match="admin_token"):
            access.check(peer, metadata)


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(Access(TOKEN, local=False))


def report(rows: int, arrived: list[float], version: int = 1) -> BatchReport:
    return BatchReport(
        model="m", version=version, variant="default", arrived=arrived, rows=rows, parked=0, threaded=False,
        ready=2.0, assembled=3.5, computed=4.5, answered=5.0, statuses={}, taken=3.0,
    )  # fmt: skip


def test_statistics_count_requests_rows_runs_and_time() -> None:
    statistics = Statistics(wall_s=lambda: 7.0)
    statistics.observe(report(3, [1.0, 1.5]))
    statistics.observe(report(5, [2.0]))
    statistics.failed(FailureReport("m", "INVALID_ARGUMENT", (1.0,), 1.25, 1))
    statistics.failed(FailureReport("", "NOT_FOUND", (1.0,), 2.0))
    (one,) = statistics.answer([("m", 1)]).model_stats
    assert (one.inference_count, one.execution_count, one.last_inference) == (8, 2, 7000)
    stats = one.inference_stats
    assert (stats.success.count, stats.success.ns) == (3, int((4.0 + 3.5 + 3.0) * 1e9))
    assert (stats.fail.count, stats.fail.ns) == (1, int(0.25e9))
    assert (stats.queue.count, stats.queue.ns) == (3, int((2.0 + 1.5 + 1.0) * 1e9))
    assert [stats.compute_input.ns, stats.compute_infer.ns, stats.compute_output.ns] == [
        int(3 * seconds * 1e9) for seconds in (0.5, 1.0, 0.5)
    ]
    assert [(batch.batch_size, batch.compute_infer.count) for batch in one.batch_stats] == [(3, 1), (5, 1)]


def test_statistics_are_bounded() -> None:
    statistics = Statistics()
    for number in range(1, room.VERSIONS_MAX + 10):
        statistics.observe(report(1, [1.0], number))
    assert len(statistics._versions) == room.VERSIONS_MAX
    for rows in range(1, 4097):
        statistics.observe(report(rows, [1.0], 5000))
    (one,) = statistics.answer([("m", 5000)]).model_stats
    assert one.execution_count == 4096
    sizes = [batch.batch_size for batch in one.batch_stats]
    assert sizes == [*range(1, room.EXACT_ROWS_MAX + 1), 128, 256, 512, 1024, 2048, 4096]
    assert sum(batch.compute_infer.count for batch in one.batch_stats) == 4096


def test_classes_are_ranked_as_triton_writes_them() -> None:
    floats = best_classes(np.float32([[0.25, 0.5, 0.5]]), 2)
    assert floats.tolist() == [["0.500000:1", "0.500000:2"]]
    assert best_classes(np.int32([[3], [4]]), 9).tolist() == [["3:0"], ["4:0"]]


def test_the_best_classes_are_those_of_a_sort() -> None:
    """Only the best are sorted; of equals the first come first, and what is no number comes last."""
    random = np.random.default_rng(3)
    values = random.integers(0, 6, (50, 40)).astype(np.float32)
    values[random.random(values.shape) < 0.1] = np.nan
    values[0] = np.nan
    for count in (1, 7, 39, 40, 99):
        ranked = np.argsort(-values, axis=1, kind="stable")[:, :count]
        expected = [[f"{row[at]:f}:{at}" for at in best] for row, best in zip(values, ranked, strict=True)]
        assert best_classes(values, count).tolist() == expected


def test_classes_of_all_rows_are_bounded() -> None:
    requests_of.check_classes([("y", 100), ("z", 28)], 128)
    with pytest.raises(LimitExceeded, match="asks for 16512 classes in 129 rows"):
        requests_of.check_classes([("y", 100), ("z", 28)], 129)


@pytest.mark.parametrize(("field", "name"), [(b"\x2a\x00", "inputs"), (b"\x32\x00", "outputs")])
def test_a_million_of_anything_is_refused_before_it_is_listed(field: bytes, name: str) -> None:
    message = requests_of.parse(field * 1_000_000)
    with pytest.raises(InvalidRequest, match=f"1000000 {name}, the most is 1024"):
        requests_of.decode(message, cast("Any", None), 10, 10)


def test_statistics_of_what_is_unloaded_are_forgotten() -> None:
    statistics = Statistics()
    models = [cast("Any", SimpleNamespace(name="m", version=version)) for version in (1, 1, 2)]
    for version in (1, 2):
        statistics.observe(report(1, [1.0], version))
    statistics.on_swap(Swap([models[1]], [models[0]]))
    statistics.forget(models[0])
    statistics.on_swap(Swap([], [models[2]]))
    statistics.forget(models[2])
    first, second = statistics.answer([("m", 1), ("m", 2)]).model_stats
    assert (first.execution_count, second.execution_count) == (1, 0)


@pytest.mark.parametrize("encoder", [codec.Encoder, InferEncoder])
def test_blank_answers_of_many_sizes_take_little_memory(tmp_path: Path, encoder: Any) -> None:
    shape = {"x": ("float32", (None, None))}, {"y": ("float32", (None, None))}
    model = tensor_model("m", session(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], *shape))
    one = encoder(model, bytes(8))
    for width in (5, 5, 6, *range(200_000, 200_020)):
        request = Request(Waiting("w"), "m", "", 0.0, 9.0, 1, (), (), (), (), False, ((width,),))
        output = np.ones((1, width), np.float32)
        answers = Answers(model, [request], [output], Assembled({}, (), (), 0, None), np.uint64([1]))
        ((_, body),) = one.encode(answers)
        assert output.tobytes() in body
    count, taken = re.findall(r"\d+", repr(one._skeletons))
    assert int(count) == 2
    assert int(taken) < 1000


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OipOptions(stream_in_flight_max=0)
