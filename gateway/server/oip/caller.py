"""A caller who wants an unusual answer: the call, and how to answer it."""

from gateway.server.oip.request import Style
from gateway.transport.call import Call


class Styled:
    """In the place of a `Call` in a request. Few callers are one, so the others pay nothing for it."""

    __slots__ = ("call", "style")

    def __init__(self, call: Call, style: Style) -> None:
        self.call = call
        self.style = style

    @property
    def cancelled(self) -> bool:
        """The caller has left."""
        return self.call.cancelled
