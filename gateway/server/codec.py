"""PredictRequest bytes -> `Asked`; `Answers` -> PredictResponse bytes.

Decoding is the generated classes and a copy into plain lists and arrays. Encoding uses that a serialised protobuf
message is a concatenation of its fields: for a model and a number of rows everything but the values is constant and of
constant size. So the generated classes serialise a blank answer once, numpy fills the values of all answers of that
size at once, and only the request id is appended to each.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from gateway.inference import Model
from gateway.pipeline import Answers
from gateway.records.errors import InvalidRequest
from gateway.records.request import Array, Asked, Request
from gateway.records.tensors import from_array, to_array
from gateway.records.violations import FALLBACK, Violations, said
from gateway.server.skeleton import Layout, Skeleton, Skeletons
from headrace.v1 import prediction_pb2 as pb
from headrace.v1 import tensor_pb2

Ages: TypeAlias = Sequence[npt.NDArray[np.int64]]
"""`Assembled.ages_ms`."""

_TENSORS_MAX = 1024
_ID_BYTES = 16
_ID_FIELD_BYTES = len(pb.PredictResponse(prediction_id=bytes(_ID_BYTES)).SerializeToString())


def parse(payload: bytes | memoryview) -> pb.PredictRequest:
    """The generated message, or `InvalidRequest`."""
    try:
        return pb.PredictRequest.FromString(payload)  # type: ignore[arg-type]  # upb takes any buffer
    except DecodeError:
        raise InvalidRequest("the message is not a headrace.v1.PredictRequest: it cannot be parsed") from None


def to_asked(message: pb.PredictRequest, rows_max: int) -> Asked:
    """The parts of a request that a plan binds. What is sure to have more than `rows_max` rows is not decoded."""
    for field, count in (("entities", len(message.entities)), ("outputs", len(message.outputs))):
        if count > _TENSORS_MAX:
            raise InvalidRequest(f"{field} has {count} entries, the most is {_TENSORS_MAX}", field=field)
    return Asked(
        ids_by_name(message.entities),
        _arrays("context", message.context, rows_max) if message.context else {},
        _arrays("overrides", message.overrides, rows_max) if message.overrides else {},
        message.outputs,
        message.return_features,
    )


def ids_by_name(columns: Sequence[tensor_pb2.EntityColumn]) -> dict[str, list[str] | list[int]]:
    """The ids of each entity column."""
    found: dict[str, list[str] | list[int]] = {}
    for column in columns[:]:  # slices, here and below: upb's iterators cost twice as much
        name = column.name
        ids: list[str] | list[int] = column.strings.values[:]
        if not ids:
            ids = column.int64s.values[:]
        if not ids:
            raise InvalidRequest(f"entity column {name!r} has no ids", field=f"entities.{name}")
        if name in found:
            raise InvalidRequest(f"entity column {name!r} is there twice", field=f"entities.{name}")
        found[name] = ids
    return found


class Encoder:
    """Encodes the answers of one model.

    A skeleton is the answer to a request of so many rows as a numpy record: constant bytes, and between them a field
    for each value. Answers of equal size are an array of such records, filled field by field.
    """

    def __init__(self, model: Model, prefix: bytes) -> None:
        """`prefix` is what all prediction ids of this process begin with, 8 bytes."""
        self._model = model
        self._prefix = prefix
        self._head = pb.PredictResponse(
            model=model.name, version=model.version, variant=model.variant
        ).SerializeToString()
        # A request without an id gets its prediction's, in hexadecimal digits.
        self._own_id_head = _request_id_prefix(2 * _ID_BYTES) + prefix.hex().encode()
        # Strings differ in size, and the outputs of a graph without rows are one request's, whole.
        self._constant_size = model.plan.batched and not any(spec.dtype == "string" for spec in model.signature.outputs)
        self._skeletons = Skeletons()

    def encode(self, answers: Answers) -> Iterator[tuple[Request, bytes]]:
        """Yield each request with the bytes of its answer."""
        start = first = 0
        ages = answers.assembled.ages_ms()
        verdicts = None if answers.violations is None else answers.violations.verdicts
        for rows, run in groupby(answers.requests, _rows_of):
            requests = list(run)
            numbers = answers.numbers[first : first + len(requests)]
            first += len(requests)
            bodies = self._block(answers, ages, rows, numbers, slice(start, start + rows * len(requests)))
            named = numbers.astype(">u8").tobytes().hex().encode()
            for index, request in enumerate(requests):
                body, span = bodies[index], slice(start, start + rows)
                if (
                    request.outputs
                    or request.return_features
                    or request.return_violations
                    or not self._constant_size
                    or (verdicts is not None and verdicts[span].max() >= FALLBACK)
                ):
                    # The last bytes of a body are its prediction id.
                    body = self._whole(answers, ages, request, span) + body[-_ID_FIELD_BYTES:]
                if request.request_id:
                    request_id = request.request_id.encode()
                    yield request, body + _request_id_prefix(len(request_id)) + request_id
                else:
                    yield request, body + self._own_id_head + named[16 * index : 16 * index + 16]
                start += rows

    def _block(
        self, answers: Answers, ages: Ages, rows: int, numbers: npt.NDArray[np.uint64], span: slice
    ) -> list[bytes]:
        """The answers to requests of `rows` rows, one for each prediction id, without their request ids."""
        count = len(numbers)
        outputs = answers.outputs if self._constant_size else ()
        shapes = tuple([output.shape[1:] for output in outputs])
        skeleton = self._skeletons.get((rows, shapes))
        if skeleton is None:
            skeleton = self._build(rows, shapes, outputs)
        data = bytearray(skeleton.blank * count)
        block = np.frombuffer(data, skeleton.dtype)
        for index, output in enumerate(outputs):
            block[f"output{index}"] = output[span].reshape(count, rows, *shapes[index])
        assembled = answers.assembled
        for index, codes in enumerate(assembled.statuses):
            block[f"status{index}"] = codes[span].reshape(count, rows)
            block[f"age{index}"] = ages[index][span].reshape(count, rows)
        block["number"] = numbers
        filled, size = bytes(data), len(skeleton.blank)
        return [filled[at : at + size] for at in range(0, count * size, size)]

    def _build(self, rows: int, shapes: tuple[tuple[int, ...], ...], outputs: Sequence[Array]) -> Skeleton:
        """Serialise a blank answer with the generated classes, and find where its values are."""
        layout = Layout(self._head)
        for index, output in enumerate(outputs):
            blank = from_array(
                self._model.signature.outputs[index].name, np.zeros((rows, *shapes[index]), output.dtype)
            )
            layout.add(pb.PredictResponse(outputs=[blank]), (f"output{index}", output.dtype, (rows, *shapes[index])))
        for index, binding in enumerate(self._model.plan.bindings):
            status_field = (f"status{index}", np.dtype(np.uint8), (rows,))
            age_field = (f"age{index}", np.dtype("<i8"), (rows,))
            codes = b"\0" * rows
            ages = tensor_pb2.ViewRows(age_ms=[0] * rows).SerializeToString()
            view = tensor_pb2.ViewRows(alias=binding.alias, view=binding.ref, status=codes, age_ms=[0] * rows)
            layout.add(pb.PredictResponse(views=[view]), status_field, after=len(ages))
            layout.add_bytes(ages, age_field)
        blank_id = self._prefix + bytes(8)
        layout.add(pb.PredictResponse(prediction_id=blank_id), ("number", np.dtype(">u8"), ()))
        return self._skeletons.keep((rows, shapes), layout.skeleton())

    def _whole(self, answers: Answers, ages: Ages, request: Request, span: slice) -> bytes:
        """Build the message field by field: for a selection of outputs, for strings, and with features."""
        model, assembled = self._model, answers.assembled
        response = pb.PredictResponse()
        response.outputs.extend(
            from_array(
                model.signature.outputs[index].name,
                answers.outputs[index][span] if model.plan.batched else np.asarray(answers.outputs[index]),
            )
            for index in request.outputs or range(len(answers.outputs))
        )
        for binding, codes, view_ages in zip(model.plan.bindings, assembled.statuses, ages, strict=True):
            response.views.add(
                alias=binding.alias, view=binding.ref, status=codes[span].tobytes(), age_ms=view_ages[span].tolist()
            )
        if request.return_features:
            for matrix in model.plan.matrices:
                flat = assembled.inputs[matrix.spec.name].reshape(-1, matrix.width)[span]
                for column, place in matrix.columns:
                    values = flat[:, place]
                    response.features.append(from_array(column.name, values if column.dtype.length else values[:, 0]))
        if answers.violations is not None:
            _tell(response, answers.violations, span, every=request.return_violations)
        elif request.return_violations:
            response.verdicts = bytes(span.stop - span.start)
        return self._head + response.SerializeToString()


def _tell(response: pb.PredictResponse, violations: Violations, span: slice, *, every: bool) -> None:
    """What became of the rows of a request; `every` check that they do not pass, if the caller asked for it."""
    response.verdicts = violations.verdicts[span].tobytes()
    if not every:
        return
    raw = {
        (row - span.start, column): values[index : index + 1]
        for column, rows, values in violations.changed
        for index, row in enumerate(rows.tolist())
        if span.start <= row < span.stop
    }
    for row, column in np.argwhere(violations.mask[span]).tolist():
        name = violations.columns[column]
        kinds = int(violations.kinds[span.start + row, column])
        violation = response.violations.add(row=row, column=name, kinds=said(kinds))
        if (row, column) in raw:
            violation.raw.CopyFrom(from_array(name, raw[row, column]))


@lru_cache(maxsize=1024)
def _request_id_prefix(length: int) -> bytes:
    """The tag and length in front of a request id of so many bytes."""
    return pb.PredictResponse(request_id="x" * length).SerializeToString()[:-length]


def _rows_of(request: Request) -> int:
    return request.rows


def _arrays(field: str, tensors: Sequence[tensor_pb2.Tensor], rows_max: int) -> dict[str, Array]:
    if len(tensors) > _TENSORS_MAX:
        raise InvalidRequest(f"{field} has {len(tensors)} tensors, the most is {_TENSORS_MAX}", field=field)
    found: dict[str, Array] = {}
    for tensor in tensors:
        name = tensor.name
        if name in found:
            raise InvalidRequest(f"{field} column {name!r} is there twice", field=f"{field}.{name}")
        array = to_array(tensor, f"{field}.{name}", rows_max)
        if array.ndim == 0 or len(array) == 0:
            raise InvalidRequest(f"{field} column {name!r} has zero rows", field=f"{field}.{name}")
        found[name] = array
    return found
