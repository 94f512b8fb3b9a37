"""Requests that no gRPC library would send, over raw sockets.

Both transports end such a call or its connection and serve the next one. Which status it ends with is ours to choose on
the fast transport and grpcio's on the other; docs/transport.md lists where they differ.
"""

import asyncio
import gzip
from collections.abc import Sequence

import ngh2
import pytest

from tests.contract.transport.rig import METHOD, REQUEST, RawClient, frame, raw, serve, until

Headers = Sequence[tuple[bytes, bytes]]


def with_headers(**changes: bytes | None) -> Headers:
    """The usual request headers with some changed, added or (None) left out; `_` stands for `-`."""
    named = {name.replace("_", "-").encode(): value for name, value in changes.items()}
    kept = [(name, named.get(name.lstrip(b":"), value)) for name, value in REQUEST]
    added = [(name, value) for name, value in named.items() if name not in {key.lstrip(b":") for key, _ in REQUEST}]
    return [(name, value) for name, value in (*kept, *added) if value is not None]


# (what is sent, its headers, the expected grpc-status, the expected :status)
WRONG: dict[str, tuple[bytes, Headers, bytes, bytes]] = {
    "several messages": (frame(b"a") + frame(b"b"), REQUEST, b"12", b"200"),
    "no message": (b"", REQUEST, b"12", b"200"),
    "prefix cut off": (b"\x00\x00\x00", REQUEST, b"13", b"200"),
    "message cut off": (frame(b"abc", size=10), REQUEST, b"13", b"200"),
    "message and a half": (frame(b"abc") + b"\x00\x00", REQUEST, b"12", b"200"),
    "prefix of 4 GiB": (frame(b"abc", size=2**32 - 1), REQUEST, b"8", b"200"),
    "compression flag 2": (frame(b"abc", flag=2), REQUEST, b"13", b"200"),
    "compressed without an encoding": (frame(gzip.compress(b"abc"), flag=1), REQUEST, b"13", b"200"),
    "broken gzip": (frame(b"not gzip", flag=1), with_headers(grpc_encoding=b"gzip"), b"13", b"200"),
    "gzip cut off": (frame(gzip.compress(b"abc")[:-4], flag=1), with_headers(grpc_encoding=b"gzip"), b"13", b"200"),
    "gzip and more": (frame(gzip.compress(b"abc") + b"x", flag=1), with_headers(grpc_encoding=b"gzip"), b"13", b"200"),
    "deflate": (frame(b"abc", flag=1), with_headers(grpc_encoding=b"deflate"), b"12", b"200"),
    "wrong content type": (frame(b"abc"), with_headers(content_type=b"application/json"), b"2", b"415"),
    "no content type": (frame(b"abc"), with_headers(content_type=None), b"2", b"415"),
    "grpc-web": (frame(b"abc"), with_headers(content_type=b"application/grpc-web"), b"2", b"415"),
    "not POST": (frame(b"abc"), with_headers(method=b"PUT"), b"2", b"405"),
    "no te": (frame(b"abc"), with_headers(te=None), b"13", b"200"),
    "malformed timeout": (frame(b"abc"), with_headers(grpc_timeout=b"soon"), b"13", b"200"),
    "timeout without a unit": (frame(b"abc"), with_headers(grpc_timeout=b"100"), b"13", b"200"),
    "timeout of nine digits": (frame(b"abc"), with_headers(grpc_timeout=b"123456789m"), b"13", b"200"),
    "no time at all": (frame(b"abc"), with_headers(grpc_timeout=b"0m"), b"4", b"200"),
    "not base64": (frame(b"abc"), with_headers(blob_bin=b"!!!!"), b"13", b"200"),
    "headers too large": (frame(b"abc"), [*REQUEST, (b"big", b"x" * 17_000)], b"8", b"200"),
    "too many headers": (frame(b"abc"), [*REQUEST, *((b"h%d" % i, b"") for i in range(130))], b"8", b"200"),
    "unknown method": (frame(b"abc"), with_headers(path=b"/no/such"), b"12", b"200"),
    "a path that is none": (frame(b"abc"), with_headers(path=b"/\xff\xfe"), b"12", b"200"),
}


# One request whose path is not UTF-8 ends grpc.aio's accept loop for ever, and nothing above grpcio can stop that.
WRONG_ON = [(kind, case) for kind in ("fast", "grpcio") for case in WRONG]
WRONG_ON.remove(("grpcio", "a path that is none"))


@pytest.mark.parametrize(("kind", "case"), WRONG_ON)
async def test_a_wrong_request_ends_itself_only(kind: str, case: str) -> None:
    data, headers, status, http = WRONG[case]
    async with serve(kind) as served, raw(served) as client:
        neighbour = client.request(frame(b"hold"))
        await until(lambda: bool(served.echo.held))
        stream_id = client.request(data, headers)
        if kind == "fast":
            answer = await client.ended(stream_id)
            assert (answer.get(b"grpc-status"), answer[b":status"]) == (status, http)
            assert not any(call.cancelled for call in served.echo.held)
            served.echo.held[0].reply(b"unharmed")
            assert (await client.ended(neighbour))[b"grpc-status"] == b"0"
            assert client.body(neighbour) == frame(b"unharmed")
            after = client.request(frame(b"after"))
            assert (await client.ended(after))[b"grpc-status"] == b"0"
        assert await served.call(b"fine", timeout=5) == b"fine"


@pytest.mark.parametrize(
    "headers",
    [
        with_headers(content_type=b"application/grpc+proto"),
        with_headers(content_type=b"application/grpc;charset=utf-8"),
        with_headers(grpc_encoding=b"identity"),
        with_headers(grpc_timeout=b"1H"),
        with_headers(grpc_timeout=b"99999999u"),
        with_headers(blob_bin=b"AAE=", other_bin=b"AAE"),
    ],
)
async def test_unusual_but_right_requests_are_served(kind: str, headers: Headers) -> None:
    async with serve(kind) as served, raw(served) as client:
        stream_id = client.request(frame(b"right"), headers)
        assert (await client.ended(stream_id))[b"grpc-status"] == b"0"
        assert client.body(stream_id) == frame(b"right")


async def test_several_binary_values_may_share_a_header() -> None:
    async with serve("fast") as served, raw(served) as client:
        client.request(frame(b"hold"), with_headers(blob_bin=b"AAE=,AAI"))
        await until(lambda: bool(served.echo.held))
        assert served.echo.held[0].metadata == (("blob-bin", b"\x00\x01"), ("blob-bin", b"\x00\x02"))


async def test_a_message_may_come_in_any_pieces() -> None:
    async with serve("fast") as served, raw(served) as client:
        stream_id = client.request(b"", end=False)
        for byte in frame(b"piecemeal"):
            client.http2.send_data(stream_id, bytes([byte]))
            client.flush()
            await asyncio.sleep(0.001)
        client.http2.send_data(stream_id, b"", end_stream=True)
        client.flush()
        assert (await client.ended(stream_id))[b"grpc-status"] == b"0"
        assert client.body(stream_id) == frame(b"piecemeal")


async def test_a_request_may_end_with_trailers() -> None:
    async with serve("fast") as served, raw(served) as client:
        stream_id = client.http2.send_request(REQUEST)
        client.http2.send_data(stream_id, frame(b"body"))
        client.http2.send_trailers(stream_id, [(b"x", b"y")])
        client.flush()
        assert (await client.ended(stream_id))[b"grpc-status"] == b"0"


async def test_a_client_is_told_to_stop_sending_what_nobody_reads() -> None:
    async with serve("fast") as served, raw(served) as client:
        stream_id = client.request(frame(b"abc", size=2**32 - 1) + b"x" * 10_000, end=False)
        answer = await client.ended(stream_id)
        assert answer[b"grpc-status"] == b"8"
        (reset,) = client.saw(ngh2.StreamReset, stream_id)
        assert reset.error_code == ngh2.ErrorCode.NO_ERROR


async def test_a_reset_stream_cancels_its_call(kind: str) -> None:
    async with serve(kind) as served, raw(served) as client:
        stream_id = client.request(frame(b"hold"))
        await until(lambda: bool(served.echo.held))
        client.http2.reset_stream(stream_id)
        client.flush()
        await until(lambda: served.echo.held[0].cancelled)
        after = client.request(frame(b"after"))
        assert (await client.ended(after))[b"grpc-status"] == b"0"


async def test_pings_are_answered(kind: str) -> None:
    async with serve(kind) as served, raw(served) as client:
        client.http2.ping(b"12345678")
        client.flush()
        await until(lambda: bool(client.saw(ngh2.PingAcknowledged)))


async def test_a_client_that_says_goodbye_is_let_go() -> None:
    async with serve("fast") as served, raw(served) as client:
        stream_id = client.request(frame(b"hold"))
        await until(lambda: bool(served.echo.held))
        client.http2.send_goaway()
        client.flush()
        served.echo.held[0].reply(b"last")
        assert (await client.ended(stream_id))[b"grpc-status"] == b"0"
        await client.hung_up()


async def test_http_1_gets_an_answer_that_it_understands() -> None:
    async with serve("fast") as served:
        reader, writer = await asyncio.open_connection(*served.host_port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert b"HTTP/1.1 505" in answer
        writer.close()


async def test_more_header_bytes_than_any_limit_end_the_connection_with_a_goaway() -> None:
    async with serve("fast") as served, raw(served) as client:
        client.request(b"", [*REQUEST, *((b"x%d" % number, b"y" * 8_000) for number in range(20))])
        await client.hung_up()
        assert client.saw(ngh2.GoAwayReceived)
        assert await served.call(b"fine") == b"fine"


async def test_a_served_method_is_found_by_its_exact_path(kind: str) -> None:
    async with serve(kind) as served, raw(served) as client:
        for path in (METHOD + "/", METHOD.lower(), METHOD + "?x=1", METHOD[1:]):
            stream_id = client.request(frame(b"x"), with_headers(path=path.encode()))
            answer = await client.ended(stream_id)
            assert answer.get(b"grpc-status") != b"0"


async def test_frames_one_byte_at_a_time() -> None:
    async with serve("fast") as served:
        client = RawClient("", 0)
        stream_id = client.http2.send_request(REQUEST)
        client.http2.send_data(stream_id, frame(b"slow"), end_stream=True)
        reader, writer = await asyncio.open_connection(*served.host_port)
        for byte in client.http2.data_to_send():
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        while not any(isinstance(event, ngh2.StreamClosed) for event in client.events):
            client.http2.receive_data(await asyncio.wait_for(reader.read(65_536), 5))
            client.events += client.http2.events()
        assert client.body(stream_id) == frame(b"slow")
        writer.close()
