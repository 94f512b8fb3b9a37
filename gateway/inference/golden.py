"""The golden example of a version: inputs with known outputs in `golden.json` beside the graph. Who fails never serves.

    {"inputs": {"x": [[0.5, 1.0]]}, "outputs": {"score": [[0.25]]}, "rtol": 1e-4, "atol": 1e-6}

`inputs` are by the graph's own names and have to be all of them. `outputs` may name some, or be left out: then the
example says only that the run must not fail and must not give NaN or infinity.
"""

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.inference.model import Refused
from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec

GOLDEN_BYTES_MAX = 16 << 20
_KEYS = {"inputs", "outputs", "rtol", "atol"}
_RTOL, _ATOL = 1e-4, 1e-5


@dataclass(frozen=True, slots=True)
class Golden:
    """An example that was read: arrays by name, and how far an output may be from the expected one."""

    file: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rtol: float
    atol: float

    def check(self, signature: Signature, given: Sequence[Array]) -> None:
        """Compare what a run gave, in the order of the signature. Raises Refused."""
        for spec, array in zip(signature.outputs, given, strict=True):
            values = np.asarray(array)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                count = values.size - int(np.isfinite(values).sum())
                raise Refused(f"{self.file}: {count} of {values.size} values of output {spec.name} are NaN or infinite")
            expected = self.outputs.get(spec.name)
            if expected is not None:
                self._compare(spec, values, expected)

    def _compare(self, spec: TensorSpec, values: Array, expected: Array) -> None:
        if values.shape != expected.shape:
            shapes = f"{list(values.shape)}, expected is {list(expected.shape)}"
            raise Refused(f"{self.file}: output {spec.name} has the shape {shapes}")
        if values.dtype.kind != "f":
            if not np.array_equal(values, expected):
                raise Refused(f"{self.file}: output {spec.name} is not what is expected")
            return
        wrong = ~np.isclose(values, expected, rtol=self.rtol, atol=self.atol)
        if wrong.any():
            at = tuple(int(index[0]) for index in np.nonzero(wrong))
            raise Refused(
                f"{self.file}: output {spec.name}{list(at)} is {values[at]:.7g}, expected is {expected[at]:.7g} "
                f"(rtol {self.rtol:g}, atol {self.atol:g}; {int(wrong.sum())} of {values.size} values differ)"
            )


def read(path: Path, signature: Signature) -> Golden | None:
    """The example at `path`; None where there is none. Raises Refused for one that is wrong."""
    file = path.name
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{file} is no regular file")
        if found.st_size > GOLDEN_BYTES_MAX:
            raise Refused(f"{file} is larger than {GOLDEN_BYTES_MAX >> 20} MiB")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), dict):
        raise Refused(f'{file} has to be {{"inputs": {{name: values}}, "outputs": {{name: values}}}}')
    unknown = content.keys() - _KEYS
    if unknown:
        raise Refused(f"{file}: {', '.join(sorted(unknown))} is not known; there are: {', '.join(sorted(_KEYS))}")
    specs = {spec.name: spec for spec in signature.inputs}
    if content["inputs"].keys() != specs.keys():
        raise Refused(f"{file}: inputs has to name the graph's inputs ({', '.join(specs)}), and has {_names(content)}")
    outputs = content.get("outputs", {})
    known = {spec.name: spec for spec in signature.outputs}
    if not isinstance(outputs, dict) or not outputs.keys() <= known.keys():
        raise Refused(f"{file}: outputs may name the graph's outputs only: {', '.join(known)}")
    return Golden(
        file,
        {name: _array(file, specs[name], values) for name, values in content["inputs"].items()},
        {name: _array(file, known[name], values) for name, values in outputs.items()},
        _tolerance(file, content, "rtol", _RTOL),
        _tolerance(file, content, "atol", _ATOL),
    )


def _array(file: str, spec: TensorSpec, values: Any) -> Array:
    try:
        array: Array = np.array(values, dtype=object if spec.dtype == "string" else spec.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused(f"{file}: the values of {spec} cannot be read: {error}") from error
    if array.dtype.kind in "iub":
        given = np.array(values)
        if given.dtype.kind in "OUS" or not np.array_equal(given, array):
            raise Refused(f"{file}: a value of {spec} is not {spec.dtype}; nothing is cut off")
    if spec.dtype == "string" and not all(isinstance(value, str) for value in array.ravel()):
        raise Refused(f"{file}: the values of {spec} have to be strings")
    fits = array.ndim == len(spec.shape) and all(
        wanted is None or wanted == size for wanted, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits and spec.shape:
        raise Refused(f"{file}: the values of {spec} have the shape {list(array.shape)}")
    return array


def _tolerance(file: str, content: Mapping[str, Any], name: str, default: float) -> float:
    value = content.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise Refused(f"{file}: {name} has to be a number that is not negative")
    return float(value)


def _names(content: Mapping[str, Any]) -> str:
    return ", ".join(content["inputs"]) or "none"
