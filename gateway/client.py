"""A typed client: dicts and arrays in, arrays out.

    async with HeadraceClient("127.0.0.1:8500") as client:
        prediction = await client.predict("flight_delay", {"tailnum": ["N14228"]}, {"dep_delay": [12.0]})
        prediction.outputs["probability"]

`BlockingClient` is the same for programs without an event loop. Both keep one connection open; make one and share it.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
from google.rpc import error_details_pb2, status_pb2

from gateway.records.request import Array
from gateway.records.tensors import from_array, to_array
from headrace.v1 import features_pb2, features_pb2_grpc, prediction_pb2, prediction_pb2_grpc, tensor_pb2

Ids: TypeAlias = "str | int | Sequence[str] | Sequence[int] | npt.NDArray[np.generic]"
"""One id for every row, or one per row; strings or integers."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DETAILS = "grpc-status-details-bin"
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1)]
"""The size of an answer follows from what was asked; grpc's own limit of 4 MiB is below 10,000 rows with features."""


class CallFailed(Exception):
    """The server refused the call, or was not there.

    `reason` is a constant such as `INVALID_REQUEST` or `MODEL_NOT_FOUND` (empty when no server answered), `field` the
    path in the request that is wrong.
    """

    def __init__(self, code: grpc.StatusCode, message: str, reason: str = "", field: str = "") -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field


@dataclass(frozen=True, slots=True)
class ViewRows:
    """Where the rows of one view came from: a status byte per row (uint8[rows], see `featureclient.schema.status`) and
    the milliseconds since their event time (int64[rows], -1 unknown)."""

    view: str
    status: npt.NDArray[np.uint8]
    age_ms: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Violation:
    """A check that a row does not pass; `raw` is what the column held where a policy has replaced it."""

    row: int
    column: str
    kinds: tuple[str, ...]
    raw: Any = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer. `outputs` and `features` are arrays whose first dimension is the row; `views` is by alias."""

    model: str
    version: int
    variant: str
    request_id: str
    prediction_id: bytes
    outputs: Mapping[str, Array]
    views: Mapping[str, ViewRows]
    features: Mapping[str, Array]
    warnings: Sequence[str]
    verdicts: npt.NDArray[np.uint8]
    """What the checks did, a byte per row: 0 nothing, 1 flagged, 2 a value was replaced, 3 the fallback's outputs, 4
    rejected. Empty where the server did not say."""
    violations: Sequence[Violation] = ()


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Rows of a view: columns by name, `valid[name]` False where a value is null."""

    rows: ViewRows
    columns: Mapping[str, Array]
    valid: Mapping[str, npt.NDArray[np.bool_]]


class HeadraceClient:
    """Calls a gateway over one connection."""

    def __init__(self, target: str = "127.0.0.1:8500", *, credentials: grpc.ChannelCredentials | None = None) -> None:
        """`target` as grpc takes it: `host:port` or `unix:/path`. With `credentials` the connection is TLS."""
        self.target = target
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None

    def __repr__(self) -> str:
        return f"<HeadraceClient {self.target} {'open' if self._channel else 'closed'}>"

    async def __aenter__(self) -> Self:
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self.target, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(self.target, self._credentials, options=_CHANNEL_OPTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def predict(
        self,
        model: str,
        entities: Mapping[str, Ids],
        context: Mapping[str, npt.ArrayLike] | None = None,
        *,
        version: int | None = None,
        label: str | None = None,
        variant: str = "",
        overrides: Mapping[str, npt.ArrayLike] | None = None,
        outputs: Sequence[str] = (),
        return_features: bool = False,
        return_violations: bool = False,
        priority: int = 0,
        request_id: str = "",
        timeout_s: float | None = 10.0,
    ) -> Prediction:
        """Ask for predictions; columns of one value are broadcast. Raises `CallFailed`; TypeError for ids that are
        neither strings nor integers.

        `variant` names one of an experiment in place of the one that would be assigned; `default` is no experiment."""
        if version is not None and label is not None:
            raise ValueError("give a version or a label, not both")
        request = prediction_pb2.PredictRequest(
            model=model,
            version=version,
            label=label,
            variant=variant,
            entities=_entity_columns(entities),
            context=_tensors(context or {}),
            overrides=_tensors(overrides or {}),
            request_id=request_id,
            outputs=outputs,
            return_features=return_features,
            return_violations=return_violations,
            priority=priority,
        )
        stub = prediction_pb2_grpc.PredictionServiceStub(self._open())
        response: prediction_pb2.PredictResponse = await _call(stub.Predict(request, timeout=timeout_s))
        return Prediction(
            response.model,
            response.version,
            response.variant,
            response.request_id,
            response.prediction_id,
            _arrays(response.outputs),
            {rows.alias: _view_rows(rows) for rows in response.views},
            _arrays(response.features),
            tuple(response.warnings),
            np.frombuffer(response.verdicts, np.uint8),
            tuple(map(_violation, response.violations)),
        )

    async def get_features(
        self, view: str, entities: Mapping[str, Ids], columns: Sequence[str] = (), *, timeout_s: float | None = 10.0
    ) -> FeatureRows:
        """Read rows of a view (`plane_stats@1`) through the gateway's cache."""
        request = features_pb2.GetFeaturesRequest(view=view, entities=_entity_columns(entities), columns=columns)
        stub = features_pb2_grpc.FeatureServiceStub(self._open())
        response: features_pb2.GetFeaturesResponse = await _call(stub.Get(request, timeout=timeout_s))
        arrays = {column.values.name: to_array(column.values, column.values.name) for column in response.columns}
        valid = {
            column.values.name: np.frombuffer(column.valid, np.bool_)
            if column.valid
            else np.ones(len(arrays[column.values.name]), np.bool_)
            for column in response.columns
        }
        return FeatureRows(_view_rows(response.rows), arrays, valid)

    async def write_features(
        self,
        view: str,
        entities: Mapping[str, Ids],
        columns: Mapping[str, npt.ArrayLike],
        *,
        event_time_ms: Sequence[int] | npt.NDArray[np.int64] = (),
        force: bool = False,
        timeout_s: float | None = 10.0,
    ) -> tuple[int, int]:
        """Write rows of a view; returns how many were written, and how many were left because a newer row is stored.
        Masked arrays (`np.ma`) carry nulls. A column that is left out is null in every row."""
        request = features_pb2.WriteFeaturesRequest(
            view=view,
            entities=_entity_columns(entities),
            columns=[_feature_column(name, values) for name, values in columns.items()],
            event_time_ms=event_time_ms,
            force=force,
        )
        stub = features_pb2_grpc.FeatureServiceStub(self._open())
        response: features_pb2.WriteFeaturesResponse = await _call(stub.Write(request, timeout=timeout_s))
        return response.written, response.superseded

    async def delete_features(self, view: str, entities: Mapping[str, Ids], *, timeout_s: float | None = 10.0) -> int:
        """Delete rows of a view; returns how many there were."""
        request = features_pb2.DeleteFeaturesRequest(view=view, entities=_entity_columns(entities))
        stub = features_pb2_grpc.FeatureServiceStub(self._open())
        response: features_pb2.DeleteFeaturesResponse = await _call(stub.Delete(request, timeout=timeout_s))
        return response.deleted

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("the client is closed; use `async with HeadraceClient(...) as client`")
        return self._channel


def _blocking(
    method: Callable[Concatenate[HeadraceClient, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate["BlockingClient", _P], _R]:
    def call(self: "BlockingClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self._run(method(self._client, *args, **kwargs))

    call.__doc__, call.__name__ = method.__doc__, method.__name__
    return call


class BlockingClient:
    """`HeadraceClient` for programs without an event loop: it runs one in a thread. Safe to share among threads."""

    predict = _blocking(HeadraceClient.predict)
    get_features = _blocking(HeadraceClient.get_features)
    write_features = _blocking(HeadraceClient.write_features)
    delete_features = _blocking(HeadraceClient.delete_features)

    def __init__(self, target: str = "127.0.0.1:8500", *, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._client = HeadraceClient(target, credentials=credentials)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="headrace-client", daemon=True)
        self._thread.start()
        self._run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._client.__aexit__(kind, error, trace))
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _run(self, work: Coroutine[Any, Any, _R]) -> _R:
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is closed; use `with BlockingClient(...) as client`")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _call(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _failure(error) from error


def _failure(error: grpc.aio.AioRpcError) -> CallFailed:
    reason = field = ""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                    reason = error_details_pb2.ErrorInfo.FromString(detail.value).reason
                elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                    field = "".join(
                        violation.field
                        for violation in error_details_pb2.BadRequest.FromString(detail.value).field_violations[:1]
                    )
    return CallFailed(error.code(), error.details() or "", reason, field)


def _entity_columns(entities: Mapping[str, Ids]) -> list[tensor_pb2.EntityColumn]:
    return [_entity_column(name, ids) for name, ids in entities.items()]


def _entity_column(name: str, ids: Ids) -> tensor_pb2.EntityColumn:
    listed: list[Any] = np.atleast_1d(np.asarray(ids, object)).tolist()
    if all(isinstance(value, str) for value in listed):
        return tensor_pb2.EntityColumn(name=name, strings=tensor_pb2.StringIds(values=listed))
    if all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in listed):
        return tensor_pb2.EntityColumn(name=name, int64s=tensor_pb2.Int64Ids(values=listed))
    wrong = next(value for value in listed if not isinstance(value, str))
    raise TypeError(f"ids of {name!r} must be all strings or all integers, found {wrong!r}")


def _tensors(columns: Mapping[str, npt.ArrayLike]) -> list[tensor_pb2.Tensor]:
    return [from_array(name, np.atleast_1d(np.asarray(values))) for name, values in columns.items()]


def _feature_column(name: str, values: npt.ArrayLike) -> features_pb2.FeatureColumn:
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    array = np.atleast_1d(np.ma.getdata(values) if mask is not None else np.asarray(values))
    valid = b"" if mask is None else (~mask if mask.ndim == 1 else ~mask.any(axis=1)).tobytes()
    return features_pb2.FeatureColumn(values=from_array(name, array), valid=valid)


def _arrays(tensors: Sequence[tensor_pb2.Tensor]) -> dict[str, Array]:
    return {tensor.name: to_array(tensor, tensor.name) for tensor in tensors}


def _violation(found: prediction_pb2.Violation) -> Violation:
    raw = to_array(found.raw, found.column)[0] if found.HasField("raw") else None
    return Violation(found.row, found.column, tuple(found.kinds), raw)


def _view_rows(rows: tensor_pb2.ViewRows) -> ViewRows:
    return ViewRows(rows.view, np.frombuffer(rows.status, np.uint8), np.array(rows.age_ms, np.int64))
