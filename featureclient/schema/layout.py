"""Where the bytes are: of a row as the store has it, and of the same row as the cache has it.

    stored   header (24 bytes) · validity bitmap · the columns in the order in which the revision declares them
    cached   fresh_until · event_ms · status · validity bitmap · the columns in runs of one element type

Cached rows of one view, joined, are an array of `Layout.block_dtype`. A run holds every column of one element type, so
a model's input that wants them all in a row is one slice.

Invariants: both are packed and little-endian, with one exception: `fresh_until` is big-endian. Big-endian IEEE 754
numbers that are not negative sort as their bytes do, so `min(rows)` on the bytes themselves finds the row that ends
first, without decoding any. Bit `i % 8` of byte `i // 8` of the bitmap, counted from the least significant, is 1 where
the value of column `i` is not null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from featureclient.schema.dtype import DType

FORMAT = 1
FLAG_COMPUTED = 0x01
HEADER_BYTES = 24

HEADER_FIELDS: list[tuple[str, str]] = [
    ("format", "u1"),
    ("flags", "u1"),
    ("reserved", "<u2"),
    ("fingerprint", "<u4"),
    ("event_ms", "<i8"),
    ("crc32", "<u4"),
    ("reserved_2", "<u4"),
]


class Place(NamedTuple):
    """A column inside a block: `block[run][:, start : start + width]`."""

    run: str
    start: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How the cached rows of a view lie in memory.

    `block_dtype` has the fields `fresh_until` (f8), `event_ms` (i8, -1 unknown), `status` (u1), `valid` (u1 [bytes of
    the bitmap]), then one subarray field for each run, named after its element type.
    """

    block_dtype: np.dtype[Any]
    places: Mapping[str, Place]
    valid_bytes: int


PREFIX_BYTES = 8 + 8 + 1
"""What is in front of the bitmap in a cached row."""


def bitmap_bytes(columns: int) -> int:
    """The size of the validity bitmap of so many columns."""
    return (columns + 7) // 8


def cached_layout(columns: Sequence[tuple[str, DType]]) -> Layout:
    """Lay out the cached rows of a view. Runs and the columns inside them keep the order of first appearance."""
    widths: dict[str, int] = {}
    elements: dict[str, np.dtype[Any]] = {}
    places = {}
    for name, dtype in columns:
        run = dtype.numpy.str.lstrip("<|")
        start = widths.get(run, 0)
        places[name] = Place(run, start, dtype.width)
        widths[run] = start + dtype.width
        elements[run] = dtype.numpy
    valid_bytes = bitmap_bytes(len(columns))
    fields: list[Any] = [("fresh_until", ">f8"), ("event_ms", "<i8"), ("status", "u1"), ("valid", "u1", (valid_bytes,))]
    fields += [(run, elements[run], (width,)) for run, width in widths.items()]
    return Layout(np.dtype(fields), places, valid_bytes)


def stored_dtype(columns: Sequence[tuple[str, DType]]) -> np.dtype[Any]:
    """A stored row as a numpy dtype: the header's fields, `valid`, then `c0`, `c1`, … as subarrays of their width."""
    fields: list[Any] = [*HEADER_FIELDS, ("valid", "u1", (bitmap_bytes(len(columns)),))]
    fields += [(f"c{i}", dtype.numpy, (dtype.width,)) for i, (_, dtype) in enumerate(columns)]
    return np.dtype(fields)
