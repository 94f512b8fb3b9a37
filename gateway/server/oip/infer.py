"""The rpc `ModelInfer`: a batch of calls in, decoded and bound, into the pipeline; its answers encoded, out.

The twin of `gateway.server.predict` for another message: the same path, the same limits, the same reports. Each model
has its `_Replies`, the sink of its lane, which knows the model of every request that comes back.

One call's trouble ends that call: decoding never raises out of the batch.
"""

import math
import time
from collections.abc import Callable
from typing import cast

from gateway.inference.model import Model, Swap
from gateway.inference.repository import ModelRepository
from gateway.pipeline import Answers, Pipeline
from gateway.records.errors import HeadraceError, LimitExceeded, Unavailable
from gateway.records.report import FailureReport
from gateway.records.request import Request
from gateway.server.forms import Forms
from gateway.server.oip import request as requests_of
from gateway.server.oip.caller import Styled
from gateway.server.oip.encoder import InferEncoder
from gateway.server.oip.form import InferForm
from gateway.server.oip.options import OipOptions
from gateway.server.oip.request import PLAIN
from gateway.server.predict import PredictOptions
from gateway.server.status import describe
from gateway.transport.call import Call

METHOD = "/inference.GRPCInferenceService/ModelInfer"


class InferHandler:
    """The batch handler of `ModelInfer`, and of the messages of ModelStreamInfer."""

    def __init__(
        self,
        models: ModelRepository,
        options: PredictOptions,
        oip: OipOptions,
        failed: Callable[[FailureReport], None],
        *,
        prefix: bytes,
    ) -> None:
        """`failed` is told of every request that gets an error; `prefix` is what all prediction ids begin with."""
        self.models = models
        self.options = options
        self.oip = oip
        self.failed = failed
        self._prefix = prefix
        self._forms = Forms(InferForm)
        self._replies: dict[Model, _Replies] = {}
        self._pipeline: Pipeline | None = None

    def open(self, pipeline: Pipeline) -> None:
        """Answer from now on. Until then calls are refused as UNAVAILABLE."""
        self._pipeline = pipeline

    def on_swap(self, swap: Swap) -> None:
        """Other versions serve. What was bound to a removed one is answered by it."""
        self._forms.forget({model.name for model in (*swap.added, *swap.removed)})

    def forget(self, model: Model) -> None:
        """A removed model has answered everything it took in."""
        self._replies.pop(model, None)
        self._replies.pop(model.tensors, None)

    def on_calls(self, calls: list[Call]) -> None:
        """Decode what has arrived and hand it over, model by model."""
        by_model: dict[Model, list[Request]] = {}
        find = self._forms.find
        for call in calls:
            payload, deadline = call.payload, call.deadline
            form = find(payload)
            if form is not None:
                if deadline == math.inf:
                    deadline = self._deadline(call, math.inf)
                request = form.request(call, payload, call.arrived, deadline)
                if request is not None:
                    by_model.setdefault(form.model, []).append(request)
                    continue
            self._decode(call, by_model)
        for model, requests in by_model.items():
            replies = self._replies.get(model)
            if replies is None:
                replies = self._replies[model] = _Replies(model, self)
            self._pipeline.accept(model, requests, replies)  # type: ignore[union-attr]  # without one no call gets here

    def _decode(self, call: Call, by_model: dict[Model, list[Request]]) -> None:
        """Decode a call in full, and bind it, or end it."""
        model: Model | None = None
        try:
            if self._pipeline is None:
                raise Unavailable("the server is starting: it has not reached its feature store yet")
            message = requests_of.parse(call.payload)
            model = requests_of.resolve(self.models, message.model_name, message.model_version)
            if len(message.id) * 4 > self.options.request_id_bytes_max:
                self._check_length(message.id)
            decoded = requests_of.decode(message, model, self.options.rows_max, self.oip.classes_max)
            model = decoded.model
            bound = model.plan.bind(decoded.asked, self.options.rows_max)
            request = Request(
                call if decoded.style == PLAIN else Styled(call, decoded.style),
                model.name,
                message.id,
                call.arrived,
                self._deadline(call, decoded.timeout_s),
                bound.rows,
                bound.ids,
                bound.context,
                bound.overrides,
                bound.outputs,
                return_features=False,
                shape=bound.shape,
                priority=decoded.priority,
            )
            self._forms.learn(call.payload, model, request)
        except Exception as error:  # noqa: BLE001 - whatever one call does to us, its neighbours are answered
            self.end(call, error, model)
        else:
            by_model.setdefault(model, []).append(request)

    def end(self, call: Call, error: Exception, model: Model | None, request: Request | None = None) -> None:
        """End a call with an error, and report it."""
        code, message, details = describe(error)
        call.fail(code.value[0], message, details)
        name, version = (model.name, model.version) if model is not None else ("", 0)
        request_id = "" if request is None else request.request_id
        self.failed(
            FailureReport(name, code.name, (call.arrived,), time.monotonic(), version, message, request_id, request)
        )

    def encoder(self, model: Model) -> InferEncoder:
        """A new encoder for a model."""
        return InferEncoder(model, self._prefix)

    def _deadline(self, call: Call, timeout_s: float) -> float:
        deadline = call.deadline
        if deadline == math.inf:
            deadline = call.arrived + self.options.default_deadline_s
        return min(deadline, call.arrived + timeout_s)

    def _check_length(self, request_id: str) -> None:
        length, most = len(request_id.encode()), self.options.request_id_bytes_max
        if length > most:
            raise LimitExceeded(
                f"the id has {length} bytes, the limit request_id_bytes_max is {most}", limit="request_id_bytes_max"
            )


class _Replies:
    """The sink for the requests of one model."""

    __slots__ = ("_encoder", "_handler", "_model")

    def __init__(self, model: Model, handler: InferHandler) -> None:
        self._model = model
        self._handler = handler
        self._encoder = handler.encoder(model)

    def __repr__(self) -> str:
        return f"<Replies {self._model!r}>"

    def answer(self, answers: Answers) -> None:
        """Encode and send the answers of one run."""
        for request, body in self._encoder.encode(answers):
            _call_of(request).reply(body)

    def refuse(self, request: Request, error: HeadraceError) -> None:
        """End one request with an error."""
        self._handler.end(_call_of(request), error, self._model, request)


def _call_of(request: Request) -> Call:
    caller = request.caller
    return caller.call if type(caller) is Styled else cast("Call", caller)
