"""What the hot rpcs share: a batch of calls in, decoded and bound, into the pipeline; its answers encoded, out.

    calls ──▶ a form that was learnt, or `parse` ─▶ `resolve` ─▶ `bind` ──▶ pipeline.accept, model by model
    answers ──▶ the encoder of the model that gave them ──▶ call.reply

An answer may come from another model than the request was bound to, its fallback: what is said of an answer is read
from the answer, never from who was asked.

One call's trouble ends that call: decoding never raises out of the batch.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from gateway.inference import Model, ModelRepository, Swap
from gateway.pipeline import Answers, Pipeline, Sink
from gateway.records.errors import HeadraceError, LimitExceeded, Unavailable
from gateway.records.report import FailureReport
from gateway.records.request import Request
from gateway.server.experiments.live import Live
from gateway.server.experiments.routes import deal
from gateway.server.forms import Forms, Like
from gateway.server.status import describe
from gateway.transport.call import Call

if TYPE_CHECKING:
    from gateway.server.predict import PredictOptions

F = TypeVar("F", bound=Like)


class Encoder(Protocol):
    """Encodes the answers of one model."""

    def encode(self, answers: Answers) -> Iterator[tuple[Request, bytes]]:
        """Yield each request with the bytes of its answer."""
        ...


class Handler(ABC, Generic[F]):
    """The batch handler of one rpc and a sink of the pipeline, for every model."""

    def __init__(
        self,
        models: ModelRepository,
        options: "PredictOptions",
        failed: Callable[[FailureReport], None],
        forms: Forms[F],
        encoder: Callable[[Model], Encoder],
    ) -> None:
        """`failed` is told of every request that gets an error."""
        self.models = models
        self.options = options
        self.failed = failed
        self._forms = forms
        self._encoder = encoder
        self._encoders: dict[Model, Encoder] = {}
        self.experiments: Live | None = None
        """Who answers requests that leave it to the server; None, and it is the latest version."""
        self._pipeline: Pipeline | None = None
        self._sink: Sink | None = None
        """Who gets the answers; None, and it is the pipeline's own."""

    def open(self, pipeline: Pipeline) -> None:
        """Answer from now on. Until then calls are refused as UNAVAILABLE."""
        self._pipeline = pipeline

    def on_swap(self, swap: Swap) -> None:
        """Other versions serve. What was bound to a removed one is answered by it."""
        self._forms.forget({model.name for model in (*swap.added, *swap.removed)})

    def forget(self, model: Model) -> None:
        """A removed model has answered everything it took in."""
        self._encoders.pop(model, None)
        self._encoders.pop(model.tensors, None)

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
        if by_model:
            self._hand_over(by_model)

    def _hand_over(self, by_model: Mapping[Model, list[Request]]) -> None:
        accept = self._pipeline.accept  # type: ignore[union-attr]  # without one no call gets here
        if self.experiments is None:
            for model, requests in by_model.items():
                accept(model, requests, self._sink)
            return
        for model, requests, way in deal(by_model, self.experiments.routes):
            accept(model, requests, self._sink if way is None else way.sink(self))

    def _decode(self, call: Call, by_model: dict[Model, list[Request]]) -> None:
        """Decode a call in full, and bind it, or end it."""
        model: Model | None = None
        try:
            if self._pipeline is None:
                raise Unavailable("the server is starting: it has not reached its feature store yet")
            message = self._parse(call.payload)
            model = self._resolve(message)
            model, request = self._bind(call, message, model)
            self._forms.learn(call.payload, model, request)
        except Exception as error:  # noqa: BLE001 - whatever one call does to us, its neighbours are answered
            self._end(call, error, model)
        else:
            by_model.setdefault(model, []).append(request)

    @abstractmethod
    def _parse(self, payload: bytes | memoryview) -> Any:
        """The message, or `InvalidRequest`."""

    @abstractmethod
    def _resolve(self, message: Any) -> Model:
        """The model that it asks for."""

    @abstractmethod
    def _bind(self, call: Call, message: Any, model: Model) -> tuple[Model, Request]:
        """The request, and the model whose plan it was bound to: `model`, or the same for other inputs."""

    def answer(self, answers: Answers) -> None:
        """Encode and send the answers of one run."""
        model = answers.model
        encoder = self._encoders.get(model)
        if encoder is None:
            encoder = self._encoders[model] = self._encoder(model)
        for request, body in encoder.encode(answers):
            request.caller.reply(body)  # type: ignore[attr-defined]  # a call, or what stands for one

    def refuse(self, request: Request, error: HeadraceError, model: Model) -> None:
        """End one request with an error."""
        self._end(cast("Call", request.caller), error, model, request)

    def _deadline(self, call: Call) -> float:
        deadline = call.deadline
        return call.arrived + self.options.default_deadline_s if deadline == math.inf else deadline

    def _check_length(self, request_id: str, what: str) -> None:
        most = self.options.request_id_bytes_max
        if len(request_id) * 4 > most and (length := len(request_id.encode())) > most:
            message = f"{what} has {length} bytes, the limit request_id_bytes_max is {most}"
            raise LimitExceeded(message, limit="request_id_bytes_max")

    def _end(self, call: Call, error: Exception, model: Model | None, request: Request | None = None) -> None:
        code, message, details = describe(error)
        call.fail(code.value[0], message, details)
        name, version = (model.name, model.version) if model is not None else ("", 0)
        request_id = "" if request is None else request.request_id
        ended = time.monotonic()
        self.failed(
            FailureReport(name, code.name, (call.arrived,), ended, version, message, request_id, request, model)
        )
