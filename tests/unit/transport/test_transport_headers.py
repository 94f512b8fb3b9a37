import math

import pytest

from gateway.transport import metadata as rules
from gateway.transport.fast import headers as wire

HEADERS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"x"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99_999_999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert wire.parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"S", b"1", b"1s", b"-1S", b"+1S", b" 1S", b"1.5S", b"123456789S", b"\xb2S", b"1_0S"]
)
def test_malformed_timeouts(text: bytes) -> None:
    assert wire.parse_timeout(text) is None


def test_a_plain_request() -> None:
    head = wire.RequestReader(16_384, 128).read(HEADERS)
    assert head == wire.RequestHead(b"/a.B/C", math.inf, gzip=False, refusal=None)


def test_a_reader_remembers_no_more_than_it_may() -> None:
    reader = wire.RequestReader(16_384, 128)
    for number in range(3 * wire._REMEMBERED_MAX):
        assert reader.read((*HEADERS, (b"n", b"%d" % number))).refusal is None
        assert len(reader._known) <= wire._REMEMBERED_MAX
    known = len(reader._known)
    reader.read((*HEADERS, (b"big", b"x" * 2_000)))
    assert len(reader._known) == known


def test_metadata_leaves_out_what_is_the_protocols() -> None:
    headers = (*HEADERS, (b"user-agent", b"me"), (b"grpc-timeout", b"1S"), (b"k", b"v"), (b"k-bin", b"AAE,AA"))
    assert wire.decode_metadata(headers) == (
        ("user-agent", "me"),
        ("k", "v"),
        ("k-bin", b"\x00\x01"),
        ("k-bin", b"\x00"),
    )


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        ("plain ~!", b"plain ~!"),
        ("100%", b"100%25"),
        ("a\nb\x7f", b"a%0Ab%7F"),
        ("€", b"%E2%82%AC"),
        ("\udc80", b"?"),
    ],
)
def test_messages_are_percent_encoded(message: str, encoded: bytes) -> None:
    assert wire.status_headers(3, message) == [(b"grpc-status", b"3"), (b"grpc-message", encoded)]


def test_no_message_is_no_header() -> None:
    assert wire.status_headers(0, "") == [(b"grpc-status", b"0")]


@pytest.mark.parametrize(
    "pair",
    [("a", "b"), ("a-b_c.d9", "~ !"), ("x-bin", b"\x00"), ("grpc-status-details-bin", b"")],
)
def test_metadata_that_can_be_sent(pair: tuple[str, object]) -> None:
    rules.check([pair])


@pytest.mark.parametrize(
    "pair",
    [
        ("A", "b"),
        ("", "b"),
        ("a b", "b"),
        (b"a", "b"),
        ("a", b"b"),
        ("a", "ü"),
        ("a", "\n"),
        ("a", 1),
        ("a-bin", "b"),
        ("grpc-status", "0"),
        ("te", "x"),
        (":path", "/"),
    ],
)
def test_metadata_that_cannot_be_sent(pair: tuple[object, object]) -> None:
    with pytest.raises(rules.InvalidMetadata):
        rules.check([pair])


def test_the_value_of_bad_metadata_stays_out_of_the_message() -> None:
    with pytest.raises(rules.InvalidMetadata) as error:
        rules.check([("token", "secret\n")])
    assert "secret" not in str(error.value)
