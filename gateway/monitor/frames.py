"""What the second process and the gateway say to each other: frames of a kind, a key and JSON.

    kind u8, length of the key u32, length of the text u32 (little-endian), key, text

A text that is empty takes back what was said under its key. The gateway cuts the stream into frames on its loop and
keeps the newest text of each key; it is only parsed where somebody wants to see it, in the thread of a scrape.
"""

import struct
from typing import NamedTuple

_HEAD = struct.Struct("<BII")
FRAME_BYTES_MAX = 4 * 1024 * 1024
"""A longer frame is a fault of the process that sends it."""

SETUP, DRIFT, STATUS = 0, 1, 2


class TooLong(Exception):
    """A frame is longer than any should be."""


class Frame(NamedTuple):
    """One message. `text` is JSON, not parsed."""

    kind: int
    key: bytes
    text: bytes


def packed(frame: Frame) -> bytes:
    """Return the bytes of a frame. Raises `TooLong`."""
    if len(frame.key) + len(frame.text) > FRAME_BYTES_MAX:
        raise TooLong(f"a frame of {len(frame.text)} bytes")
    return _HEAD.pack(frame.kind, len(frame.key), len(frame.text)) + frame.key + frame.text


class Unpacker:
    """Bytes as they come in, frames out."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now. Raises `TooLong`."""
        self._held += data
        frames = []
        at = 0
        while len(self._held) - at >= _HEAD.size:
            kind, key_length, length = _HEAD.unpack_from(self._held, at)
            if key_length + length > FRAME_BYTES_MAX:
                raise TooLong(f"a frame of {key_length + length} bytes")
            end = at + _HEAD.size + key_length + length
            if len(self._held) < end:
                break
            middle = at + _HEAD.size + key_length
            frames.append(Frame(kind, bytes(self._held[at + _HEAD.size : middle]), bytes(self._held[middle:end])))
            at = end
        del self._held[:at]
        return frames
