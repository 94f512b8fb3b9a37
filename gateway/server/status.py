"""From errors to gRPC: one table, and the `google.rpc.Status` that goes with the code."""

import logging
import secrets
from typing import TYPE_CHECKING, Any, NoReturn

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from gateway.records.errors import (
    CallerLeft,
    DeadlinePassed,
    HeadraceError,
    InvalidRequest,
    LimitExceeded,
    ModelFailed,
    ModelNotFound,
    ModelRefused,
    NotAllowed,
    Overloaded,
    RowRejected,
    Unavailable,
)

if TYPE_CHECKING:
    import grpc.aio

_log = logging.getLogger(__name__)

CODES: dict[type[HeadraceError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    ModelNotFound: StatusCode.NOT_FOUND,
    ModelRefused: StatusCode.FAILED_PRECONDITION,
    RowRejected: StatusCode.FAILED_PRECONDITION,
    LimitExceeded: StatusCode.RESOURCE_EXHAUSTED,
    NotAllowed: StatusCode.PERMISSION_DENIED,
    CallerLeft: StatusCode.CANCELLED,
    DeadlinePassed: StatusCode.DEADLINE_EXCEEDED,
    Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: StatusCode.UNAVAILABLE,
    ModelFailed: StatusCode.INTERNAL,
}
MESSAGE_BYTES_MAX = 1024
_FIELD_BYTES_MAX = 256
# The message is in the details again, with at most two fields and constants: they stay below 2 KiB together.
_DOMAIN = "headrace"


def code_of(error: Exception) -> StatusCode:
    """The code of an error; what is not ours is INTERNAL."""
    return CODES.get(type(error), StatusCode.INTERNAL) if isinstance(error, HeadraceError) else StatusCode.INTERNAL


def describe(error: Exception) -> tuple[StatusCode, str, bytes]:
    """Return the code, the message and the serialised `google.rpc.Status` of an error.

    INTERNAL carries no text of ours, since what a model raised may show data of other callers: the caller gets an id,
    and the log has the cause beside it.
    """
    code = code_of(error)
    message = str(error)
    if code is StatusCode.INTERNAL:
        incident = getattr(error, "incident", "")
        if not incident:
            # One error may end many calls; it is logged once.
            incident = secrets.token_hex(6)
            error.incident = incident  # type: ignore[attr-defined]  # kept where the next call finds it
            _log.error("incident %s: %s", incident, message, exc_info=error)
        message = f"internal error; the server's log has the cause beside the id {incident}"
    message = _cut(message, MESSAGE_BYTES_MAX)
    reason = error.reason if isinstance(error, HeadraceError) else HeadraceError.reason
    status = status_pb2.Status(code=code.value[0], message=message)
    _attach(status, error_details_pb2.ErrorInfo(reason=reason, domain=_DOMAIN, metadata=_metadata(error)))
    if isinstance(error, InvalidRequest) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, _FIELD_BYTES_MAX), description=_cut(message, _FIELD_BYTES_MAX)
        )
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return code, message, status.SerializeToString()


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: Exception) -> NoReturn:
    """End a servicer's call with an error."""
    code, message, details = describe(error)
    await context.abort(code, message, (("grpc-status-details-bin", details),) if details else ())


def _cut(text: str, bytes_max: int) -> str:
    encoded = text.encode()
    return text if len(encoded) <= bytes_max else encoded[: bytes_max - 3].decode(errors="ignore") + "…"


def _attach(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _metadata(error: Exception) -> dict[str, str]:
    return {"limit": error.limit} if isinstance(error, LimitExceeded | Overloaded) else {}
