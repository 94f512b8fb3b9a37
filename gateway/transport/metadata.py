"""The rules that gRPC has for metadata, and what a handler's mistakes in it become. Pure."""

import re
from collections.abc import Iterable

_KEY = re.compile(r"[0-9a-z_.\-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")
_RESERVED = frozenset({"te", "content-type", "content-length", "connection", "user-agent", "host"})

STATUS_DETAILS_KEY = "grpc-status-details-bin"


class InvalidMetadata(ValueError):
    """A handler gave a key or a value that cannot be sent."""


def check(metadata: Iterable[tuple[object, object]]) -> None:
    """Raise InvalidMetadata for what HTTP/2 or gRPC does not allow, naming the key but never the value."""
    for key, value in metadata:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidMetadata(f"metadata key {key!r} is not lower-case letters, digits and _ . -")
        if key in _RESERVED or (key.startswith("grpc-") and key != STATUS_DETAILS_KEY):
            raise InvalidMetadata(f"metadata key {key!r} belongs to the protocol")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise InvalidMetadata(f"metadata {key!r} ends in -bin: its value must be bytes")
        elif not isinstance(value, str) or not _TEXT.fullmatch(value):
            raise InvalidMetadata(f"metadata {key!r} must have a str of printable ASCII; bytes go under a key in -bin")


def printable(message: str) -> str:
    """A status message that can be encoded as UTF-8: lone surrogates become question marks."""
    return message.encode("utf-8", "replace").decode()
