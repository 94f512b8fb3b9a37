"""A server that answers every call with its own message, to measure a transport alone.

    python -m loadtest.echo --port 7200 --transport fast

`fast` and `grpcio` are Headrace's transports behind their seam. `grpc.aio` is what a transport is measured against:
the same echo written directly, as one coroutine handler on bytes, without the seam.
"""

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any, Literal

import grpc
import uvloop

from gateway.transport import Call, TlsOptions, Transport, TransportOptions, create

METHOD = "/loadtest.Echo/Echo"
DIRECT = "grpc.aio"
STOP_GRACE_S = 1.0


def echo_batch(calls: list[Call]) -> None:
    """Answers what has arrived since last time."""
    for call in calls:
        call.reply(bytes(call.payload))


async def echo_one(message: bytes, context: object) -> bytes:
    """The same as a plain handler."""
    return message


def direct_server(port: int, credentials: grpc.ServerCredentials | None) -> grpc.aio.Server:
    """The echo on grpc.aio alone."""
    _, service, method = METHOD.split("/")
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(echo_one)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    address = f"127.0.0.1:{port}"
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
    return server


def seam_server(transport: Literal["fast", "grpcio"], port: int, tls: TlsOptions | None) -> Transport:
    """The echo on one of Headrace's transports."""
    server = create(transport, TransportOptions(listen=(f"127.0.0.1:{port}",), tls=tls))
    server.add_batch_method(METHOD, echo_batch)
    return server


async def serve(transport: Literal["fast", "grpcio", "grpc.aio"], port: int, tls: TlsOptions | None) -> None:
    """Serves on loopback until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    if transport == "grpc.aio":
        direct = direct_server(port, None if tls is None else _credentials(tls))
        await direct.start()
        await stopped.wait()
        await direct.stop(STOP_GRACE_S)
    else:
        server = seam_server(transport, port, tls)
        await server.start()
        await stopped.wait()
        await server.stop(STOP_GRACE_S)


def _credentials(tls: TlsOptions) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(tls.private_key.read_bytes(), tls.certificate_chain.read_bytes())])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--transport", choices=["fast", "grpcio", DIRECT], default="fast")
    parser.add_argument("--certificate", type=Path, help="PEM; with --key, the echo speaks TLS")
    parser.add_argument("--key", type=Path)
    arguments = parser.parse_args()
    if (arguments.certificate is None) != (arguments.key is None):
        parser.error("--certificate and --key go together")
    tls = TlsOptions(arguments.certificate, arguments.key) if arguments.certificate else None
    uvloop.run(serve(arguments.transport, arguments.port, tls))


if __name__ == "__main__":
    main()
