"""The options of a transport, and the addresses it listens on. Both transports take the same ones."""

import ipaddress
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

UNIX_PREFIX = "unix:"
PORT_MAX = 65_535
HTTP2_WINDOW_MAX_BYTES = 2**31 - 1
MESSAGE_PREFIX_BYTES = 5
STREAM_WINDOW_MIN_BYTES = 1_024
STREAM_WINDOW_MAX_BYTES = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen: a TCP host and port, or the path of a Unix socket (then `host` is empty)."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `127.0.0.1:8500`, `[::1]:8500`, `localhost:8500` or `unix:/run/headrace.sock`; else ValueError."""
        if text.startswith(UNIX_PREFIX):
            path = text.removeprefix(UNIX_PREFIX)
            path = "/" + path.lstrip("/") if path.startswith("//") else path
            if not path:
                raise ValueError(f"listen: {text!r} names no path; write unix:/path/to/socket")
            return cls("", 0, path)
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
            raise ValueError(f"listen: {text!r} is not host:port, [ipv6]:port or unix:/path")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise ValueError(f"listen: {text!r} has no IPv6 address between its brackets") from None
        elif ":" in host or not host:
            raise ValueError(
                f"listen: {text!r}: an IPv6 address stands in brackets, and all addresses are [::] or 0.0.0.0"
            )
        return cls(host, int(port), "")

    def __str__(self) -> str:
        if self.path:
            return UNIX_PREFIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """TLS with ALPN h2. The files are read again when they change; connections that are open keep what they have."""

    certificate_chain: Path
    """PEM: the server's certificate, then those between it and its root."""
    private_key: Path
    """PEM, without a passphrase."""
    client_ca: Path | None = None
    """PEM: who signs the clients' certificates. When it is set a client without such a certificate is refused
    (mTLS)."""
    reload_check_s: float = 10.0
    """How often the files are looked at for a change, in seconds. A pair that does not load is logged and not taken."""

    def __post_init__(self) -> None:
        for name in ("certificate_chain", "private_key", "client_ca"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"tls.{name}: {path}: there is no such file")
        if not 0 < self.reload_check_s < math.inf:
            raise ValueError(f"tls.reload_check_s must be a positive number of seconds, not {self.reload_check_s}")


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """How to listen, and every bound of a transport. Sizes are bytes, times seconds; 0 is never "without a limit"."""

    listen: tuple[str, ...] = ("127.0.0.1:8500",)
    """Addresses: `127.0.0.1:8500`, `[::1]:8500`, `unix:/path`. Port 0 takes a free one."""
    reuse_port: bool = False
    """SO_REUSEPORT: several processes share the port and the kernel spreads connections; a second server by mistake
    is no longer an error."""
    backlog: int = 4_096
    """Connections the kernel holds for us before they are accepted (it caps this at net.core.somaxconn)."""
    busy_poll_us: int = 100
    """After a pass with one or two calls, how long the event loop looks for more without sleeping, in microseconds. It
    saves a lone caller the time in which a sleeping core wakes up and its caches fill, and costs that much CPU a call
    at most, none while nobody calls. 0 turns it off. The grpcio transport has no such thing."""
    tls: TlsOptions | None = None
    """Certificates; without them the transport speaks plain HTTP/2."""

    max_receive_message_bytes: int = 4 * 2**20
    """The largest request message, before and after decompression. More ends the call with RESOURCE_EXHAUSTED."""
    max_active_calls: int = 10_000
    """Calls without an answer, over all connections. One more gets RESOURCE_EXHAUSTED at once."""
    max_tick_calls: int = 256
    """Calls handed over in one pass of the event loop; the rest waits for the next pass, so that connections are served
    in between. Handlers that take long get fewer. The grpcio transport has no such bound."""
    max_connections: int = 10_000
    """Connections that are open. One more is closed on arrival. The grpcio transport has no such bound."""
    max_concurrent_streams: int = 1_024
    """Calls that one connection may have open; the client waits before it starts another."""
    max_header_bytes: int = 16_384
    """Size of one request's headers (names, values and 32 bytes for each). More ends that call only."""
    max_header_count: int = 128
    """How many headers a request may have. More ends that call only. The grpcio transport has no such bound."""
    max_buffered_request_bytes: int = 32 * 2**20
    """Request bytes that one connection may have sent for calls without an answer. HTTP/2 flow control stops the
    client there. Half of it is split evenly over `max_concurrent_streams`; the other half is lent, first come first
    served, to calls with larger messages, so it must hold one of `max_receive_message_bytes`. The grpcio transport
    has its own rule."""
    max_buffered_answer_bytes: int = 16 * 2**20
    """Answers that one client has not read. Above it new calls on that connection get RESOURCE_EXHAUSTED; a reader that
    never reads is closed by the keepalive. The grpcio transport has its own rule."""
    reset_burst: int = 10_000
    """Calls that one client may cancel at once, ..."""
    max_resets_per_s: int = 5_000
    """... and per second after that, before the connection gets a GOAWAY. The grpcio transport has its own rule."""

    handshake_timeout_s: float = 10.0
    """From the connection (and the TLS handshake) to the client's HTTP/2 preface."""
    request_timeout_s: float = 30.0
    """From a unary request's headers to its last byte. A slower one is cancelled. The grpcio transport has no such
    bound."""
    idle_timeout_s: float = 600.0
    """A connection without calls for this long is told to go away."""
    keepalive_interval_s: float = 60.0
    """A connection with calls is pinged after this long without a byte from the client."""
    keepalive_timeout_s: float = 20.0
    """A ping without any answer for this long closes the connection."""

    addresses: tuple[Address, ...] = field(init=False, repr=False, compare=False)
    """`listen`, parsed."""

    def __post_init__(self) -> None:
        if not self.listen:
            raise ValueError("listen: no address")
        object.__setattr__(self, "addresses", tuple(map(Address.parse, self.listen)))
        for option in fields(self):
            if (
                option.name.endswith(("_s", "_bytes", "_count"))
                or option.name.startswith("max_")
                or option.name == "backlog"
            ):
                value = getattr(self, option.name)
                if not 0 < value < math.inf:
                    raise ValueError(f"{option.name} must be positive and finite, not {value}")
        if self.busy_poll_us < 0:
            raise ValueError(f"busy_poll_us must not be negative, it is {self.busy_poll_us}")
        if not self.max_receive_message_bytes + MESSAGE_PREFIX_BYTES <= self.lendable_request_bytes:
            raise ValueError(
                f"max_buffered_request_bytes is {self.max_buffered_request_bytes}: half of it must hold one message of "
                f"max_receive_message_bytes ({self.max_receive_message_bytes}) and its prefix"
            )
        if self.max_buffered_request_bytes > HTTP2_WINDOW_MAX_BYTES:
            raise ValueError(f"max_buffered_request_bytes is above what HTTP/2 allows, {HTTP2_WINDOW_MAX_BYTES}")
        if self.stream_window_bytes < STREAM_WINDOW_MIN_BYTES:
            raise ValueError(
                f"max_buffered_request_bytes is {self.max_buffered_request_bytes}: half of it leaves each of "
                f"max_concurrent_streams ({self.max_concurrent_streams}) less than {STREAM_WINDOW_MIN_BYTES} bytes"
            )

    @property
    def stream_window_bytes(self) -> int:
        """What a client may send on a new stream at once."""
        return min(STREAM_WINDOW_MAX_BYTES, self.max_buffered_request_bytes // 2 // self.max_concurrent_streams)

    @property
    def lendable_request_bytes(self) -> int:
        """What one connection lends to calls whose messages are larger than that."""
        return self.max_buffered_request_bytes // 2
