"""The seam between the wire and the gateway: a `Call` in, its answer out.

A transport hands over every call of a *batch method* that has arrived since last time, as one list. Whoever takes the
list owes each call exactly one `reply` or `fail`, in any order and at any time; both are plain synchronous methods, are
ignored when the call has already ended, and never raise because of the client.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import grpc

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""Keys in lower case; a key that ends in `-bin` has bytes, any other a str."""


class Call(Protocol):
    """One unary call, as every transport gives it."""

    method: str
    """The full name, `/headrace.v1.PredictionService/Predict`."""
    payload: bytes | memoryview
    """The request message, decompressed and without its length prefix."""
    arrived: float
    """When the message was complete, in seconds of `time.monotonic()`."""
    deadline: float
    """When the client stops waiting, in seconds of `time.monotonic()`; `math.inf` without a deadline."""
    cancelled: bool
    """The client has left: it cancelled, its deadline has passed, or its connection is gone."""

    @property
    def metadata(self) -> Metadata:
        """The request's headers, without those that belong to HTTP/2 and gRPC themselves."""
        ...

    @property
    def peer(self) -> str:
        """The address of the client, as in `ipv4:127.0.0.1:50312` or `unix:`."""
        ...

    @property
    def identity(self) -> str | None:
        """The authenticated client, where the transport knows it (the subject of a client certificate)."""
        ...

    def reply(self, body: bytes, trailing: Metadata = ()) -> None:
        """End the call with OK and one message."""
        ...

    def fail(self, code: int, message: str, details: bytes = b"", trailing: Metadata = ()) -> None:
        """End the call with a gRPC status code. `details` is a serialised `google.rpc.Status`."""
        ...


BatchHandler: TypeAlias = Callable[[list[Call]], None]
"""Takes every call of one method that has arrived since last time. Runs on the event loop and must not raise."""


class Transport(Protocol):
    """A gRPC server. Methods are added before `start`."""

    def add_batch_method(self, method: str, handler: BatchHandler) -> None:
        """Serve one unary method in batches."""
        ...

    def add_generic_rpc_handlers(self, handlers: Sequence["grpc.GenericRpcHandler"]) -> None:
        """What generated `add_XServicer_to_server` functions call."""
        ...

    def add_registered_method_handlers(
        self, service: str, handlers: "dict[str, grpc.RpcMethodHandler[object, object]]"
    ) -> None:
        """What generated `add_XServicer_to_server` functions call beside the above."""
        ...

    @property
    def turned_away(self) -> Mapping[int, int]:
        """Calls that no handler has answered, by the gRPC status code that they got: refused at the door, malformed, or
        out of time. Empty where the transport does not know."""
        ...

    async def start(self) -> Sequence[str]:
        """Bind and listen; return the addresses with the ports that were bound."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait for those in flight, end what is left after `grace_s` seconds."""
        ...
