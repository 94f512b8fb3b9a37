"""The rpc `Predict`: what is its own in the path that `gateway.server.handler` tells."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gateway.inference import Model, ModelRepository
from gateway.records.errors import NotAllowed
from gateway.records.report import FailureReport
from gateway.records.request import Request
from gateway.server import codec
from gateway.server.experiments.live import forced
from gateway.server.forms import Form, Forms
from gateway.server.handler import Handler
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


class PredictHandler(Handler[Form]):
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
        super().__init__(models, options, failed, Forms(Form), lambda model: codec.Encoder(model, prefix))
        self.features_exposed = features_exposed

    def _parse(self, payload: bytes | memoryview) -> pb.PredictRequest:
        return codec.parse(payload)

    def _resolve(self, message: pb.PredictRequest) -> Model:
        which = message.WhichOneof("model_version")
        if message.variant:
            return forced(self.experiments, self.models, message.model, message.variant, pinned=which is not None)
        if which is None:
            return self.models.latest(message.model)
        if which == "version":
            return self.models.version(message.model, message.version)
        return self.models.labelled(message.model, message.label)

    def _bind(self, call: Call, message: pb.PredictRequest, model: Model) -> tuple[Model, Request]:
        request_id = message.request_id
        self._check_length(request_id, "request_id")
        if (message.return_features or message.return_violations) and not self.features_exposed:
            asked = "return_features" if message.return_features else "return_violations"
            raise NotAllowed(
                f"{asked} is allowed on loopback and Unix sockets only; the setting expose_features allows it"
            )
        bound = model.plan.bind(codec.to_asked(message, self.options.rows_max), self.options.rows_max)
        return model, Request(
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
            bool(message.variant) or message.WhichOneof("model_version") is not None,
        )
