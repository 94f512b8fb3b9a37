"""The fast transport: listeners, the passes of the loop, the drain.

All sockets that have something to read are read in one iteration of the loop; their calls collect here, and one
scheduled *pass* hands them over, a list per method, and then writes the answers that are there by then, one write per
connection. Answers that come later schedule a pass of their own.

Invariants: a pass is scheduled whenever calls have arrived or a connection has output, and at most once; a handler that
raises ends the calls that it was given; `stop` returns when every connection is closed.
"""

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gateway.transport.call import BatchHandler, Metadata
from gateway.transport.call import Call as SeamCall
from gateway.transport.fast import headers as wire
from gateway.transport.fast.admission import Admission
from gateway.transport.fast.connection import Connection
from gateway.transport.fast.deadlines import Deadlines
from gateway.transport.fast.protocol import (
    DRAIN_WAIT_S,
    ENDED,
    HANDLER_FAILED,
    INTERNAL,
    Call,
    Route,
    ServerConnection,
    StreamCall,
    UnaryCall,
)
from gateway.transport.fast.servicer import Servicers
from gateway.transport.fast.session import Headers
from gateway.transport.fast.tls import Certificates
from gateway.transport.options import Address, TransportOptions

if TYPE_CHECKING:
    import ssl

    import grpc

log = logging.getLogger(__name__)

_INFLATED_PER_PASS_BYTES = 4 * 2**20
"""Decompression is the only work of the transport that a client can make long; more of it waits for the next pass."""
_PASS_MAX_S = 0.02
"""How long the handlers of a pass may take together before the next pass hands over fewer calls: deadlines,
cancellations and other connections wait that long. A pass that is full and quicker makes the next one larger."""
_CLOSE_S = 1.0
_LONE_CALLS = 2
_LONE_GAP_S = 20e-6
"""More calls in one pass, or so soon after the last one, and the callers are not alone: while the loop sleeps, what
they send next gathers to a larger pass."""


class _HandlerCallDetails(NamedTuple):
    """What a generic handler is asked with."""

    method: str
    invocation_metadata: Metadata


class FastTransport:
    """`call.Transport` on ngh2. `start` needs a running loop, best uvloop's."""

    def __init__(self, options: TransportOptions) -> None:
        self.options = options
        self.admission = Admission(options.max_active_calls)
        self._deadlines: Deadlines[Call] = Deadlines()
        self._routes: dict[bytes, Route] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._servicers = Servicers()
        self._connections: set[Connection] = set()
        self._listeners: list[asyncio.AbstractServer] = []
        self._unix_sockets: list[tuple[str, int]] = []
        self._arrived: list[Call] = []
        self._compressed: deque[UnaryCall] = deque()
        self._outgoing: list[Connection] = []
        self._pass_calls = options.max_tick_calls
        self._scheduled = False
        self._polling = False
        self._poll_until = 0.0
        self._pass_ended = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._certificates: Certificates | None = None
        self._refresh: asyncio.TimerHandle | None = None
        self._hurry: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._stopping = False

    # Methods

    def add_batch_method(self, method: str, handler: BatchHandler) -> None:
        """Serve one unary method (`/package.Service/Method`) in batches."""
        path = method.encode()
        if path in self._routes and not self._routes[path].streaming:
            raise ValueError(f"{method} has a handler already")
        self._routes[path] = Route(method, handler)

    def add_generic_rpc_handlers(self, handlers: "Sequence[grpc.GenericRpcHandler]") -> None:
        """What generated `add_XServicer_to_server` functions call."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(
        self, service: str, handlers: "dict[str, grpc.RpcMethodHandler[Any, Any]]"
    ) -> None:
        """What generated `add_XServicer_to_server` functions call beside the above."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._routes.setdefault(method.encode(), self._servicers.route(method, handler))

    def _find(self, path: bytes, headers: Headers) -> Route | None:
        """Ask the generic handlers, which may look at the metadata."""
        if not self._generic:
            return None
        method = path.decode("latin-1")
        details = _HandlerCallDetails(method, wire.decode_metadata(headers))
        for generic in self._generic:
            handler = generic.service(details)  # type: ignore[arg-type]  # the stub wants settable attributes
            if handler is not None:
                return self._servicers.route(method, handler)
        return None

    # Life

    @property
    def turned_away(self) -> Mapping[int, int]:
        """Calls that no handler has answered, by the gRPC status code that they got."""
        return self.admission.turned_away

    async def start(self) -> Sequence[str]:
        """Bind and listen; return the addresses with the ports that were bound."""
        self.loop = asyncio.get_running_loop()
        self._empty.set()
        if self.options.tls is not None:
            self._certificates = Certificates(self.options.tls)
            self._watch_certificates(self.options.tls.reload_check_s)
        try:
            return [await self._listen(address) for address in self.options.addresses]
        except BaseException:
            await self.stop(0)
            raise

    async def _listen(self, address: Address) -> str:
        context: ssl.SSLContext | None = None if self._certificates is None else self._certificates.context
        timeout_s = None if context is None else self.options.handshake_timeout_s
        if address.path:
            listener: asyncio.Server = await self.loop.create_unix_server(
                self._connect,
                address.path,
                backlog=self.options.backlog,
                ssl=context,
                ssl_handshake_timeout=timeout_s,
            )
            self._listeners.append(listener)
            self._unix_sockets.append((address.path, os.stat(address.path).st_ino))
            return str(address)
        listener = await self.loop.create_server(
            self._connect,
            address.host,
            address.port,
            backlog=self.options.backlog,
            reuse_port=self.options.reuse_port or None,
            ssl=context,
            ssl_handshake_timeout=timeout_s,
        )
        self._listeners.append(listener)
        return str(Address(address.host, listener.sockets[0].getsockname()[1], ""))

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait for those in flight, end what is left after `grace_s` seconds."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        for path, inode in self._unix_sockets:
            # A successor may have bound the path in the meantime: its socket stays.
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._unix_sockets.clear()
        self._each(lambda state: state.drain(time.monotonic()))
        self._hurry = self.loop.call_later(DRAIN_WAIT_S, self._each, ServerConnection.refuse_streams)
        await self._until_empty(grace_s)
        if self._connections:
            self._each(ServerConnection.terminate)
            self._run()
            for connection in list(self._connections):
                connection.close()
            await self._until_empty(_CLOSE_S)
            for connection in list(self._connections):
                connection.abort()
            await self._until_empty(_CLOSE_S)
        await self._servicers.finish(_CLOSE_S)
        for timer in (self._alarm, self._refresh, self._hurry):
            if timer is not None:
                timer.cancel()

    def _each(self, act: Callable[[ServerConnection], None]) -> None:
        for connection in list(self._connections):
            if connection.state is not None:
                act(connection.state)

    async def _until_empty(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()

    def _watch_certificates(self, interval_s: float) -> None:
        if self._certificates is not None:
            self._certificates.refresh()
            self._refresh = self.loop.call_later(interval_s, self._watch_certificates, interval_s)

    # Connections

    def _connect(self) -> Connection:
        return Connection(self)

    def welcome(self, connection: Connection) -> bool:
        """A connection has been accepted: count it, or refuse it when there are too many."""
        if len(self._connections) >= self.options.max_connections:
            return False
        self._connections.add(connection)
        self._empty.clear()
        return True

    def state_for(self, connection: Connection, peer: str, identity: str | None) -> ServerConnection:
        """The state machine of a new connection."""
        state = ServerConnection(
            self.options,
            self._routes,
            self._find,
            self.admission,
            self._deadlines,
            connection.wants_output,
            time.monotonic(),
            peer,
            identity,
        )
        if self._stopping:
            # Accepted by the kernel before the listener was closed.
            state.drain(time.monotonic())
        return state

    def goodbye(self, connection: Connection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    # Passes

    def arrived(self, calls: list[Call]) -> None:
        """Calls are ready to be handled."""
        self._arrived += calls
        self._schedule()

    def wants_output(self, connection: Connection) -> None:
        """A connection has something to send."""
        self._outgoing.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._run)

    def _run(self) -> None:
        """One pass: hand over what has arrived, then send what is answered."""
        now = time.monotonic()
        calls = len(self._arrived)
        if calls or self._compressed:
            self._dispatch(now)
        # Calls that are answered from now on need a pass of their own.
        self._scheduled = False
        outgoing, self._outgoing = self._outgoing, []
        for connection in outgoing:
            connection.flush(now)
        if self._arrived or self._compressed:
            self._schedule()
        self.admission.observe(now)
        if self._deadlines.next_due() < self._alarm_at:
            self._set_alarm(now)
        if calls:
            ended = time.monotonic()
            if calls <= _LONE_CALLS and now - self._pass_ended >= _LONE_GAP_S and self.options.busy_poll_us:
                self._busy_poll(ended)
            self._pass_ended = ended

    def _busy_poll(self, now: float) -> None:
        """Keep the loop from sleeping for a moment: what a lone caller sends next finds it awake, its caches warm."""
        self._poll_until = now + self.options.busy_poll_us * 1e-6
        if not self._polling:
            self._polling = True
            self.loop.call_soon(self._poll)

    def _poll(self) -> None:
        self._polling = time.monotonic() < self._poll_until
        if self._polling:
            self.loop.call_soon(self._poll)

    def _dispatch(self, now: float) -> None:  # noqa: C901 - a branch for each fate of a call
        pass_calls = self._pass_calls
        arrived, self._arrived = self._arrived[:pass_calls], self._arrived[pass_calls:]
        count = len(arrived)
        if self._compressed:
            arrived += self._inflate()
        routes: list[Route] = []
        for call in arrived:
            if call.state == ENDED:
                continue
            if isinstance(call, StreamCall):
                call.route.handler(call)
            elif call.deadline <= now:
                call.connection.expire(call, now)
            elif call.compressed:
                self._compressed.append(call)
            else:
                batch = call.route.batch
                if not batch:
                    routes.append(call.route)
                batch.append(call)
        for route in routes:
            batch, route.batch = route.batch, []
            _hand_over(route, batch)
        elapsed_s = time.monotonic() - now
        if elapsed_s > _PASS_MAX_S:
            self._pass_calls = max(1, int(count * _PASS_MAX_S / elapsed_s))
        elif count == pass_calls:
            self._pass_calls = min(2 * pass_calls, self.options.max_tick_calls)

    def _inflate(self) -> list[Call]:
        """Decompress what one pass may."""
        inflated: list[Call] = []
        size = 0
        while self._compressed and size < _INFLATED_PER_PASS_BYTES:
            call = self._compressed.popleft()
            if call.state != ENDED:
                size += call.inflate()
                inflated.append(call)
        return inflated

    def _set_alarm(self, now: float) -> None:
        """Wake up for the first deadline."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = self._deadlines.next_due()
        if self._alarm_at < math.inf:
            self._alarm = self.loop.call_later(max(0.0, self._alarm_at - now), self._expire)

    def _expire(self) -> None:
        now = time.monotonic()
        for call in self._deadlines.pop_due(now):
            call.connection.expire(call, now)
        self._set_alarm(now)

    def __repr__(self) -> str:
        state = "stopping" if self._stopping else "serving" if self._listeners else "idle"
        return f"<FastTransport {state} connections={len(self._connections)} {self.admission!r}>"


def _hand_over(route: Route, batch: list[UnaryCall]) -> None:
    try:
        # `call.Call` declares attributes where `UnaryCall` has properties, which a protocol takes for narrower.
        route.handler(cast(list[SeamCall], batch))
    except Exception:
        log.exception("the handler of %s raised", route.method)
        for call in batch:
            call.fail(INTERNAL, HANDLER_FAILED)
