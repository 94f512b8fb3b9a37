"""The C client: how it is built, and that it believes no answer it has not checked.

The runs are against tiny servers of grpcio. They are `slow` because they need a compiler and libnghttp2-dev.
"""

import concurrent.futures
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.v1 import prediction_pb2, tensor_pb2
from loadtest import gload

METHOD = "/test.Service/Call"
Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(handler: Handler) -> Iterator[int]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        method = grpc.unary_unary_rpc_method_handler(handler)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Call": method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gload.build(folder=tmp_path_factory.mktemp("gload"))


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    return gload.write_bodies(tmp_path / "bodies", [b"one", b"", b"three" * 10_000])


def load(**options: Any) -> gload.Load:
    return gload.Load(METHOD, **({"seconds": 0.4, "warmup_s": 0.1} | options))


def test_bodies_are_framed_by_their_length() -> None:
    assert gload.frame_bodies([b"ab", b""]) == struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)


def test_a_command_line_has_only_what_is_set() -> None:
    assert gload.Load("/a/b", in_flight=4).arguments() == [
        "--method=/a/b",
        "--in-flight=4",
        "--connections=1",
        "--seconds=5.0",
        "--warmup=0.5",
    ]
    assert "--rate=100" in gload.Load("/a/b", rate=100).arguments()
    assert gload.Load("/a/b", histogram=True).arguments()[-1] == "--histogram"


def test_without_a_compiler_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")

    with pytest.raises(gload.CannotBuild, match="apt-get install gcc"):
        gload.build(folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "package"), [("nghttp2/nghttp2.h", "libnghttp2-dev"), ("openssl/ssl.h", "libssl-dev")]
)
def test_without_a_header_the_error_names_the_package(
    header: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nif grep -q "{header}"; then exit 1; fi\nexit 0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))

    with pytest.raises(gload.CannotBuild, match=f"apt-get install {package}"):
        gload.build(tls=True, folder=tmp_path)


@pytest.mark.slow
def test_it_is_built_once(client: Path) -> None:
    built_at = client.stat().st_mtime_ns

    assert gload.build(folder=client.parent) == client
    assert client.stat().st_mtime_ns == built_at


@pytest.mark.slow
def test_a_closed_loop_counts_good_answers(client: Path, bodies: Path) -> None:
    seen = set()

    def echo(message: bytes, context: grpc.ServicerContext) -> bytes:
        seen.add(message)
        return message

    with serving(echo) as port:
        answer = gload.run(client, load(in_flight=8, connections=3, histogram=True), bodies, port=port)

    assert seen == {b"one", b"", b"three" * 10_000}
    assert answer["failed"] == answer["unfinished"] == 0
    assert answer["ok"] > 20
    assert 0 < answer["p50_ms"] <= answer["p99_ms"] <= answer["max_ms"] * 1.01
    assert sum(calls for _, calls in answer["histogram_ms"]) == answer["ok"]


@pytest.mark.slow
def test_a_call_that_fails_is_named_and_fails_the_run(client: Path, bodies: Path) -> None:
    def refuse_empty(message: bytes, context: grpc.ServicerContext) -> bytes:
        if not message:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        return message

    with serving(refuse_empty) as port, pytest.raises(gload.RunFailed, match="RESOURCE_EXHAUSTED") as failed:
        gload.run(client, load(in_flight=2), bodies, port=port)

    assert failed.value.result is not None
    assert failed.value.result["failures"].keys() == {"RESOURCE_EXHAUSTED"}


@pytest.mark.slow
@pytest.mark.parametrize(("status", "good"), [(b"\x01\x01\x01", True), (b"\x01\x04\x01", False), (b"", False)])
def test_an_answer_is_read_where_it_is_asked_to(client: Path, bodies: Path, status: bytes, good: bool) -> None:
    response = prediction_pb2.PredictResponse(
        model="m",
        version=300,
        outputs=[tensor_pb2.Tensor(name="y", raw=b"\x05" * 12)],
        views=[tensor_pb2.ViewRows(alias="a", view="a@1", status=status, age_ms=[-1, 7, 8])],
    ).SerializeToString()

    with serving(lambda message, context: response) as port:
        answer = gload.run(client, load(all_equal="5.3=1"), bodies, port=port, allow_failures=True)

    assert (answer["failed"] == 0) is good
    assert good or answer["failures"] == {"unexpected_content": answer["failed"]}


@pytest.mark.slow
def test_nothing_that_listens_is_not_a_result(client: Path, bodies: Path) -> None:
    with serving(lambda message, context: message) as port:
        pass

    with pytest.raises(gload.RunFailed, match="Connection refused"):
        gload.run(client, load(), bodies, port=port)


@pytest.mark.slow
def test_an_open_loop_sends_what_is_due(client: Path, bodies: Path) -> None:
    with serving(lambda message, context: message) as port:
        answer = gload.run(client, load(rate=200, connections=2, seconds=1.0), bodies, port=port)

    assert answer["ok"] == pytest.approx(200, abs=1)
    assert answer["total"] == 220


@pytest.mark.slow
def test_a_stall_is_every_call_that_it_kept_waiting(client: Path, bodies: Path) -> None:
    stall_s, rate = 0.5, 200
    stalled = False

    def stall_once(message: bytes, context: grpc.ServicerContext) -> bytes:
        nonlocal stalled
        if not stalled and time.monotonic() > stall_at:
            stalled = True
            time.sleep(stall_s)
        return message

    stall_at = time.monotonic() + 0.5
    with serving(stall_once) as port:
        answer = gload.run(client, load(rate=rate, seconds=1.5, histogram=True), bodies, port=port)

    # Calls came due all through the stall; those of its first four fifths waited at least the last fifth.
    waited = sum(calls for milliseconds, calls in answer["histogram_ms"] if milliseconds >= 1e3 * stall_s / 5)
    assert waited >= 0.8 * stall_s * rate * 0.9
    assert answer["p99_ms"] > 1e3 * stall_s * 0.8


@pytest.mark.slow
def test_calls_without_an_answer_count_as_what_they_have_waited(client: Path, bodies: Path) -> None:
    def stall(message: bytes, context: grpc.ServicerContext) -> bytes:
        time.sleep(0.2)
        return message

    with serving(stall) as port:
        answer = gload.run(
            client,
            load(rate=100, seconds=1.0, histogram=True, timeout_ms=60_000),
            bodies,
            port=port,
            allow_failures=True,
        )

    assert answer["unfinished"] > 20
    assert answer["max_ms"] > 5_000
