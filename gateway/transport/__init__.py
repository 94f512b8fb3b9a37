"""gRPC over HTTP/2: calls come in, in batches, and their answers go out.

Two transports stand behind one seam (`call.Transport`). `fast` is our own gRPC layer on ngh2 and uvloop; `grpcio` is
`grpc.aio`, the reference that it is held against. A transport knows neither models nor features.
"""

from typing import Literal

from gateway.transport.call import BatchHandler, Call, Metadata, Transport
from gateway.transport.options import Address, TlsOptions, TransportOptions

__all__ = [
    "Address",
    "BatchHandler",
    "Call",
    "Metadata",
    "TlsOptions",
    "Transport",
    "TransportOptions",
    "TransportUnavailable",
    "create",
]


class TransportUnavailable(RuntimeError):
    """The transport cannot run in this installation. The message names the one that can."""


def create(kind: Literal["fast", "grpcio"], options: TransportOptions) -> Transport:
    """Make a transport that is not listening yet. Only the chosen one is imported."""
    if kind == "grpcio":
        from gateway.transport.grpcio import GrpcioTransport

        return GrpcioTransport(options)
    try:
        from gateway.transport.fast.server import FastTransport
    except ImportError as error:
        raise TransportUnavailable(
            f"the fast transport cannot be imported ({error}); install ngh2, or start with --transport grpcio"
        ) from error
    return FastTransport(options)
