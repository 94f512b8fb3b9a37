"""ModelInferRequest -> what a plan binds: the inputs as arrays, and how the caller wants to be answered.

Two kinds of inputs. One that is named after an entity column of the model's manifest makes the request one of entity
ids: the other inputs are then context columns, and features are looked up. So do inputs that are named exactly as the
manifest's columns, though the graph's may have the same names: its transforms and checks are never passed by. Otherwise
the inputs are the graph's own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from gateway.inference.model import Model
from gateway.inference.repository import ModelRepository
from gateway.plan.plan import FeaturePlan
from gateway.records.errors import InvalidRequest, LimitExceeded
from gateway.records.request import Array, Asked
from gateway.records.tensors import DIMENSIONS_MAX, from_raw, objects
from gateway.server.oip import datatypes
from gateway.server.oip.datatypes import Datatype
from headrace.inference import grpc_service_pb2 as pb

STATUSES = "headrace_statuses"
"""The parameter of a request that asks for the status and the age of each view's rows."""
VARIANT = "headrace_variant"
"""The parameter of a request that names the variant which is to answer."""
_OURS = "headrace_"
_INPUTS_MAX = 1024
_OUTPUTS_MAX = 1024
_CLASSES_OF_ALL_ROWS_MAX = 16_384
"""Classes that a request may ask for, over all its rows and outputs. Each is a text, and writing one takes 0.5 us."""
_PARAMETERS_MAX = 64
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_FINAL = "triton_enable_empty_final_response"
_VERSION_DIGITS_MAX = 18


class Style(NamedTuple):
    """What is unusual about the answer that a caller wants."""

    classes: tuple[tuple[str, int], ...] = ()
    """Outputs to give as their best classes: the output's name, for another model may answer, and how many."""
    statuses: bool = False
    final: bool = False
    """Say that the answer is the last one to its request."""


PLAIN = Style()


class Decoded(NamedTuple):
    """A request for one model, ready to be bound to the plan of `model`."""

    model: Model
    asked: Asked
    style: Style
    priority: int
    timeout_s: float
    """How long the caller lets it wait, `inf` when it does not say."""


def parse(payload: bytes | memoryview) -> pb.ModelInferRequest:
    """The generated message, or `InvalidRequest`."""
    try:
        return pb.ModelInferRequest.FromString(payload)  # type: ignore[arg-type]  # upb takes any buffer
    except DecodeError:
        raise InvalidRequest("the message is not an inference.ModelInferRequest: it cannot be parsed") from None


def resolve(models: ModelRepository, name: str, version: str) -> Model:
    """The model of a name and a version, which may be empty, a number, or a label of the manifest."""
    if not version:
        return models.latest(name)
    if version.isascii() and version.isdecimal() and len(version) <= _VERSION_DIGITS_MAX:
        return models.version(name, int(version))
    return models.labelled(name, version)


def variant_in(message: pb.ModelInferRequest) -> str:
    """The variant that a request names; empty where it names none. Raises InvalidRequest for what is no name."""
    if VARIANT not in message.parameters:
        return ""
    parameter = message.parameters[VARIANT]
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise InvalidRequest(f"the parameter {VARIANT} must be a string", field=f"parameters.{VARIANT}")
    return parameter.string_param


def decode(message: pb.ModelInferRequest, model: Model, rows_max: int, classes_max: int) -> Decoded:
    """Everything that a plan does not check. Raises `InvalidRequest` and `LimitExceeded`."""
    for field, count, most in (
        ("inputs", len(message.inputs), _INPUTS_MAX),
        ("outputs", len(message.outputs), _OUTPUTS_MAX),
    ):
        if count > most:
            raise InvalidRequest(f"the request has {count} {field}, the most is {most}", field=field)
    names = [tensor.name for tensor in message.inputs]
    if len({*names}) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidRequest(f"the input {twice[:64]!r} is there twice", field="inputs")
    plan = model.plan
    outputs = [output.name for output in message.outputs]
    if isinstance(plan, FeaturePlan) and _asks_for_features(plan, names):
        inputs = _Inputs(message, rows_max, batched=True)
        asked = _entities(inputs.arrays(), plan, outputs)
    else:
        model = model.tensors
        inputs = _Inputs(message, rows_max, batched=model.plan.batched)
        asked = Asked({}, _graph_inputs(inputs, model), {}, outputs, return_features=False)
    parameters = _Parameters(message.parameters)
    classes = _classes(message.outputs, model, classes_max) if message.outputs else ()
    style = Style(classes, parameters.flag(STATUSES), parameters.flag(_FINAL))
    return Decoded(model, asked, style, parameters.priority(), parameters.timeout_s())


def _asks_for_features(plan: FeaturePlan, names: Sequence[str]) -> bool:
    if any(name in plan.entities for name in names):
        return True
    return not plan.entities and {*names} == {column.name for column in plan.context}


# ── Tensors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Input(NamedTuple):
    """An input before its elements are looked at."""

    name: str
    field: str
    datatype: Datatype
    shape: tuple[int, ...]


class _Inputs:
    """The inputs of a request; their elements are all raw or all typed."""

    def __init__(self, message: pb.ModelInferRequest, rows_max: int, *, batched: bool) -> None:
        self._tensors = message.inputs
        self._raw = message.raw_input_contents
        self._rows_max = rows_max
        self._batched = batched
        if self._raw and len(self._raw) != len(self._tensors):
            raise InvalidRequest(
                f"raw_input_contents has {len(self._raw)} entries for {len(self._tensors)} inputs;"
                " it needs one for each, or none where all have contents",
                field="raw_input_contents",
            )

    def heads(self) -> list[_Input]:
        """Names, datatypes and shapes, checked."""
        return [self._head(tensor) for tensor in self._tensors]

    def arrays(self) -> dict[str, tuple[Datatype, Array]]:
        """Every input by name."""
        return {head.name: (head.datatype, self.array(index, head)) for index, head in enumerate(self.heads())}

    def _head(self, tensor: "pb.ModelInferRequest.InferInputTensor") -> _Input:
        field = f"inputs.{tensor.name[:64]}"
        _count_parameters(tensor.parameters, field)
        for name in tensor.parameters:
            if name.startswith("shared_memory"):
                raise InvalidRequest(
                    f"{field} is in shared memory, which this server does not read; send the tensor itself", field=field
                )
        shape = tuple(tensor.shape)
        if len(shape) > DIMENSIONS_MAX:
            raise InvalidRequest(f"{field} has {len(shape)} dimensions, the most is {DIMENSIONS_MAX}", field=field)
        if any(size < 0 for size in shape):
            raise InvalidRequest(f"{field} has the shape {list(shape)}; no dimension may be negative", field=field)
        if self._batched:
            if not shape or shape[0] == 0:
                raise InvalidRequest(f"{field} has no rows: its shape is {list(shape)}", field=field)
            if shape[0] > self._rows_max:
                raise LimitExceeded(
                    f"{field} has {shape[0]} rows, the limit rows_max is {self._rows_max}", limit="rows_max"
                )
        return _Input(tensor.name, field, datatypes.of_name(tensor.datatype, field), shape)

    def array(self, index: int, head: _Input) -> Array:
        """The elements of an input, in its shape."""
        elements = math.prod(head.shape)
        tensor = self._tensors[index]
        if self._raw:
            if tensor.HasField("contents"):
                raise InvalidRequest(
                    f"{head.field} has contents beside raw_input_contents; send one of them", field=head.field
                )
            flat = _raw(self._raw[index], head, elements)
        else:
            flat = _typed(tensor.contents, head)
        if flat.size != elements:
            raise InvalidRequest(
                f"{head.field} has {flat.size} elements, its shape is {list(head.shape)}", field=head.field
            )
        try:
            return flat.reshape(head.shape)
        except ValueError as error:  # a dimension of 0 beside one that no array can have
            raise InvalidRequest(f"{head.field} cannot have the shape {list(head.shape)}", field=head.field) from error


def _raw(raw: bytes, head: _Input, elements: int) -> Array:
    dtype = head.datatype.dtype
    if not dtype.hasobject and len(raw) != elements * dtype.itemsize:
        raise InvalidRequest(
            f"{head.field} has {len(raw)} raw bytes, its shape {list(head.shape)} of {head.datatype.name} needs"
            f" {elements * dtype.itemsize}",
            field=head.field,
        )
    return from_raw(raw, dtype, head.field, elements)


def _typed(contents: pb.InferTensorContents, head: _Input) -> Array:
    wanted, dtype = head.datatype.contents, head.datatype.dtype
    if not wanted:
        raise InvalidRequest(
            f"{head.field} is {head.datatype.name}, which goes in raw_input_contents only", field=head.field
        )
    for descriptor, _ in contents.ListFields():
        if descriptor.name != wanted:
            raise InvalidRequest(
                f"{head.field} has contents.{descriptor.name}; {head.datatype.name} needs {wanted}", field=head.field
            )
    # A list, because numpy takes a repeated field for a buffer and wraps what does not fit.
    values = list(getattr(contents, wanted))
    if dtype.hasobject:
        try:
            return objects([value.decode() for value in values])
        except UnicodeDecodeError:
            raise InvalidRequest(f"{head.field} has an element that is not UTF-8", field=head.field) from None
    try:
        return np.array(values, dtype)
    except OverflowError:
        raise InvalidRequest(f"{head.field} has a value outside {head.datatype.name}", field=head.field) from None


def _graph_inputs(inputs: _Inputs, model: Model) -> dict[str, Array]:
    """Arrays by name, of the datatypes that the graph takes: no number is changed on the way to a model."""
    wanted = {spec.name: datatypes.BY_SIGNATURE[spec.dtype] for spec in model.signature.inputs}
    found: dict[str, Array] = {}
    for index, head in enumerate(inputs.heads()):
        datatype = wanted.get(head.name)
        if datatype is None:
            takes = ", ".join(map(str, model.signature.inputs))
            raise InvalidRequest(
                f"model {model.name} has no input {head.name[:64]!r} (it takes: {takes})", field="inputs"
            )
        if datatype is not head.datatype:
            raise InvalidRequest(
                f"{head.field} is {head.datatype.name}, model {model.name} takes {datatype.name}", field=head.field
            )
        found[head.name] = inputs.array(index, head)
    return found


def _entities(tensors: Mapping[str, tuple[Datatype, Array]], plan: FeaturePlan, outputs: Sequence[str]) -> Asked:
    """Ids and context columns. A column of scalars may come as [rows, 1]."""
    vectors = {column.name for column in plan.context if column.dtype.length}
    entities: dict[str, list[str] | list[int]] = {}
    context: dict[str, Array] = {}
    for name, (datatype, array) in tensors.items():
        flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 and name not in vectors else array  # noqa: PLR2004
        if name not in plan.entities:
            context[name] = flat
            continue
        field = f"inputs.{name[:64]}"
        if datatype.name not in {"BYTES", "INT64"}:
            raise InvalidRequest(f"{field} is {datatype.name}; entity ids are BYTES or INT64", field=field)
        if flat.ndim != 1:
            raise InvalidRequest(
                f"{field} has the shape {list(array.shape)}; entity ids are [rows] or [rows, 1]", field=field
            )
        entities[name] = flat.tolist()
    return Asked(entities, context, {}, outputs, return_features=False)


# ── Parameters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _count_parameters(parameters: Mapping[str, pb.InferParameter], field: str) -> None:
    if len(parameters) > _PARAMETERS_MAX:
        raise InvalidRequest(f"{field} has {len(parameters)} parameters, the most is {_PARAMETERS_MAX}", field=field)


class _Parameters:
    """The parameters of a request. Those of nobody's are ignored, as Triton does."""

    def __init__(self, parameters: Mapping[str, pb.InferParameter]) -> None:
        self._values: dict[str, Any] = {}
        if not parameters:
            return
        _count_parameters(parameters, "parameters")
        for name, parameter in parameters.items():
            which = parameter.WhichOneof("parameter_choice")
            self._values[name] = None if which is None else getattr(parameter, which)
            if name.startswith(_OURS) and name not in {STATUSES, VARIANT}:
                raise InvalidRequest(
                    f"no parameter {name[:64]!r} (Headrace's own are: {STATUSES}, {VARIANT})",
                    field=f"parameters.{name[:64]}",
                )
        for name in _SEQUENCE:
            if self._values.get(name):
                raise InvalidRequest(
                    f"the parameter {name} asks for a model with state, which no model of this server is",
                    field=f"parameters.{name}",
                )

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise InvalidRequest(f"the parameter {name} must be a bool", field=f"parameters.{name}")
        return value

    def priority(self) -> int:
        return self._count("priority")

    def timeout_s(self) -> float:
        timeout_us = self._count("timeout")
        return timeout_us * 1e-6 if timeout_us else math.inf

    def _count(self, name: str) -> int:
        value = self._values.get(name, 0)
        # Older clients send numbers as strings.
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _VERSION_DIGITS_MAX:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidRequest(f"the parameter {name} must be a number from 0", field=f"parameters.{name}")
        return value


def _classes(
    outputs: "Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]", model: Model, classes_max: int
) -> tuple[tuple[str, int], ...]:
    """The outputs that are asked for as classes. Unknown names are the plan's to refuse."""
    specs = {spec.name: spec for spec in model.signature.outputs}
    found: list[tuple[str, int]] = []
    for output in outputs:
        field = f"outputs.{output.name[:64]}"
        _count_parameters(output.parameters, field)
        for name, parameter in output.parameters.items():
            if name.startswith("shared_memory"):
                raise InvalidRequest(f"{field}: this server does not write into shared memory", field=field)
            if name != "classification" or output.name not in specs:
                continue
            spec = specs[output.name]
            count = parameter.int64_param
            if not 1 <= count <= classes_max:
                raise InvalidRequest(f"{field}: classification must be from 1 to {classes_max}", field=field)
            if spec.dtype in {"string", "bool"} or not model.plan.batched:
                raise InvalidRequest(f"{field} is {spec}, which has no classes to rank", field=field)
            width = math.prod(size or count for size in spec.shape[1:])  # what is free may be anything
            found.append((output.name, min(count, width)))
    return tuple(found)


def check_classes(classes: Sequence[tuple[str, int]], rows: int) -> None:
    """Refuse more classes than are written for one request."""
    asked = rows * sum(count for _, count in classes)
    if asked > _CLASSES_OF_ALL_ROWS_MAX:
        raise LimitExceeded(
            f"classification asks for {asked} classes in {rows} rows, the most is {_CLASSES_OF_ALL_ROWS_MAX};"
            " ask for fewer, or for the output itself",
            limit="classes",
        )
