import gzip
import http.client
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gateway.server.http import HttpEndpoint, HttpOptions, Request, Response, alive_page, metrics_page, ready_page
from gateway.telemetry import Telemetry

OPTIONS = HttpOptions(listen="127.0.0.1:0")


class Readiness:
    """Why the process is not ready, or None."""

    reason: str | None = "the models are loading"

    def __call__(self) -> str | None:
        return self.reason


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def endpoint(readiness: Readiness) -> Iterator[HttpEndpoint]:
    pages = {
        "/metrics": metrics_page(Telemetry().render),
        "/healthz": alive_page,
        "/readyz": ready_page(readiness),
        "/echo": lambda request: Response(200, "text/plain", f"{request.query} {request.headers['host']}".encode()),
        "/broken": broken_page,
    }
    with HttpEndpoint(pages, OPTIONS) as endpoint:
        yield endpoint


def broken_page(request: Request) -> Response:
    raise RuntimeError("a secret")


def get(
    endpoint: HttpEndpoint, path: str, *, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(endpoint.address, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def exchange(endpoint: HttpEndpoint, sent: bytes) -> bytes:
    """Send raw bytes, return all that comes back until the endpoint closes."""
    host, port = endpoint.address.split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_metrics_are_negotiated_and_compressed(endpoint: HttpEndpoint) -> None:
    response, body = get(endpoint, "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"headrace_build_info" in body
    response, body = get(
        endpoint, "/metrics", Accept="application/openmetrics-text;version=1.0.0", Accept_Encoding="gzip"
    )
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body).endswith(b"# EOF\n")


def test_alive_at_once_and_ready_when_told(endpoint: HttpEndpoint, readiness: Readiness) -> None:
    response, _ = get(endpoint, "/healthz")
    assert response.status == 200
    response, body = get(endpoint, "/readyz")
    assert (response.status, body) == (503, b"the models are loading\n")
    readiness.reason = None
    response, _ = get(endpoint, "/readyz")
    assert response.status == 200


def test_a_page_gets_its_request(endpoint: HttpEndpoint) -> None:
    _, body = get(endpoint, "/echo?a=b", Host="gateway")
    assert body == b"a=b gateway"


def test_head_gets_no_body(endpoint: HttpEndpoint) -> None:
    response, body = get(endpoint, "/healthz", method="HEAD")
    assert (response.status, response.headers["Content-Length"], body) == (200, "6", b"")


def test_other_methods_and_pages_are_refused(endpoint: HttpEndpoint) -> None:
    response, _ = get(endpoint, "/metrics", method="DELETE")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    response, body = get(endpoint, "/metric")
    assert response.status == 404
    assert b"/metrics" in body


def test_a_page_that_raises_says_nothing_and_is_logged(
    endpoint: HttpEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response, body = get(endpoint, "/broken")
    assert response.status == 500
    assert b"secret" not in body
    assert "a secret" in caplog.text
    assert get(endpoint, "/healthz")[0].status == 200


def test_a_page_that_hangs_costs_its_own_request() -> None:
    released = threading.Event()

    def hanging(request: Request) -> Response:
        released.wait(10)
        return Response(200, "text/plain", b"late")

    with HttpEndpoint({"/hang": hanging, "/healthz": alive_page}, replace(OPTIONS, page_timeout_s=0.1)) as endpoint:
        assert get(endpoint, "/hang")[0].status == 503
        assert get(endpoint, "/healthz")[0].status == 200
        released.set()


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n\r\n"])
def test_garbage_gets_a_400_and_the_next_request_is_unharmed(endpoint: HttpEndpoint, sent: bytes) -> None:
    assert exchange(endpoint, sent).startswith(b"HTTP/1.1 400 ")
    assert get(endpoint, "/healthz")[0].status == 200


def test_a_head_without_end_is_cut(endpoint: HttpEndpoint) -> None:
    flood = b"GET / HTTP/1.1\r\nX: ".ljust(OPTIONS.head_bytes_max + 1, b"x")
    assert exchange(endpoint, flood).startswith(b"HTTP/1.1 431 ")


def test_a_client_that_hangs_up_harms_nobody(endpoint: HttpEndpoint) -> None:
    host, port = endpoint.address.split(":")
    for sent in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert get(endpoint, "/healthz")[0].status == 200


def test_silent_clients_are_closed_and_the_others_served() -> None:
    options = replace(OPTIONS, connections_max=3, client_timeout_s=0.3)
    with HttpEndpoint({"/healthz": alive_page}, options) as endpoint:
        host, port = endpoint.address.split(":")
        silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(options.connections_max)]
        try:
            silent[0].sendall(b"GET /healthz HTTP/1.1\r\n")
            assert get(endpoint, "/healthz")[0].status == 200
            assert [connection.recv(1) for connection in silent] == [b""] * len(silent)
        finally:
            for connection in silent:
                connection.close()


def test_a_client_that_does_not_read_is_closed() -> None:
    def page(request: Request) -> Response:
        return Response(200, "text/plain", b"x" * 50_000_000)

    options = replace(OPTIONS, connections_max=1, client_timeout_s=0.3)
    with HttpEndpoint({"/big": page, "/healthz": alive_page}, options) as endpoint:
        host, port = endpoint.address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(b"GET /big HTTP/1.1\r\n\r\n")
            assert get(endpoint, "/healthz")[0].status == 200


def test_an_address_in_use_is_named(endpoint: HttpEndpoint) -> None:
    second = HttpEndpoint({}, HttpOptions(listen=endpoint.address))
    with pytest.raises(OSError, match=f"cannot listen for HTTP on {endpoint.address}: Address already in use"):
        second.start()
    second.stop()


def test_it_starts_again_where_it_stopped(endpoint: HttpEndpoint) -> None:
    first = endpoint.address
    endpoint.stop()
    again = HttpEndpoint({"/healthz": alive_page}, HttpOptions(listen=first))
    assert again.start() == first
    assert get(again, "/healthz")[0].status == 200
    assert "serving" in repr(again)
    again.stop()
    again.stop()
    assert "stopped" in repr(again)


def test_stopping_does_not_wait_for_clients() -> None:
    endpoint = HttpEndpoint({"/healthz": alive_page}, replace(OPTIONS, client_timeout_s=60))
    host, port = endpoint.start().split(":")
    with socket.create_connection((host, int(port)), timeout=10) as silent:
        assert get(endpoint, "/healthz")[0].status == 200  # which came after `silent`, so that one is served too
        endpoint.stop()
        assert silent.recv(1) == b""
    assert not [thread for thread in threading.enumerate() if thread.name == "http"]
