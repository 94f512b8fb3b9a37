"""A serialised message as a numpy record: constant bytes, and between them a field for each value.

The generated classes serialise the constant parts once; numpy fills the values of many messages at once.
"""

import math
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from google.protobuf.message import Message

SKELETONS_MAX = 512
"""Skeletons of one model. When there would be more, all are forgotten."""
SKELETON_BYTES_MAX = 64 << 10
"""Up to which a blank answer is kept. Making a larger one is a small part of the work, and many would take much memory:
callers decide on the sizes."""


class Skeleton(NamedTuple):
    """A blank answer, and the fields in it."""

    blank: bytes
    dtype: np.dtype[np.void]


class Skeletons:
    """The skeletons of one model by what makes answers alike: how many rows, which shapes."""

    __slots__ = ("_kept", "get")

    def __init__(self) -> None:
        self._kept: dict[Hashable, Skeleton] = {}
        self.get = self._kept.get

    def __repr__(self) -> str:
        return f"<Skeletons {len(self._kept)}, {sum(len(one.blank) for one in self._kept.values())} bytes>"

    def keep(self, key: Hashable, skeleton: Skeleton) -> Skeleton:
        """The same skeleton; kept for the next time, unless it is large."""
        if len(skeleton.blank) <= SKELETON_BYTES_MAX:
            if len(self._kept) >= SKELETONS_MAX:
                self._kept.clear()
            self._kept[key] = skeleton
        return skeleton


class Layout:
    """A record dtype in the making: serialised parts, each of which ends in the bytes of a value."""

    def __init__(self, head: bytes) -> None:
        self._bytes = head
        self._names: list[str] = []
        self._formats: list[tuple[np.dtype[np.generic], tuple[int, ...]]] = []
        self._offsets: list[int] = []

    def add(self, part: Message, field: tuple[str, np.dtype[np.generic], tuple[int, ...]], *, after: int = 0) -> None:
        """Append a message whose last bytes are the field's value, but for `after` bytes that are left out."""
        serialised = part.SerializeToString()
        self.add_bytes(serialised[: len(serialised) - after], field)

    def add_bytes(self, part: bytes, field: tuple[str, np.dtype[np.generic], tuple[int, ...]]) -> None:
        """Append bytes whose last ones are the field's value."""
        name, dtype, shape = field
        self._bytes += part
        self._names.append(name)
        self._formats.append((dtype, shape))
        self._offsets.append(len(self._bytes) - dtype.itemsize * math.prod(shape))

    def skeleton(self) -> Skeleton:
        """What has been added."""
        dtype = np.dtype(
            {"names": self._names, "formats": self._formats, "offsets": self._offsets, "itemsize": len(self._bytes)}
        )
        return Skeleton(self._bytes, dtype)
