"""Requests that are alike, decoded by their difference.

A service sends the same request over and over with other ids in it. A *form* is such a request with holes: the bytes
of one that was decoded and bound in full, and the places where its ids, its context and its request id stand.

    payload ──▶ a form of its size has the same bytes around its holes ──▶ the holes are cut out and bound
            └─▶ none has: decoded in full by `codec`, and now and then learnt as another form

Why that is right: each hole is the whole content of one length-delimited field, and its length stands in the bytes that
are compared. So a payload that fits is, field by field, the form's message with other contents in the holes, and of the
contents that are let in (a string, one varint, the elements of a numeric tensor) none changes what stands around it.

Forms are learnt from requests of one row without overrides: the many small ones, of which decoding is most of the work.
What is unusual in a message (a field twice, several ids, a value that has to be cast) keeps it from being learnt, never
from being answered. A form belongs to the model that its request was bound to.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from gateway.inference import Model
from gateway.plan.column import array_dtype
from gateway.plan.plan import Binding
from gateway.records.request import Caller, Id, Request
from gateway.records.tensors import NUMPY
from gateway.server import wire
from headrace.v1 import prediction_pb2 as pb
from headrace.v1 import tensor_pb2

FORMS_MAX = 512
"""All forms. When there would be more, all are forgotten."""
FORMS_OF_A_SIZE_MAX = 8
"""They are tried one after the other."""
FORM_BYTES_MAX = 2048
"""A larger request is learnt from no more: comparing and keeping its bytes costs what decoding does."""
FIXED_FROM = Request._fields.index("overrides")
"""The fields of a request from which on all are the same in every request of a form."""
_LEARN_EVERY = 4
"""Learning takes several times as long as decoding, and not every request has another like it."""

_Field: TypeAlias = tuple[str, str]
"""`(entities, <column>)`, `(context, <column>)` or `(request_id, "")`."""


class Like(Protocol):
    """A form of some message."""

    model: Model
    around: Callable[[Any], wire.Holes]
    fixed: wire.Holes

    def request(self, caller: Caller, payload: bytes | memoryview, arrived: float, deadline: float) -> Request | None:
        """The request of a payload that fits. None when a hole holds what it may not."""
        ...


F = TypeVar("F", bound=Like)
F_co = TypeVar("F_co", bound=Like, covariant=True)


class Kind(Protocol[F_co]):
    """The class of a form."""

    BYTES_MAX: int

    @staticmethod
    def fits(request: Request) -> bool:
        """Requests like this one are worth a form."""
        ...

    @classmethod
    def of(cls, payload: bytes, model: Model, request: Request) -> F_co | None:
        """The form of a request that was bound; None when it can be none."""
        ...


class Forms(Generic[F]):
    """The forms that were learnt, all of one kind."""

    def __init__(self, kind: Kind[F]) -> None:
        self._kind = kind
        self._by_size: dict[int, list[F]] = {}
        self._count = 0
        self._misses = 0

    def __repr__(self) -> str:
        return f"<Forms {self._count}>"

    def find(self, payload: bytes | memoryview) -> F | None:
        """The form that a payload fits."""
        for form in self._by_size.get(len(payload), ()):
            if form.around(payload) == form.fixed:
                return form
        return None

    def learn(self, payload: bytes | memoryview, model: Model, request: Request) -> None:
        """Keep a request that was decoded in full as a form, now and then, if it can be one and there is room."""
        kind = self._kind
        if len(payload) > kind.BYTES_MAX or not isinstance(payload, bytes) or not kind.fits(request):
            return
        self._misses += 1
        known = self._by_size.get(len(payload), ())
        if self._misses % _LEARN_EVERY or len(known) >= FORMS_OF_A_SIZE_MAX:
            return
        form = kind.of(payload, model, request)
        if form is None:
            return
        if self._count >= FORMS_MAX:
            self.clear()
        self._by_size.setdefault(len(payload), []).append(form)
        self._count += 1

    def forget(self, names: Collection[str]) -> None:
        """Forget those of these models, all versions: which of them a request means has changed."""
        kept = {size: [form for form in forms if form.model.name not in names] for size, forms in self._by_size.items()}
        self._by_size = {size: forms for size, forms in kept.items() if forms}
        self._count = sum(map(len, self._by_size.values()))

    def clear(self) -> None:
        """Forget all of them, as when other models serve."""
        self._by_size.clear()
        self._count = 0


class Form:
    """One request with holes. `around` cuts out what is not a hole, and `fixed` is what that gives of this request."""

    __slots__ = ("_columns", "_context", "_holes", "_only", "_request_id", "_rest",
                 "around", "fixed", "model")  # fmt: skip
    around: Callable[[Any], wire.Holes]
    fixed: wire.Holes
    model: Model
    BYTES_MAX = FORM_BYTES_MAX

    @staticmethod
    def fits(request: Request) -> bool:
        """One row, and nothing overridden."""
        return request.rows == 1 and not request.overrides

    @classmethod
    def of(cls, payload: bytes, model: Model, request: Request) -> "Form | None":
        """The form of a request that was bound; None when it can be none."""
        try:
            form = cls(payload, model, request)
        except (wire.Unusual, IndexError, ValueError):  # a field of another type than its own ends anywhere
            return None
        # What stands in the request is not what was bound when it had to be cast. Then there is no form.
        return form if form.request(request.caller, payload, request.arrived, request.deadline) == request else None

    def __init__(self, payload: bytes, model: Model, request: Request) -> None:
        plan = model.plan
        found = _find_holes(payload, {column.name: array_dtype(column.dtype) for column in plan.context})
        spans = sorted(found.values())
        edges = [0, *(edge for span in spans for edge in span), len(payload)]
        if not spans:
            raise wire.Unusual
        self.around = wire.cutter(list(zip(edges[::2], edges[1::2], strict=True)))
        self.fixed = self.around(payload)
        self.model = model
        self._holes = wire.cutter(spans)
        places = {field: spans.index(span) for field, span in found.items()}
        integers = {name for name, dtype in plan.entities.items() if dtype == "int64"}
        self._columns = [_column(binding, places, integers) for binding in plan.bindings]
        self._context = [_place(places, ("context", column.name)) for column in plan.context]
        self._request_id = places.get(("request_id", ""))
        # The usual small request: one string, for one view.
        usual = len(spans) == 1 and len(self._columns) == 1 and not integers
        self._only = slice(*spans[0]) if usual else None
        self._rest = request[FIXED_FROM:]

    def request(self, caller: Caller, payload: bytes | memoryview, arrived: float, deadline: float) -> Request | None:
        """The request of a payload that fits. None when a hole holds what it may not; `codec` finds what to say."""
        at = self._request_id
        request_id = ""
        context: tuple[bytes, ...] = ()
        try:
            if self._only is not None:
                ids: tuple[Sequence[Id], ...] = ([str(payload[self._only], "utf-8")],)
            else:
                holes = self._holes(payload)
                request_id = "" if at is None else wire.text(holes[at])
                ids = tuple([column(holes) for column in self._columns])
                context = tuple([holes[place] for place in self._context])
        except ValueError:
            return None
        # What the constructor does, without the call of a Python function.
        return tuple.__new__(
            Request, (caller, self.model.name, request_id, arrived, deadline, 1, ids, context, *self._rest)
        )


def _place(places: dict[_Field, int], field: _Field) -> int:
    place = places.get(field)
    if place is None:
        raise wire.Unusual
    return place


def _column(binding: Binding, places: dict[_Field, int], integers: set[str]) -> Callable[[wire.Holes], Sequence[Id]]:
    """How the ids of a view are made from the holes."""
    parts = [
        (_place(places, ("entities", key)), wire.integer if key in integers else wire.text) for key in binding.keys
    ]
    place, decode = parts[0]
    if len(parts) == 1:
        return lambda holes: [decode(holes[place])]
    return lambda holes: [tuple([decode(holes[place]) for place, decode in parts])]


# ── Where the holes are ─────────────────────────────────────────────────────────────────────────────────────────────

_REQUEST, _COLUMN, _TENSOR = (
    wire.numbers(pb.PredictRequest),
    wire.numbers(tensor_pb2.EntityColumn),
    wire.numbers(tensor_pb2.Tensor),
)
_VALUES = wire.numbers(tensor_pb2.StringIds)["values"]  # and of Int64Ids, which is the same
_NUMBERS = {
    getattr(tensor_pb2, f"DTYPE_{kind}{bits}")
    for kind, sizes in (("INT", (8, 16, 32, 64)), ("UINT", (8, 16, 32, 64)), ("FLOAT", (16, 32, 64)))
    for bits in sizes
}
"""Tensors of which any bytes are elements. (A BOOL is 0 or 1.)"""


def _find_holes(payload: bytes, dtypes: Mapping[str, np.dtype[Any]]) -> dict[_Field, wire.Span]:
    """Where the holes are. `dtypes` are those of the context columns: only what has the very same may vary, because
    what has to be cast is not what stands in the request, even where its bytes are the same (as those of zeros are)."""
    holes: dict[_Field, wire.Span] = {}
    for number, _, span in wire.fields(payload, (0, len(payload))):
        if number == _REQUEST["entities"]:
            name, hole = _entity_hole(payload, span)
            field = ("entities", name)
        elif number == _REQUEST["context"]:
            name, dtype, hole = _context_hole(payload, span)
            if dtypes.get(name) != NUMPY.get(dtype):
                raise wire.Unusual
            field = ("context", name)
        elif number == _REQUEST["request_id"]:
            field, hole = ("request_id", ""), span
        else:
            continue
        if field in holes:
            raise wire.Unusual
        holes[field] = hole
    return holes


def _entity_hole(payload: bytes, span: wire.Span) -> tuple[str, wire.Span]:
    """The name of an entity column of one id, and where the id is."""
    parts = wire.each_once(payload, span)
    name = parts.pop(_COLUMN["name"], None)
    if name is None or len(parts) != 1 or not parts.keys() <= {_COLUMN["strings"], _COLUMN["int64s"]}:
        raise wire.Unusual
    ids = wire.each_once(payload, parts.popitem()[1])
    if ids.keys() != {_VALUES}:
        raise wire.Unusual
    return payload[slice(*name)].decode(), ids[_VALUES]


def _context_hole(payload: bytes, span: wire.Span) -> tuple[str, int, wire.Span]:
    """The name and dtype of a tensor of numbers in raw bytes, and where they are."""
    parts = wire.each_once(payload, span)
    if not {_TENSOR["name"], _TENSOR["dtype"], _TENSOR["raw"]} <= parts.keys():
        raise wire.Unusual
    dtype = wire.unsigned(payload[slice(*parts[_TENSOR["dtype"]])])
    if dtype not in _NUMBERS:
        raise wire.Unusual
    return payload[slice(*parts[_TENSOR["name"]])].decode(), dtype, parts[_TENSOR["raw"]]
