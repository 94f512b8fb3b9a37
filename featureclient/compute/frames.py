"""What travels between the server and its worker processes, and how it is cut: 8 bytes of length, then a pickle.

Protocol 5, from the standard library: a run's answer is a handful of numpy arrays, and pickle writes each of them as
one piece of memory. Both ends are this package on one machine, and what comes back is made by `answers`: arrays of
numbers, bools and strings, never an object of somebody's class.
"""

import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from featureclient.compute.answers import Answer
from featureclient.compute.errors import Fault
from featureclient.compute.options import ComputeOptions
from featureclient.schema import Id, Source, View

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker."""

    views: Sequence[View]
    sources: Mapping[str, Source]
    options: ComputeOptions


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a worker found out about a view. `fatal`: it can never be computed as it is declared."""

    view: str
    why: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """The first message from a worker."""

    troubles: Sequence[Trouble]


@dataclass(frozen=True, slots=True)
class Task:
    """A run: compute these ids of this view."""

    view: str
    ids: Sequence[Id]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that gave nothing. `fault` is None for one that took too long."""

    fault: Fault | None
    why: str


Message: TypeAlias = Setup | Ready | Task | Answer | Failure


class TooLarge(Exception):
    """A frame beyond its bound."""


def packed(message: Message) -> bytes:
    """A message as a frame."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Finds the frames in a stream of bytes, one of at most `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are complete now. Raises TooLarge."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > self._bytes_max:
                raise TooLarge(f"an answer of {size} bytes, the limit answer_bytes_max is {self._bytes_max}")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:
                messages.append(pickle.loads(view[_LENGTH.size : end]))  # noqa: S301  # see the module's docstring
            del self._buffer[:end]
        return messages
