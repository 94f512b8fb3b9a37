"""A caller who wants an unusual answer: the call, and how to answer it."""

from gateway.server.oip.request import Style
from gateway.transport.call import Call


class Styled:
    """In the place of a `Call` in a request. Few callers are one, so the others pay nothing for it.

    It is of a call what is needed once the request has been bound.
    """

    __slots__ = ("call", "style")

    def __init__(self, call: Call, style: Style) -> None:
        self.call = call
        self.style = style

    @property
    def cancelled(self) -> bool:
        """The caller has left."""
        return self.call.cancelled

    @property
    def arrived(self) -> float:
        """When the message was complete."""
        return self.call.arrived

    def reply(self, body: bytes) -> None:
        """End the call with OK and one message."""
        self.call.reply(body)

    def fail(self, code: int, message: str, details: bytes = b"") -> None:
        """End the call with a gRPC status code."""
        self.call.fail(code, message, details)
