"""What can go wrong, grouped by whose fault it is. No transport codes here: `gateway.server.status` maps them."""


class HeadraceError(Exception):
    """The root. `reason` is a constant for programs, the message is for people and says what to do."""

    reason = "INTERNAL"


class CallerError(HeadraceError):
    """The request is wrong; sending it again unchanged gives the same answer."""


class InvalidRequest(CallerError):
    """Malformed, a wrong dtype or shape, a name that the model has not. `field` is the path in the request."""

    reason = "INVALID_REQUEST"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ModelNotFound(CallerError):
    """No such model, version or label."""

    reason = "MODEL_NOT_FOUND"


class ModelRefused(CallerError):
    """A model that was asked for cannot be loaded; the message has every problem that was found."""

    reason = "MODEL_REFUSED"


class RowRejected(CallerError):
    """A policy of the model fails a request that has such a row."""

    reason = "ROW_REJECTED"


class LimitExceeded(CallerError):
    """The request alone is above a limit; `limit` is the name of the setting."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class NotAllowed(CallerError):
    """The server's settings do not let this caller do this."""

    reason = "NOT_ALLOWED"


class DeadlinePassed(HeadraceError):
    """Nobody's fault, or everybody's: the caller's time is over."""

    reason = "DEADLINE_PASSED"


class CallerLeft(HeadraceError):
    """The caller does not wait any more; nobody will read this."""

    reason = "CALLER_LEFT"


class ServerError(HeadraceError):
    """The request may be right; the server cannot answer it now."""


class Overloaded(ServerError):
    """A bound is reached; `limit` is the name of the setting."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, limit: str, retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s


class Unavailable(ServerError):
    """Draining, or nothing that could answer is up."""

    reason = "UNAVAILABLE"


class ModelFailed(ServerError):
    """The model's run raised. The text stays in the log; the caller gets an id to look for."""

    reason = "MODEL_FAILED"
