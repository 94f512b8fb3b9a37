"""The rpc `FeatureService`: rows of a view for writers and readers in any language."""

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc.aio
import numpy as np

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, InvalidId, InvalidTable, UnknownView, View
from featureclient.store import StoreError
from gateway.plan.ids import join_ids
from gateway.records.errors import HeadraceError, InvalidRequest, LimitExceeded, NotAllowed, Unavailable
from gateway.records.request import Array, Id
from gateway.records.tensors import from_array, to_array
from gateway.server.codec import ids_by_name
from gateway.server.status import abort
from headrace.v1 import features_pb2 as pb
from headrace.v1 import features_pb2_grpc, tensor_pb2


class FeatureService(features_pb2_grpc.FeatureServiceServicer):
    """Get, Write and Delete rows, through the same client and cache as predictions."""

    def __init__(self, catalogue: Catalogue, client: FeatureClient, *, rows_max: int, exposed: bool) -> None:
        self.catalogue = catalogue
        self.client = client
        self.rows_max = rows_max
        self.exposed = exposed

    async def Get(
        self,
        request: pb.GetFeaturesRequest,
        context: "grpc.aio.ServicerContext[pb.GetFeaturesRequest, pb.GetFeaturesResponse]",
    ) -> pb.GetFeaturesResponse:
        """Read rows."""
        try:
            view, ids = self._rows(request.view, request.entities)
            names = list(dict.fromkeys(request.columns)) or [column.name for column in view.columns]
            unknown = [name for name in names if name not in view.layout.places]
            if unknown:
                known = ", ".join(view.layout.places)
                raise InvalidRequest(f"{view.ref} has no column {unknown[0]!r} (it has: {known})", field="columns")
            # Half of what is left, so that there is time to say that the store did not answer.
            remaining_s: float | None = context.time_remaining()
            budget_s = self.client.read_timeout_s
            rows = await self.client.read(
                view, ids, budget_s if remaining_s is None else min(budget_s, remaining_s / 2)
            )
        except Exception as error:  # noqa: BLE001 - `abort` tells what is the caller's and hides the rest
            await _abort(context, error)
        response = pb.GetFeaturesResponse(
            rows=tensor_pb2.ViewRows(
                alias=view.name, view=view.ref, status=rows.status.tobytes(), age_ms=rows.age_ms.tolist()
            )
        )
        for name in names:
            valid = rows.valid[name]
            response.columns.append(
                pb.FeatureColumn(
                    values=from_array(name, rows.columns[name]), valid=b"" if valid.all() else valid.tobytes()
                )
            )
        return response

    async def Write(
        self,
        request: pb.WriteFeaturesRequest,
        context: "grpc.aio.ServicerContext[pb.WriteFeaturesRequest, pb.WriteFeaturesResponse]",
    ) -> pb.WriteFeaturesResponse:
        """Write rows."""
        try:
            view, ids = self._rows(request.view, request.entities)
            table: dict[str, Array] = _key_columns(view, ids)
            for column in request.columns:
                name = column.values.name
                if name in table or name not in view.layout.places:
                    known = ", ".join(view.layout.places)
                    what = "is there twice, or is a join key" if name in table else "is not in the view"
                    raise InvalidRequest(f"column {name!r} {what}; {view.ref} has: {known}", field=f"columns.{name}")
                table[name] = _values(column, len(ids))
            moments = np.array(request.event_time_ms, np.int64)
            if len(moments) not in (0, 1, len(ids)):
                raise InvalidRequest(
                    f"event_time_ms has {len(moments)} entries for {len(ids)} rows; it needs none, one, or one per row",
                    field="event_time_ms",
                )
            event_time_ms = np.broadcast_to(moments, len(ids)) if len(moments) else None
            written = await self.client.write(view, table, event_time_ms=event_time_ms, force=request.force)
        except Exception as error:  # noqa: BLE001 - `abort` tells what is the caller's and hides the rest
            await _abort(context, error)
        return pb.WriteFeaturesResponse(written=written.written, superseded=written.superseded)

    async def Delete(
        self,
        request: pb.DeleteFeaturesRequest,
        context: "grpc.aio.ServicerContext[pb.DeleteFeaturesRequest, pb.DeleteFeaturesResponse]",
    ) -> pb.DeleteFeaturesResponse:
        """Delete rows."""
        try:
            view, ids = self._rows(request.view, request.entities)
            deleted = await self.client.delete(view, ids)
        except Exception as error:  # noqa: BLE001 - `abort` tells what is the caller's and hides the rest
            await _abort(context, error)
        return pb.DeleteFeaturesResponse(deleted=deleted)

    def _rows(self, ref: str, entities: Sequence[tensor_pb2.EntityColumn]) -> tuple[View, Sequence[Id]]:
        if not self.exposed:
            raise NotAllowed(
                "FeatureService answers on loopback and Unix sockets; the setting expose_features allows more"
            )
        try:
            view = self.catalogue.view(ref)
        except UnknownView as error:
            raise InvalidRequest(str(error), field="view") from error
        ids = join_ids(view.entity, ids_by_name(entities))
        if len(ids) > self.rows_max:
            raise LimitExceeded(f"{len(ids)} rows, the limit rows_max is {self.rows_max}", limit="rows_max")
        return view, ids


def _key_columns(view: View, ids: Sequence[Id]) -> dict[str, Array]:
    """The join key columns of a table, from joined ids."""
    names = [key.name for key in view.entity.join_keys]
    parts = zip(*ids, strict=True) if len(names) > 1 else [ids]
    return {
        name: np.array(list(part), object if key.dtype == "string" else np.int64)
        for name, key, part in zip(names, view.entity.join_keys, parts, strict=True)
    }


def _values(column: pb.FeatureColumn, rows: int) -> Array:
    name = column.values.name
    array = to_array(column.values, f"columns.{name}")
    if len(array) != rows or (column.valid and len(column.valid) != rows):
        raise InvalidRequest(f"column {name!r} has {len(array)} rows, the ids have {rows}", field=f"columns.{name}")
    if not column.valid:
        return array
    null = np.frombuffer(column.valid, np.uint8) == 0
    return np.ma.MaskedArray(array, np.broadcast_to(null.reshape(-1, *[1] * (array.ndim - 1)), array.shape))


async def _abort(context: "grpc.aio.ServicerContext[Any, Any]", error: Exception) -> NoReturn:
    """End the call with the error that `error` means to a caller."""
    await abort(context, _ours(error))


def _ours(error: Exception) -> Exception:
    """Errors of the feature client in our words."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, InvalidId):
        return InvalidRequest(str(error), field="entities")
    if isinstance(error, InvalidTable):
        return InvalidRequest(str(error), field="columns")
    if isinstance(error, StoreError):
        return Unavailable(f"the feature store did not do it: {error}")
    return error
