"""Runs of a session whose device has memory of its own, with buffers that stay.

    arrays ─▶ pinned host memory ─▶ device inputs ═ run ═▶ outputs in pinned host memory ─▶ arrays

A shape of the inputs has a slot with its buffers; batch sizes come from few buckets, so there are few. A new shape
beyond `_SLOTS_MAX` takes the place of the one that was used longest ago. With CUDA graphs a slot's first run records
its kernels and the later ones replay them; the outputs stay on the device then, as the recording has their addresses.

Invariants
- One run at a time: the buffers of a slot are written in place. Callers get copies.
- Outputs are bound to buffers only where their shape follows from the inputs' shapes; ONNX Runtime makes them
  elsewhere.
- Memory that cannot be pinned is used as it is: slower, never wrong.
"""

import ctypes
import logging
import math
import mmap
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from gateway.records.request import Array
from gateway.records.signature import Signature

log = logging.getLogger(__name__)

_SLOTS_MAX = 32
CUDA = "cuda"
"""What ONNX Runtime calls the memory of an NVIDIA device."""
_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every CUDA context of the process."""
_NOT_RECORDED = "-1"
"""The graph id of a run that is neither recorded nor replayed."""

_Shapes = tuple[tuple[int, ...], ...]


class DeviceRuns:
    """Runs a session through bound buffers."""

    def __init__(
        self, session: Any, signature: Signature, device: str, device_id: int, *, recorded: bool = False
    ) -> None:
        self._session = session
        self._names = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._device = (device, device_id)
        self._recorded = recorded
        self._fixed = _follows(session)
        self._slots: OrderedDict[_Shapes, _Slot] = OrderedDict()
        self._made = 0
        self._lock = threading.Lock()
        if recorded and not self._fixed:
            log.warning("CUDA graphs are off: the shape of an output does not follow from the shapes of the inputs")
            self._recorded = False

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the graph; the arrays are the caller's own."""
        arrays = [inputs[name] for name in self._names]
        shapes = tuple(array.shape for array in arrays)
        with self._lock:
            slot = self._slots.get(shapes)
            if slot is None:
                return self._first(shapes, arrays)
            self._slots.move_to_end(shapes)
            if not self._fixed:
                slot.free(self._outputs)
            slot.fill(arrays)
            self._session.run_with_iobinding(slot.binding, slot.options)
            return slot.outputs()

    def _first(self, shapes: _Shapes, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run a shape for the first time: it shows the shapes of the outputs, which the later runs write in place."""
        if len(self._slots) >= _SLOTS_MAX:
            self._slots.popitem(last=False)
        slot = _Slot(self._session, self._names, arrays, self._device)
        slot.options = _options(_NOT_RECORDED) if self._recorded else None
        slot.free(self._outputs)
        slot.fill(arrays)
        self._session.run_with_iobinding(slot.binding, slot.options)
        outputs = slot.outputs()
        if self._fixed:
            # A slot that is given up leaves its recording in the session; a number is never used twice. When as many
            # recordings were made as there may be slots, what comes then runs without one.
            recorded = self._recorded and self._made < _SLOTS_MAX
            slot.keep(self._outputs, outputs, on_device=recorded)
            if recorded:
                slot.options = _options(str(self._made + 1))
                self._made += 1
        self._slots[shapes] = slot
        return outputs


class _Slot:
    """The buffers of one shape."""

    def __init__(self, session: Any, names: Sequence[str], arrays: Sequence[Array], device: tuple[str, int]) -> None:
        self.binding = session.io_binding()
        self.options: Any = None
        self._device = device
        self._staged = [_pinned(array.shape, array.dtype, device) for array in arrays]
        self._inputs = [onnxruntime.OrtValue.ortvalue_from_numpy(staged, *device) for staged in self._staged]
        self._kept: list[Array] = []
        for name, value in zip(names, self._inputs, strict=True):
            self.binding.bind_ortvalue_input(name, value)

    def fill(self, arrays: Sequence[Array]) -> None:
        for array, staged, value in zip(arrays, self._staged, self._inputs, strict=True):
            np.copyto(staged, array, casting="no")
            value.update_inplace(staged)

    def free(self, names: Sequence[str]) -> None:
        """Let ONNX Runtime make the outputs of the next run; a binding keeps those of the last run."""
        for name in names:
            self.binding.bind_output(name, *self._device)

    def keep(self, names: Sequence[str], outputs: Sequence[Array], *, on_device: bool) -> None:
        """Bind outputs of these shapes to buffers that stay, in pinned memory or on the device."""
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        for name, output in zip(names, outputs, strict=True):
            if on_device:
                self.binding.bind_ortvalue_output(name, make(output.copy(), *self._device))
            else:
                buffer = _pinned(output.shape, output.dtype, self._device)
                self._kept.append(buffer)
                self.binding.bind_ortvalue_output(name, make(buffer))

    def outputs(self) -> Sequence[Array]:
        if self._kept:
            return [buffer.copy() for buffer in self._kept]
        return [np.array(value.numpy()) for value in self.binding.get_outputs()]


def _options(graph: str) -> Any:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options


def _follows(session: Any) -> bool:
    """Whether the shape of every output follows from those of the inputs: by number, or by the name of a dimension."""
    named = {size for node in session.get_inputs() for size in node.shape if isinstance(size, str)}
    return all(isinstance(size, int) or size in named for node in session.get_outputs() for size in node.shape)


def _pinned(shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[str, int]) -> Array:
    """An array in pinned host memory, or an ordinary one where that is not to be had."""
    bytes_ = dtype.itemsize * math.prod(shape)
    runtime = _runtime() if device[0] == CUDA else None
    if runtime is None or not bytes_:
        return np.empty(shape, dtype)
    # Pages of its own: a page can be pinned once only.
    flat = np.frombuffer(mmap.mmap(-1, bytes_), np.uint8)
    address = ctypes.c_void_p(flat.ctypes.data)
    runtime.cudaSetDevice(device[1])
    if runtime.cudaHostRegister(address, ctypes.c_size_t(bytes_), _PORTABLE) == 0:
        # On the array and not on its pages: an array tells of its end before it lets them go.
        weakref.finalize(flat, runtime.cudaHostUnregister, address).atexit = False
    else:
        runtime.cudaGetLastError()  # it would be found by ONNX Runtime's next check, and blamed on a kernel
        log.warning("memory for a model's inputs and outputs cannot be pinned; copies to the device are slower")
    return flat.view(dtype).reshape(shape)


def _runtime() -> ctypes.CDLL | None:
    """The CUDA runtime that ONNX Runtime's provider has loaded."""
    for name in _CUDA_RUNTIMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
