"""PredictRequest bytes -> `Asked`; `Answers` -> PredictResponse bytes.

Decoding is the generated classes and a copy into plain lists and arrays. Encoding uses that a serialised protobuf
message is a concatenation of its fields: for a model and a number of rows everything but the values is constant, so it
is serialised once, by the generated classes, and each answer is a join of constants and slices of the batch's arrays.
"""

import secrets
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from gateway.inference import Model
from gateway.pipeline import Answers
from gateway.records.errors import InvalidRequest
from gateway.records.request import Array, Asked, Request
from gateway.records.tensors import from_array, to_array, to_raw
from headrace.v1 import prediction_pb2 as pb
from headrace.v1 import tensor_pb2

_SKELETONS_MAX = 512
_AGE_BYTES = 8
_ID_BYTES = 16
_PREDICTION_ID_PREFIX = pb.PredictResponse(prediction_id=bytes(_ID_BYTES)).SerializeToString()[:-_ID_BYTES]


def parse(payload: bytes | memoryview) -> pb.PredictRequest:
    """The generated message, or `InvalidRequest`."""
    try:
        return pb.PredictRequest.FromString(payload)  # type: ignore[arg-type]  # upb takes any buffer
    except DecodeError:
        raise InvalidRequest("the message is not a headrace.v1.PredictRequest: it cannot be parsed") from None


def to_asked(message: pb.PredictRequest) -> Asked:
    """The parts of a request that a plan binds."""
    return Asked(
        ids_by_name(message.entities),
        _arrays("context", message.context) if message.context else {},
        _arrays("overrides", message.overrides) if message.overrides else {},
        message.outputs,
        message.return_features,
    )


def ids_by_name(columns: Sequence[tensor_pb2.EntityColumn]) -> dict[str, list[str] | list[int]]:
    """The ids of each entity column."""
    found: dict[str, list[str] | list[int]] = {}
    for column in columns:
        name = column.name
        ids: list[str] | list[int] = list(column.strings.values)
        if not ids:
            ids = list(column.int64s.values)
        if not ids:
            raise InvalidRequest(f"entity column {name!r} has no ids", field=f"entities.{name}")
        if name in found:
            raise InvalidRequest(f"entity column {name!r} is there twice", field=f"entities.{name}")
        found[name] = ids
    return found


def prediction_ids() -> Iterator[bytes]:
    """Ids that no other process and no earlier run has given: 8 random bytes, then a counter."""
    prefix = secrets.token_bytes(8)
    return (prefix + number.to_bytes(8, "big") for number in count())


class _Skeleton(NamedTuple):
    """The constant bytes between the values of an answer of a fixed number of rows."""

    outputs: tuple[bytes, ...]
    views: tuple[tuple[bytes, bytes], ...]


class _Column(NamedTuple):
    """An array of the whole batch as bytes, to be cut by rows."""

    data: bytes
    row_bytes: int


class Encoder:
    """Encodes the answers of one model."""

    def __init__(self, model: Model, ids: Iterator[bytes]) -> None:
        self._model = model
        self._ids = ids
        self._head = pb.PredictResponse(
            model=model.name, version=model.version, variant=model.variant
        ).SerializeToString()
        self._constant_size = not any(spec.dtype == "string" for spec in model.signature.outputs)
        self._skeletons: dict[tuple[int, tuple[tuple[int, ...], ...]], _Skeleton] = {}

    def encode(self, answers: Answers) -> Iterator[tuple[Request, bytes]]:
        """Yield each request with the bytes of its answer."""
        assembled = answers.assembled
        shapes = tuple([output.shape[1:] for output in answers.outputs])
        outputs = [_column(output) for output in answers.outputs] if self._constant_size else []
        views = [
            (codes.tobytes(), ages.tobytes()) for codes, ages in zip(assembled.statuses, assembled.ages_ms, strict=True)
        ]
        start = 0
        for request in answers.requests:
            end = start + request.rows
            if self._constant_size and not request.outputs and not request.return_features:
                skeleton = self._skeletons.get((request.rows, shapes)) or self._build(request.rows, shapes, answers)
                parts = [self._head]
                for prefix, (data, row_bytes) in zip(skeleton.outputs, outputs, strict=True):
                    parts += (prefix, data[start * row_bytes : end * row_bytes])
                for (prefix, middle), (codes, ages) in zip(skeleton.views, views, strict=True):
                    parts += (prefix, codes[start:end], middle, ages[start * _AGE_BYTES : end * _AGE_BYTES])
                parts.append(self._tail(request))
                yield request, b"".join(parts)
            else:
                yield request, self._whole(answers, request, slice(start, end))
            start = end

    def _tail(self, request: Request) -> bytes:
        """The ids, which differ from answer to answer."""
        prediction_id = next(self._ids)
        request_id = request.request_id.encode() if request.request_id else prediction_id.hex().encode()
        return b"".join((_request_id_prefix(len(request_id)), request_id, _PREDICTION_ID_PREFIX, prediction_id))

    def _build(self, rows: int, shapes: tuple[tuple[int, ...], ...], answers: Answers) -> _Skeleton:
        """Serialise the constant parts with the generated classes, and cut the values off."""
        outputs = []
        for spec, output in zip(self._model.signature.outputs, answers.outputs, strict=True):
            blank = from_array(spec.name, np.zeros((rows, *output.shape[1:]), output.dtype))
            outputs.append(_before(pb.PredictResponse(outputs=[blank]).SerializeToString(), len(blank.raw)))
        views = []
        for binding in self._model.plan.bindings:
            blank_rows = tensor_pb2.ViewRows(
                alias=binding.alias, view=binding.view.ref, status=b"\0" * rows, age_ms=[0] * rows
            )
            ages_only = tensor_pb2.ViewRows(age_ms=[0] * rows).SerializeToString()
            middle = _before(ages_only, rows * _AGE_BYTES)
            prefix = _before(pb.PredictResponse(views=[blank_rows]).SerializeToString(), len(ages_only) + rows)
            views.append((prefix, middle))
        skeleton = _Skeleton(tuple(outputs), tuple(views))
        if len(self._skeletons) >= _SKELETONS_MAX:
            self._skeletons.clear()
        self._skeletons[rows, shapes] = skeleton
        return skeleton

    def _whole(self, answers: Answers, request: Request, span: slice) -> bytes:
        """Build the message field by field: for a selection of outputs, for strings, and with features."""
        model, assembled = self._model, answers.assembled
        response = pb.PredictResponse()
        response.outputs.extend(
            from_array(model.signature.outputs[index].name, answers.outputs[index][span])
            for index in request.outputs or range(len(answers.outputs))
        )
        for binding, codes, ages in zip(model.plan.bindings, assembled.statuses, assembled.ages_ms, strict=True):
            response.views.add(
                alias=binding.alias, view=binding.view.ref, status=codes[span].tobytes(), age_ms=ages[span].tolist()
            )
        if request.return_features:
            for matrix in model.plan.matrices:
                flat = assembled.inputs[matrix.spec.name].reshape(-1, matrix.width)[span]
                for column, place in matrix.columns:
                    values = flat[:, place]
                    response.features.append(from_array(column.name, values if column.dtype.length else values[:, 0]))
        return self._head + response.SerializeToString() + self._tail(request)


@lru_cache(maxsize=1024)
def _request_id_prefix(length: int) -> bytes:
    """The tag and length in front of a request id of so many bytes."""
    return _before(pb.PredictResponse(request_id="x" * length).SerializeToString(), length)


def _column(array: Array) -> _Column:
    return _Column(to_raw(array), array.nbytes // len(array))


def _before(message: bytes, values: int) -> bytes:
    """The bytes in front of the last `values` bytes."""
    return message[: len(message) - values]


def _arrays(field: str, tensors: Sequence[tensor_pb2.Tensor]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for tensor in tensors:
        name = tensor.name
        if name in found:
            raise InvalidRequest(f"{field} column {name!r} is there twice", field=f"{field}.{name}")
        array = to_array(tensor, f"{field}.{name}")
        if array.ndim == 0 or len(array) == 0:
            raise InvalidRequest(f"{field} column {name!r} has zero rows", field=f"{field}.{name}")
        found[name] = array
    return found
