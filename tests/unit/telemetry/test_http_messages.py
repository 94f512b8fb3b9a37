import gzip

import pytest

from gateway.server.http import (
    HttpOptions,
    Response,
    accepts_gzip,
    encode,
    join_address,
    parse_head,
    split_address,
)


def test_a_head_is_read() -> None:
    request = parse_head(b"GET /a%20page?rows=5&x HTTP/1.1\r\nHost: h:1\r\nACCEPT:  text/plain \r\n\r\n")
    assert (request.method, request.path, request.query) == ("GET", "/a page", "rows=5&x")
    assert request.headers == {"host": "h:1", "accept": "text/plain"}


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_not_a_request_is_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"HTTP/1\.1|colon"):
        parse_head(head)


def test_an_answer_is_written() -> None:
    body = b"x" * 2000
    head, _, sent = encode(Response(200, "text/plain", body), gzipped=True).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert gzip.decompress(sent) == body
    assert b"Content-Encoding: gzip" in head
    assert f"Content-Length: {len(sent)}".encode() in head


def test_an_answer_to_head_has_a_length_and_no_body() -> None:
    answer = encode(Response(200, "text/plain", b"12345"), head_only=True)
    assert b"Content-Length: 5" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("header", "accepted"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip; q=0", False), ("br", False), ("", False)],
)
def test_gzip_is_sent_to_who_asks_for_it(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


@pytest.mark.parametrize("address", ["127.0.0.1:8501", "[::1]:0", "localhost:65535"])
def test_addresses(address: str) -> None:
    assert join_address(*split_address(address)) == address


@pytest.mark.parametrize("address", ["", "8501", ":8501", "host:", "host:x", "host:65536", "::1:8501", "[]:1"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="8501"):
        HttpOptions(listen=address)


def test_limits_are_above_zero() -> None:
    with pytest.raises(ValueError, match="connections_max must be above 0, not 0"):
        HttpOptions(connections_max=0)
