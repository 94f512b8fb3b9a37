"""Ordinary servicers, registered by generated code, as a grpcio client sees them. The same on both transports."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from gateway.transport import Transport
from tests.contract.transport.rig import WAIT_S, Served, serve, until

CHUNK = b"z" * 100_000


class Servicer:
    """Raw-bytes handlers of all four kinds; what they saw is kept."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.contexts: list[Any] = []
        self.sent = 0

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.contexts.append(context)
        match request:
            case b"metadata":
                await context.send_initial_metadata((("first", "1"), ("first-bin", b"\x01")))
                context.set_trailing_metadata((("last", "2"), ("last-bin", b"\x02")))
                return repr(
                    sorted((key, value) for key, value in context.invocation_metadata() if key == "who")
                ).encode()
            case b"abort":
                await context.abort(grpc.StatusCode.ABORTED, "no: ü", (("why", "because"),))
            case b"code":
                context.set_code(grpc.StatusCode.DATA_LOSS)
                context.set_details("lost")
                return b""
            case b"raise":
                raise ZeroDivisionError
            case b"bad metadata":
                context.set_trailing_metadata((("why", "line\nbreak"),))
            case b"sleep":
                try:
                    await asyncio.sleep(WAIT_S)
                except asyncio.CancelledError:
                    self.ends.append("cancelled")
                    raise
            case b"time":
                return b"%.1f" % context.time_remaining() if context.time_remaining() is not None else b"none"
            case b"peer":
                return context.peer().encode()
        return request

    async def server_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def flood(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            for _ in range(int(request)):
                yield CHUNK
                self.sent += 1
        except asyncio.CancelledError:
            self.ends.append("flood cancelled")
            raise

    async def client_stream(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        total = 0
        async for request in requests:
            total += len(request)
            if request == b"enough":
                break
        return b"%d" % total

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            if request == b"abort":
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "stop")
            yield request.upper()

    async def read_write(self, requests: Any, context: Any) -> None:
        context.add_done_callback(lambda _: self.ends.append("done"))
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)
        context.set_trailing_metadata((("count", "all"),))

    def register(self, transport: Transport) -> None:
        """What generated code does."""
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),  # type: ignore[arg-type]
            "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),  # type: ignore[arg-type]
            "Flood": grpc.unary_stream_rpc_method_handler(self.flood),  # type: ignore[arg-type]
            "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),  # type: ignore[arg-type]
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),  # type: ignore[arg-type]
            "ReadWrite": grpc.stream_stream_rpc_method_handler(self.read_write),  # type: ignore[arg-type]
        }
        transport.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Ordinary", handlers),))
        transport.add_registered_method_handlers("test.Ordinary", handlers)  # type: ignore[arg-type]


async def unary(served: Served, request: bytes, **options: Any) -> bytes:
    return await served.call(request, "/test.Ordinary/Unary", **options)


async def test_health_and_reflection_work_unchanged(kind: str) -> None:
    servicer = health.aio.HealthServicer()

    def register(transport: Transport) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, transport)  # type: ignore[arg-type, no-untyped-call]
        names = ["grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
            reflection.aio.ReflectionServicer(names), transport
        )

    async with serve(kind, register) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        request = health_pb2.HealthCheckRequest()
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(iter([ask]))
        listed = [service.name async for answer in answers for service in answer.list_services_response.service]
        assert "grpc.health.v1.Health" in listed


async def test_malformed_protobuf_ends_its_call_only(kind: str) -> None:
    servicer = health.aio.HealthServicer()

    def register(transport: Transport) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, transport)  # type: ignore[arg-type]

    async with serve(kind, register) as served:
        error = await served.error(b"\xff\xff", "/grpc.health.v1.Health/Check")
        assert error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
        assert (await served.error(b"", "/grpc.health.v1.Health/List")).code() in {
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.UNKNOWN,
        }
        assert await served.call(b"", "/grpc.health.v1.Health/Check") == b"\x08\x01"


async def test_a_handler_that_would_block_is_refused() -> None:
    def blocking(request: bytes, context: Any) -> bytes:
        return request

    def register(transport: Transport) -> None:
        handler = grpc.unary_unary_rpc_method_handler(blocking)
        transport.add_registered_method_handlers("test.Blocking", {"Unary": handler})

    with pytest.raises(TypeError, match=r"/test\.Blocking/Unary"):
        async with serve("fast", register):
            pass


async def test_a_unary_servicer_sends_metadata_and_statuses(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        call = served.call(b"metadata", "/test.Ordinary/Unary", metadata=(("who", "me"),))
        assert await call == b"[('who', 'me')]"
        assert {("first", "1"), ("first-bin", b"\x01")} <= set(await call.initial_metadata())
        assert set(await call.trailing_metadata()) == {("last", "2"), ("last-bin", b"\x02")}
        error = await served.error(b"abort", "/test.Ordinary/Unary")
        assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "no: ü")
        assert dict(error.trailing_metadata())["why"] == "because"
        error = await served.error(b"code", "/test.Ordinary/Unary")
        assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "lost")
        assert await unary(served, b"time") == b"none"
        assert float(await unary(served, b"time", timeout=5)) == pytest.approx(5, abs=1)
        assert (await unary(served, b"peer")).startswith(b"ipv4:127.0.0.1:")
        assert await unary(served, b"echo") == b"echo"


async def test_a_servicer_that_raises_ends_its_call_only(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        error = await served.error(b"raise", "/test.Ordinary/Unary")
        # grpcio has UNKNOWN here, with the exception's text.
        assert error.code() is (grpc.StatusCode.INTERNAL if kind == "fast" else grpc.StatusCode.UNKNOWN)
        assert await unary(served, b"echo") == b"echo"


async def test_cancellation_and_deadlines_reach_a_servicer(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        call = served.call(b"sleep", "/test.Ordinary/Unary")
        await until(lambda: bool(servicer.contexts))
        call.cancel()
        await until(lambda: servicer.ends == ["cancelled"])
        started = time.monotonic()
        error = await served.error(b"sleep", "/test.Ordinary/Unary", timeout=0.2)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: servicer.ends == ["cancelled"] * 2)
        assert time.monotonic() - started < 2


async def test_a_server_streams(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        method = served.channel.unary_stream("/test.Ordinary/ServerStream")
        assert [answer async for answer in method(b"0")] == []
        assert [answer async for answer in method(b"500")] == [b"%d" % number for number in range(500)]


async def test_a_client_streams(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        method = served.channel.stream_unary("/test.Ordinary/ClientStream")
        assert await method(iter([])) == b"0"
        assert await method(iter([CHUNK] * 100), timeout=WAIT_S) == b"%d" % (100 * len(CHUNK))
        sizes = [0, 1, 5_000, 12_000, 16_379, 30_000, 3, 70_000, 2_000_000, 1, 900_000]
        assert await method((b"q" * size for size in sizes), timeout=WAIT_S) == b"%d" % sum(sizes)
        assert await method(iter([CHUNK] * 3), compression=grpc.Compression.Gzip) == b"%d" % (3 * len(CHUNK))


async def test_an_answer_may_come_before_the_requests_end(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        call = served.channel.stream_unary("/test.Ordinary/ClientStream")(timeout=WAIT_S)
        await call.write(b"12345")
        await call.write(b"enough")
        assert await call == b"11"
        assert await unary(served, b"echo") == b"echo"


async def test_both_sides_stream(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        chat = served.channel.stream_stream("/test.Ordinary/Chat")()
        for word in (b"a", b"", b"bc"):
            await chat.write(word)
            assert await chat.read() == word.upper()
        await chat.write(b"abort")
        with pytest.raises(grpc.aio.AioRpcError):
            await chat.read()
        assert (await chat.code(), await chat.details()) == (grpc.StatusCode.OUT_OF_RANGE, "stop")
        echo = served.channel.stream_stream("/test.Ordinary/ReadWrite")(iter([b"x" * size for size in range(300)]))
        assert [len(answer) async for answer in echo] == list(range(300))
        assert dict(await echo.trailing_metadata())["count"] == "all"
        await until(lambda: "done" in servicer.ends)


async def test_a_writer_waits_for_a_slow_reader_and_learns_that_it_left(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        options = [("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(served.addresses[0], options=options) as channel:
            call = channel.unary_stream("/test.Ordinary/Flood")(b"1000")
            assert await call.read() == CHUNK
            await asyncio.sleep(0.3)
            assert servicer.sent < 500, "100 MB were sent to a client that does not read"
            call.cancel()
            await until(lambda: servicer.ends == ["flood cancelled"] or servicer.sent < 1_000)
        sent = servicer.sent
        await asyncio.sleep(0.1)
        assert servicer.sent <= sent + 1


async def test_a_slow_reader_gets_everything(kind: str) -> None:
    servicer = Servicer()
    async with serve(kind, servicer.register) as served:
        count = 0
        async for answer in served.channel.unary_stream("/test.Ordinary/Flood")(b"100"):
            assert answer == CHUNK
            count += 1
            if count % 20 == 0:
                await asyncio.sleep(0.02)
        assert count == 100
