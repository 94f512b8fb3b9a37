"""What a swap costs its neighbours: calls at a constant rate, and in their midst another version of the model.

    python -m loadtest.swap [--rate 10000] [--seconds 10] [--big-mb 300] [--rounds 3]

For each kind of swap: a run without one, then a run of the same length in whose middle `RepositoryModelLoad` is called.
Shown are both p99, their ratio, the longest call, and the time from the call of `RepositoryModelLoad` to its answer,
after which the new version serves. No call may fail. `big` versions carry a table of that many MB, from which each row
looks one entry up; so their runs cost about the same, and what is measured is loading and freeing them.

One JSON object a line with --json.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.inference import grpc_service_pb2 as pb
from headrace.inference import grpc_service_pb2_grpc
from loadtest import gload, workload
from loadtest.make_mlp import make_model
from loadtest.processes import (
    START_TIMEOUT_S,
    Cores,
    DidNotStart,
    Running,
    exit_on_signals,
    free_port,
    running,
    running_redis,
)
from loadtest.stack import load_rows

_BODIES = 4_000
_SEED = 5
_KEPT_VERSIONS = 2
_CONFIG = """\
grpc: {{listen: ["127.0.0.1:{port}"]}}
http: {{listen: "127.0.0.1:{http_port}"}}
catalogue: {catalogue}
models: {models}
store: {{url: "redis://127.0.0.1:{redis_port}/0"}}
pipeline: {{store_timeout_ms: 1000}}
"""


@dataclass(frozen=True, slots=True)
class Result:
    """One swap."""

    kind: str
    rate: float
    before_p99_ms: float
    around_p99_ms: float
    before_max_ms: float
    around_max_ms: float
    calls: int
    load_s: float

    @property
    def ratio(self) -> float:
        """Of the p99 around the swap to that before."""
        return self.around_p99_ms / self.before_p99_ms


def big_model(megabytes: int) -> onnx.ModelProto:
    """The benchmark's model, which also looks up an entry of a large table for each row and adds none of it."""
    model = make_model()
    entries = megabytes * 1_000_000 // (4 * workload.FEATURES)
    table = np.random.default_rng(_SEED).standard_normal((entries, workload.FEATURES), np.float32)
    zero = numpy_helper.from_array(np.zeros((workload.FEATURES, 1), np.float32), "zero")
    (last,) = [node for node in model.graph.node if "score" in node.output]
    last.output[0] = "plain_score"
    model.graph.initializer.extend([numpy_helper.from_array(table, "table"), zero])
    model.graph.node.extend(
        [
            helper.make_node("ArgMax", ["x"], ["index"], axis=1, keepdims=0),
            helper.make_node("Gather", ["table", "index"], ["entry"]),
            helper.make_node("MatMul", ["entry", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain_score", "nothing"], ["score"]),
        ]
    )
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    return model


class Rig:
    """A repository of one model, the gateway that serves it, and the client."""

    def __init__(self, folder: Path, server: Running, cores: Cores, arguments: argparse.Namespace) -> None:
        self.models = folder / "models"
        self.server = server
        self.cores = cores
        self.rate: float = arguments.rate
        self.seconds: float = arguments.seconds
        self.version = 1
        self.binary = gload.build()
        asked = workload.questions(1, _BODIES, _SEED)
        self.bodies = gload.write_bodies(folder / "bodies", workload.headrace_bodies(asked))
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        self.stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def wait_ready(self) -> None:
        """Return when the server has reached its store. Raises after START_TIMEOUT_S."""
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self.stub.ServerReady(pb.ServerReadyRequest(), timeout=START_TIMEOUT_S).ready:
            if time.monotonic() > give_up_at:
                raise DidNotStart(f"the gateway is not ready:\n{self.server.log_tail()}")
            time.sleep(0.05)

    def calls(self) -> dict[str, Any]:
        """One run of the client. Raises when any call fails."""
        load = gload.Load(
            workload.HEADRACE_METHOD,
            rate=self.rate,
            connections=8,
            seconds=self.seconds,
            all_equal=workload.ALL_PRESENT,
        )
        return gload.run(self.binary, load, self.bodies, port=self.server.port, core=self.cores.client)

    def swap(self, file: Path) -> float:
        """Put `file` there as the next version and have it loaded; seconds until it serves."""
        self.version += 1
        folder = self.models / workload.MODEL_NAME / str(self.version)
        unfinished = self.models / ".unfinished"
        unfinished.mkdir(exist_ok=True)
        shutil.copy(file, unfinished / "model.onnx")
        unfinished.rename(folder)
        began = time.monotonic()
        self.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=workload.MODEL_NAME), timeout=300)
        load_s = time.monotonic() - began
        old = self.models / workload.MODEL_NAME / str(self.version - _KEPT_VERSIONS)
        shutil.rmtree(old, ignore_errors=True)
        return load_s

    def measure(self, kind: str, file: Path) -> Result:
        """A run without a swap, and one with."""
        before = self.calls()
        took: list[float] = []
        swapping = threading.Timer(self.seconds / 2, lambda: took.append(self.swap(file)))
        swapping.start()
        around = self.calls()
        swapping.join()
        return Result(
            kind,
            self.rate,
            before["p99_ms"],
            around["p99_ms"],
            before["max_ms"],
            around["max_ms"],
            around["total"],
            took[0],
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=10_000, help="calls a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--big-mb", type=int, default=300, help="0: small models only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    exit_on_signals()
    with tempfile.TemporaryDirectory(prefix="headrace-swap-") as scratch:
        run(Path(scratch), arguments, _print_json if arguments.json else _print_line)


def run(folder: Path, arguments: argparse.Namespace, show: Callable[[Result], None]) -> None:
    """All kinds of swaps, `rounds` times."""
    cores = Cores.available()
    shutil.copytree(workload.MODELS_FOLDER, folder / "models")
    manifest = folder / "models" / workload.MODEL_NAME / "model.yaml"
    manifest.write_text(manifest.read_text() + "versions: latest\n")
    big = folder / "big.onnx"
    if arguments.big_mb:
        onnx.save(big_model(arguments.big_mb), str(big))
    with running_redis(folder=folder, core=cores.client) as redis:
        load_rows(redis.port)
        port = free_port()
        config = folder / "headrace.yaml"
        config.write_text(
            _CONFIG.format(
                port=port,
                http_port=free_port(),
                catalogue=workload.CATALOGUE_FILE,
                models=folder / "models",
                redis_port=redis.port,
            )
        )
        command = [sys.executable, "-m", "gateway.server.cli", "serve", "--config", str(config)]
        with running("headrace", command, port=port, core=cores.server, folder=folder) as server:
            rig = Rig(folder, server, cores, arguments)
            rig.wait_ready()
            rig.calls()  # the caches are warm then
            for _ in range(arguments.rounds):
                show(rig.measure("small to small", workload.MODEL_FILE))
                if arguments.big_mb:
                    show(rig.measure("small to big", big))
                    show(rig.measure("big to big", big))
                    show(rig.measure("big to small", workload.MODEL_FILE))


def _print_line(result: Result) -> None:
    print(
        f"{result.kind:15} {result.rate:,.0f}/s  p99 {result.before_p99_ms:.3f} -> {result.around_p99_ms:.3f} ms "
        f"(x{result.ratio:.2f})  max {result.before_max_ms:.1f} -> {result.around_max_ms:.1f} ms  "
        f"load to serving {result.load_s:.2f} s  {result.calls:,} calls",
        flush=True,
    )


def _print_json(result: Result) -> None:
    print(json.dumps({**asdict(result), "ratio": round(result.ratio, 3)}), flush=True)


if __name__ == "__main__":
    main()
