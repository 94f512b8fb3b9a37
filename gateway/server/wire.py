"""A serialised protobuf message cut up where it stands, without a generated class.

For messages that the generated class has parsed before: this says where the fields are, not whether they are right.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

Span: TypeAlias = tuple[int, int]
Holes: TypeAlias = tuple[bytes, ...]

VARINT, DELIMITED = 0, 2
_VARINT_BYTES_MAX = 10
_INT64_SIGN = 1 << 63


class Unusual(Exception):
    """The message is not as simple as the reader wants it."""


def numbers(message: Any) -> dict[str, int]:
    """The number of each field of a generated class."""
    return {name: field.number for name, field in message.DESCRIPTOR.fields_by_name.items()}


def cutter(spans: Sequence[Span]) -> Callable[[Any], Holes]:
    """A function that cuts these spans out of a payload. (Of two or more things itemgetter makes a tuple.)"""
    slices = [slice(*span) for span in spans]
    return itemgetter(*slices, slice(0, 0))


def each_once(payload: bytes, span: Span) -> dict[int, Span]:
    """The contents of a message's fields by number. A field that is there twice is unusual."""
    found: dict[int, Span] = {}
    for number, _, content in fields(payload, span):
        if number in found:
            raise Unusual
        found[number] = content
    return found


def fields(payload: bytes, span: Span) -> Iterator[tuple[int, int, Span]]:
    """The fields of a message that was parsed before: number, wire type, and where the content is."""
    at, end = span
    while at < end:
        at, tag = varint(payload, at)
        if tag & 7 == DELIMITED:
            start, size = varint(payload, at)
            at = start + size
            if at > end:
                raise Unusual
        elif tag & 7 == VARINT:
            start = at
            at, _ = varint(payload, at)
        else:
            raise Unusual
        yield tag >> 3, tag & 7, (start, at)


def text(hole: bytes) -> str:
    """A string. Raises ValueError when it is not UTF-8."""
    return str(hole, "utf-8")


def varint(payload: bytes, at: int) -> tuple[int, int]:
    """Where the varint at `at` ends, and its value."""
    end = at
    while payload[end] >= 0x80:  # noqa: PLR2004 - the bit that says that there is more
        end += 1
    return end + 1, unsigned(payload[at : end + 1])


def unsigned(data: bytes) -> int:
    """A varint of exactly these bytes."""
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << 7 * index
    return value


def integer(hole: bytes) -> int:
    """The one int64 that packed varints are. Raises ValueError when they are none or several."""
    if not 0 < len(hole) <= _VARINT_BYTES_MAX or hole[-1] >= 0x80 or any(byte < 0x80 for byte in hole[:-1]):  # noqa: PLR2004
        raise ValueError("not one varint")
    value = unsigned(hole) & (2 * _INT64_SIGN - 1)
    return value - 2 * _INT64_SIGN if value >= _INT64_SIGN else value


def delimited(number: int, content: bytes) -> bytes:
    """A field of a message: its tag, its length, its content."""
    return _varint_of(number << 3 | DELIMITED) + _varint_of(len(content)) + content


def _varint_of(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:  # noqa: PLR2004
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
