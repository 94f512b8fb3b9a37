"""The rpc `ModelInfer`: what is its own in the path that `gateway.server.handler` tells.

Its limits are those of `Predict`, and so are its reports. It is one sink for all models, as the fallback of one model
answers with another.
"""

from collections.abc import Callable

from gateway.inference import Model, ModelRepository
from gateway.records.report import FailureReport
from gateway.records.request import Request
from gateway.server.experiments.live import forced
from gateway.server.forms import Forms
from gateway.server.handler import Handler
from gateway.server.oip import request as requests_of
from gateway.server.oip.caller import Styled
from gateway.server.oip.encoder import InferEncoder
from gateway.server.oip.form import InferForm
from gateway.server.oip.options import OipOptions
from gateway.server.oip.request import PLAIN
from gateway.server.predict import PredictOptions
from gateway.transport.call import Call
from headrace.inference import grpc_service_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"


class InferHandler(Handler[InferForm]):
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
        super().__init__(models, options, failed, Forms(InferForm), lambda model: InferEncoder(model, prefix))
        self.oip = oip
        self._sink = self

    def _parse(self, payload: bytes | memoryview) -> pb.ModelInferRequest:
        return requests_of.parse(payload)

    def _resolve(self, message: pb.ModelInferRequest) -> Model:
        wanted = requests_of.variant_in(message)
        if wanted:
            pinned = bool(message.model_version)
            return forced(self.experiments, self.models, message.model_name, wanted, pinned=pinned)
        return requests_of.resolve(self.models, message.model_name, message.model_version)

    def _bind(self, call: Call, message: pb.ModelInferRequest, model: Model) -> tuple[Model, Request]:
        self._check_length(message.id, "the id")
        decoded = requests_of.decode(message, model, self.options.rows_max, self.oip.classes_max)
        model = decoded.model
        bound = model.plan.bind(decoded.asked, self.options.rows_max)
        if decoded.style.classes:
            requests_of.check_classes(decoded.style.classes, bound.rows)
        return model, Request(
            call if decoded.style == PLAIN else Styled(call, decoded.style),
            model.name,
            message.id,
            call.arrived,
            min(self._deadline(call), call.arrived + decoded.timeout_s),
            bound.rows,
            bound.ids,
            bound.context,
            bound.overrides,
            bound.outputs,
            return_features=False,
            shape=bound.shape,
            priority=decoded.priority,
            pinned=bool(message.model_version or requests_of.variant_in(message)),
        )
