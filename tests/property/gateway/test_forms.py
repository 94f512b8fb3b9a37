"""A handler that has learnt forms binds every payload as one that decodes each in full, damaged payloads included."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featureclient.schema import Catalogue
from gateway.inference import Model, Runner
from gateway.plan import Manifest, compile_plan
from gateway.records.request import Request
from gateway.records.signature import Signature, TensorSpec
from gateway.records.tensors import from_array
from gateway.server import forms
from gateway.server.predict import PredictHandler, PredictOptions
from headrace.v1 import prediction_pb2 as pb
from headrace.v1 import tensor_pb2

CATALOGUE = Catalogue.parse("""
entities: {user: {user: string}, item: {item: int64}, pair: {user: string, item: int64}}
views:
  user@1: {entity: user, columns: {a: float32}}
  item@1: {entity: item, columns: {b: float32}}
  pair@1: {entity: pair, columns: {c: float32}}
""")
MANIFEST = Manifest.model_validate(
    {
        "name": "m",
        "views": {"user": {"view": "user@1"}, "item": {"view": "item@1"}, "pair": {"view": "pair@1"}},
        "context": {"hour": "float32", "taste": "int16[2]"},
        "inputs": {"x": ["user.a", "item.b", "pair.c", "hour", "taste"]},
    }
)
SIGNATURE = Signature((TensorSpec("x", "float32", (None, 6)),), (TensorSpec("score", "float32", (None, 1)),))
MODEL = Model(
    "m", 7, (), compile_plan(MANIFEST, CATALOGUE, SIGNATURE, cast("Any", None)), cast("Runner", None), SIGNATURE
)
LEARNING = 4


class Call:
    """A call that notes how it ended."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.arrived = 1.0
        self.deadline = math.inf
        self.cancelled = False
        self.outcome: Any = None

    def fail(self, code: int, message: str, details: bytes = b"", trailing: Sequence[Any] = ()) -> None:
        self.outcome = (code, message, details)


class Models:
    """A repository of one model, whatever is asked for."""

    def latest(self, name: str) -> Model:
        return MODEL

    def version(self, name: str, version: int) -> Model:
        return MODEL

    def labelled(self, name: str, label: str) -> Model:
        return MODEL


class Bound:
    """Where a pipeline would be: keeps what was bound."""

    def accept(self, model: Model, requests: list[Request], sink: object = None) -> None:
        for request in requests:
            cast("Call", request.caller).outcome = (model, request._replace(caller=cast("Any", None)))


class Rig:
    """A handler, and what becomes of a payload there."""

    def __init__(self) -> None:
        options = PredictOptions(request_id_bytes_max=12)
        self.handler = PredictHandler(
            cast("Any", Models()), options, lambda _: None, features_exposed=True, prefix=bytes(8)
        )
        self.handler.open(cast("Any", Bound()))

    def outcome(self, payload: bytes) -> Any:
        call = Call(payload)
        self.handler.on_calls([cast("Any", call)])
        return call.outcome

    def learn(self, payload: bytes) -> None:
        for _ in range(LEARNING):
            self.outcome(payload)

    def knows(self, payload: bytes) -> bool:
        return self.handler._forms.find(payload) is not None


def request(user: str = "ann", item: int = 5, hour: float = 1.0, **more: Any) -> pb.PredictRequest:
    return pb.PredictRequest(
        model="m",
        entities=[
            tensor_pb2.EntityColumn(name="user", strings=tensor_pb2.StringIds(values=[user])),
            tensor_pb2.EntityColumn(name="item", int64s=tensor_pb2.Int64Ids(values=[item])),
        ],
        context=[
            from_array("hour", np.array([hour], np.float32)),
            from_array("taste", np.array([[item % 7, -1]], np.int16)),
        ],
        **more,
    )


def another_id(made: pb.PredictRequest, number: int) -> None:
    made.entities[0].strings.values.append("another")


def text_for_a_number(made: pb.PredictRequest, number: int) -> None:
    made.entities[1].strings.values.append(str(number))


def other_dtype(made: pb.PredictRequest, number: int) -> None:
    made.context[0].CopyFrom(from_array("hour", np.array([2], ["f8", "f2", "i4", "?"][number % 4])))


def column_left_out(made: pb.PredictRequest, number: int) -> None:
    del made.entities[number % 2]


def column_twice(made: pb.PredictRequest, number: int) -> None:
    made.entities.append(made.entities[0])


def contents_for_raw(made: pb.PredictRequest, number: int) -> None:
    made.context[0].raw = b""
    made.context[0].contents.floats.append(0.5)


def versioned(made: pb.PredictRequest, number: int) -> None:
    made.version = number % 4


def some_outputs(made: pb.PredictRequest, number: int) -> None:
    made.outputs.append(["score", "no"][number % 2])


def with_features(made: pb.PredictRequest, number: int) -> None:
    made.return_features = True


def overridden(made: pb.PredictRequest, number: int) -> None:
    made.overrides.append(from_array("user.a", np.array([number % 5], np.float32)))


ODDITIES = (
    *(another_id, text_for_a_number, other_dtype, column_left_out, column_twice),
    *(contents_for_raw, versioned, some_outputs, with_features, overridden),
)
INT64 = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)


@st.composite
def requests(draw: st.DrawFn) -> pb.PredictRequest:
    """Mostly requests of one row; some have several, wrong dtypes, missing or doubled columns, and other oddities."""
    made = request(draw(st.text(max_size=4)), draw(INT64), draw(st.floats(width=32)))
    made.request_id = draw(st.sampled_from(["", "", "abc", "éa", "too long to be true"]))
    change = draw(st.sampled_from([*ODDITIES, None, None]))
    if change is not None:
        change(made, draw(INT64))
    return made


@st.composite
def damaged(draw: st.DrawFn, payload: bytes) -> bytes:
    """The payload, now and then with other bytes somewhere."""
    if not payload or draw(st.booleans()):
        return payload
    at = draw(st.integers(0, len(payload) - 1))
    return payload[:at] + draw(st.binary(max_size=2)) + payload[at + draw(st.integers(0, 2)) :]


@given(st.data())
def test_forms_change_nothing(data: st.DataObject) -> None:
    rig = Rig()
    bases = [made.SerializeToString() for made in data.draw(st.lists(requests(), min_size=1, max_size=3))]
    for base in bases:
        rig.learn(base)
    others = [made.SerializeToString() for made in data.draw(st.lists(requests(), max_size=3))]
    for payload in [*bases, *others]:
        sent = data.draw(damaged(payload))
        assert rig.outcome(sent) == Rig().outcome(sent)


def test_what_differs_in_ids_context_and_request_id_fits_one_form() -> None:
    rig = Rig()
    rig.learn(request("ann", 5, 1.0, request_id="first").SerializeToString())
    for user, item, hour in (("bob", 6, 2.0), ("eve", -0, math.nan), ("ann", 127, -0.0)):
        payload = request(user, item, hour, request_id="other").SerializeToString()
        assert rig.knows(payload)
        model, bound = rig.outcome(payload)
        assert model is MODEL
        assert bound.ids == ([user], [item], [(user, item)])
        assert bound.context == (np.float32(hour).tobytes(), np.array([item % 7, -1], np.int16).tobytes())
        assert bound.request_id == "other"


@pytest.mark.parametrize(
    "unlike",
    [
        request("anna"),
        request(item=300),
        request(version=7),
        request(outputs=["score"]),
        request(return_features=True),
        request(request_id="x"),
    ],
)
def test_what_differs_in_anything_else_does_not(unlike: pb.PredictRequest) -> None:
    rig = Rig()
    rig.learn(request().SerializeToString())
    assert rig.knows(request("bob").SerializeToString())
    assert not rig.knows(unlike.SerializeToString())


def test_what_is_cast_is_never_a_form() -> None:
    rig = Rig()
    made = request()
    made.entities[1].strings.values.append("5")
    rig.learn(made.SerializeToString())
    assert not rig.knows(made.SerializeToString())
    assert rig.outcome(made.SerializeToString())[1].ids[1] == [5]


@pytest.mark.parametrize("dtype", ["<i4", "<u4", "<i8"])
def test_zeros_of_another_dtype_are_cast_too(dtype: str) -> None:
    """Cast or not, the bytes of a zero are the same: equality tells nothing."""
    rig = Rig()
    made = request(hour=0.0)
    wide = {"<i4": "<i4", "<u4": "<u4", "<i8": "<i8"}[dtype]
    made.context[0].CopyFrom(from_array("hour", np.array([0], wide)))
    taste = np.array([[0, 1]], np.uint16)
    made.context[1].CopyFrom(from_array("taste", taste))
    rig.learn(made.SerializeToString())
    assert not rig.knows(made.SerializeToString())
    made.context[0].CopyFrom(from_array("hour", np.array([1000], wide)))
    assert rig.outcome(made.SerializeToString())[1].context[0] == np.float32(1000).tobytes()


@pytest.mark.parametrize("extra", [b"\x20\x0a", b"\x20\x80\x01", b"\x28\x0a", b"\x38\x7f", b"\x22\x00"])
def test_a_field_of_another_type_than_its_own_is_no_form_and_no_error(extra: bytes) -> None:
    rig = Rig()
    payload = request().SerializeToString() + extra
    for _ in range(3 * LEARNING):
        assert rig.outcome(payload) == Rig().outcome(payload)


def test_a_hole_that_is_not_unicode_is_told_as_ever() -> None:
    rig = Rig()
    payload = request("ann").SerializeToString()
    rig.learn(payload)
    broken = payload.replace(b"ann", b"a\xff\xff")
    assert rig.knows(broken)
    assert rig.outcome(broken) == Rig().outcome(broken)
    assert rig.outcome(broken)[0] == 3


def test_the_number_of_forms_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "FORMS_MAX", 20)
    rig = Rig()
    for length in range(100):
        rig.learn(request("u" * length).SerializeToString())
    assert 1 <= rig.handler._forms._count <= 20
    for version in range(100):
        rig.learn(request(version=version % 10).SerializeToString())
    assert max(map(len, rig.handler._forms._by_size.values())) <= forms.FORMS_OF_A_SIZE_MAX
