"""The plan of a model whose callers send the graph's own inputs: nothing is looked up, names and shapes are checked.

    asked.context: arrays by input name ──bind──▶ bytes (or str) of each input, and the shape of its rows
    requests of equal row shapes ──assemble──▶ one array per input, the requests' rows one after the other

A graph is *batched* when the first dimension of each of its inputs is the rows: free in all of them, or the same number
in all. Any other graph is run once per request, on the arrays as they are.

What else is checked of a shape: a dimension of size 0 ends the process in some operators of ONNX Runtime, and
dimensions to which the graph gives one name have to be equal.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, NoReturn

import numpy as np

from gateway.plan.column import PlanColumn
from gateway.plan.matrix import Matrix
from gateway.plan.plan import Assembled, Binding, Bound, ContextColumn, chosen_outputs
from gateway.records.errors import InvalidRequest, LimitExceeded
from gateway.records.request import Array, Asked, Request
from gateway.records.signature import Signature, TensorSpec

_rows_of = itemgetter(Request._fields.index("rows"))


def fixed_rows(signature: Signature) -> int | None:
    """The number that the graph fixes as the first dimension of all inputs; None where it fixes none."""
    firsts = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    return firsts.pop() if len(firsts) == 1 else None


def is_batched(signature: Signature) -> bool:
    """Whether the first dimension of the graph's inputs and outputs is the rows, as far as the graph tells.

    An output without a shape may be a scalar or of a shape that the graph does not tell; a trial run finds out.
    """
    firsts = {spec.shape[0] if spec.shape else -1 for spec in signature.inputs}
    if len(firsts) != 1 or firsts & {0, -1}:
        return False
    rows = firsts.pop()
    if {spec.names[0] for spec in signature.inputs if spec.names} & {
        name for spec in signature.inputs for name in spec.names[1:] if name
    }:
        return False  # as in a matrix of distances, [n, n]: more rows would be more columns
    return all(spec.shape[0] in {None, rows} for spec in signature.outputs if spec.shape)


class _Input(NamedTuple):
    """An input as requests are checked against it. `shape` is that of a row, or of the whole array."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...] | None
    """None where the graph does not tell, or takes a scalar."""
    spec: TensorSpec


class _Alike(NamedTuple):
    """Dimensions that the graph gives one name: (which input, which dimension of its row or of the whole)."""

    name: str
    places: tuple[tuple[int, int], ...]


class TensorPlan:
    """A graph's signature as a plan. Where `batched` the first dimension of each array is the rows of the request."""

    __slots__ = ("_alike", "_inputs", "_static", "batched", "bindings", "columns", "context", "entities", "matrices",
                 "model", "outputs", "steady")  # fmt: skip

    def __init__(self, model: str, signature: Signature, batched: bool) -> None:
        self.model = model
        self.batched = batched
        self._inputs = tuple(
            _Input(
                spec.name,
                np.dtype(object) if spec.dtype == "string" else np.dtype(spec.dtype),
                (spec.shape[1:] if batched else spec.shape) if spec.shape else None,
                spec,
            )
            for spec in signature.inputs
        )
        self.outputs = tuple(spec.name for spec in signature.outputs)
        shapes = [tuple(size for size in one.shape or () if size is not None) for one in self._inputs]
        self.steady = shapes == [one.shape for one in self._inputs]
        self._static = tuple(shapes) if self.steady else ()
        self._alike = _alike(signature, 1 if batched else 0)
        self.bindings: tuple[Binding, ...] = ()
        self.entities: Mapping[str, str] = {}
        self.context: tuple[ContextColumn, ...] = ()
        self.columns: Mapping[str, PlanColumn] = {}
        self.matrices: tuple[Matrix, ...] = ()

    def __repr__(self) -> str:
        return f"<TensorPlan {self.model} {', '.join(str(one.spec) for one in self._inputs)}>"

    def bind(self, asked: Asked, rows_max: int) -> Bound:
        """Check the names, dtypes and shapes of the arrays in `asked.context`; nothing is cast or broadcast."""
        tensors = asked.context
        if asked.entities or asked.overrides or len(tensors) != len(self._inputs):
            self._explain(asked)
        rows = 1
        packed: list[bytes | list[str]] = []
        shapes: list[tuple[int, ...]] = []
        for one in self._inputs:
            array = tensors.get(one.name)
            if array is None:
                self._explain(asked)
            shape = array.shape
            if self.batched:
                if not packed:
                    rows = shape[0] if shape else 0
                if not shape or shape[0] != rows or rows == 0:
                    self._explain_rows(asked)
                shape = shape[1:]
            if array.dtype != one.dtype or (shape != one.shape and not _matches(shape, one.shape)):
                self._explain_input(one, array)
            shapes.append(shape)
            packed.append([*array.ravel().tolist()] if one.dtype.hasobject else array.tobytes())
        self._check_alike(shapes, asked)
        if rows > rows_max:
            raise LimitExceeded(f"the request has {rows} rows, the limit rows_max is {rows_max}", limit="rows_max")
        chosen = chosen_outputs(self.model, self.outputs, asked.outputs) if asked.outputs else ()
        return Bound(rows, (), tuple(packed), (), chosen, self._static or tuple(shapes))

    def assemble(self, requests: Sequence[Request], stored: Sequence[Sequence[bytes]], now_ms: int) -> Assembled:
        """Put the rows of requests of equal shapes one after the other; `stored` is empty, nothing is looked up.

        Raises ValueError for several requests of a graph that has no rows.
        """
        if not self.batched and len(requests) != 1:
            raise ValueError(f"{len(requests)} requests in one run of a graph that has no rows")
        head = (sum(map(_rows_of, requests)),) if self.batched else ()
        shapes = requests[0].shape
        inputs = {
            one.name: _joined([request.context[index] for request in requests], one.dtype, (*head, *shapes[index]))
            for index, one in enumerate(self._inputs)
        }
        return Assembled(inputs, (), (), now_ms, None)

    def blank(self, rows: int) -> dict[str, Array]:
        """Inputs of zeros and empty strings, to try the graph out. Dimensions that are free are 1."""
        head = (rows,) if self.batched else ()
        return {
            one.name: np.full(
                (*head, *(1 if size is None else size for size in one.shape or ())),
                "" if one.dtype.hasobject else 0,
                one.dtype,
            )
            for one in self._inputs
        }

    def _explain(self, asked: Asked) -> NoReturn:
        """Say what is there that must not be, or is missing. Called only when something is."""
        needs = ", ".join(str(one.spec) for one in self._inputs)
        for field, given in (("entities", asked.entities), ("overrides", asked.overrides)):
            if given:
                raise InvalidRequest(
                    f"model {self.model} is asked with its graph's own inputs, so it takes no {field} "
                    f"(its inputs: {needs})",
                    field=field,
                )
        known = {one.name for one in self._inputs}
        for name in asked.context.keys() - known:
            raise InvalidRequest(f"model {self.model} has no input {name!r} (it takes: {needs})", field=name)
        missing = ", ".join(sorted(known - asked.context.keys()))
        raise InvalidRequest(f"input {missing} is missing (model {self.model} takes: {needs})", field="inputs")

    def _explain_rows(self, asked: Asked) -> NoReturn:
        shapes = {one.name: list(np.shape(asked.context.get(one.name, ()))) for one in self._inputs}
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InvalidRequest(
            f"the first dimension of every input is the rows, at least 1 and the same in all; these are {said}",
            field=self._inputs[0].name,
        )

    def _explain_input(self, one: _Input, array: Array) -> NoReturn:
        given = "string" if array.dtype.hasobject else array.dtype.name
        if array.dtype != one.dtype:
            raise InvalidRequest(
                f"input {one.name} is {given}, the graph takes {one.spec}; send {one.spec.dtype}, nothing is cast",
                field=one.name,
            )
        raise InvalidRequest(
            f"input {one.name} has the shape {list(array.shape)}, the graph takes {one.spec}"
            + (", and a dimension that it leaves free is at least 1" if 0 in array.shape else ""),
            field=one.name,
        )

    def _check_alike(self, shapes: Sequence[tuple[int, ...]], asked: Asked) -> None:
        for name, places in self._alike:
            if len({shapes[index][place] for index, place in places}) > 1:
                inputs = [self._inputs[index] for index in dict.fromkeys(index for index, _ in places)]
                said = ", ".join(f"{one.name} {list(asked.context[one.name].shape)}" for one in inputs)
                takes = ", ".join(_named(one.spec) for one in inputs)
                message = f"the dimension {name!r} is not the same: {said}; the graph takes {takes}"
                raise InvalidRequest(message, field=inputs[-1].name)


def _matches(shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    """Whether a shape is the graph's where that is fixed, and not 0 where it is not."""
    if wanted is None:
        return 0 not in shape
    return len(shape) == len(wanted) and all(
        given == size or (size is None and given > 0) for given, size in zip(shape, wanted, strict=True)
    )


def _alike(signature: Signature, skipped: int) -> tuple[_Alike, ...]:
    """The dimensions that are named more than once, but for the first `skipped` ones."""
    found: dict[str, list[tuple[int, int]]] = {}
    for index, spec in enumerate(signature.inputs):
        for place, name in enumerate(spec.names[skipped:]):
            if name:
                found.setdefault(name, []).append((index, place))
    return tuple(_Alike(name, tuple(places)) for name, places in found.items() if len(places) > 1)


def _named(spec: TensorSpec) -> str:
    shape = [name or ("?" if size is None else str(size)) for name, size in zip(spec.names, spec.shape, strict=True)]
    return f"{spec.name}: {spec.dtype}[{', '.join(shape)}]"


def _joined(parts: Sequence[bytes | list[str]], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    if dtype.hasobject:
        texts = np.empty(math.prod(shape), object)
        texts[:] = [*chain.from_iterable(parts)]
        return texts.reshape(shape)
    data = parts[0] if len(parts) == 1 else b"".join(parts)  # type: ignore[arg-type]  # lists were handled above
    return np.frombuffer(data, dtype).reshape(shape)  # type: ignore[arg-type]  # the same
