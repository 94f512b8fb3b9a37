"""A model alone, by the Open Inference Protocol: Headrace, MLServer and the hand-written server on the same bytes.

    python -m loadtest.infer [--json] [--rounds 3] [--seconds 4] [--mlserver PYTHON] [--only headrace baseline]

Each call is a ModelInfer of one float32 tensor [1, 50]; 64 are in flight on 8 connections. The servers run the same
graph with one thread each, alone on their core in turn. Every second round goes in the opposite order, the medians of
the rounds are compared. MLServer wants a Python of its own: without `--mlserver` one is made in loadtest/build.

The exit status is 1 when Headrace is not 10 times as fast as MLServer and 5 times as fast as the hand-written server.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from headrace.inference import grpc_service_pb2 as pb
from loadtest import gload, stack, workload
from loadtest.processes import Cores, DidNotStart, Running, exit_on_signals, free_port, running, running_redis

METHOD = "/inference.GRPCInferenceService/ModelInfer"
IN_FLIGHT = 64
CONNECTIONS = 8
BODIES = 2_000
BODIES_SEED = 5
CHECKED = 200
TOLERANCE = 1e-5
REQUIRED = {"mlserver": 10.0, "baseline": 5.0}
MLSERVER = ("mlserver==1.7.1", "onnxruntime")
MLSERVER_FOLDER = gload.BUILD_FOLDER / "mlserver"
PEER = Path(__file__).with_name("mlserverpeer.py")
VOID_RUNS_MAX = 3


class WrongAnswer(Exception):
    """A server does not answer what the model says."""


def questions() -> tuple[list[bytes], np.ndarray[Any, np.dtype[np.float32]]]:
    """The requests, and the rows in them: float32 [BODIES, 50]."""
    rows = np.random.default_rng(BODIES_SEED).standard_normal((BODIES, workload.FEATURES)).astype(np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, workload.FEATURES])
    bodies = [
        pb.ModelInferRequest(
            model_name=workload.MODEL_NAME, inputs=[tensor], raw_input_contents=[row.tobytes()]
        ).SerializeToString()
        for row in rows
    ]
    return bodies, rows


def check(name: str, port: int, bodies: list[bytes], rows: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """A benchmark of wrong answers is worth nothing."""
    session = onnxruntime.InferenceSession(str(workload.MODEL_FILE), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": rows[:CHECKED]})[0].ravel()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        for body, score in zip(bodies, expected, strict=False):
            answer = pb.ModelInferResponse.FromString(call(body, timeout=30, wait_for_ready=True))
            found = np.frombuffer(answer.raw_output_contents[0], np.float32)
            if found.shape != (1,) or abs(found[0] - score) > TOLERANCE:
                raise WrongAnswer(f"{name} answers {found} where the graph gives {score}")


def mlserver_python() -> Path:
    """A Python with MLServer, made when it is not there."""
    python = MLSERVER_FOLDER / "bin" / "python"
    ready = MLSERVER_FOLDER / ".installed"
    if not ready.exists():
        print(f"installing {' and '.join(MLSERVER)} into {MLSERVER_FOLDER} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(MLSERVER_FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "--quiet", "install", *MLSERVER], check=True)
        ready.touch()
    return python


@contextmanager
def running_mlserver(python: Path, folder: Path, core: int) -> Iterator[Running]:
    """MLServer without worker processes, which a small model only waits for, and without access logs."""
    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    home = folder / "mlserver"
    (home / workload.MODEL_NAME).mkdir(parents=True)
    settings = {"debug": False, "parallel_workers": 0, "host": "127.0.0.1", **ports}
    (home / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": workload.MODEL_NAME,
        "implementation": "mlserverpeer.OnnxModel",
        "parameters": {"uri": str(workload.MODEL_FILE)},
    }
    (home / workload.MODEL_NAME / "model-settings.json").write_text(json.dumps(model))
    (home / workload.MODEL_NAME / PEER.name).write_text(PEER.read_text())
    command = [str(python.with_name("mlserver")), "start", str(home)]
    with running("mlserver", command, port=ports["grpc_port"], core=core, folder=folder) as started:
        yield started


def start(
    names: list[str], python: Path | None, folder: Path, cores: Cores, resources: ExitStack
) -> dict[str, Running]:
    """The servers with these names."""
    started: dict[str, Running] = {}
    if "headrace" in names:
        redis = resources.enter_context(running_redis(core=cores.client, folder=folder))
        started["headrace"] = resources.enter_context(
            stack.running_headrace(
                "headrace", transport="fast", cache=True, redis_port=redis.port, folder=folder, core=cores.server
            )
        )
    if "baseline" in names:
        port = free_port()
        command = [sys.executable, "-m", "loadtest.baseline.tensors", "--port", str(port)]
        started["baseline"] = resources.enter_context(
            running("baseline", command, port=port, core=cores.server, folder=folder)
        )
    if "mlserver" in names:
        started["mlserver"] = resources.enter_context(
            running_mlserver(python or mlserver_python(), folder, cores.server)
        )
    return started


def measure(
    servers: Mapping[str, Running], bodies: Path, cores: Cores, rounds: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """What the client says of each round."""
    binary = gload.build()
    load = gload.Load(METHOD, in_flight=IN_FLIGHT, connections=CONNECTIONS, seconds=seconds, warmup_s=1.0)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for number in range(rounds):
        for name in list(servers) if number % 2 == 0 else list(reversed(list(servers))):
            for attempt in range(VOID_RUNS_MAX):
                before_s = servers[name].cpu_s()
                try:
                    answer = gload.run(binary, load, bodies, port=servers[name].port, core=cores.client)
                except gload.RunFailed as problem:
                    print(f"void: {problem}", file=sys.stderr, flush=True)
                    if attempt + 1 == VOID_RUNS_MAX:
                        raise
                    continue
                answer["server_cpu_us"] = (servers[name].cpu_s() - before_s) * 1e6 / answer["total"]
                found[name].append(answer)
                print(f"round {number + 1}: {name} {answer['rps']:.0f} a second", file=sys.stderr, flush=True)
                break
    return found


def medians(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """The median of each number over the rounds, and by how much Headrace is faster."""
    keys = ("rps", "p50_ms", "p99_ms", "server_cpu_us")
    summary = {
        name: {key: statistics.median(answer[key] for answer in answers) for key in keys}
        for name, answers in found.items()
    }
    for numbers in summary.values():
        if "headrace" in summary:
            numbers["headrace_is_faster"] = summary["headrace"]["rps"] / numbers["rps"]
    return summary


def show(summary: Mapping[str, Mapping[str, float]]) -> None:
    """A table for people."""
    table = Table(title=f"ModelInfer of float32 [1, {workload.FEATURES}], {IN_FLIGHT} in flight")
    for column in ("server", "calls/s", "p50 ms", "p99 ms", "CPU us/call", "Headrace is faster"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for name, row in summary.items():
        table.add_row(
            name,
            f"{row['rps']:,.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['server_cpu_us']:.1f}",
            f"{row['headrace_is_faster']:.1f}x" if "headrace_is_faster" in row and name != "headrace" else "",
        )
    Console().print(table)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--mlserver", type=Path, help="a Python that has mlserver and onnxruntime")
    parser.add_argument("--only", nargs="+", choices=["headrace", *REQUIRED], default=["headrace", *REQUIRED])
    options = parser.parse_args()
    exit_on_signals()
    cores = Cores.available()
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-infer-") as name, ExitStack() as resources:
            folder = Path(name)
            servers = start(options.only, options.mlserver, folder, cores, resources)
            bodies, rows = questions()
            for server, started in servers.items():
                check(server, started.port, bodies, rows)
            file = gload.write_bodies(folder / "bodies", bodies)
            found = measure(servers, file, cores, options.rounds, options.seconds)
    except (DidNotStart, WrongAnswer, gload.CannotBuild, gload.RunFailed) as problem:
        print(f"infer: {problem}", file=sys.stderr)
        return 1
    summary = medians(found)
    if options.json:
        print(json.dumps({"medians": summary, "rounds": found}))
    else:
        show(summary)
    return int(
        any(
            summary[peer].get("headrace_is_faster", times) < times
            for peer, times in REQUIRED.items()
            if peer in summary
        )
    )


if __name__ == "__main__":
    sys.exit(main())
