"""Calls of batch methods, as a grpcio client sees them. The same on both transports."""

import asyncio
import math
import time

import grpc
import pytest

from tests.contract.transport.rig import METHOD, OTHER, WAIT_S, serve, until


async def test_a_call_is_answered_and_says_who_it_is(kind: str) -> None:
    async with serve(kind) as served:
        answer = served.call(b"hold", metadata=(("tenant", "a b"), ("blob-bin", b"\x00\xff,"), ("tenant", "c")))
        await until(lambda: bool(served.echo.held))
        (call,) = served.echo.held
        assert call.method == METHOD
        assert bytes(call.payload) == b"hold"
        assert call.peer.startswith("ipv4:127.0.0.1:")
        assert call.identity is None
        assert call.deadline == math.inf
        assert 0 <= time.monotonic() - call.arrived < WAIT_S
        assert not call.cancelled
        sent = [pair for pair in call.metadata if pair[0] in {"tenant", "blob-bin"}]
        assert sorted(sent, key=repr) == sorted(
            [("tenant", "a b"), ("blob-bin", b"\x00\xff,"), ("tenant", "c")], key=repr
        )
        call.reply(b"done", (("note", "x y"), ("raw-bin", b"\x00\x01")))
        assert await answer == b"done"
        assert set(await answer.trailing_metadata()) == {("note", "x y"), ("raw-bin", b"\x00\x01")}
        assert await answer.code() is grpc.StatusCode.OK


async def test_calls_that_arrive_together_come_as_one_batch(kind: str) -> None:
    async with serve(kind) as served:
        await served.call(b"connect")
        calls = [served.call(b"%d" % number) for number in range(200)]
        assert [await call for call in calls] == [b"%d" % number for number in range(200)]
        assert sum(served.echo.batches) == 201
        # In one process with its client grpcio gives most calls a pass of their own.
        assert len(served.echo.batches) < (150 if kind == "fast" else 201)


async def test_two_methods_have_batches_of_their_own(kind: str) -> None:
    async with serve(kind) as served:
        one, other = served.call(b"1"), served.call(b"2", OTHER)
        assert (await one, await other) == (b"1", b"2")


@pytest.mark.parametrize("code", range(1, 17))
async def test_a_status_comes_with_its_message_details_and_trailers(kind: str, code: int) -> None:
    async with serve(kind) as served:
        error = await served.error(b"fail:%d:100%% wrong: \xe2\x82\xac\n\x01 ~" % code)
        assert error.code().value[0] == code
        assert error.details() == "100% wrong: €\n\x01 ~"
        trailing = dict(error.trailing_metadata())
        assert trailing["why"] == "test"
        assert trailing["raw-bin"] == b"\xff\x00"
        assert trailing["grpc-status-details-bin"] == b"\x00details"


@pytest.mark.parametrize("code", [0, 17, 4_000, -1])
async def test_a_code_that_is_no_error_becomes_unknown(kind: str, code: int) -> None:
    async with serve(kind) as served:
        assert (await served.error(b"fail:%d:hm" % code)).code() is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("text", ["", "a", "lone \udc80 surrogate", "x" * 3_000])
async def test_any_message_can_be_sent(kind: str, text: str) -> None:
    async with serve(kind) as served:
        waiting = asyncio.ensure_future(served.error(b"hold"))
        await until(lambda: bool(served.echo.held))
        served.echo.held[0].fail(3, text)
        assert (await waiting).details() == text.replace("\udc80", "?")


async def test_an_unknown_method_is_unimplemented(kind: str) -> None:
    async with serve(kind) as served:
        for method in ("/test.Echo/Nothing", "/nothing.At/All"):
            assert (await served.error(b"", method)).code() is grpc.StatusCode.UNIMPLEMENTED
        assert await served.call(b"fine") == b"fine"


async def test_a_deadline_is_absolute_and_fires_while_a_handler_works(kind: str) -> None:
    async with serve(kind) as served:
        await served.call(b"connect")
        started = time.monotonic()
        error = await served.error(b"hold", timeout=0.3)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (call,) = served.echo.held
        assert call.deadline == pytest.approx(started + 0.3, abs=0.1)
        await until(lambda: call.cancelled)
        call.reply(b"too late")
        call.fail(3, "too late")
        assert await served.call(b"fine") == b"fine"


async def test_the_handler_learns_that_a_client_has_cancelled(kind: str) -> None:
    async with serve(kind) as served:
        cancelled, kept = served.call(b"hold"), served.call(b"hold")
        await until(lambda: len(served.echo.held) == 2)
        cancelled.cancel()
        await until(lambda: any(call.cancelled for call in served.echo.held))
        assert sum(call.cancelled for call in served.echo.held) == 1
        for call in served.echo.held:
            call.reply(b"answer")
        assert await kept == b"answer"


async def test_the_handler_learns_that_a_connection_is_lost(kind: str) -> None:
    async with serve(kind) as served:
        async with grpc.aio.insecure_channel(served.addresses[0]) as channel:
            call = channel.unary_unary(METHOD)(b"hold")
            await until(lambda: bool(served.echo.held))
        await until(lambda: served.echo.held[0].cancelled)
        served.echo.held[0].reply(b"nobody")
        assert call.done()
        assert await served.call(b"fine") == b"fine"


async def test_a_handler_that_raises_ends_its_calls_with_internal(kind: str) -> None:
    async with serve(kind) as served:
        error = await served.error(b"raise")
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "ZeroDivision" not in error.details()
        assert await served.call(b"fine") == b"fine"


@pytest.mark.parametrize(
    "pair",
    [
        ("note", "line\nbreak"),
        ("note", "nul\x00"),
        ("note", "€"),
        ("note", b"bytes"),
        ("note-bin", "text"),
        ("Upper", "x"),
        ("spa ce", "x"),
        ("", "x"),
        (":status", "200"),
        ("grpc-status", "0"),
    ],
)
async def test_metadata_that_cannot_be_sent_ends_the_call_with_internal(kind: str, pair: tuple[str, str]) -> None:
    async with serve(kind) as served:
        ok, failed = asyncio.ensure_future(served.error(b"hold")), asyncio.ensure_future(served.error(b"hold"))
        await until(lambda: len(served.echo.held) == 2)
        served.echo.held[0].reply(b"", (pair,))
        served.echo.held[1].fail(3, "wrong", trailing=(pair,))
        assert (await ok).code() is grpc.StatusCode.INTERNAL
        assert (await failed).code() is grpc.StatusCode.INTERNAL
        assert await served.call(b"fine") == b"fine"


async def test_a_call_ends_once(kind: str) -> None:
    async with serve(kind) as served:
        answer = served.call(b"hold")
        await until(lambda: bool(served.echo.held))
        (call,) = served.echo.held
        call.reply(b"first")
        call.reply(b"second")
        call.fail(13, "third")
        assert await answer == b"first"


@pytest.mark.parametrize("size", [0, 1, 4_090, 4_091, 16_379, 65_535, 65_536, 1_000_000, 4 * 2**20])
async def test_messages_of_every_size_pass(kind: str, size: int) -> None:
    async with serve(kind, max_receive_message_bytes=4 * 2**20) as served:
        channel = grpc.aio.insecure_channel(served.addresses[0], options=[("grpc.max_receive_message_length", -1)])
        async with channel:
            payload = bytes(index % 251 for index in range(size)) if size < 100_000 else b"\x07" * size
            assert await channel.unary_unary(METHOD)(payload, timeout=WAIT_S) == payload


async def test_many_large_messages_at_once_pass(kind: str) -> None:
    async with serve(kind) as served:
        payloads = [bytes([number]) * 3_000_000 for number in range(24)]
        assert list(await asyncio.gather(*(served.call(payload, timeout=30) for payload in payloads))) == payloads


async def test_a_message_above_the_limit_is_refused(kind: str) -> None:
    async with serve(kind, max_receive_message_bytes=1_000) as served:
        error = await served.error(b"x" * 1_001)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served.call(b"x" * 1_000) == b"x" * 1_000


async def test_gzip_requests_are_accepted_and_bounded(kind: str) -> None:
    async with serve(kind, max_receive_message_bytes=100_000) as served:
        gzip = grpc.Compression.Gzip
        assert await served.call(b"y" * 90_000, compression=gzip) == b"y" * 90_000
        error = await served.error(b"y" * 100_001, compression=gzip)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served.call(b"fine", compression=gzip) == b"fine"


async def test_one_call_too_many_is_refused_at_once(kind: str) -> None:
    async with serve(kind, max_active_calls=3) as served:
        held = [served.call(b"hold") for _ in range(3)]
        await until(lambda: len(served.echo.held) == 3)
        started = time.monotonic()
        assert (await served.error(b"one more")).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert time.monotonic() - started < 1
        for call in served.echo.held:
            call.reply(b"done")
        assert [await call for call in held] == [b"done"] * 3
        assert await served.call(b"again") == b"again"
