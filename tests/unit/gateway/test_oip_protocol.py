"""The protocol's descriptors against those that its client ships, and the rooms that need no server."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from gateway.records.errors import NotAllowed
from gateway.records.report import BatchReport, FailureReport
from gateway.server.oip import Access, OipOptions, Statistics
from gateway.server.oip import statistics as room
from gateway.server.oip.encoder import best_classes
from headrace.inference import grpc_service_pb2, model_config_pb2
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
    for rows in range(room.BATCH_SIZES_MAX + 10):
        statistics.observe(report(rows, [1.0], 5000))
    (one,) = statistics.answer([("m", 5000)]).model_stats
    assert one.execution_count == room.BATCH_SIZES_MAX + 10
    assert len(one.batch_stats) == room.BATCH_SIZES_MAX


def test_classes_are_ranked_as_triton_writes_them() -> None:
    floats = best_classes(np.float32([[0.25, 0.5, 0.5]]), 2)
    assert floats.tolist() == [["0.500000:1", "0.500000:2"]]
    assert best_classes(np.int32([[3], [4]]), 9).tolist() == [["3:0"], ["4:0"]]


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OipOptions(stream_in_flight_max=0)
