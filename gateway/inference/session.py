"""One ONNX graph, loaded on the hardware that was asked for, and tried out.

    Hardware ─▶ resolve ─▶ load ─(a provider fails)─▶ load without it ─▶ what it really runs on ─▶ shortfall?
                                                                                      refused │ warned

What a session runs on is read from it after the load and compared with what was asked: ONNX Runtime itself goes on
without a provider that does not start, or puts nodes elsewhere, and says so only in its log. Here it is `warnings`,
or a refusal.
"""

import contextlib
import importlib
import io
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime

from gateway.inference.batching import by_rows, shapes
from gateway.inference.binding import CUDA, DeviceRuns
from gateway.inference.faults import explained, is_for_option, shortened
from gateway.inference.placement import SWITCH, Placement
from gateway.inference.providers import Hardware, HardwareError, Resolved, full_name, resolve, short_name
from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec

log = logging.getLogger(__name__)

_TRIAL_RUNS = 5
_WITH_DEVICE_MEMORY = ("tensorrt", "cuda")
_GRAPH_OPTIONS = ("enable_cuda_graph", "trt_cuda_graph_enable")
_LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}


class SessionError(Exception):
    """A graph that cannot be loaded or does not behave; the message says why and what to do."""


class WrongRows(SessionError):
    """An output has not one entry for each row."""


@dataclass(frozen=True, slots=True)
class InferenceOptions:
    """How graphs are run."""

    intra_op_threads: int = 1
    """Threads inside one run. More than one makes small models slower and takes cores from the loop."""
    trial_rows: int = 64
    """Rows of the trial run at load, which also measures what a row costs."""
    inline_max_us: int = 200
    """A run predicted to take longer goes to a worker thread, microseconds."""
    memory_max_mb: int = 0
    """Memory that graphs may take on the CPU, those of all models together, their weights included, MiB. A run that
    needs more fails, and only that run. They share one arena then. 0: no limit. It cannot be changed while the server
    runs."""
    engine_cache: Path | None = None
    """A folder in which TensorRT keeps the engines that it has built; without it each start builds them again."""
    check_in_process: bool = True
    """Load and try out a model that is to replace one that serves in a process of its own first, so that a graph which
    crashes, hangs or takes all memory never does so in the server. Costs about half a second a model."""
    check_memory_mb: int = 4096
    """Memory that this process may take for a model on the CPU, MiB."""
    check_timeout_s: float = 120.0
    """How long it may take, seconds. Building TensorRT engines takes minutes."""
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if self.intra_op_threads < 1:
            raise ValueError("intra_op_threads must be at least 1")
        if self.trial_rows < 2:  # noqa: PLR2004 - one row would hide an output that has no row dimension
            raise ValueError("trial_rows must be at least 2")
        if self.inline_max_us < 0:
            raise ValueError("inline_max_us must not be negative")
        if self.memory_max_mb < 0:
            raise ValueError("memory_max_mb must not be negative")
        if self.check_memory_mb < 1:
            raise ValueError("check_memory_mb must be at least 1")
        if self.check_timeout_s <= 0:
            raise ValueError("check_timeout_s must be positive")


class Session:
    """An ONNX Runtime session. Building it takes long and releases the GIL; do it in a thread.

    `providers` are those that the session has, by short name, the preferred one first, and `asked` those that were
    asked for; `nodes` counts the graph's nodes by the provider that runs them and is empty where ONNX Runtime cannot
    tell; `warnings` says what is less than asked.
    """

    def __init__(self, path: Path, options: InferenceOptions, hardware: Hardware | None = None) -> None:
        hardware = hardware or options.hardware
        cache = "" if options.engine_cache is None else str(options.engine_cache)
        try:
            resolved = resolve(
                hardware,
                onnxruntime.get_available_providers(),
                threads=hardware.intra_op_threads or options.intra_op_threads,
                engine_cache=cache,
            )
        except HardwareError as error:
            raise SessionError(f"asks for hardware that is not there: {error}") from error
        _load_libraries(resolved)
        self._session, failed = _open(path, _settings(options, hardware), resolved, require=hardware.require)
        self.asked = resolved.asked
        self.providers = tuple(short_name(name) for name in self._session.get_providers())
        placement = Placement.of(self._session)
        self.nodes = placement.nodes
        shortfall = placement.shortfall(resolved, self.providers, failed)
        if shortfall and hardware.require:
            raise SessionError(f"would run on less than asked (require: true): {'; '.join(shortfall)}")
        self.warnings = (*resolved.missing, *failed.values(), *shortfall)
        self.signature = Signature(
            tuple(_spec(node) for node in self._session.get_inputs()),
            tuple(_spec(node) for node in self._session.get_outputs()),
        )
        self._outputs = [spec.name for spec in self.signature.outputs]
        self._device = self._bound(hardware)

    @property
    def on_asked(self) -> bool:
        """Whether it runs on all that was asked for."""
        return not self.warnings

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the graph; the outputs come in the order of the signature."""
        if self._device is not None:
            return self._device.run(inputs)
        return self._session.run(self._outputs, inputs)  # type: ignore[no-any-return]  # onnxruntime is untyped here

    def run_beside(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """The same for somebody whom no other run may wait for: without the arrays on the device that runs share."""
        return self._session.run(self._outputs, inputs)  # type: ignore[no-any-return]  # onnxruntime is untyped here

    def try_out(self, inputs: Mapping[str, Array], rows: int) -> float:
        """Run once to warm up and some more times to measure; check that every output has one entry per row.

        Returns the CPU seconds of the shortest run. Raises SessionError, and `WrongRows` for what an output is.
        """
        try:
            outputs = self.run(inputs)
            wrong = not by_rows(outputs, rows)
            seconds = 0.0 if wrong else min(self._timed(inputs) for _ in range(_TRIAL_RUNS))
        except Exception as error:
            raise SessionError(f"a trial run of {rows} rows raises {explained(str(error))}") from error
        if wrong:
            at = next(index for index, output in enumerate(outputs) if not by_rows([output], rows))
            raise WrongRows(
                f"output {self._outputs[at]} has the shape {shapes([outputs[at]])} for {rows} rows; "
                "its first dimension must be the rows"
            )
        return seconds

    def _timed(self, inputs: Mapping[str, Array]) -> float:
        began = time.thread_time()
        self.run(inputs)
        return time.thread_time() - began

    def _bound(self, hardware: Hardware) -> DeviceRuns | None:
        """Runs with bound buffers, where the device has memory of its own and takes part in this graph."""
        specs = (*self.signature.inputs, *self.signature.outputs)
        device = next((name for name in self.providers if name in _WITH_DEVICE_MEMORY), None)
        if device is None or any(spec.dtype == "string" for spec in specs):
            return None
        if self.nodes and not any(self.nodes.get(name) for name in _WITH_DEVICE_MEMORY):
            return None
        used = self._session.get_provider_options().get(full_name(device), {})
        recorded = hardware.cuda_graphs and any(used.get(option) == "1" for option in _GRAPH_OPTIONS)
        device_id = int(used.get("device_id", hardware.device_id))
        return DeviceRuns(self._session, self.signature, CUDA, device_id, recorded=recorded)


def _settings(options: InferenceOptions, hardware: Hardware) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = hardware.intra_op_threads or options.intra_op_threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what is an error there is raised as well
    settings.graph_optimization_level = _LEVELS[hardware.graph_optimization]
    settings.enable_cpu_mem_arena = hardware.arena
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    settings.add_session_config_entry(*SWITCH)
    if options.memory_max_mb:
        _bound_memory(options.memory_max_mb)
        settings.add_session_config_entry("session.use_env_allocators", "1")
    if any(name == "directml" for name, _ in hardware.asked):
        settings.enable_mem_pattern = False  # DirectML refuses it
    return settings


def _open(
    path: Path, settings: Any, resolved: Resolved, *, require: bool
) -> tuple["onnxruntime.InferenceSession", dict[str, str]]:
    """Load the graph with as many of the providers as work; also what failed, by provider.

    A provider may refuse a graph that ONNX Runtime otherwise runs. What then fails on the CPU too is the graph's fault.
    """
    failed: dict[str, str] = {}
    while True:
        try:
            return _load(path, settings, resolved), failed
        except Exception as error:
            message = explained(str(error))
            if not resolved.accelerated:
                raise SessionError(f"ONNX Runtime cannot load it: {message}") from error
            name, options = resolved.providers[0]
            if is_for_option(str(error)):
                raise SessionError(f"{name}: {message}") from error
            if require:
                raise SessionError(f"{name} cannot load it, and it is required (require: true): {message}") from error
        if any(option in options for option in _GRAPH_OPTIONS):
            failed["cuda graphs"] = f"CUDA graphs are off: {message}"
            resolved = resolved.without_options(_GRAPH_OPTIONS)
        else:
            failed[name] = f"{name} cannot load it: {message}"
            resolved = resolved.without_first()


def _load(path: Path, settings: Any, resolved: Resolved) -> "onnxruntime.InferenceSession":
    providers = [(full_name(name), options) for name, options in resolved.providers]
    # From the path and not from bytes: parsing bytes holds the GIL for as long as it takes. Without its own fallback,
    # which prints and goes on on the CPU, at the load and at any later run.
    return onnxruntime.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)


def _load_libraries(resolved: Resolved) -> None:
    """Load NVIDIA's libraries from their wheels, where they are; what the system has is found without that."""
    names = [name for name, _ in resolved.providers]
    if "cuda" not in names and "tensorrt" not in names:
        return
    if "tensorrt" in names:
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
    if hasattr(onnxruntime, "preload_dlls"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
        if said.getvalue():
            log.debug("onnxruntime.preload_dlls: %s", shortened(said.getvalue()))


_memory_lock = threading.Lock()
_memory_mb = 0


def _bound_memory(limit_mb: int) -> None:
    """Give the process one arena of bounded size, once; ONNX Runtime cannot change it afterwards."""
    global _memory_mb  # noqa: PLW0603 - the arena is the process's own: ONNX Runtime has one environment
    with _memory_lock:
        if _memory_mb == limit_mb:
            return
        if _memory_mb:
            raise SessionError(f"memory_max_mb is {_memory_mb} in this process already; a change needs a restart")
        memory = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        )
        as_requested, first_mb, chunk = 1, 1, -1
        arena = onnxruntime.OrtArenaCfg(limit_mb << 20, as_requested, first_mb << 20, chunk)
        onnxruntime.create_and_register_allocator(memory, arena)
        _memory_mb = limit_mb


def _spec(node: "onnxruntime.NodeArg") -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise SessionError(f"{node.name} is a {node.type}, only tensors can be served; {_advice(node.type)}")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, dtype, shape, tuple(size if isinstance(size, str) else "" for size in node.shape))


def _advice(kind: str) -> str:
    if "map" in kind:
        return "export it with ZipMap off (options={'zipmap': False})"
    if kind.startswith("seq"):
        return "join the sequence to one tensor in the graph (ConcatFromSequence)"
    if kind.startswith("tensor"):
        return f"and of the dtypes {', '.join(_DTYPES.values())}; cast it in the graph"
    return "give a tensor in its place"
