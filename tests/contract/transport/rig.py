"""What the transport's tests stand on: a served transport whose handler does as each payload says, and a raw client."""

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import ngh2

from gateway.transport import Call, Transport, TransportOptions, create

METHOD = "/test.Echo/Unary"
OTHER = "/test.Echo/Other"
WAIT_S = 10.0
REQUEST: list[tuple[bytes, bytes]] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", METHOD.encode()),
    (b":authority", b"test"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def frame(payload: bytes, *, flag: int = 0, size: int | None = None) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(payload) if size is None else size) + payload


async def until(true: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    """Wait for something that has no event."""
    give_up_at = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < give_up_at, "it did not become true"
        await asyncio.sleep(0.005)


class Echo:
    """A batch handler. `fail:CODE:TEXT` fails, `raise` raises, `hold` waits in `held`; all else is echoed."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.held: list[Call] = []

    def __call__(self, calls: list[Call]) -> None:
        self.batches.append(len(calls))
        for call in calls:
            payload = bytes(call.payload)
            if payload.startswith(b"fail:"):
                _, code, text = payload.split(b":", 2)
                call.fail(int(code), text.decode(), b"\x00details", (("why", "test"), ("raw-bin", b"\xff\x00")))
            elif payload == b"raise":
                raise ZeroDivisionError
            elif payload == b"hold":
                self.held.append(call)
            else:
                call.reply(payload)


class Served:
    """A transport that is listening, its handler, and a channel to it."""

    def __init__(self, transport: Transport, addresses: Sequence[str], echo: Echo) -> None:
        self.transport = transport
        self.addresses = addresses
        self.echo = echo
        self.channel = grpc.aio.insecure_channel(addresses[0])

    @property
    def host_port(self) -> tuple[str, int]:
        host, _, port = self.addresses[0].rpartition(":")
        return host, int(port)

    def call(self, payload: bytes, method: str = METHOD, **options: Any) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        return self.channel.unary_unary(method)(payload, **options)

    async def error(self, payload: bytes, method: str = METHOD, **options: Any) -> grpc.aio.AioRpcError:
        options.setdefault("timeout", WAIT_S)
        try:
            await self.call(payload, method, **options)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("the call was answered with OK")


@contextlib.asynccontextmanager
async def serve(
    kind: str,
    register: Callable[[Transport], None] = lambda transport: None,
    **options: Any,
) -> AsyncIterator[Served]:
    """Run a transport with the echo handler and whatever `register` adds."""
    transport = create(kind, TransportOptions(**({"listen": ("127.0.0.1:0",)} | options)))  # type: ignore[arg-type]
    echo = Echo()
    transport.add_batch_method(METHOD, echo)
    transport.add_batch_method(OTHER, echo)
    register(transport)
    served = Served(transport, await transport.start(), echo)
    try:
        yield served
    finally:
        await served.channel.close()
        await transport.stop(0)


class RawClient:
    """The client's end of an HTTP/2 connection that sends what it is told, right or wrong."""

    def __init__(self, host: str, port: int, *, window_bytes: int = 65_535, read: bool = True) -> None:
        self._address = host, port
        self._may_read = asyncio.Event()
        if read:
            self._may_read.set()
        self.http2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(max_send_header_block_length=2**20))
        self.http2.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: window_bytes})
        self.events: list[Any] = []
        self.received = b""
        self.closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(*self._address)
        self._task = asyncio.create_task(self._run())
        self.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        self.writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self.writer.wait_closed()

    async def _run(self) -> None:
        await self._may_read.wait()
        with contextlib.suppress(OSError):
            while data := await self.reader.read(65_536):
                self.received += data
                with contextlib.suppress(ngh2.NGH2Error):
                    self.http2.receive_data(data)
                self.events += self.http2.events()
                self.flush()
        self.closed.set()

    def flush(self) -> None:
        with contextlib.suppress(ngh2.NGH2Error):
            self.writer.write(self.http2.data_to_send())

    def request(self, data: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = REQUEST, *, end: bool = True) -> int:
        """Start a stream; the data is sent as it is."""
        stream_id = self.http2.send_request(list(headers), end_stream=end and not data)
        if data:
            self.http2.send_data(stream_id, data, end_stream=end)
        self.flush()
        return stream_id

    def headers(self, stream_id: int) -> dict[bytes, bytes]:
        """The headers and trailers that came on a stream."""
        return {
            name: value
            for event in self.events
            if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived) and event.stream_id == stream_id
            for name, value in event.headers
        }

    def body(self, stream_id: int) -> bytes:
        return b"".join(
            event.data for event in self.events if isinstance(event, ngh2.DataReceived) and event.stream_id == stream_id
        )

    def saw(self, kind: type[Any], stream_id: int | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (stream_id is None or event.stream_id == stream_id)
        ]

    async def ended(self, stream_id: int) -> dict[bytes, bytes]:
        """Wait for the end of a stream and return its headers."""
        await until(lambda: bool(self.saw(ngh2.StreamClosed, stream_id)))
        return self.headers(stream_id)

    async def hung_up(self, wait_s: float = WAIT_S) -> None:
        """Wait until the server has closed the connection."""
        async with asyncio.timeout(wait_s):
            await self.closed.wait()


def raw(served: Served, **options: Any) -> RawClient:
    host, port = served.host_port
    return RawClient(host, port, **options)
