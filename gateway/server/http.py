"""The small HTTP endpoint beside gRPC: metrics, health, and whatever page a table of routes names.

    accept ─▶ read the head (bounded, timed) ─▶ page, in a worker ─▶ send the answer (timed) ─▶ close

It runs in a thread with an event loop of its own: a scrape never sits on the gateway's loop, and health answers while
that loop is busy. One exchange per connection; it is there for probes and scrapers, not for browsing.

Invariants
- At most `connections_max` connections are open; more wait in the kernel's backlog. Each has `client_timeout_s` to
  send its head of at most `head_bytes_max` bytes and as long to take its answer, however slowly it trickles.
- A page that raises or takes longer than `page_timeout_s` costs its own request only.
- `start` either listens or raises an OSError that names the address and why.
"""

import asyncio
import gzip
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
METHODS = ("GET", "HEAD")
PORT_MAX = 65535
BACKLOG = 64
RECV_BYTES = 8 * 1024
GZIP_BYTES_MIN = 1024
"""A smaller body is not worth compressing."""
GZIP_LEVEL = 4
ACCEPT_RETRY_S = 1.0
"""The pause after `accept` fails, which it does when the process has no file descriptor left."""
JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or a HEAD. Header names are in lower case; of a repeated header the last one counts."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class Response(NamedTuple):
    """What a page answers."""

    status: int
    content_type: str
    body: bytes


Page: TypeAlias = Callable[[Request], Response]
"""Makes an answer, in a worker thread; several may run at once."""


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Where to listen, and how much a client may take."""

    listen: str = "127.0.0.1:8501"
    """`host:port`, `[::1]:port` for IPv6; port 0 takes a free one."""
    connections_max: int = 32
    """Connections served at once; more wait until one ends, which the timeouts see to."""
    client_timeout_s: float = 5.0
    """How long a client may take to send its request, and again to take the answer, seconds."""
    page_timeout_s: float = 10.0
    """How long a page may take to be made, seconds; then the client gets 503."""
    pages_at_once_max: int = 2
    """Pages made at once. They are Python and share the interpreter with the gateway."""
    head_bytes_max: int = 16 * 1024
    """The longest request line with its headers, bytes."""

    def __post_init__(self) -> None:
        split_address(self.listen)
        for name in ("connections_max", "client_timeout_s", "page_timeout_s", "pages_at_once_max", "head_bytes_max"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


class HttpEndpoint:
    """Serves `pages` by their exact paths, from `start` to `stop`; `with` does both."""

    def __init__(self, pages: Mapping[str, Page], options: HttpOptions | None = None) -> None:
        self._pages = dict(pages)
        self._options = options or HttpOptions()
        self._running: _Running | None = None

    @property
    def address(self) -> str:
        """The `host:port` that is listened on, with the port that was bound."""
        return self._running.address if self._running else self._options.listen

    def start(self) -> str:
        """Listen and serve; return `address`. Raises OSError when it cannot listen."""
        self._running = _Running(self._pages, self._options, _listen(self._options.listen))
        self._running.thread.start()
        return self.address

    def stop(self) -> None:
        """Close every connection and end the thread; does nothing when it is not serving."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def __enter__(self) -> "HttpEndpoint":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<HttpEndpoint {self.address} {'serving' if self._running else 'stopped'} {sorted(self._pages)}>"


class _Running:
    """One life of the endpoint. Everything but `stop` happens in its thread and that thread's loop."""

    def __init__(self, pages: Mapping[str, Page], options: HttpOptions, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        self.address = join_address(host, port)
        self.thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._pages = pages
        self._options = options
        self._listener = listener
        self._loop = asyncio.SelectorEventLoop()
        self._stopping = asyncio.Event()
        self._exchanges: set[asyncio.Task[None]] = set()
        self._workers = ThreadPoolExecutor(options.pages_at_once_max, thread_name_prefix="http-page")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self.thread.join(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, self._listener:
            runner.run(self._serve())
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        self._resume()
        await self._stopping.wait()
        self._loop.remove_reader(self._listener)
        for exchange in self._exchanges:
            exchange.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)

    def _resume(self) -> None:
        if not self._stopping.is_set():
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # Whoever it was has left again.
        except OSError as error:
            log.warning("HTTP: cannot accept a connection: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_RETRY_S, self._resume)
            return
        exchange = self._loop.create_task(self._exchange(connection))
        self._exchanges.add(exchange)
        exchange.add_done_callback(partial(self._ended, connection))
        if len(self._exchanges) >= self._options.connections_max:
            self._loop.remove_reader(self._listener)

    def _ended(self, connection: socket.socket, exchange: asyncio.Task[None]) -> None:
        # Here and not in the task: one that is cancelled before its first step never runs.
        connection.close()
        self._exchanges.discard(exchange)
        self._resume()

    async def _exchange(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            answer = await self._answer(connection)
            async with asyncio.timeout(self._options.client_timeout_s):
                await self._loop.sock_sendall(connection, answer)
        except OSError:
            pass  # The client is gone, or too slow (TimeoutError is one): closing is all there is to do.

    async def _answer(self, connection: socket.socket) -> bytes:
        async with asyncio.timeout(self._options.client_timeout_s):
            head = await self._read_head(connection)
        if len(head) > self._options.head_bytes_max:
            return encode(_text(431, f"The head is over {self._options.head_bytes_max} bytes."))
        try:
            request = parse_head(head)
        except ValueError as error:
            return encode(_text(400, str(error)))
        if request.method not in METHODS:
            return encode(_text(405, "Only GET and HEAD."))
        page = self._pages.get(request.path)
        if page is None:
            return encode(_text(404, f"No such page. There are: {', '.join(sorted(self._pages))}"))
        try:
            async with asyncio.timeout(self._options.page_timeout_s):
                return await self._loop.run_in_executor(self._workers, _run_page, page, request)
        except TimeoutError:
            return encode(_text(503, "The page took too long."))

    async def _read_head(self, connection: socket.socket) -> bytes:
        """Return all up to the blank line, or more than the bound."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= self._options.head_bytes_max:
            received = await self._loop.sock_recv(connection, RECV_BYTES)
            if not received:
                raise ConnectionResetError("the client left before the end of its request")
            head += received
        return head


def metrics_page(render: Callable[[str], tuple[bytes, str]]) -> Page:
    """Make the page of metrics: `render` takes the Accept header and gives the body and its content type."""

    def page(request: Request) -> Response:
        body, content_type = render(request.headers.get("accept", ""))
        return Response(200, content_type, body)

    return page


def alive_page(request: Request) -> Response:
    """Say that the process is alive."""
    return _text(200, "alive")


def ready_page(not_ready: Callable[[], str | None]) -> Page:
    """Make the readiness page: 200 while `not_ready()` is None, else 503 and the reason that it gives."""

    def page(request: Request) -> Response:
        reason = not_ready()
        return _text(200, "ready") if reason is None else _text(503, reason)

    return page


def parse_head(head: bytes) -> Request:
    """Read the request line and the headers. Raises ValueError that says what is wrong."""
    line, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    match line.split(" "):
        case [method, target, "HTTP/1.0" | "HTTP/1.1"] if target.startswith("/"):
            path, _, query = target.partition("?")
        case _:
            raise ValueError("This is not an HTTP/1.1 request.")
    headers = {}
    for item in lines:
        name, colon, value = item.partition(":")
        if not colon:
            raise ValueError("A header has no colon.")
        headers[name.lower()] = value.strip()
    return Request(method, unquote(path), query, headers)


def encode(response: Response, *, head_only: bool = False, gzipped: bool = False) -> bytes:
    """Return the bytes of an answer that ends its connection."""
    body = gzip.compress(response.body, GZIP_LEVEL, mtime=0) if gzipped else response.body
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if gzipped:
        lines += ["Content-Encoding: gzip", "Vary: Accept-Encoding"]
    if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append(f"Allow: {', '.join(METHODS)}")
    head = "\r\n".join((*lines, "", "")).encode("latin-1")
    return head if head_only else head + body


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether an Accept-Encoding header allows gzip."""
    for item in accept_encoding.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() == "gzip":
            return parameters.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def split_address(address: str) -> tuple[str, int]:
    """Return the host and port of `host:port` or `[::1]:port`. Raises ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r}: an IPv6 address goes in brackets, as in [::1]:8501")
    if not colon or not host or not port.isdecimal() or int(port) > PORT_MAX:
        raise ValueError(f"{address!r} is not an address of the form host:port, as in 127.0.0.1:8501")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(address: str) -> socket.socket:
    host, port = split_address(address)
    try:
        family, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(target[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot listen for HTTP on {address}: {reason}") from error
    listener.setblocking(False)
    return listener


def _run_page(page: Page, request: Request) -> bytes:
    try:
        response = page(request)
    except Exception:
        log.exception("HTTP: the page %s failed", request.path)
        response = _text(500, "The page failed; the log says why.")
    gzipped = len(response.body) >= GZIP_BYTES_MIN and accepts_gzip(request.headers.get("accept-encoding", ""))
    return encode(response, head_only=request.method == "HEAD", gzipped=gzipped)


def _text(status: int, text: str) -> Response:
    return Response(status, TEXT, f"{text}\n".encode())
