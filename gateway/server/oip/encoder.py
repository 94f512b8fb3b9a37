"""`Answers` -> ModelInferResponse bytes, as `gateway.server.codec` does it for Predict: blank answers filled by numpy.

Every output goes raw. The parameter `headrace_prediction_id` carries the id of the prediction in hexadecimal digits.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from gateway.inference.model import Model
from gateway.pipeline import Answers
from gateway.records.request import Array, Request
from gateway.records.tensors import to_raw
from gateway.server.oip import datatypes
from gateway.server.oip.caller import Styled
from gateway.server.oip.request import PLAIN, Style
from gateway.server.skeleton import Layout, Skeleton, Skeletons
from headrace.inference import grpc_service_pb2 as pb

PREDICTION_ID = "headrace_prediction_id"
_STATUS = "headrace_status."
_AGE = "headrace_age_ms."
_FINAL = "triton_final_response"
_COUNTER_DIGITS = 16
_group_of = itemgetter(Request._fields.index("rows"), Request._fields.index("outputs"))


class InferEncoder:
    """Encodes the answers of one model."""

    def __init__(self, model: Model, prefix: bytes) -> None:
        """`prefix` is what all prediction ids of this process begin with, 8 bytes."""
        self._model = model
        self._prefix = prefix.hex()
        self._head = pb.ModelInferResponse(model_name=model.name, model_version=str(model.version)).SerializeToString()
        self._constant_size = [spec.dtype != "string" for spec in model.signature.outputs]
        self._skeletons = Skeletons()

    def encode(self, answers: Answers) -> Iterator[tuple[Request, bytes]]:
        """Yield each request with the bytes of its answer."""
        start = first = 0
        for (rows, asked), run in groupby(answers.requests, _group_of):
            requests = list(run)
            chosen = asked or range(len(answers.outputs))
            numbers = answers.numbers[first : first + len(requests)].astype(">u8").tobytes().hex()
            first += len(requests)
            span = slice(start, start + rows * len(requests))
            bodies = self._block(answers, chosen, rows, numbers, span)
            for index, request in enumerate(requests):
                caller = request.caller
                if bodies is None or type(caller) is Styled:
                    number = numbers[_COUNTER_DIGITS * index : _COUNTER_DIGITS * (index + 1)]
                    one = slice(start + rows * index, start + rows * (index + 1))
                    style = caller.style if isinstance(caller, Styled) else PLAIN
                    body = self._whole(answers, chosen, one, style, number)
                else:
                    body = bodies[index]
                if request.request_id:
                    request_id = request.request_id.encode()
                    body += _id_prefix(len(request_id)) + request_id
                yield request, body
            start = span.stop

    def _block(
        self, answers: Answers, chosen: Sequence[int], rows: int, numbers: str, span: slice
    ) -> list[bytes] | None:
        """The answers to requests of `rows` rows, without their ids; None where blank answers have no constant size."""
        batched = self._model.plan.batched
        outputs = [answers.outputs[index] for index in chosen]
        shapes = tuple([(rows, *output.shape[1:]) if batched else output.shape for output in outputs])
        skeleton = self._skeletons.get((tuple(chosen), shapes))
        if skeleton is None:
            if not all(map(self._constant_size.__getitem__, chosen)) or not all(map(math.prod, shapes)):
                return None
            skeleton = self._build(chosen, shapes, outputs)
        count = len(numbers) // _COUNTER_DIGITS
        data = bytearray(skeleton.blank * count)
        block = np.frombuffer(data, skeleton.dtype)
        for index, output in enumerate(outputs):
            block[f"output{index}"] = (output[span] if batched else output).reshape(count, *shapes[index])
        block["number"] = np.frombuffer(numbers.encode(), f"S{_COUNTER_DIGITS}")
        filled, size = bytes(data), len(skeleton.blank)
        return [filled[at : at + size] for at in range(0, count * size, size)]

    def _build(self, chosen: Sequence[int], shapes: tuple[tuple[int, ...], ...], outputs: Sequence[Array]) -> Skeleton:
        """Serialise a blank answer with the generated classes, and find where its values are."""
        specs = self._model.signature.outputs
        named = pb.ModelInferResponse()
        for index, shape, output in zip(chosen, shapes, outputs, strict=True):
            named.outputs.add(name=specs[index].name, datatype=datatypes.of_array(output.dtype).name, shape=shape)
        layout = Layout(self._head + named.SerializeToString())
        blank_id = pb.InferParameter(string_param=self._prefix + "0" * _COUNTER_DIGITS)
        layout.add(
            pb.ModelInferResponse(parameters={PREDICTION_ID: blank_id}),
            ("number", np.dtype(f"S{_COUNTER_DIGITS}"), ()),
        )
        for index, (shape, output) in enumerate(zip(shapes, outputs, strict=True)):
            blank = bytes(output.dtype.itemsize * math.prod(shape))
            layout.add(pb.ModelInferResponse(raw_output_contents=[blank]), (f"output{index}", output.dtype, shape))
        return self._skeletons.keep((tuple(chosen), shapes), layout.skeleton())

    def _whole(
        self,
        answers: Answers,
        chosen: Sequence[int],
        span: slice,
        style: Style,
        number: str,
    ) -> bytes:
        """Build the message field by field: for strings, for classes, and with what a caller asked for beside."""
        model, response = self._model, pb.ModelInferResponse()
        classes = dict(style.classes)
        for index in chosen:
            name = model.signature.outputs[index].name
            values = answers.outputs[index][span] if model.plan.batched else np.asarray(answers.outputs[index])
            if name in classes and values.dtype.kind in "iuf":  # a fallback may give another dtype
                values = best_classes(values, classes[name])
            response.outputs.add(
                name=name,
                datatype=datatypes.of_array(values.dtype).name,
                shape=values.shape,
            )
            response.raw_output_contents.append(to_raw(values))
        response.parameters[PREDICTION_ID].string_param = self._prefix + number
        if style.statuses:
            ages = answers.assembled.ages_ms()
            for binding, codes, view_ages in zip(model.plan.bindings, answers.assembled.statuses, ages, strict=True):
                response.parameters[_STATUS + binding.alias].string_param = ",".join(map(str, codes[span].tolist()))
                response.parameters[_AGE + binding.alias].string_param = ",".join(map(str, view_ages[span].tolist()))
        if style.final:
            response.parameters[_FINAL].bool_param = True
        return self._head + response.SerializeToString()


def best_classes(values: Array, count: int) -> Array:
    """The `count` highest entries of each row as `value:index`, as Triton writes them: shape [rows, count]."""
    flat = values.reshape(len(values), -1)
    count = min(count, flat.shape[1])
    best = _highest(flat, count)
    found = np.take_along_axis(flat, best, axis=1).ravel().tolist()
    form = "%f:%d" if flat.dtype.kind == "f" else "%d:%d"
    texts = np.empty(best.size, object)
    texts[:] = [form % pair for pair in zip(found, best.ravel().tolist(), strict=True)]
    return texts.reshape(best.shape)


def _highest(flat: Array, count: int) -> npt.NDArray[np.intp]:
    """Where the `count` highest entries of each row are, in their order; of equals the first, and NaN last."""
    low = -flat.astype(np.float64)
    low[np.isnan(low)] = np.inf
    if not count < low.shape[1]:
        return np.argsort(low, axis=1, kind="stable")
    # Sorting whole rows takes ten times as long as finding the last one that is in.
    last = np.partition(low, count - 1, axis=1)[:, count - 1 : count]
    better, equal = low < last, low == last
    room = count - better.sum(axis=1, keepdims=True)
    chosen = better | (equal & (equal.cumsum(axis=1) <= room))
    where = np.nonzero(chosen)[1].reshape(-1, count)
    order = np.argsort(np.take_along_axis(low, where, axis=1), axis=1, kind="stable")
    return np.take_along_axis(where, order, axis=1)


@lru_cache(maxsize=1024)
def _id_prefix(length: int) -> bytes:
    """The tag and length in front of an id of so many bytes."""
    return pb.ModelInferResponse(id="x" * length).SerializeToString()[:-length]
