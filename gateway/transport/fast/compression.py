"""gzip, with the size of what comes out bounded before it exists. Pure."""

import zlib

_GZIP_WINDOW_BITS = 31


class BadCompression(ValueError):
    """The bytes are not one whole gzip member."""


class TooLarge(ValueError):
    """More comes out than is allowed."""


def gunzip(data: bytes | bytearray | memoryview, bytes_max: int) -> bytes:
    """Decompress one gzip member of at most `bytes_max` bytes. Never makes more than one byte beyond that."""
    inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
    try:
        plain = inflater.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise BadCompression(str(error)) from error
    if len(plain) > bytes_max:
        raise TooLarge
    if not inflater.eof or inflater.unused_data:
        raise BadCompression("the gzip data is cut off or followed by something else")
    return plain
