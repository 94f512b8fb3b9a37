"""Does an accelerator pay? Two graphs, on every provider that this ONNX Runtime has, in float32 and in int8.

    python -m loadtest.hardware [--rows 1,64,1024] [--seconds 1] [--threads 1] [--json out.json]

The graphs are a dense network of three layers, 1024 wide, and a transformer of two layers over 32 tokens of 128
numbers, both with random weights, built here. Runs go through the gateway's own session, so bound buffers and CUDA
graphs are in the numbers. Each line is one graph on one kind of hardware: the median time of a run and its CPU time
per batch size, and how far its answers are from those of float32 on the CPU (root mean square of the difference, over
that of the answer).

One onnxruntime package has one set of providers: run it again in an environment with `onnxruntime-openvino` or
`onnxruntime-gpu`. Without the package `onnx` there is nothing to run.
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gateway.inference import InferenceOptions
from gateway.inference.providers import Hardware, short_name
from gateway.inference.session import Session, SessionError

WIDTH = 1024
TOKENS, SIZE, HEADS, BLOCKS = 32, 128, 4, 2
RUNS_MIN, RUNS_MAX = 5, 2000
CALIBRATION_BATCHES = 8

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Measured:
    """One graph on one kind of hardware."""

    graph: str
    runs_on: str
    nodes: dict[str, int]
    run_us: dict[int, float]
    """Rows -> median of a run."""
    cpu_us: dict[int, float]
    """Rows -> CPU time of the cheapest run, of all threads; on a busy machine it says more than the clock."""
    error: float
    load_s: float
    megabytes: float
    warnings: tuple[str, ...] = ()


class _Builder:
    """Adds nodes to a graph, with random weights."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def dense(self, x: str, rows: int, columns: int) -> str:
        weights = self.random.normal(scale=rows**-0.5, size=(rows, columns)).astype(np.float32)
        bias = self.random.normal(scale=0.1, size=columns).astype(np.float32)
        return self.node("Add", self.node("MatMul", x, self.constant(weights)), self.constant(bias))

    def normalised(self, x: str) -> str:
        scale, bias = (self.constant(np.array([value] * SIZE, np.float32)) for value in (1, 0))
        return self.node("LayerNormalization", x, scale, bias, axis=-1)

    def model(self, output: str, shape: Sequence[int]) -> onnx.ModelProto:
        """The whole, from the input `x` of rows of `shape`."""
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="answer"))
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape])]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mlp() -> onnx.ModelProto:
    """Three layers, each WIDTH wide, and one output."""
    build = _Builder(1)
    x = "x"
    for _ in range(3):
        x = build.node("Relu", build.dense(x, WIDTH, WIDTH))
    return build.model(build.dense(x, WIDTH, 1), [WIDTH])


def transformer() -> onnx.ModelProto:
    """BLOCKS of attention and a feed-forward part, over TOKENS of SIZE numbers; the mean of the tokens gives one
    output."""
    build = _Builder(2)
    x = "x"
    for _ in range(BLOCKS):
        x = build.node("Add", x, _attention(build, build.normalised(x)))
        wide = build.node("Relu", build.dense(build.normalised(x), SIZE, 4 * SIZE))
        x = build.node("Add", x, build.dense(wide, 4 * SIZE, SIZE))
    mean = build.node("ReduceMean", build.normalised(x), axes=[1], keepdims=0)
    return build.model(build.dense(mean, SIZE, 1), [TOKENS, SIZE])


def _attention(build: _Builder, x: str) -> str:
    heads = build.constant(np.array([0, TOKENS, HEADS, SIZE // HEADS]))
    query, key, value = (
        build.node("Transpose", build.node("Reshape", build.dense(x, SIZE, SIZE), heads), perm=[0, 2, *last])
        for last in ((1, 3), (3, 1), (1, 3))
    )
    scale = build.constant(np.array([(SIZE // HEADS) ** -0.5], np.float32))
    weights = build.node("Softmax", build.node("Mul", build.node("MatMul", query, key), scale), axis=-1)
    mixed = build.node("Transpose", build.node("MatMul", weights, value), perm=[0, 2, 1, 3])
    whole = build.node("Reshape", mixed, build.constant(np.array([0, TOKENS, SIZE])))
    return build.dense(whole, SIZE, SIZE)


GRAPHS = {"mlp": (mlp, (WIDTH,)), "transformer": (transformer, (TOKENS, SIZE))}


class _Calibration:
    """Batches that show the static quantiser the ranges of the values in between."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._batches = iter([{"x": sample(16, shape, seed)} for seed in range(100, 100 + CALIBRATION_BATCHES)])

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._batches, None)


def sample(rows: int, shape: Sequence[int], seed: int = 0) -> Floats:
    """Rows of normally distributed numbers."""
    return np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)


def quantised(path: Path, shape: Sequence[int]) -> Iterator[tuple[str, Path]]:
    """The graph in int8: weights beforehand and activations as they come, then both beforehand."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    dynamic, static = path.with_suffix(".dynamic.onnx"), path.with_suffix(".static.onnx")
    quantize_dynamic(path, dynamic, weight_type=QuantType.QInt8, per_channel=True)
    yield "int8 dynamic", dynamic
    quantize_static(
        path,
        static,
        _Calibration(shape),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    yield "int8 static", static


def kinds() -> Iterator[tuple[str, Hardware]]:
    """What can be asked of this ONNX Runtime."""
    there = {short_name(name) for name in onnxruntime.get_available_providers()}
    yield "cpu", Hardware(("cpu",))
    for name in ("openvino", "xnnpack", "coreml", "directml", "migraphx"):
        if name in there:
            yield name, Hardware((name, "cpu"))
    if "cuda" in there:
        yield "cuda", Hardware(("cuda", "cpu"))
        yield "cuda graphs", Hardware(("cuda", "cpu"), cuda_graphs=True)
    if "tensorrt" in there:
        yield "tensorrt", Hardware(("tensorrt", "cuda", "cpu"))
        yield "tensorrt fp16", Hardware(("tensorrt", "cuda", "cpu"), fp16=True)


def measure(name: str, what: str, path: Path, hardware: Hardware, arguments: argparse.Namespace) -> Measured:
    """Load the graph, compare its answers with those in the arguments' `expected`, and time its runs."""
    began = time.perf_counter()
    session = Session(path, InferenceOptions(intra_op_threads=arguments.threads), hardware)
    load_s = time.perf_counter() - began
    shape = GRAPHS[name][1]
    exact = arguments.expected[name]
    found = np.asarray(session.run({"x": sample(len(exact), shape)})[0])
    error = float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))
    times = {rows: _timed(session, sample(rows, shape), arguments.seconds) for rows in arguments.rows}
    run_us, cpu_us = ({rows: both[which] for rows, both in times.items()} for which in (0, 1))
    megabytes = path.stat().st_size / 1e6
    return Measured(name, what, dict(session.nodes), run_us, cpu_us, error, load_s, megabytes, session.warnings)


def _timed(session: Session, x: Floats, seconds: float) -> tuple[float, float]:
    """The median of the clock and the least CPU time."""
    for _ in range(3):  # TensorRT builds an engine, CUDA records a graph
        session.run({"x": x})
    taken: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < RUNS_MIN or (time.perf_counter() < end and len(taken) < RUNS_MAX):
        began, began_cpu = time.perf_counter(), time.process_time()
        session.run({"x": x})
        cpu.append(time.process_time() - began_cpu)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6, min(cpu) * 1e6


def run(arguments: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    """Every graph on everything."""
    arguments.expected = {}
    for name, (build, shape) in GRAPHS.items():
        path = folder / f"{name}.onnx"
        onnx.save(build(), path)
        plain = Session(path, InferenceOptions(), Hardware(("cpu",)))
        arguments.expected[name] = np.asarray(plain.run({"x": sample(256, shape)})[0])
        versions = [("float32", path), *quantised(path, shape)]
        for kind, hardware in kinds():
            for precision, file in versions:
                if precision != "float32" and kind not in {"cpu", "openvino", "tensorrt"}:
                    continue
                if precision == "int8 static" and kind == "tensorrt":
                    hardware = Hardware(hardware.providers, int8=True)  # noqa: PLW2901 - the same, in int8
                try:
                    yield measure(name, f"{kind} {precision}", file, hardware, arguments)
                except SessionError as error:
                    print(f"{name} {kind} {precision}: {error}")


def line(one: Measured) -> str:
    """One row of the table."""
    nodes = ", ".join(f"{provider} {count}" for provider, count in one.nodes.items())
    times = [f"{one.run_us[rows]:,.0f} ({one.cpu_us[rows]:,.0f})" for rows in one.run_us]
    cells = [one.graph, one.runs_on, *times, f"{one.error:.2%}", f"{one.megabytes:.1f}", f"{one.load_s:.2f}", nodes]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: [int(one) for one in text.split(",")], default=[1, 64, 1024])
    parser.add_argument("--seconds", type=float, default=1.0, help="of runs for each batch size")
    parser.add_argument("--threads", type=int, default=1, help="inside one run")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser's advice is for graphs of unknown shapes
    print(f"onnxruntime {onnxruntime.__version__}, {platform.machine()}, threads: {arguments.threads}")
    times = [f"{rows} rows, µs (of CPU)" for rows in arguments.rows]
    print(f"| graph | on | {' | '.join(times)} | error | MB | load, s | nodes |")
    print("|" + "---|" * (len(times) + 6))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for one in run(arguments, Path(folder)):
            found.append(one)
            print(line(one), *one.warnings, flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


if __name__ == "__main__":
    main()
