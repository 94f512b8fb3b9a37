"""Request headers to what they mean, and metadata and statuses to headers. Pure.

A request is read in two steps. `RequestReader` looks at the fields that gRPC defines; metadata is decoded when somebody
asks for it, but checked at once when a request has more than the usual fields.
"""

import base64
import binascii
import math
import re
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

from gateway.transport.call import Metadata
from gateway.transport.fast.session import Headers

STATUS_OK: Final = (b":status", b"200")
CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
RESPONSE: Final[Headers] = [STATUS_OK, CONTENT_TYPE]
OK_TRAILERS: Final[Headers] = [(b"grpc-status", b"0")]

_UNKNOWN: Final = 2
_RESOURCE_EXHAUSTED: Final = 8
_UNIMPLEMENTED: Final = 12
_INTERNAL: Final = 13

_UNIT_S: Final = {b"H": 3_600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_DIGITS_MAX: Final = 8
_HEADER_OVERHEAD_BYTES: Final = 32  # RFC 9113, section 6.5.2
_REMEMBERED_MAX: Final = 64
_REMEMBERED_BYTES: Final = 1_024

_CALL_FIELDS: Final = frozenset(
    {b":method", b":scheme", b":path", b":authority", b"te", b"content-type", b"user-agent"}
    | {b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"accept-encoding", b"grpc-message-type"}
)
_NOT_METADATA: Final = _CALL_FIELDS - {b"user-agent"}

_UNSAFE = re.compile(rb"[^\x20-\x24\x26-\x7e]")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request's headers say. `refusal` is None for a call that may go on."""

    path: bytes
    timeout_s: float = math.inf
    gzip: bool = False
    refusal: "Refusal | None" = None


class Refusal(NamedTuple):
    """How a request ends at its headers: an HTTP status for what is not gRPC, else a gRPC status."""

    http: bytes
    code: int
    message: str
    extra: Headers = ()


_NOT_GRPC = Refusal(b"415", _UNKNOWN, "content-type is not application/grpc")
_NOT_POST = Refusal(b"405", _UNKNOWN, "gRPC calls are POST", ((b"allow", b"POST"),))
_NO_TRAILERS = Refusal(b"200", _INTERNAL, "te: trailers is missing; something on the way does not forward trailers")
_BAD_TIMEOUT = Refusal(b"200", _INTERNAL, "grpc-timeout is malformed")
_BAD_METADATA = Refusal(b"200", _INTERNAL, "the value of a -bin header is not base64")
_BAD_ENCODING = Refusal(
    b"200", _UNIMPLEMENTED, "grpc-encoding must be identity or gzip", ((b"grpc-accept-encoding", b"identity,gzip"),)
)

NO_METHOD: Final = Refusal(b"200", _UNIMPLEMENTED, "Method not found!")


def refusal(code: int, message: str) -> Refusal:
    """End a request with a gRPC status."""
    return Refusal(b"200", code, message)


class RequestReader:
    """Reads request headers, and remembers what it has read: the calls of one client differ in little but their bodies.

    The memory is a dictionary of at most `_REMEMBERED_MAX` header lists of at most `_REMEMBERED_BYTES` each; when it is
    full it starts again from nothing.
    """

    __slots__ = ("_bytes_max", "_count_max", "_known")

    def __init__(self, bytes_max: int, count_max: int) -> None:
        self._bytes_max = bytes_max
        self._count_max = count_max
        self._known: dict[Headers, RequestHead] = {}

    def read(self, headers: Headers) -> RequestHead:
        """What the headers of a request say."""
        head = self._known.get(headers)
        if head is None:
            size = sum(map(len, chain.from_iterable(headers))) + _HEADER_OVERHEAD_BYTES * len(headers)
            head = self._read(headers, dict(headers), size)
            if size <= _REMEMBERED_BYTES:
                if len(self._known) >= _REMEMBERED_MAX:
                    self._known.clear()
                self._known[headers] = head
        return head

    def _read(self, headers: Headers, fields: dict[bytes, bytes], size: int) -> RequestHead:
        path = fields.get(b":path", b"")
        if not _is_grpc(fields.get(b"content-type", b"")):
            return RequestHead(path, refusal=_NOT_GRPC)
        if fields.get(b":method") != b"POST":
            return RequestHead(path, refusal=_NOT_POST)
        if len(headers) > self._count_max:
            message = f"the request has {len(headers)} headers, max {self._count_max}"
            return RequestHead(path, refusal=Refusal(b"200", _RESOURCE_EXHAUSTED, message))
        if size > self._bytes_max:
            message = f"the request's headers are {size} bytes, max {self._bytes_max}"
            return RequestHead(path, refusal=Refusal(b"200", _RESOURCE_EXHAUSTED, message))
        return _read_call(headers, fields, path)


def _read_call(headers: Headers, fields: dict[bytes, bytes], path: bytes) -> RequestHead:
    if fields.get(b"te") != b"trailers":
        return RequestHead(path, refusal=_NO_TRAILERS)
    timeout = fields.get(b"grpc-timeout")
    timeout_s = math.inf if timeout is None else parse_timeout(timeout)
    if timeout_s is None:
        return RequestHead(path, refusal=_BAD_TIMEOUT)
    encoding = fields.get(b"grpc-encoding", b"identity")
    if encoding not in {b"identity", b"gzip"}:
        return RequestHead(path, refusal=_BAD_ENCODING)
    # Most calls have these fields only: then there is nothing to decode, and nothing that could be wrong.
    if not fields.keys() <= _CALL_FIELDS and not _decodable(headers):
        return RequestHead(path, refusal=_BAD_METADATA)
    return RequestHead(path, timeout_s, gzip=encoding == b"gzip")


def _is_grpc(content_type: bytes) -> bool:
    return content_type.startswith((b"application/grpc+", b"application/grpc;")) or content_type == b"application/grpc"


def parse_timeout(text: bytes) -> float | None:
    """`500m` to 0.5 seconds; None when it is malformed."""
    unit_s = _UNIT_S.get(text[-1:])
    digits = text[:-1]
    if unit_s is None or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS_MAX:
        return None
    return int(digits) * unit_s


def _decodable(headers: Headers) -> bool:
    try:
        decode_metadata(headers)
    except binascii.Error:
        return False
    return True


def decode_metadata(headers: Headers) -> Metadata:
    """The metadata of a request; binascii.Error when a `-bin` value is not base64."""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name in _NOT_METADATA or name[:1] == b":":
            continue
        key = name.decode("latin-1")
        if name.endswith(b"-bin"):
            metadata.extend((key, _unbase64(part)) for part in value.split(b","))
        else:
            metadata.append((key, value.decode("latin-1")))
    return tuple(metadata)


def _unbase64(text: bytes) -> bytes:
    text = text.strip().rstrip(b"=")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def encode_metadata(metadata: Metadata) -> Headers:
    """Metadata that `metadata.check` has passed, as headers."""
    return [
        (key.encode(), value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"="))
        for key, value in metadata
    ]


def status_headers(code: int, message: str) -> list[tuple[bytes, bytes]]:
    """`grpc-status` and, percent-encoded, `grpc-message`."""
    status = (b"grpc-status", b"%d" % code)
    if not message:
        return [status]
    text = message.encode("utf-8", "replace")
    return [status, (b"grpc-message", _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text))]
