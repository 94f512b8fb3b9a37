"""A ModelInfer handler that has learnt forms binds every payload as one that decodes each in full, damaged ones too."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featureclient.schema import Catalogue
from gateway.inference import Model, Runner
from gateway.inference.model import Swap
from gateway.plan import Manifest, compile_plan
from gateway.plan.tensors import TensorPlan
from gateway.records.request import Request
from gateway.records.signature import Signature, TensorSpec
from gateway.server.oip.infer import InferHandler
from gateway.server.oip.options import OipOptions
from gateway.server.predict import PredictOptions
from headrace.inference import grpc_service_pb2 as pb

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
TWO = Signature(
    (TensorSpec("a", "float32", (None, None)), TensorSpec("b", "int64", (None, 1))),
    (TensorSpec("p", "float32", (None,)), TensorSpec("q", "float32", (None,))),
)
RUNNER = cast("Runner", None)
PLAIN = Model("two", 3, (), TensorPlan("two", TWO, batched=True), RUNNER, TWO)
MODEL = Model(
    "m", 7, (), compile_plan(MANIFEST, CATALOGUE, SIGNATURE, cast("Any", None)), RUNNER, SIGNATURE,
    inner=Model("m", 7, (), TensorPlan("m", SIGNATURE, batched=True), RUNNER, SIGNATURE),
)  # fmt: skip
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
    """A repository of two models."""

    def latest(self, name: str) -> Model:
        return PLAIN if name == "two" else MODEL

    def version(self, name: str, version: int) -> Model:
        return self.latest(name)

    def labelled(self, name: str, label: str) -> Model:
        return self.latest(name)


class Bound:
    """Where a pipeline would be: keeps what was bound."""

    def accept(self, model: Model, requests: list[Request], sink: Any) -> None:
        for request in requests:
            caller = cast("Any", request.caller)
            style = getattr(caller, "style", None)
            getattr(caller, "call", caller).outcome = (model, style, request._replace(caller=cast("Any", None)))


class Rig:
    """A handler, and what becomes of a payload there."""

    def __init__(self) -> None:
        options = PredictOptions(request_id_bytes_max=12, rows_max=50)
        self.handler = InferHandler(cast("Any", Models()), options, OipOptions(), lambda _: None, prefix=bytes(8))
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


def infer(model: str, inputs: dict[str, tuple[str, Any]], **more: Any) -> pb.ModelInferRequest:
    """Strings go as BYTES, everything else as the array's bytes."""
    made = pb.ModelInferRequest(model_name=model, **more)
    for name, (datatype, values) in inputs.items():
        array = np.asarray(values)
        made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        texts = [text.encode() for text in array.ravel().tolist()] if datatype == "BYTES" else []
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts) or array.tobytes()
        made.raw_input_contents.append(raw)
    return made


def by_ids(user: str = "ann", item: int = 5, hour: float = 1.0, **more: Any) -> pb.ModelInferRequest:
    inputs = {
        "item": ("INT64", np.int64([item])),
        "taste": ("INT16", np.int16([[item % 7, -1]])),
        "user": ("BYTES", [[user]]),
        "hour": ("FP32", np.float32([hour])),
    }
    return infer("m", inputs, **more)


def by_tensors(rows: int = 2, width: int = 3, value: float = 1.0, **more: Any) -> pb.ModelInferRequest:
    inputs = {
        "b": ("INT64", np.full((rows, 1), int(value), np.int64)),
        "a": ("FP32", np.full((rows, width), value, np.float32)),
    }
    return infer("two", inputs, **more)


def swapped_dtype(made: pb.ModelInferRequest) -> None:
    made.inputs[0].datatype = "UINT64" if made.inputs[0].datatype == "INT64" else "INT64"


def typed(made: pb.ModelInferRequest) -> None:
    made.inputs[0].contents.int64_contents.append(3)


def one_raw_less(made: pb.ModelInferRequest) -> None:
    del made.raw_input_contents[0]


def other_shape(made: pb.ModelInferRequest) -> None:
    made.inputs[1].shape[0] += 1


def twice(made: pb.ModelInferRequest) -> None:
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(made.raw_input_contents[0])


def selection(made: pb.ModelInferRequest) -> None:
    made.outputs.add(name="q")


def patience(made: pb.ModelInferRequest) -> None:
    made.parameters["timeout"].int64_param = 500


def nothing(made: pb.ModelInferRequest) -> None:
    pass


CHANGES = [nothing, nothing, swapped_dtype, typed, one_raw_less, other_shape, twice, selection, patience]


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        number = draw(st.integers(-(2**63), 2**63 - 1))
        made = by_ids(draw(st.text(max_size=4)), number, draw(st.floats(width=32)))
    else:
        made = by_tensors(draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(-9, 9)))
    if draw(st.booleans()):
        made.id = draw(st.text(min_size=1, max_size=4))
    draw(st.sampled_from(CHANGES))(made)
    payload = bytearray(made.SerializeToString())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return bytes(payload)


@given(st.lists(payloads(), min_size=1, max_size=6), payloads())
def test_what_was_learnt_changes_nothing(learnt: list[bytes], payload: bytes) -> None:
    rig, fresh = Rig(), Rig()
    for one in learnt:
        rig.learn(one)
    for one in [*learnt, payload]:
        assert rig.outcome(one) == fresh.outcome(one)
        fresh = Rig()


def test_other_numbers_fit_the_same_form() -> None:
    rig = Rig()
    rig.learn(by_tensors(value=1.0, id="one").SerializeToString())
    payload = by_tensors(value=7.0, id="two").SerializeToString()
    assert rig.knows(payload)
    model, _, request = rig.outcome(payload)
    assert model is PLAIN
    assert request.request_id == "two"
    assert request.context == (np.full((2, 3), 7, np.float32).tobytes(), np.full((2, 1), 7, np.int64).tobytes())
    assert (request.rows, request.shape) == (2, ((3,), (1,)))


def test_other_ids_fit_the_same_form() -> None:
    rig = Rig()
    rig.learn(by_ids("ann", 5, 1.0).SerializeToString())
    payload = by_ids("bob", -6, 2.0).SerializeToString()
    assert rig.knows(payload)
    model, _, request = rig.outcome(payload)
    assert model is MODEL
    assert request.ids == (["bob"], [-6], [("bob", -6)])
    assert request.context[0] == np.float32([2]).tobytes()


def test_a_form_is_not_learnt_where_bytes_may_be_wrong_or_time_is_counted() -> None:
    for change in (patience, typed):
        rig, made = Rig(), by_tensors()
        change(made)
        rig.learn(made.SerializeToString())
        assert not rig.knows(made.SerializeToString())


def test_a_damaged_id_is_refused_as_it_is_without_the_form() -> None:
    rig = Rig()
    payload = by_ids("ann").SerializeToString()
    rig.learn(payload)
    damaged = payload.replace(b"ann", b"a\xffn")
    assert rig.knows(damaged)
    assert rig.outcome(damaged) == Rig().outcome(damaged)
    assert "UTF-8" in rig.outcome(damaged)[1]


def test_a_swap_forgets_the_forms() -> None:
    rig = Rig()
    payload = by_tensors().SerializeToString()
    rig.learn(payload)
    rig.handler.on_swap(Swap(added=(), removed=(PLAIN,)))
    assert not rig.knows(payload)


def test_the_fields_of_a_label_a_version_and_a_timeout_reach_the_request() -> None:
    made = by_tensors(model_version="stable")
    made.parameters["timeout"].int64_param = 250_000
    made.parameters["priority"].uint64_param = 2
    _, _, request = Rig().outcome(made.SerializeToString())
    assert request.deadline == 1.25
    assert request.priority == 2
