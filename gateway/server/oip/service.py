"""The rpcs of `inference.GRPCInferenceService` that are not hot: health, metadata, statistics, the repository.

Loading, unloading and listing are for callers that `Access` lets in.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from gateway.inference.loading import ModelsNotLoaded
from gateway.inference.model import Model
from gateway.inference.repository import ModelRepository
from gateway.records.errors import HeadraceError, InvalidRequest, ModelRefused
from gateway.server.oip import metadata
from gateway.server.oip.access import Access
from gateway.server.oip.request import resolve
from gateway.server.oip.statistics import Statistics
from gateway.server.oip.stream import Streams
from gateway.server.status import abort
from headrace.inference import grpc_service_pb2 as pb

if TYPE_CHECKING:
    import grpc.aio

    from gateway.transport.call import Transport

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NAME = "headrace"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
_HOT = "ModelInfer"
_STREAM = "ModelStreamInfer"


class InferenceService:
    """The coroutines behind the service."""

    def __init__(
        self,
        models: ModelRepository,
        statistics: Statistics,
        streams: Streams,
        access: Access,
        *,
        ready: Callable[[], bool],
        version: str,
    ) -> None:
        """`ready` says whether the server is; `version` is the server's."""
        self.models = models
        self.statistics = statistics
        self.streams = streams
        self.access = access
        self._ready = ready
        self._version = version

    def __repr__(self) -> str:
        return f"<InferenceService {self.access!r}>"

    def add_to(self, server: "Transport") -> None:
        """Serve everything but ModelInfer, which is a batch method."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            _STREAM: grpc.stream_stream_rpc_method_handler(self.streams.serve)
        }
        for method in SERVICE.methods:
            if method.name not in {_HOT, _STREAM}:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                    _ending_well(getattr(self, method.name)),
                    request_deserializer=getattr(pb, method.input_type.name).FromString,
                    response_serializer=getattr(pb, method.output_type.name).SerializeToString,
                )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        server.add_registered_method_handlers(SERVICE.full_name, handlers)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: _Context) -> pb.ServerLiveResponse:
        """It answers, so it lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: _Context) -> pb.ServerReadyResponse:
        """As `/readyz`."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: _Context) -> pb.ModelReadyResponse:
        """Whether a request for this model would be taken; false for one that does not exist."""
        try:
            resolve(self.models, request.name, request.version)
        except HeadraceError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: _Context) -> pb.ServerMetadataResponse:
        """The name and version of the server."""
        return pb.ServerMetadataResponse(name=NAME, version=self._version, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: _Context) -> pb.ModelMetadataResponse:
        """Inputs, outputs and versions of a model."""
        model = resolve(self.models, request.name, request.version)
        return metadata.metadata(model, [other.version for other in self._of_name(model.name)])

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: _Context) -> pb.ModelConfigResponse:
        """The configuration of a model."""
        return pb.ModelConfigResponse(config=metadata.config(resolve(self.models, request.name, request.version)))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: _Context
    ) -> pb.ModelStatisticsResponse:
        """Counts and times of a version, of all versions of a model, or of every model."""
        if request.version and not request.name:
            raise InvalidRequest("a version needs the name of its model", field="name")
        models: Sequence[Model]
        if request.version:
            models = [resolve(self.models, request.name, request.version)]
        elif request.name:
            resolve(self.models, request.name, "")
            models = self._of_name(request.name)
        else:
            models = list(self.models)
        return self.statistics.answer(sorted((model.name, model.version) for model in models))

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: _Context
    ) -> pb.RepositoryIndexResponse:
        """Every version that is known, and why one does not serve."""
        self._admit(request.repository_name, context)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=found.name,
                    version=str(found.version) if found.version > 0 else "",
                    state=found.state,
                    reason=found.reason,
                )
                for found in self.models.states()
                if found.state == "READY" or not request.ready
            ]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model from the repository, or load it again; answered when it serves."""
        self._admit(request.repository_name, context)
        _refuse_parameters(request.parameters, "load", allowed=())
        await self._to_the_end(self.models.load(request.model_name))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model; what it took in is answered."""
        self._admit(request.repository_name, context)
        # No model of ours has dependents.
        _refuse_parameters(request.parameters, "unload", allowed=("unload_dependents",))
        await self._to_the_end(self.models.unload(request.model_name))
        return pb.RepositoryModelUnloadResponse()

    def _admit(self, repository: str, context: _Context) -> None:
        self.access.check(context.peer(), context.invocation_metadata() or ())
        if repository:
            raise InvalidRequest("there is one repository, and it has no name here", field="repository_name")

    def _of_name(self, name: str) -> list[Model]:
        return [model for model in self.models if model.name == name]

    async def _to_the_end(self, change: Any) -> None:
        """A change of the repository goes on when the caller who asked for it leaves."""
        try:
            await asyncio.shield(asyncio.ensure_future(change))
        except ModelsNotLoaded as error:
            raise ModelRefused(str(error)) from error


def _ending_well(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The coroutine, with its errors as statuses."""

    async def answer(request: Any, context: Any) -> Any:
        try:
            return await function(request, context)
        except Exception as error:  # noqa: BLE001 - `abort` tells what is the caller's and hides the rest
            await abort(context, error)

    return answer


def _refuse_parameters(
    parameters: Mapping[str, pb.ModelRepositoryParameter], what: str, *, allowed: tuple[str, ...]
) -> None:
    for name in parameters:
        if name not in allowed:
            raise InvalidRequest(
                f"the parameter {name[:64]!r} of {what} is not supported: a model is what the repository holds",
                field="parameters",
            )
