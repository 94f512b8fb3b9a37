"""The types that a column can have, and how their values lie in a row.

A dtype is written as text: `float32`, `bool`, `timestamp`, `string[24]` (at most 24 bytes of UTF-8), or a vector of
numbers of fixed length, `float32[16]`. All of them have a fixed size, so a row is a fixed number of bytes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np

Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = Scalar | tuple[int | float, ...]

LENGTH_MAX = 65_536
"""The longest vector (elements) and string (bytes): a row has to stay small enough to be read at once."""

_NUMBERS = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "int8": "i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
}
_FORM = re.compile(r"([a-z0-9]+)(?:\[(\d+)\])?")
EXISTING = f"{', '.join(_NUMBERS)}, bool, timestamp, string[bytes], or a vector such as float32[16]"


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype. Two are equal when their texts are."""

    kind: str
    """A number's numpy name, `bool`, `timestamp` or `string`."""
    length: int | None = None
    """Elements of a vector; None for a scalar."""
    bytes_max: int | None = None
    """Bytes of a string, in UTF-8; None for everything else."""
    numpy: np.dtype[Any] = field(init=False, compare=False, repr=False)
    """One element, little-endian: `S24` for a string[24], `<i8` (milliseconds since the epoch) for a timestamp."""

    def __post_init__(self) -> None:
        element = {"bool": "?", "timestamp": "<i8", "string": f"S{self.bytes_max}"} | _NUMBERS
        object.__setattr__(self, "numpy", np.dtype(element[self.kind]))

    @classmethod
    def parse(cls, text: str) -> "DType":
        """Read a dtype's text. Raises ValueError, naming the dtypes that exist."""
        found = _FORM.fullmatch(text)
        kind, size = (found[1], found[2]) if found else (text, None)
        if kind == "string" and size is None:
            raise ValueError("a string needs its size in bytes of UTF-8: string[24]")
        if kind not in _NUMBERS and not (kind in {"bool", "timestamp"} and size is None) and kind != "string":
            raise ValueError(f"unknown dtype {text!r}; there are: {EXISTING}")
        if size is not None and not 1 <= int(size) <= LENGTH_MAX:
            raise ValueError(f"the size in {text!r} is not between 1 and {LENGTH_MAX}")
        if kind == "string":
            return cls("string", bytes_max=int(size or 0))
        return cls(kind, length=None if size is None else int(size))

    def __str__(self) -> str:
        size = self.bytes_max or self.length
        return f"{self.kind}[{size}]" if size else self.kind

    @property
    def width(self) -> int:
        """How many elements a value has: the length of a vector, 1 for a scalar."""
        return self.length or 1

    @property
    def bytes(self) -> int:
        """The size of a value in a row."""
        return self.width * self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """An element is a floating point number."""
        return self.numpy.kind == "f"

    @property
    def is_integer(self) -> bool:
        """An element is an integer; a timestamp is not one."""
        return self.kind.startswith("int")

    @property
    def fill(self) -> Value:
        """What stands for a value that is not there and has no default: NaN, 0, False, the empty string, the epoch."""
        if self.kind == "string":
            return ""
        if self.kind == "bool":
            return False
        one: float | int = math.nan if self.is_float else 0
        return one if self.length is None else (one,) * self.length

    def value_of(self, given: object) -> Value:
        """Read a default as it is written in YAML. A scalar given for a vector stands for every element.

        Raises ValueError when the dtype cannot hold it.
        """
        if self.kind == "string":
            return self._string_of(given)
        if self.kind == "timestamp":
            return _milliseconds_of(given)
        if self.kind == "bool":
            if not isinstance(given, bool):
                raise ValueError(f"{given!r} is not true or false")
            return given
        if self.length is None:
            return self._number_of(given)
        if not isinstance(given, Sequence) or isinstance(given, str):
            return (self._number_of(given),) * self.length
        if len(given) != self.length:
            raise ValueError(f"{len(given)} elements for a {self}")
        return tuple(map(self._number_of, given))

    def _string_of(self, given: object) -> str:
        if not isinstance(given, str):
            raise ValueError(f"{given!r} is not a string")
        why = string_trouble(given, self.bytes_max or 0)
        if why:
            raise ValueError(why)
        return given

    def _number_of(self, given: object) -> int | float:
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise ValueError(f"{given!r} is not of {self.kind}")
        if self.is_float:
            if math.isfinite(given) and abs(given) > float(np.finfo(self.numpy).max):
                raise ValueError(f"{given!r} is out of the range of {self.kind}")
            return float(given)
        if isinstance(given, float) and not given.is_integer():
            raise ValueError(f"{given!r} is not of {self.kind}")
        bounds = np.iinfo(self.numpy)
        if not bounds.min <= given <= bounds.max:
            raise ValueError(f"{given!r} is out of the range of {self.kind}")
        return int(given)

    def widens_to(self, newer: "DType") -> bool:
        """Every value of this dtype is also a value of `newer`, so that a stored one can be upgraded without loss."""
        if self == newer:
            return True
        if self.kind == newer.kind == "string":
            return (self.bytes_max or 0) <= (newer.bytes_max or 0)
        if self.length != newer.length or not (self.is_float or self.is_integer):
            return False
        if self.is_integer and newer.is_float:
            return np.iinfo(self.numpy).bits <= np.finfo(newer.numpy).nmant + 1
        same = (self.is_float and newer.is_float) or (self.is_integer and newer.is_integer)
        return same and self.numpy.itemsize <= newer.numpy.itemsize


def string_trouble(text: str, bytes_max: int) -> str | None:
    """Why a string does not fit into a `string[bytes_max]`; None when it does."""
    if "\0" in text:
        return "a string must not hold a NUL character"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "the string is not valid Unicode"
    return f"{size} bytes of UTF-8 for a string[{bytes_max}]" if size > bytes_max else None


def _milliseconds_of(given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        if not -(2**63) <= given < 2**63:
            raise ValueError(f"{given!r} is out of the range of timestamp")
        return given
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            given = None
    if not isinstance(given, datetime):
        raise ValueError("a timestamp is milliseconds since the epoch, or an ISO 8601 date and time")
    # Without a zone it is UTC: the store knows no other.
    aware = given if given.tzinfo else given.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)
