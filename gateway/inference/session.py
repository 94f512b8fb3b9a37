"""One ONNX graph, loaded and tried out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec

_TRIAL_RUNS = 5
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


@dataclass(frozen=True, slots=True)
class InferenceOptions:
    """How graphs are run."""

    intra_op_threads: int = 1
    """Threads inside one run. More than one makes small models slower and takes cores from the loop."""
    trial_rows: int = 64
    """Rows of the trial run at load, which also measures what a row costs."""
    inline_max_us: int = 200
    """A run predicted to take longer goes to a worker thread, microseconds."""

    def __post_init__(self) -> None:
        if self.intra_op_threads < 1:
            raise ValueError("intra_op_threads must be at least 1")
        if self.trial_rows < 2:  # noqa: PLR2004 - one row would hide an output that has no row dimension
            raise ValueError("trial_rows must be at least 2")
        if self.inline_max_us < 0:
            raise ValueError("inline_max_us must not be negative")


class Session:
    """An ONNX Runtime session on the CPU. Building it takes long and releases the GIL; do it in a thread."""

    def __init__(self, path: Path, options: InferenceOptions) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.intra_op_threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # From the path and not from bytes: parsing bytes holds the GIL for as long as it takes.
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise SessionError(f"ONNX Runtime cannot load it: {error}") from error
        self.signature = Signature(
            tuple(_spec(node) for node in self._session.get_inputs()),
            tuple(_spec(node) for node in self._session.get_outputs()),
        )
        self._outputs = [spec.name for spec in self.signature.outputs]

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the graph; the outputs come in the order of the signature."""
        return self._session.run(self._outputs, inputs)  # type: ignore[no-any-return]  # onnxruntime is untyped here

    def try_out(self, inputs: Mapping[str, Array], rows: int) -> float:
        """Run once to warm up and some more times to measure; check that every output has one entry per row.

        Returns the CPU seconds of the shortest run.
        """
        try:
            outputs = self.run(inputs)
            seconds = min(self._timed(inputs) for _ in range(_TRIAL_RUNS))
        except Exception as error:
            raise SessionError(f"a trial run of {rows} rows raises {error}") from error
        for spec, output in zip(self.signature.outputs, outputs, strict=True):
            if np.shape(output)[:1] != (rows,):
                raise SessionError(
                    f"output {spec.name} has the shape {list(np.shape(output))} for {rows} rows; "
                    "its first dimension must be the rows"
                )
        return seconds

    def _timed(self, inputs: Mapping[str, Array]) -> float:
        began = time.thread_time()
        self.run(inputs)
        return time.thread_time() - began


def _spec(node: "onnxruntime.NodeArg") -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        advice = "; export it with ZipMap off (options={'zipmap': False})" if "map" in node.type else ""
        raise SessionError(f"{node.name} is a {node.type}, only tensors can be served{advice}")
    return TensorSpec(node.name, dtype, tuple(size if isinstance(size, int) else None for size in node.shape))
