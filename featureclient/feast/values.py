"""Feast's values into the elements of a column.

    usual   every value is one message of the expected type: one join and one check for all of them
    odd     anything else, value by value, through the protobuf class: nulls, other types, other spellings, garbage

A value is a message `Value` with one field, so its first byte or two tell its type, and what follows is what protobuf
has for it: a float of 4 bytes, a varint, a length with a text. Protobuf leaves a writer other spellings of the same
message; those go the odd way and mean the same.

Invariants: a value is taken exactly or refused, but for one thing, rounding a float to a narrower one, as when rows are
written. Null is the empty message, `null_val`, a field that is not there, and Feast's NaT.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from operator import not_
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from featureclient.feast.value_pb2 import BoolList, DoubleList, FloatList, Value, ValueType
from featureclient.schema import DType

NAT_SECONDS: Final = -(2**63)
"""What Feast writes for a time that is none."""
_SECONDS_MAX: Final = (2**63 - 1) // 1000
_VARINT_BYTES_MAX: Final = 10
_CONTINUES: Final = 0x80
_ONE_BYTE_MAX: Final = 0x7F
_FIELD_SHIFT: Final = 3

_TEXTS = ("string_val", "uuid_val", "time_uuid_val", "json_val", "decimal_val")
_TEXT_LISTS = ("string_list_val", "uuid_list_val", "time_uuid_list_val", "json_list_val", "decimal_list_val")

Bools = npt.NDArray[np.bool_]
Bytes2D = npt.NDArray[np.uint8]


class Trouble(NamedTuple):
    """Why a value is refused: one of `featureclient.wire.reader.REFUSALS`, and in words."""

    reason: str
    why: str


class Decoded(NamedTuple):
    """Values in a column's dtype, [values, width]. Those of nulls and of refused ones mean nothing."""

    values: npt.NDArray[Any]
    null: Bools | None
    refused: dict[int, Trouble]


class Refused(ValueError):
    """A value that the column does not take."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.trouble = Trouble(reason, why)


# ── One value ───────────────────────────────────────────────────────────────────────────────────────────────────────


def value_of(message: bytes) -> tuple[str, Any]:
    """The type of a value, as Feast's ValueType spells it, and what it is in Python: a time in seconds, a list, None.

    Raises Refused for what is not a message, and for types that no column can hold.
    """
    if not message:
        return "NULL", None
    value = Value()
    try:
        value.ParseFromString(message)
    except DecodeError as error:
        raise Refused("protobuf", "is not a message of Feast's") from error
    name = value.WhichOneof("val")
    if name is None:
        raise Refused("type", f"is of Feast's type {_type_name(message)}, which no column can hold")
    kind = name.removesuffix("_val").upper()
    if kind == "NULL":
        return kind, None
    found = getattr(value, name)
    return kind, list(found.val) if kind.endswith("_LIST") else found


def _type_name(message: bytes) -> str:
    """The type whose field comes first in a message. Its number is the type's."""
    number = shift = 0
    for byte in message[:_VARINT_BYTES_MAX]:
        number |= (byte & _ONE_BYTE_MAX) << shift
        shift += 7
        if not byte & _CONTINUES:
            break
    number >>= _FIELD_SHIFT
    return ValueType.Enum.Name(number) if number in ValueType.Enum.values() else str(number)


def element_of(dtype: DType, message: bytes) -> Any:
    """One value as numpy takes it for the dtype; None for a null. Raises Refused."""
    kind, found = value_of(message)
    if found is None or (kind == "UNIX_TIMESTAMP" and found == NAT_SECONDS):
        return None
    if kind not in _taken(dtype):
        raise Refused("type", f"is of Feast's type {kind}, the column is {dtype}")
    try:
        return _converted(dtype, kind, found)
    except ValueError as error:
        raise Refused("value", str(error)) from error


def _converted(dtype: DType, kind: str, found: Any) -> Any:
    if dtype.kind == "string":
        if kind == "BYTES":
            found = found.decode()
        elif kind.endswith("_LIST"):
            texts = [one.decode() if isinstance(one, bytes) else one for one in found]
            found = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
        text = dtype.value_of(found)
        assert isinstance(text, str)  # of a string dtype
        return text.encode()
    if kind.startswith("UNIX_TIMESTAMP"):
        found = [_milliseconds(one) for one in found] if isinstance(found, list) else _milliseconds(found)
    elif kind == "BOOL_LIST":
        found = [int(one) for one in found]
    return dtype.value_of(found)


def _milliseconds(seconds: int) -> int:
    if abs(seconds) > _SECONDS_MAX:
        raise ValueError(f"{seconds} s is out of the range of a timestamp")
    return seconds * 1000


def _taken(dtype: DType) -> frozenset[str]:
    """The types of Feast that a column takes. A column of numbers takes its own kind, whatever the width."""
    if dtype.kind == "string":
        return _TEXT_KINDS
    if dtype.length is not None:
        kinds = ("FLOAT_LIST", "DOUBLE_LIST") if dtype.is_float else ("INT32_LIST", "INT64_LIST")
        return frozenset((*kinds, *_LIST_EXTRAS.get(dtype.kind, ())))
    if dtype.is_float:
        return frozenset(("FLOAT", "DOUBLE"))
    return frozenset({"bool": ("BOOL",), "timestamp": ("UNIX_TIMESTAMP",)}.get(dtype.kind, ("INT32", "INT64")))


_TEXT_KINDS = frozenset(
    name.removesuffix("_val").upper() for name in (*_TEXTS, *_TEXT_LISTS, "bytes_val", "bytes_list_val")
)
_LIST_EXTRAS = {"int8": ("BOOL_LIST",), "int64": ("UNIX_TIMESTAMP_LIST",)}
"""Vectors are of numbers, so bools are 0 and 1 there, and times are milliseconds since the epoch."""


# ── Many values ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Spelling(Protocol):
    """How the usual values of a type are spelt. `blank` is one of them, and stands for those that are not there."""

    blank: bytes
    mark: bytes

    @abstractmethod
    def read(self, messages: Sequence[bytes]) -> tuple[npt.NDArray[Any], Bools | None]:
        """Elements [messages, width], and which of them are not usual (None: all are)."""


class Fixed:
    """A constant, then elements of fixed size: floats, bools, and lists of them, whose length a column fixes."""

    def __init__(self, example: Value, element: str, width: int, dtype: DType, greatest: int | None = None) -> None:
        self.blank = example.SerializeToString()
        self._size = len(self.blank)
        at = self._size - width * np.dtype(element).itemsize
        self.mark = self.blank[:at]
        self._marked = np.frombuffer(self.mark, np.uint8)
        self._message = np.dtype([("mark", "u1", (at,)), ("elements", element, (width,))])
        self._dtype = dtype
        self._greatest = greatest

    def read_usual(self, messages: Sequence[bytes | None]) -> npt.NDArray[Any] | None:
        """The elements when all messages are usual: a short cut that costs a third less."""
        try:
            sizes = list(map(len, messages))  # type: ignore[arg-type]  # None raises, as it is meant to
        except TypeError:
            return None
        if sizes.count(self._size) != len(sizes):
            return None
        elements, odd = self._read(b"".join(messages))  # type: ignore[arg-type]  # there is no None
        return elements if odd is None else None

    def read(self, messages: Sequence[bytes]) -> tuple[npt.NDArray[Any], Bools | None]:
        """Part of Spelling."""
        sizes = np.fromiter(map(len, messages), np.intp, len(messages))
        wrong: Bools = sizes != self._size
        if not wrong.any():
            return self._read(b"".join(messages))
        blank, size = self.blank, self._size
        elements, odd = self._read(b"".join([one if len(one) == size else blank for one in messages]))
        return elements, _either(odd, wrong)

    def _read(self, joined: bytes) -> tuple[npt.NDArray[Any], Bools | None]:
        """Messages of the right size."""
        odd: Bools | None = None
        found = np.frombuffer(joined, self._message)
        other: Bools = found["mark"] != self._marked
        if other.any():
            odd = _any_of(other)
        elements: npt.NDArray[Any] = found["elements"]
        if self._greatest is not None:
            beyond = elements.view(np.uint8) > self._greatest
            odd = _either(odd, _any_of(beyond)) if beyond.any() else odd
        if elements.dtype != self._dtype.numpy:
            with np.errstate(over="ignore"):
                narrow = elements.astype(self._dtype.numpy)
            if self._dtype.is_float:
                overflow: Bools = np.isfinite(elements) & ~np.isfinite(narrow)
                odd = _either(odd, _any_of(overflow)) if overflow.any() else odd
            elements = narrow
        return elements, odd


class Varint:
    """A tag of one byte and a varint: integers, and times, which are seconds there and milliseconds here."""

    def __init__(self, example: Value, low: int, high: int, dtype: DType, factor: int = 1) -> None:
        self.blank = example.SerializeToString()
        self.mark = self.blank[:1]
        self._bounds = low, high
        self._dtype = dtype
        self._factor = factor

    def read(self, messages: Sequence[bytes]) -> tuple[npt.NDArray[Any], Bools | None]:
        """Part of Spelling."""
        sizes = np.fromiter(map(len, messages), np.intp, len(messages))
        size_max = int(sizes.max())
        odd = None
        if size_max > 1 + _VARINT_BYTES_MAX or sizes.min() < len(self.blank):
            odd = (sizes > 1 + _VARINT_BYTES_MAX) | (sizes < len(self.blank))
            size_max = min(max(size_max, len(self.blank)), 1 + _VARINT_BYTES_MAX)
        # Bytes that a message has not are zeros, and so add nothing to its number.
        raw = np.array(messages, f"S{size_max}").view(np.uint8).reshape(len(messages), size_max)
        digits = raw[:, 1:]
        more = digits >= _CONTINUES
        # All bytes but the last say that there is more: as many do as there are before the last, and it does not.
        wrong = (raw[:, 0] != self.mark[0]) | (more.sum(axis=1) != sizes - 2)
        wrong |= more[np.arange(len(messages)), np.clip(sizes - 2, 0, size_max - 2)]
        if size_max > _VARINT_BYTES_MAX:
            wrong |= digits[:, -1] > 1  # bits beyond the 64th
        numbers = np.zeros(len(messages), np.uint64)
        for i in range(size_max - 1):
            numbers |= (digits[:, i] & _ONE_BYTE_MAX).astype(np.uint64) << np.uint64(7 * i)
        signed = numbers.view(np.int64)
        low, high = self._bounds
        wrong |= (signed < low) | (signed > high)
        if wrong.any():
            odd = _either(odd, wrong)
        return (signed * self._factor).astype(self._dtype.numpy).reshape(-1, 1), odd


class Text:
    """A tag, one byte of length, a text."""

    def __init__(self, example: Value, dtype: DType) -> None:
        self.blank = example.SerializeToString()
        self.mark = self.blank[:1]
        self._dtype = dtype

    def read(self, messages: Sequence[bytes]) -> tuple[npt.NDArray[Any], Bools | None]:
        """Part of Spelling."""
        odd: Bools | None = None
        heads = b"".join([one[:2] for one in messages])
        if len(heads) != 2 * len(messages):
            odd = np.fromiter((len(one) < len(self.blank) for one in messages), np.bool_, len(messages))
            messages = [self.blank if wrong else one for one, wrong in zip(messages, odd.tolist(), strict=True)]
            heads = b"".join([one[:2] for one in messages])
        texts = [one[2:] for one in messages]
        head = np.frombuffer(heads, np.uint8).reshape(-1, 2)
        sizes = np.fromiter(map(len, texts), np.intp, len(texts))
        wrong = (head[:, 0] != self.mark[0]) | (head[:, 1] != sizes) | (sizes > _ONE_BYTE_MAX)
        wrong |= sizes > (self._dtype.bytes_max or 0)
        joined = b"".join(texts)
        if not joined.isascii() or b"\0" in joined:
            wrong |= np.fromiter((not one.isascii() or b"\0" in one for one in texts), np.bool_, len(texts))
        if wrong.any():
            odd = _either(odd, wrong)
        return np.array(texts, self._dtype.numpy).reshape(-1, 1), odd


class Various:
    """Values of no fixed spelling, which are all odd."""

    blank = mark = b""

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype

    def read(self, messages: Sequence[bytes]) -> tuple[npt.NDArray[Any], Bools | None]:
        """Part of Spelling."""
        return np.zeros((len(messages), self._dtype.width), self._dtype.numpy), np.ones(len(messages), np.bool_)


def _any_of(elements: Bools) -> Bools:
    return np.asarray(elements.any(axis=1))


def _either(one: Bools | None, other: Bools) -> Bools:
    return other if one is None else one | other


class ColumnDecoder:
    """Decodes the values of columns of one dtype."""

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype
        self._spellings = _spellings(dtype)

    def decode(self, messages: Sequence[bytes | None]) -> Decoded:
        """One value for each message; None is a field that is not there."""
        if not messages:
            return Decoded(np.empty((0, self._dtype.width), self._dtype.numpy), None, {})
        # The empty message is null as well, so one C loop finds both.
        spelling = self._spelling_of(next(filter(None, messages), b""))
        if isinstance(spelling, Fixed):
            usual = spelling.read_usual(messages)
            if usual is not None:
                return Decoded(usual, None, {})
        if all(messages):
            present: Sequence[Any] = messages
            absent = None
        else:
            absent = np.fromiter(map(not_, messages), np.bool_, len(messages))
            blank = spelling.blank
            present = [one or blank for one in messages]
        values, odd = spelling.read(present)
        if odd is None:
            return Decoded(values, absent, {})
        return self._one_by_one(present, values.copy(), absent, odd if absent is None else odd & ~absent)

    def _spelling_of(self, message: bytes) -> Spelling:
        """Feast writes a feature in one type, so one value tells how the others are spelt."""
        for spelling in self._spellings:
            if message.startswith(spelling.mark):
                return spelling
        return self._spellings[0]

    def _one_by_one(
        self, messages: Sequence[bytes], values: npt.NDArray[Any], absent: Bools | None, odd: Bools
    ) -> Decoded:
        null = np.zeros(len(messages), np.bool_) if absent is None else absent
        refused: dict[int, Trouble] = {}
        for i in np.flatnonzero(odd).tolist():
            try:
                one = element_of(self._dtype, messages[i])
            except Refused as error:
                refused[i] = error.trouble
                continue
            if one is None:
                null[i] = True
            else:
                values[i] = one
        return Decoded(values, null if null.any() else None, refused)


def _spellings(dtype: DType) -> list[Spelling]:
    """The usual spellings of a column's values, the most likely first."""
    if dtype.is_float:
        return _float_spellings(dtype)
    if dtype.is_integer:
        return _integer_spellings(dtype)
    if dtype.kind == "string":
        return [Text(Value(string_val=""), dtype)]
    if dtype.kind == "bool":
        return [Fixed(Value(bool_val=False), "?", 1, dtype, greatest=1)]
    # A timestamp. NaT is below the bound, so it goes the odd way.
    return [Varint(Value(unix_timestamp_val=0), -_SECONDS_MAX, _SECONDS_MAX, dtype, factor=1000)]


def _float_spellings(dtype: DType) -> list[Spelling]:
    width = dtype.width
    if dtype.length is None:
        floats, doubles = Value(float_val=0.0), Value(double_val=0.0)
    else:
        zeros = [0.0] * width
        floats, doubles = Value(float_list_val=FloatList(val=zeros)), Value(double_list_val=DoubleList(val=zeros))
    both: list[Spelling] = [Fixed(floats, "<f4", width, dtype), Fixed(doubles, "<f8", width, dtype)]
    return both[::-1] if dtype.kind == "float64" else both


def _integer_spellings(dtype: DType) -> list[Spelling]:
    if dtype.length is not None and dtype.kind != "int8":
        return [Various(dtype)]
    if dtype.length is not None:
        return [Fixed(Value(bool_list_val=BoolList(val=[False] * dtype.width)), "i1", dtype.width, dtype, greatest=1)]
    bounds = np.iinfo(dtype.numpy)
    low, high = int(bounds.min), int(bounds.max)
    int32 = Varint(Value(int32_val=0), max(low, -(2**31)), min(high, 2**31 - 1), dtype)
    int64 = Varint(Value(int64_val=0), low, high, dtype)
    return [int64, int32] if dtype.kind == "int64" else [int32, int64]
