"""A ModelInferRequest with holes; see `gateway.server.forms` for what a form is and why it is right.

The holes are the entries of raw_input_contents and the id. Shapes, datatypes, names, parameters and the outputs asked
for are what has to be the same. So a hole of numbers that go to the graph as they are is bound by being cut out.
"""

from collections.abc import Callable, Sequence
from typing import Any

from gateway.inference.model import Model
from gateway.plan.column import array_dtype
from gateway.plan.plan import Plan
from gateway.records.request import Caller, Id, Request
from gateway.server import wire
from gateway.server.forms import FIXED_FROM
from gateway.server.oip import datatypes
from gateway.server.oip.caller import Styled
from headrace.inference import grpc_service_pb2 as pb

_FIELD = wire.numbers(pb.ModelInferRequest)
_FIXED_BYTES_MAX = 2048
"""Comparing and keeping more costs what decoding does."""
_LENGTH_BYTES = 4
"""In front of an element of BYTES. They stay out of the hole: its size is the form's, so they never vary."""
_INTEGER_BYTES = 8


class InferForm:
    """One request with holes."""

    __slots__ = ("_cut", "_ids", "_order", "_request_id", "_rest", "_rows", "around", "fixed", "model")
    BYTES_MAX = 65536
    """A larger request is learnt from no more: copying its elements is most of the work."""

    @staticmethod
    def fits(request: Request) -> bool:
        """Numbers for the graph's inputs, or the ids of one row."""
        return (request.rows == 1 or bool(request.shape)) and type(request.caller) is not Styled

    @classmethod
    def of(cls, payload: bytes, model: Model, request: Request) -> "InferForm | None":
        """The form of a request that was bound; None when it can be none."""
        try:
            form = cls(payload, model, request)
        except (wire.Unusual, IndexError, ValueError):
            return None
        # What stands in the request is not what was bound when it had to be cast. Then there is no form.
        return form if form.request(request.caller, payload, request.arrived, request.deadline) == request else None

    def __init__(self, payload: bytes, model: Model, request: Request) -> None:
        message = pb.ModelInferRequest.FromString(payload)
        if "timeout" in message.parameters or not message.raw_input_contents:
            raise wire.Unusual
        spans, request_id = _spans(payload)
        names = [tensor.name for tensor in message.inputs]
        kinds = [datatypes.BY_NAME[tensor.datatype] for tensor in message.inputs]
        holes = {name: _hole(kind, span) for name, kind, span in zip(names, kinds, spans, strict=True)}
        plan = model.plan
        if request.shape:
            # Which inputs the graph has, and of which datatypes, has been checked; here they come in its order.
            order = [spec.name for spec in model.signature.inputs]
            ids: list[Callable[[wire.Holes], Sequence[Id]]] = []
        else:
            order = [column.name for column in plan.context]
            if any(datatypes.of_array(array_dtype(c.dtype)) is not kinds[names.index(c.name)] for c in plan.context):
                raise wire.Unusual
            ids = _ids(plan, names, kinds)
        if any(kinds[names.index(name)].name in {"BYTES", "BOOL"} for name in order):
            raise wire.Unusual  # not any bytes are such elements
        cuts = [holes[name] for name in names]
        varying = sorted([*cuts, *([request_id] if request_id else [])])
        edges = [0, *(edge for span in varying for edge in span), len(payload)]
        self.around = wire.cutter(list(zip(edges[::2], edges[1::2], strict=True)))
        self.fixed = self.around(payload)
        if sum(map(len, self.fixed)) > _FIXED_BYTES_MAX:
            raise wire.Unusual
        self.model = model
        self._ids = ids
        self._order = wire.cutter([holes[name] for name in order])
        self._cut = wire.cutter(cuts) if ids else None
        self._request_id = slice(*request_id) if request_id else None
        self._rows = request.rows
        self._rest = request[FIXED_FROM:]

    def request(self, caller: Caller, payload: bytes | memoryview, arrived: float, deadline: float) -> Request | None:
        """The request of a payload that fits. None when a hole holds what it may not."""
        ids: tuple[Sequence[Id], ...] = ()
        try:
            request_id = "" if self._request_id is None else str(payload[self._request_id], "utf-8")
            context = self._order(payload)[:-1]  # without the empty end that makes it a tuple
            if self._cut is not None:
                holes = self._cut(payload)
                ids = tuple([column(holes) for column in self._ids])
        except ValueError:
            return None
        # What the constructor does, without the call of a Python function.
        return tuple.__new__(
            Request, (caller, self.model.name, request_id, arrived, deadline, self._rows, ids, context, *self._rest)
        )


def _spans(payload: bytes) -> tuple[list[wire.Span], wire.Span | None]:
    """Where the raw contents and the id stand."""
    spans: list[wire.Span] = []
    request_id: wire.Span | None = None
    for number, _, span in wire.fields(payload, (0, len(payload))):
        if number == _FIELD["raw_input_contents"]:
            spans.append(span)
        elif number == _FIELD["id"]:
            if request_id is not None:
                raise wire.Unusual
            request_id = span
    return spans, request_id


def _hole(kind: datatypes.Datatype, span: wire.Span) -> wire.Span:
    start, end = span
    return (start + _LENGTH_BYTES, end) if kind.name == "BYTES" else span


def _ids(plan: Plan, names: list[str], kinds: list[datatypes.Datatype]) -> list[Callable[[wire.Holes], Sequence[Id]]]:
    """How the ids of each view are made from the holes, which come in the order of the inputs."""

    def part(key: str) -> tuple[int, Callable[[Any], str | int]]:
        place = names.index(key)
        wanted = "INT64" if plan.entities[key] == "int64" else "BYTES"
        if kinds[place].name != wanted:
            raise wire.Unusual
        return place, _integer if wanted == "INT64" else wire.text

    def column(keys: Sequence[str]) -> Callable[[wire.Holes], Sequence[Id]]:
        parts = [part(key) for key in keys]
        place, decode = parts[0]
        if len(parts) == 1:
            return lambda holes: [decode(holes[place])]
        return lambda holes: [tuple([decode(holes[place]) for place, decode in parts])]

    return [column(binding.keys) for binding in plan.bindings]


def _integer(hole: bytes) -> int:
    if len(hole) != _INTEGER_BYTES:
        raise ValueError("not one int64")
    return int.from_bytes(hole, "little", signed=True)
