"""The reference transport: `grpc.aio`, with the calls of batch methods gathered per pass of the event loop.

grpcio runs one coroutine per call. It wraps the request's bytes in a `GrpcioCall`, appends it to the batch and waits
for the outcome; when arrivals pause, one dispatch hands every batch to its handler. Ordinary
servicers go to grpcio as they are.

Invariants: a call ends exactly once, with what `reply` or `fail` was given first. A handler that raises ends the calls
that it was given with INTERNAL. When grpcio cancels the coroutine (the client left, or the deadline passed) the call is
`cancelled` and what it is told later is ignored.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import grpc
import grpc.aio

from gateway.transport import metadata as rules
from gateway.transport.call import BatchHandler, Call, Metadata
from gateway.transport.options import Address, TlsOptions, TransportOptions

if TYPE_CHECKING:
    # Generic in the stubs only.
    _Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
    _RpcMethodHandler: TypeAlias = grpc.RpcMethodHandler[Any, Any]

log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_HANDLER_FAILED = "The server failed to handle this call; its log says why."
_QUIET_PASSES = 4
_PASSES_MAX = 256
_STALE_KEEPALIVE = 0  # grpcio counts pings without data as misbehaviour; our clients may ping as they like.


class _Outcome(NamedTuple):
    code: grpc.StatusCode
    body: bytes
    message: str
    trailing: Metadata


class GrpcioCall:
    """One unary call of a batch method; see `call.Call`."""

    __slots__ = ("_context", "_outcome", "arrived", "cancelled", "deadline", "method", "payload")

    def __init__(self, method: str, payload: bytes, context: "_Context", outcome: "asyncio.Future[_Outcome]") -> None:
        self.method = method
        self.payload: bytes | memoryview = payload
        self.arrived = time.monotonic()
        # The stub knows no call without a deadline; grpcio gives None for it.
        remaining_s: float | None = context.time_remaining()
        self.deadline = math.inf if remaining_s is None else self.arrived + remaining_s
        self.cancelled = False
        self._context = context
        self._outcome = outcome

    # What few handlers ask for is looked up when it is: each of these costs grpcio microseconds.

    @property
    def metadata(self) -> Metadata:
        """The request's headers."""
        return tuple(self._context.invocation_metadata() or ())

    @property
    def peer(self) -> str:
        """The address of the client."""
        return self._context.peer()

    @property
    def identity(self) -> str | None:
        """The common name of the client's certificate."""
        return _identity(self._context.auth_context())

    def reply(self, body: bytes, trailing: Metadata = ()) -> None:
        """End the call with OK and one message."""
        self._end(_Outcome(grpc.StatusCode.OK, body, "", trailing))

    def fail(self, code: int, message: str, details: bytes = b"", trailing: Metadata = ()) -> None:
        """End the call with a gRPC status code; one that is not an error becomes UNKNOWN."""
        status = _CODES.get(code, grpc.StatusCode.UNKNOWN) if code else grpc.StatusCode.UNKNOWN
        if details:
            trailing = (*trailing, (rules.STATUS_DETAILS_KEY, details))
        self._end(_Outcome(status, b"", rules.printable(message), trailing))

    def _end(self, outcome: _Outcome) -> None:
        if self._outcome.done():
            return
        try:
            rules.check(outcome.trailing)
        except rules.InvalidMetadata as error:
            # grpcio would drop the whole status, and the client would wait for ever.
            log.error("%s: %s", self.method, error)
            outcome = _Outcome(grpc.StatusCode.INTERNAL, b"", _HANDLER_FAILED, ())
        self._outcome.set_result(outcome)

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "ended" if self._outcome.done() else "open"
        return f"<GrpcioCall {self.method} from {self.peer} {state}>"


def _identity(auth: Any) -> str | None:
    """The common name of the client's certificate."""
    names = auth.get("x509_common_name")
    return bytes(names[0]).decode("utf-8", "replace") if names else None


class _Batches:
    """The calls that have arrived and are not handed over yet, by handler.

    They are handed over once no call is on its way and `_QUIET_PASSES` passes of the loop in a row have brought no
    other. grpcio delivers calls one by one, from a thread that gets its turn between passes, and each in steps (first
    the headers, then the message), so without this every batch is a batch of one even with dozens of calls under way.
    On an idle server the passes take microseconds; a client that sends headers and no message delays others by
    `_PASSES_MAX` passes at most.
    """

    def __init__(self) -> None:
        self._waiting: dict[BatchHandler, list[Call]] = {}
        self._on_their_way = 0
        self._quiet_passes = 0
        self._passes = 0

    def announce(self) -> None:
        """The headers of a call are there, its message is not."""
        self._on_their_way += 1

    def add(self, handler: BatchHandler, call: Call) -> None:
        if not self._waiting:
            self._passes = 0
            asyncio.get_running_loop().call_soon(self._pass)
        self._quiet_passes = 0
        self._on_their_way -= 1
        self._waiting.setdefault(handler, []).append(call)

    def _pass(self) -> None:
        self._quiet_passes += 1
        self._passes += 1
        quiet = self._quiet_passes > _QUIET_PASSES and self._on_their_way <= 0
        if quiet or self._passes > _PASSES_MAX:
            # Those that never came are not waited for again.
            self._on_their_way = 0
            self._dispatch()
        else:
            asyncio.get_running_loop().call_soon(self._pass)

    def _dispatch(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for handler, calls in waiting.items():
            try:
                handler(calls)
            except Exception:
                log.exception("the handler of %s raised", calls[0].method)
                for call in calls:
                    call.fail(grpc.StatusCode.INTERNAL.value[0], _HANDLER_FAILED)


class GrpcioTransport:
    """`call.Transport` on `grpc.aio`. `start` needs a running loop; grpcio works on asyncio's and on uvloop's."""

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._batches = _Batches()
        self._batch_methods: dict[str, BatchHandler] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._registered: list[tuple[str, dict[str, _RpcMethodHandler]]] = []
        self._server: grpc.aio.Server | None = None

    def add_batch_method(self, method: str, handler: BatchHandler) -> None:
        """Serve one unary method (`/package.Service/Method`) in batches."""
        if method in self._batch_methods:
            raise ValueError(f"{method} has a handler already")
        self._batch_methods[method] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """What generated `add_XServicer_to_server` functions call."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: "dict[str, _RpcMethodHandler]") -> None:
        """What generated `add_XServicer_to_server` functions call beside the above."""
        self._registered.append((service, handlers))

    @property
    def turned_away(self) -> Mapping[int, int]:
        """Empty: grpcio does not tell."""
        return {}

    async def start(self) -> Sequence[str]:
        """Bind and listen; return the addresses with the ports that were bound."""
        server = grpc.aio.server(
            options=_channel_options(self._options), maximum_concurrent_rpcs=self._options.max_active_calls
        )
        # First come, first served: a batch method wins over a servicer that has the same method.
        server.add_generic_rpc_handlers([_BatchRpcHandler(self._batch_methods, self._batches)])
        server.add_generic_rpc_handlers(self._generic)
        for service, handlers in self._registered:
            kept = {name: rpc for name, rpc in handlers.items() if f"/{service}/{name}" not in self._batch_methods}
            server.add_registered_method_handlers(service, kept)
        credentials = None if self._options.tls is None else _credentials(self._options.tls)
        bound = [_bind(server, address, credentials) for address in self._options.addresses]
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait for those in flight, end what is left after `grace_s` seconds."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def __repr__(self) -> str:
        state = "idle" if self._server is None else "serving"
        return f"<GrpcioTransport {state} {' '.join(self._options.listen)}>"


class _BatchRpcHandler(grpc.GenericRpcHandler):
    """Gives grpcio a raw-bytes handler for each batch method."""

    def __init__(self, methods: dict[str, BatchHandler], batches: _Batches) -> None:
        self._handlers: dict[str, _RpcMethodHandler] = {
            method: grpc.unary_unary_rpc_method_handler(_serve_in_batches(method, handler, batches))
            for method, handler in methods.items()
        }
        self._batches = batches

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_RpcMethodHandler | None":
        handler = self._handlers.get(handler_call_details.method)
        if handler is not None:
            self._batches.announce()
        return handler


def _serve_in_batches(
    method: str, handler: BatchHandler, batches: _Batches
) -> "Callable[[bytes, _Context], Awaitable[bytes]]":
    async def serve(payload: bytes, context: "_Context") -> bytes:
        call = GrpcioCall(method, payload, context, asyncio.get_running_loop().create_future())
        batches.add(handler, call)
        try:
            outcome = await call._outcome
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        if outcome.code is not grpc.StatusCode.OK:
            await _abort(context, outcome)
        if outcome.trailing:
            context.set_trailing_metadata(tuple(outcome.trailing))
        return outcome.body

    return serve


async def _abort(context: "_Context", outcome: _Outcome) -> NoReturn:
    await context.abort(outcome.code, outcome.message, tuple(outcome.trailing))


def _bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None) -> str:
    text = str(address)
    try:
        port = server.add_insecure_port(text) if credentials is None else server.add_secure_port(text, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {text}: {error}") from error
    return text if address.path else str(Address(address.host, port, ""))


def _channel_options(options: TransportOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(options.reuse_port)),
        ("grpc.max_receive_message_length", options.max_receive_message_bytes),
        # What we answer is bounded by what we computed, not by the wire.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        ("grpc.max_metadata_size", options.max_header_bytes),
        ("grpc.absolute_max_metadata_size", options.max_header_bytes),
        ("grpc.server_handshake_timeout_ms", _milliseconds(options.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", _milliseconds(options.idle_timeout_s)),
        ("grpc.keepalive_time_ms", _milliseconds(options.keepalive_interval_s)),
        ("grpc.keepalive_timeout_ms", _milliseconds(options.keepalive_timeout_s)),
        ("grpc.http2.max_ping_strikes", _STALE_KEEPALIVE),
    ]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


def _credentials(tls: TlsOptions) -> grpc.ServerCredentials:
    """Credentials that look at the files for each new connection; while those cannot be read the last good ones
    serve."""

    def read() -> grpc.ServerCertificateConfiguration:
        pair = (tls.private_key.read_bytes(), tls.certificate_chain.read_bytes())
        roots = None if tls.client_ca is None else tls.client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], roots)

    good = read()

    def read_again() -> grpc.ServerCertificateConfiguration:
        nonlocal good
        try:
            good = read()
        except OSError as error:
            log.error("the certificates cannot be read, the old ones stay: %s", error)
        return good

    return grpc.dynamic_ssl_server_credentials(
        good, read_again, require_client_authentication=tls.client_ca is not None
    )
