"""The rpc `Predict`: a batch of calls in, decoded and bound, into the pipeline; its answers encoded, out.

One call's trouble ends that call: decoding never raises out of the batch.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from gateway.inference import Model, ModelRepository, Swap
from gateway.pipeline import Answers, Pipeline
from gateway.records.errors import HeadraceError, LimitExceeded, NotAllowed, Unavailable
from gateway.records.report import FailureReport
from gateway.records.request import Request
from gateway.server import codec
from gateway.server.forms import Form, Forms
from gateway.server.status import describe
from gateway.transport.call import Call
from headrace.v1 import prediction_pb2 as pb

METHOD = "/headrace.v1.PredictionService/Predict"


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """Limits of a request."""

    rows_max: int = 10_000
    """Rows of one request."""
    request_id_bytes_max: int = 256
    """Length of the caller's request id, bytes of UTF-8."""
    default_deadline_s: float = 10.0
    """The deadline of callers that send none, seconds."""

    def __post_init__(self) -> None:
        if self.rows_max < 1 or self.request_id_bytes_max < 1:
            raise ValueError("rows_max and request_id_bytes_max must be at least 1")
        if not 0 < self.default_deadline_s < math.inf:
            raise ValueError("default_deadline_s must be a positive number of seconds")


class PredictHandler:
    """The batch handler of `Predict` and the sink of the pipeline."""

    def __init__(
        self,
        models: ModelRepository,
        options: PredictOptions,
        failed: Callable[[FailureReport], None],
        *,
        features_exposed: bool,
        prefix: bytes,
    ) -> None:
        """`failed` is told of every request that gets an error; `prefix` is what all prediction ids begin with."""
        self.models = models
        self.options = options
        self.failed = failed
        self.features_exposed = features_exposed
        self._prefix = prefix
        self._forms = Forms(Form)
        self._encoders: dict[Model, codec.Encoder] = {}
        self._pipeline: Pipeline | None = None

    def open(self, pipeline: Pipeline) -> None:
        """Answer from now on. Until then calls are refused as UNAVAILABLE."""
        self._pipeline = pipeline

    def on_swap(self, swap: Swap) -> None:
        """Other versions serve. What was bound to a removed one is answered by it."""
        self._forms.forget({model.name for model in (*swap.added, *swap.removed)})
        for model in swap.added:
            self._encoders[model] = codec.Encoder(model, self._prefix)

    def forget(self, model: Model) -> None:
        """A removed model has answered everything it took in."""
        self._encoders.pop(model, None)

    def on_calls(self, calls: list[Call]) -> None:
        """Decode what has arrived and hand it over, model by model."""
        by_model: dict[Model, list[Request]] = {}
        find = self._forms.find
        for call in calls:
            payload, deadline = call.payload, call.deadline
            form = find(payload)
            if form is not None:
                if deadline == math.inf:
                    deadline = self._deadline(call)
                request = form.request(call, payload, call.arrived, deadline)
                if request is not None:
                    by_model.setdefault(form.model, []).append(request)
                    continue
            self._decode(call, by_model)
        for model, requests in by_model.items():
            self._pipeline.accept(model, requests)  # type: ignore[union-attr]  # without one no call gets here

    def _decode(self, call: Call, by_model: dict[Model, list[Request]]) -> None:
        """Decode a call in full, and bind it, or end it."""
        model: Model | None = None
        try:
            if self._pipeline is None:
                raise Unavailable("the server is starting: it has not reached its feature store yet")
            message = codec.parse(call.payload)
            model = self._resolve(message)
            request = self._bind(call, message, model)
            self._forms.learn(call.payload, model, request)
        except Exception as error:  # noqa: BLE001 - whatever one call does to us, its neighbours are answered
            self._end(call, error, model)
        else:
            by_model.setdefault(model, []).append(request)

    def answer(self, answers: Answers) -> None:
        """Encode and send the answers of one run."""
        encoder = self._encoders.get(answers.model)
        if encoder is None:
            encoder = self._encoders[answers.model] = codec.Encoder(answers.model, self._prefix)
        for request, body in encoder.encode(answers):
            cast("Call", request.caller).reply(body)

    def refuse(self, request: Request, error: HeadraceError) -> None:
        """End one request with an error."""
        self._end(cast("Call", request.caller), error, None, request)

    def _resolve(self, message: pb.PredictRequest) -> Model:
        which = message.WhichOneof("model_version")
        if which is None:
            return self.models.latest(message.model)
        if which == "version":
            return self.models.version(message.model, message.version)
        return self.models.labelled(message.model, message.label)

    def _bind(self, call: Call, message: pb.PredictRequest, model: Model) -> Request:
        request_id = message.request_id
        if len(request_id) * 4 > self.options.request_id_bytes_max:
            self._check_length(request_id)
        if (message.return_features or message.return_violations) and not self.features_exposed:
            asked = "return_features" if message.return_features else "return_violations"
            raise NotAllowed(
                f"{asked} is allowed on loopback and Unix sockets only; the setting expose_features allows it"
            )
        bound = model.plan.bind(codec.to_asked(message, self.options.rows_max), self.options.rows_max)
        return Request(
            call,
            model.name,
            request_id,
            call.arrived,
            self._deadline(call),
            bound.rows,
            bound.ids,
            bound.context,
            bound.overrides,
            bound.outputs,
            message.return_features,
            bound.shape,
            message.priority,
            message.return_violations,
        )

    def _deadline(self, call: Call) -> float:
        deadline = call.deadline
        return call.arrived + self.options.default_deadline_s if deadline == math.inf else deadline

    def _check_length(self, request_id: str) -> None:
        length, most = len(request_id.encode()), self.options.request_id_bytes_max
        if length > most:
            raise LimitExceeded(
                f"request_id has {length} bytes, the limit request_id_bytes_max is {most}", limit="request_id_bytes_max"
            )

    def _end(self, call: Call, error: Exception, model: Model | None, request: Request | None = None) -> None:
        code, message, details = describe(error)
        call.fail(code.value[0], message, details)
        name, version = (model.name, model.version) if model is not None else ("", 0)
        if request is not None:
            name = request.model
        request_id = "" if request is None else request.request_id
        self.failed(
            FailureReport(name, code.name, (call.arrived,), time.monotonic(), version, message, request_id, request)
        )
