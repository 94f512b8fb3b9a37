"""The table from errors to codes, and the details that go with them."""

import logging

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from gateway.records import errors
from gateway.server.status import CODES, MESSAGE_BYTES_MAX, describe


def concrete(root: type[errors.HeadraceError]) -> set[type[errors.HeadraceError]]:
    children = root.__subclasses__()
    return {root} if not children else set().union(*map(concrete, children))


def test_every_error_has_a_code() -> None:
    assert concrete(errors.HeadraceError) == set(CODES)


def test_details_name_reason_and_field() -> None:
    code, message, details = describe(errors.InvalidRequest("no such thing", field="entities.x"))
    assert (code, message) == (StatusCode.INVALID_ARGUMENT, "no such thing")
    status = status_pb2.Status.FromString(details)
    assert status.code == StatusCode.INVALID_ARGUMENT.value[0]
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "headrace")
    assert error_details_pb2.BadRequest.FromString(status.details[1].value).field_violations[0].field == "entities.x"


def test_overload_says_when_to_come_back_and_which_limit() -> None:
    status = status_pb2.Status.FromString(describe(errors.Overloaded("full", limit="parked_rows_max"))[2])
    assert error_details_pb2.ErrorInfo.FromString(status.details[0].value).metadata == {"limit": "parked_rows_max"}
    assert error_details_pb2.RetryInfo.FromString(status.details[1].value).retry_delay.ToMilliseconds() == 100


@pytest.mark.parametrize("error", [errors.ModelFailed("secret"), RuntimeError("secret")])
def test_internal_errors_keep_their_text_in_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        code, message, details = describe(error)
    assert code is StatusCode.INTERNAL
    assert "secret" not in message
    assert b"secret" not in details
    incident = message.rsplit(" ", 1)[1]
    assert any(incident in record.message and "secret" in record.message for record in caplog.records)


def test_long_messages_are_cut_inside_their_bound() -> None:
    _, message, details = describe(errors.InvalidRequest("ü" * 5000, field="f" * 5000))
    assert len(message.encode()) <= MESSAGE_BYTES_MAX
    assert 0 < len(details) <= 2048
