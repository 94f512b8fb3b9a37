"""The socket of one connection: bytes go to the state machine, and what it wants to send goes out.

`data_received` hands the calls that became ready to the server, which dispatches all of a pass together and then has
every connection with output `flush`. While the socket takes no more, nothing is asked of the state machine, so what
waits is counted there.
"""

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.transport.fast.protocol import ServerConnection

if TYPE_CHECKING:
    from gateway.transport.fast.server import FastTransport

_FLUSH_BYTES = 262_144
"""What one connection writes in one pass; the others come in between."""
_LINGER_S = 1.0
"""How long a drained client may take to close: closing first could cut off an answer that it has not read."""
_CHECKS_PER_TIMEOUT = 4
_CHECK_MIN_S = 0.02
_CHECK_MAX_S = 5.0


class Connection(asyncio.Protocol):
    """One accepted connection of a `FastTransport`."""

    def __init__(self, server: "FastTransport") -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._paused = False
        self.state: ServerConnection | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # never another kind
        """Start, or refuse one connection too many and a TLS client that does not speak HTTP/2."""
        self._transport = transport
        server = self._server
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if not server.welcome(self) or (tls is not None and tls.selected_alpn_protocol() != "h2"):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_FLUSH_BYTES)
        self.state = server.state_for(self, _peer(transport.get_extra_info("peername")), _identity(tls))
        options = server.options
        shortest_s = min(
            options.handshake_timeout_s,
            options.request_timeout_s,
            options.keepalive_interval_s,
            options.keepalive_timeout_s,
            options.idle_timeout_s,
        )
        self._check_s = min(max(shortest_s / _CHECKS_PER_TIMEOUT, _CHECK_MIN_S), _CHECK_MAX_S)
        self._timer = server.loop.call_later(self._check_s, self._check)
        self.flush(time.monotonic())

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self.state is not None:
            ready = self.state.receive(data, time.monotonic())
            if ready:
                self._server.arrived(ready)

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._paused = False
        self._server.wants_output(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone, for whatever reason."""
        for timer in (self._timer, self._linger):
            if timer is not None:
                timer.cancel()
        self._transport = None
        if self.state is not None:
            self.state.lost()
        self._server.goodbye(self)

    def wants_output(self) -> None:
        """The state machine has something to send."""
        self._server.wants_output(self)

    def flush(self, now: float) -> None:
        """Write what there is, as far as the socket takes it."""
        state, transport = self.state, self._transport
        if state is None or transport is None or self._paused or transport.is_closing():
            return
        data = state.output(now, _FLUSH_BYTES)
        if data:
            transport.write(data)
            if len(data) >= _FLUSH_BYTES:
                self._server.wants_output(self)
                return
        if state.over:
            transport.close()
        elif state.drained and self._linger is None:
            self._linger = self._server.loop.call_later(_LINGER_S, transport.close)

    def close(self) -> None:
        """Close after what has been written is sent; do not wait for a client that does not read."""
        if self._transport is not None:
            if self._paused:
                self._transport.abort()
            else:
                self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _check(self) -> None:
        state, transport = self.state, self._transport
        if state is None or transport is None:
            return
        self._timer = self._server.loop.call_later(self._check_s, self._check)
        if not state.check(time.monotonic()):
            transport.abort()

    def __repr__(self) -> str:
        return f"<Connection {'paused ' if self._paused else ''}{self.state!r}>"


def _peer(name: Any) -> str:
    """The address as grpcio writes it: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`, `unix:`."""
    if not isinstance(name, tuple):
        return "unix:" + (name if isinstance(name, str) else "")
    host, port = name[:2]
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _identity(tls: "ssl.SSLObject | None") -> str | None:
    """The common name of the client's certificate."""
    certificate = None if tls is None else tls.getpeercert()
    if not certificate:
        return None
    for names in certificate.get("subject", ()):
        for name in names:
            if name[0] == "commonName":
                return str(name[1])
    return None
