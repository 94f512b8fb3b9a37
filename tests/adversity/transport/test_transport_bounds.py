"""Clients that ask for too much: of memory, of time, of connections. The others are served meanwhile."""

import asyncio
import contextlib
import gc
import gzip
import struct
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import ngh2
import pytest

from gateway.transport import Transport
from gateway.transport.fast.server import FastTransport
from tests.contract.transport.rig import METHOD, REQUEST, RawClient, Served, frame, raw, serve, until

MIB = 2**20


@contextlib.contextmanager
def memory_grows_by_at_most(bytes_max: int) -> Iterator[None]:
    """Peak of what Python and the buffers of its objects take inside, above what they took before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= bytes_max, f"{(peak - before) / MIB:.1f} MiB"


def fast(served: Served) -> FastTransport:
    assert isinstance(served.transport, FastTransport)
    return served.transport


@contextlib.asynccontextmanager
async def calls_all_the_time(served: Served) -> AsyncIterator[list[float]]:
    """One caller after the other; the seconds that each waited."""
    waited: list[float] = []

    async def call() -> None:
        while True:
            started = time.monotonic()
            assert await served.call(b"hello", timeout=10) == b"hello"
            waited.append(time.monotonic() - started)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(call())
    await until(lambda: len(waited) > 3)
    waited.clear()
    try:
        yield waited
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_200_calls_that_announce_4_gib_reserve_nothing() -> None:
    async with serve("fast", max_receive_message_bytes=64 * MIB, max_buffered_request_bytes=256 * MIB) as served:
        async with raw(served) as client:
            await served.call(b"warm")
            with memory_grows_by_at_most(8 * MIB):
                streams = [client.request(frame(b"abc", size=2**32 - 1), end=False) for _ in range(200)]
                for stream_id in streams:
                    assert (await client.ended(stream_id))[b"grpc-status"] == b"8"
            with memory_grows_by_at_most(8 * MIB):
                # Within the limit, but it never comes.
                for _ in range(200):
                    client.request(frame(b"abc", size=63 * MIB), end=False)
                await until(lambda: fast(served).admission.active == 200)
            assert await served.call(b"fine") == b"fine"
        await until(lambda: fast(served).admission.active == 0)


async def test_a_gzip_bomb_costs_neither_memory_nor_latency() -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([*(compressor.compress(bytes(MIB)) for _ in range(1_024)), compressor.flush()])
    assert 0.9 * MIB < len(bomb) < 1.1 * MIB
    async with serve("fast") as served, raw(served) as client, calls_all_the_time(served) as waited:
        with memory_grows_by_at_most(20 * MIB):
            stream_id = client.request(frame(bomb, flag=1), [*REQUEST, (b"grpc-encoding", b"gzip")])
            assert (await client.ended(stream_id))[b"grpc-status"] == b"8"
        await asyncio.sleep(0.05)
    async with serve("fast") as served, raw(served) as client, calls_all_the_time(served) as waited:
        # Without the instrument of the memory test, which makes everything slow.
        stream_id = client.request(frame(bomb, flag=1), [*REQUEST, (b"grpc-encoding", b"gzip")])
        assert (await client.ended(stream_id))[b"grpc-status"] == b"8"
        await asyncio.sleep(0.05)
        assert max(waited) < 0.05


async def test_many_bombs_are_taken_a_few_at_a_time() -> None:
    bomb = gzip.compress(bytes(4 * MIB + 1))
    async with serve("fast") as served, raw(served) as client, calls_all_the_time(served) as waited:
        streams = [client.request(frame(bomb, flag=1), [*REQUEST, (b"grpc-encoding", b"gzip")]) for _ in range(50)]
        for stream_id in streams:
            assert (await client.ended(stream_id))[b"grpc-status"] == b"8"
        # Together they take twice as long.
        assert max(waited) < 0.4


async def test_request_bytes_are_capped_by_flow_control() -> None:
    bound = 4 * MIB
    options: dict[str, Any] = {"max_receive_message_bytes": MIB, "max_buffered_request_bytes": bound}
    async with serve("fast", **options, max_concurrent_streams=256) as served, raw(served) as client:
        await until(lambda: bool(client.saw(ngh2.SettingsReceived)))
        for _ in range(64):
            client.request(frame(bytes(MIB - 1), size=MIB), end=False)
        await asyncio.sleep(0.5)
        sent = 64 * (MIB + 4) - client.http2.queued_body_size()
        assert sent <= bound, "the client could send more than the cap"
        assert await served.call(b"x" * MIB, timeout=5) == b"x" * MIB, "another connection has its own"


async def test_half_sent_messages_never_block_each_other() -> None:
    options: dict[str, Any] = {"max_receive_message_bytes": MIB, "max_buffered_request_bytes": 3 * MIB}
    async with serve("fast", **options) as served, raw(served, window_bytes=2**30) as client:
        client.http2.set_local_window_size(2**30)
        # Sixteen times what may be buffered, sent in turns by HTTP/2 itself.
        streams = [client.request(frame(bytes([number]) * (MIB - 9))) for number in range(48)]
        for number, stream_id in enumerate(streams):
            assert (await client.ended(stream_id))[b"grpc-status"] == b"0"
            assert client.body(stream_id) == frame(bytes([number]) * (MIB - 9))


async def test_a_reader_that_does_not_read_is_refused_then_closed() -> None:
    bound = 2 * MIB
    options: dict[str, Any] = {
        "max_buffered_answer_bytes": bound,
        "keepalive_interval_s": 0.3,
        "keepalive_timeout_s": 0.3,
    }
    async with serve("fast", **options) as served, raw(served, window_bytes=0) as client:
        body = bytes(500_000)
        first = [client.request(frame(body)) for _ in range(5)]
        await until(lambda: sum(served.echo.batches) == 5)
        more = [client.request(frame(b"more")) for _ in range(5)]
        for stream_id in more:
            assert (await client.ended(stream_id))[b"grpc-status"] == b"8"
        assert not any(client.body(stream_id) for stream_id in first)
        await client.hung_up()
        assert await served.call(b"fine") == b"fine"


async def test_a_socket_that_is_not_read_does_not_fill_memory() -> None:
    class Flood:
        async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
            while True:
                yield bytes(100_000)

    def register(transport: Transport) -> None:
        handler = grpc.unary_stream_rpc_method_handler(Flood().stream)  # type: ignore[arg-type]
        transport.add_registered_method_handlers("test.Flood", {"Stream": handler})  # type: ignore[dict-item]

    async with serve("fast", register) as served:
        with memory_grows_by_at_most(24 * MIB):
            async with raw(served, window_bytes=2**31 - 1, read=False) as client:
                client.http2.set_local_window_size(2**31 - 1)
                headers = [(name, b"/test.Flood/Stream" if name == b":path" else value) for name, value in REQUEST]
                for _ in range(10):
                    client.request(frame(b""), headers)
                await asyncio.sleep(0.7)
                assert await served.call(b"fine") == b"fine"
        await until(lambda: fast(served).admission.active == 0)


async def test_a_slow_request_is_cancelled() -> None:
    async with serve("fast", request_timeout_s=0.3) as served, raw(served) as client:
        stream_id = client.request(b"\x00\x00", end=False)
        answer = await client.ended(stream_id)
        assert answer[b"grpc-status"] == b"1"
        assert fast(served).admission.active == 0


@pytest.mark.parametrize("greeting", [b"", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
async def test_a_client_that_does_not_finish_its_greeting_is_closed(greeting: bytes) -> None:
    async with serve("fast", handshake_timeout_s=0.3) as served:
        reader, writer = await asyncio.open_connection(*served.host_port)
        writer.write(greeting)
        async with asyncio.timeout(3):
            while await reader.read(65_536):
                pass
        writer.close()


async def test_a_client_that_never_finishes_tls_is_closed(tmp_path: Any) -> None:
    from gateway.transport import TlsOptions
    from tests.contract.transport.test_transport_serving import make_authority

    make_authority(tmp_path, "server")
    tls = TlsOptions(tmp_path / "server.pem", tmp_path / "server.key")
    async with serve("fast", tls=tls, handshake_timeout_s=0.3) as served:
        reader, writer = await asyncio.open_connection(*served.host_port)
        writer.write(b"\x16\x03\x01")
        async with asyncio.timeout(3):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()


async def test_an_idle_connection_is_told_to_go() -> None:
    async with serve("fast", idle_timeout_s=0.3) as served, raw(served) as client:
        stream_id = client.request(frame(b"x"))
        await client.ended(stream_id)
        await client.hung_up(5)
        assert client.saw(ngh2.GoAwayReceived)
        assert await served.call(b"one") == b"one"
        await asyncio.sleep(0.8)
        assert await served.call(b"a grpcio client connects again") == b"a grpcio client connects again"


async def test_a_silent_client_is_pinged_and_closed() -> None:
    async with serve("fast", keepalive_interval_s=0.2, keepalive_timeout_s=0.2) as served, raw(served) as alive:
        alive.request(frame(b"hold"))
        await until(lambda: len(served.echo.held) == 1)
        reader, writer = await asyncio.open_connection(*served.host_port)
        silent = RawClient("", 0)
        silent.http2.send_request(REQUEST)
        first = silent.http2.next_stream_id - 2
        silent.http2.send_data(first, frame(b"hold"), end_stream=True)
        writer.write(silent.http2.data_to_send())
        silent.http2.receive_data(await reader.read(65_536))
        writer.write(silent.http2.data_to_send())
        await until(lambda: len(served.echo.held) == 2)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                while await reader.read(65_536):
                    pass
        writer.close()
        await until(lambda: served.echo.held[1].cancelled)
        assert alive.saw(ngh2.PingReceived)
        assert not served.echo.held[0].cancelled


async def test_a_flood_of_resets_ends_in_a_goaway_while_others_are_served() -> None:
    async with serve("fast", reset_burst=1_000, max_resets_per_s=100) as served, raw(served) as client:
        async with calls_all_the_time(served) as waited:
            with contextlib.suppress(ngh2.NGH2Error, ConnectionError):
                for number in range(50_000):
                    stream_id = client.http2.send_request(REQUEST)
                    client.http2.send_data(stream_id, frame(b"hold"), end_stream=True)
                    client.flush()
                    client.http2.reset_stream(stream_id)
                    client.flush()
                    if number % 50 == 0:
                        await client.writer.drain()
                        await asyncio.sleep(0)
                    if client.closed.is_set():
                        break
            await client.hung_up()
            assert client.saw(ngh2.GoAwayReceived)
        assert max(waited) < 0.5
        await until(lambda: fast(served).admission.active == 0)
        assert all(call.cancelled for call in served.echo.held)


async def test_1500_clients_connect_at_once() -> None:
    async with serve("fast") as served:

        async def one(number: int) -> None:
            client = RawClient("", 0)
            stream_id = client.http2.send_request(REQUEST)
            client.http2.send_data(stream_id, frame(b"%d" % number), end_stream=True)
            reader, writer = await asyncio.open_connection(*served.host_port)
            writer.write(client.http2.data_to_send())
            while not any(isinstance(event, ngh2.StreamClosed) for event in client.events):
                data = await reader.read(65_536)
                assert data, "the connection was closed"
                client.http2.receive_data(data)
                client.events += client.http2.events()
            assert client.body(stream_id) == frame(b"%d" % number)
            writer.close()
            await writer.wait_closed()

        async with asyncio.timeout(60):
            await asyncio.gather(*map(one, range(1_500)))
        await until(lambda: not fast(served)._connections)


async def test_one_connection_too_many_is_closed() -> None:
    async with serve("fast", max_connections=2) as served:
        async with raw(served) as first, raw(served):
            stream_id = first.request(frame(b"x"))
            await first.ended(stream_id)
            await until(lambda: len(fast(served)._connections) == 2)
            async with raw(served) as third:
                await third.hung_up()
        await until(lambda: not fast(served)._connections)
        assert await served.call(b"room again") == b"room again"


async def test_more_streams_than_allowed_are_refused_by_http2() -> None:
    async with serve("fast", max_concurrent_streams=4) as served, raw(served) as client:
        await until(lambda: bool(client.saw(ngh2.SettingsReceived)))
        for _ in range(6):
            client.request(frame(b"hold"))
        await until(lambda: len(served.echo.held) == 4)
        await asyncio.sleep(0.1)
        assert len(served.echo.held) == 4
        served.echo.held[0].reply(b"")
        await until(lambda: len(served.echo.held) == 5)


async def test_frames_that_make_the_server_answer_are_bounded() -> None:
    ping = struct.pack(">HBBBI", 0, 8, 6, 0, 0) + b"12345678"
    settings = struct.pack(">HBBBI", 0, 0, 4, 0, 0)
    for flood in (ping, settings):
        async with serve("fast") as served, raw(served, read=False) as client:
            with memory_grows_by_at_most(16 * MIB):
                with contextlib.suppress(ConnectionError):
                    for _ in range(200):
                        client.writer.write(flood * 1_000)
                        await asyncio.wait_for(client.writer.drain(), 0.2)
                await asyncio.sleep(0.05)
            assert await served.call(b"fine") == b"fine"


async def test_nothing_is_left_of_a_call_on_a_method_that_does_not_exist() -> None:
    async with serve("fast") as served, raw(served) as client:
        headers = [(name, b"/none" if name == b":path" else value) for name, value in REQUEST]
        for _ in range(20):
            streams = [client.request(frame(b"x" * 5_000), headers) for _ in range(50)]
            for stream_id in streams:
                assert (await client.ended(stream_id))[b"grpc-status"] == b"12"
        (connection,) = (one for one in fast(served)._connections if one.state is not None)
        assert connection.state is not None
        assert not connection.state._calls
        assert not connection.state._cut_short
        assert METHOD.encode() in fast(served)._routes
