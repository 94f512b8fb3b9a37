"""From the bytes of the store to the bytes of the cache, each row checked once.

A stored row is admitted when its first eight bytes (format, flags, fingerprint) are those of a revision that the view
lists, its length is that revision's, its crc32 covers it under its own key, its event is not of the future, and its
strings and bools are ones. Everything else is INVALID and says why; nothing is decoded by guess.

    crc32 = zlib.crc32(key + row[:16] + row[20:])

    admit ──▶ every row in order?  one check for all of them, as arrays (the usual answer of the store)
          └─▶ else row by row, which also finds the reason of each that is refused
          ──▶ rows of one revision together get a new front, and their columns in the cache's order

Admitted rows of the newest revision without nulls, whose declared order is also the order of the runs, keep their bytes
from the bitmap on. The others are rearranged, a handful of array operations for all of them: columns move to their
runs, nulls get their defaults (the bitmap stays), and rows of an earlier revision become rows of the newest: a column
added since then has its default (and is null where none is declared), one that was removed is dropped, one that was
widened is cast.
"""

import struct
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, cast
from zlib import crc32

import numpy as np
import numpy.typing as npt

from featureclient.schema import Revision, View, status
from featureclient.schema.dtype import Value
from featureclient.schema.layout import FLAG_COMPUTED, FORMAT, HEADER_BYTES, PREFIX_BYTES

REFUSALS = ("protobuf", "type", "value", "hash")
"""Why a store that reads another layout can refuse a row itself: what it has is no protobuf message, not of the
column's type, a value that the column cannot hold, or not even a hash."""

REASONS = ("length", "format", "fingerprint", "crc", "event_time", "content", *REFUSALS)
"""Why a row can be INVALID."""

ARRAYS_MIN = 8
"""From so many rows on, array operations cost less than one row after the other."""

ASCII_MAX = 0x7F

Bytes2D = npt.NDArray[np.uint8]

_FRESH_UNTIL = struct.Struct(">d")
_HEAD = struct.Struct("<BBHI")
_CHECKED = struct.Struct("<qII")
_NO_TIME = struct.Struct("<q").pack(-1)
_STATUS_AT = 16


class Admitted(NamedTuple):
    """What became of the values of one read. `rows` has None where there was no value, and where it was refused."""

    rows: list[bytes | None]
    invalid: Mapping[int, str]
    """The positions that were refused, with one of REASONS."""


def with_status(row: bytes, row_status: int) -> bytes:
    """A cached row with another status."""
    return b"%b%c%b" % (row[:_STATUS_AT], row_status, row[_STATUS_AT + 1 :])


def refused(reason: str) -> bytes:
    """What a store answers for a row that it refuses itself, for one of REFUSALS. It is no row of any view."""
    return b"\0" + reason.encode()


def status_of(row: bytes) -> int:
    """The status of a cached row."""
    return row[_STATUS_AT]


def fresh_until_of(row: bytes) -> float:
    """Until when a cached row is fresh, in monotonic seconds."""
    moment: float = _FRESH_UNTIL.unpack_from(row)[0]
    return moment


class RowReader:
    """Admits the stored rows of one view."""

    def __init__(self, view: View) -> None:
        self._known: dict[bytes, _Known] = {}
        for revision in (*view.revisions, view.newest):
            rearrange, contents = _Rearrange(view, revision), _Contents(revision)
            for flags in (0, FLAG_COMPUTED):  # a computed row that was stored is as present as any other
                head = _HEAD.pack(FORMAT, flags, 0, revision.fingerprint)
                self._known[head] = _Known(revision, head, status.PRESENT, rearrange, contents)
        self._usual = self._known[_HEAD.pack(FORMAT, 0, 0, view.fingerprint)]
        tail = _template(view)
        self._substitutes = {
            cause: _FRESH_UNTIL.pack(0.0) + _NO_TIME + bytes([view.absent_outcome | cause]) + tail
            for cause in (status.ABSENT, status.INVALID, status.UNREACHED, status.TIMED_OUT)
        }

    def substitute(self, cause: int) -> bytes:
        """The row that stands for one that is not there: all defaults, no value valid, one shared object per cause."""
        return self._substitutes[cause]

    def admit(
        self, keys: Sequence[bytes], values: Sequence[bytes | None], fresh_until: float, event_ms_max: int
    ) -> Admitted:
        """Check the values of `keys` and bring them into the cache's layout.

        Rows with an event later than `event_ms_max` are refused.
        """
        fresh = _FRESH_UNTIL.pack(fresh_until)
        if len(values) >= ARRAYS_MIN and self._usual.all_sound(keys, values, event_ms_max):
            sound = cast("Sequence[bytes]", values)
            return Admitted(cast("list[bytes | None]", self._usual.build(sound, fresh)), {})
        rows: list[bytes | None] = [None] * len(values)
        invalid: dict[int, str] = {}
        admitted: dict[_Known, list[int]] = {}
        for position, (key, value) in enumerate(zip(keys, values, strict=True)):
            if value is None:
                continue
            known = self._known.get(value[:8])
            why = _why_unknown(value) if known is None else known.trouble(key, value, event_ms_max)
            if known is None or why is not None:
                invalid[position] = why or ""
            else:
                admitted.setdefault(known, []).append(position)
        for known, positions in admitted.items():
            some = [cast("bytes", values[position]) for position in positions]
            for position, row in zip(positions, known.build(some, fresh), strict=True):
                rows[position] = row
        return Admitted(rows, invalid)


_REFUSED = {refused(reason): reason for reason in REFUSALS}


def _why_unknown(value: bytes) -> str:
    if value in _REFUSED:
        return _REFUSED[value]
    if len(value) < HEADER_BYTES:
        return "length"
    return "format" if value[0] != FORMAT or value[1] & ~FLAG_COMPUTED or value[2:4] != b"\0\0" else "fingerprint"


class _Known:
    """Rows of one revision with the same flags: they begin with the same eight bytes."""

    def __init__(
        self, revision: Revision, head: bytes, row_status: int, rearrange: "_Rearrange", contents: "_Contents"
    ) -> None:
        self._stored = revision.stored
        self._size = revision.stored.itemsize
        self._head = np.frombuffer(head, np.uint8)
        self._status = bytes([row_status])
        self._rearrange = rearrange
        self._contents = contents

    def trouble(self, key: bytes, value: bytes, event_ms_max: int) -> str | None:
        """Why a row that begins as it should is refused all the same."""
        if len(value) != self._size:
            return "length"
        event_ms, crc, reserved = _CHECKED.unpack_from(value, 8)
        if crc != crc32(key + value[:16] + value[20:]):
            return "crc"
        if not -1 <= event_ms <= event_ms_max:
            return "event_time"
        if reserved:
            return "format"
        return None if self._contents.sound(value) else "content"

    def all_sound(self, keys: Sequence[bytes], values: Sequence[bytes | None], event_ms_max: int) -> bool:
        """True when every value is such a row. False may also mean that it takes a closer look."""
        if None in values:
            return False
        some = cast("Sequence[bytes]", values)
        if set(map(len, some)) != {self._size}:
            return False
        joined = b"".join(some)
        stored = np.frombuffer(joined, self._stored)
        raw = np.frombuffer(joined, np.uint8).reshape(len(some), self._size)
        event_ms = stored["event_ms"]
        if (
            (raw[:, :8] != self._head).any()
            or event_ms.min() < -1
            or event_ms.max() > event_ms_max
            or stored["reserved_2"].any()
            or not self._contents.all_sound(raw)
        ):
            return False
        crcs = [crc32(key + value[:16] + value[20:]) for key, value in zip(keys, some, strict=True)]
        return bool(crcs == stored["crc32"].tolist())

    def build(self, values: Sequence[bytes], fresh: bytes) -> list[bytes]:
        """Cached rows of stored ones that were found to be sound."""
        plain = self._rearrange.plain_bitmap
        if len(values) < ARRAYS_MIN and plain is not None and all(v.startswith(plain, HEADER_BYTES) for v in values):
            row_status = self._status
            return [b"".join((fresh, v[8:16], row_status, v[HEADER_BYTES:])) for v in values]
        raw = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), self._size)
        rows = self._rearrange(raw)
        rows[:, :8] = np.frombuffer(fresh, np.uint8)
        rows[:, 8:16] = raw[:, 8:16]
        rows[:, _STATUS_AT] = self._status[0]
        data = rows.tobytes()
        size = rows.shape[1]
        return [data[start : start + size] for start in range(0, len(data), size)]


class _Contents:
    """The check of strings and bools, whose bytes can be ones that no writer would write."""

    def __init__(self, revision: Revision) -> None:
        places = [(column.dtype, _offset(revision.stored, f"c{i}")) for i, column in enumerate(revision.columns)]
        self._strings = [(at, at + dtype.bytes) for dtype, at in places if dtype.kind == "string"]
        self._bools = [at for dtype, at in places if dtype.kind == "bool"]
        # itemgetter gives a tuple only for two or more, so one offset is asked for twice.
        self._bools_of = itemgetter(*self._bools, self._bools[0]) if self._bools else None

    def sound(self, value: bytes) -> bool:
        """True when every string is UTF-8 with nothing behind its end, and every bool 0 or 1."""
        if self._bools_of is not None and max(self._bools_of(value)) > 1:
            return False
        for start, end in self._strings:
            text = value[start:end].rstrip(b"\0")
            if b"\0" in text:
                return False
            try:
                text.decode()
            except UnicodeDecodeError:
                return False
        return True

    def all_sound(self, raw: Bytes2D) -> bool:
        """The same for all rows at once; False also where a string is not ASCII, which takes a closer look."""
        if self._bools and raw[:, self._bools].max() > 1:
            return False
        for start, end in self._strings:
            texts = raw[:, start:end]
            if texts.max() > ASCII_MAX or ((texts[:, :-1] == 0) & (texts[:, 1:] != 0)).any():
                return False
        return True


def _offset(dtype: np.dtype[Any], name: str) -> int:
    fields = dtype.fields
    assert fields is not None  # every row dtype is structured
    return fields[name][1]


def _template(view: View) -> bytes:
    """A cached row behind its front: an empty bitmap, then every column's substitute."""
    block = np.zeros(1, view.layout.block_dtype)
    for column in view.columns:
        place = view.layout.places[column.name]
        block[place.run][:, place.start : place.start + place.width] = _as_element(column.substitute)
    return block.tobytes()[PREFIX_BYTES:]


def _as_element(value: Value) -> Any:
    return value.encode() if isinstance(value, str) else value


class _Rearrange:
    """Brings stored rows of one revision into the view's cached layout, all but the front."""

    def __init__(self, view: View, revision: Revision) -> None:
        layout = view.layout
        self._stored = revision.stored
        self._block = layout.block_dtype
        self._bitmap_end = PREFIX_BYTES + layout.valid_bytes
        self._template = np.frombuffer(bytes(PREFIX_BYTES) + _template(view), np.uint8)
        was = {column.name: i for i, column in enumerate(revision.columns)}
        self._columns_before = len(revision.columns)
        # Where each column's validity comes from: a bit of the stored row, or the constant of a column added since.
        self._bit = np.array([was.get(column.name, -1) for column in view.columns])
        self._added_valid = np.array([column.default is not None for column in view.columns])
        self._column_of_byte = np.zeros(layout.block_dtype.itemsize - self._bitmap_end, np.intp)
        source: list[int] = []
        target: list[int] = []
        self._widened: list[tuple[str, str, int, int]] = []
        for i, column in enumerate(view.columns):
            run, first, width = layout.places[column.name]
            at = _offset(layout.block_dtype, run) + first * column.dtype.numpy.itemsize
            self._column_of_byte[at - self._bitmap_end : at - self._bitmap_end + column.dtype.bytes] = i
            before = was.get(column.name)
            if before is None:
                continue
            if revision.columns[before].dtype == column.dtype:
                start = _offset(revision.stored, f"c{before}")
                source += range(start, start + column.dtype.bytes)
                target += range(at, at + column.dtype.bytes)
            else:
                self._widened.append((f"c{before}", run, first, first + width))
        self._source = np.array(source, np.intp)
        self._target = np.array(target, np.intp)
        self._full_bitmap = np.packbits(np.ones(self._columns_before, np.uint8), bitorder="little")
        self._data_at = HEADER_BYTES + len(self._full_bitmap)
        same = [(c.name, c.dtype) for c in revision.columns] == [(c.name, c.dtype) for c in view.columns]
        in_place = source == list(range(self._data_at, revision.stored.itemsize)) and target == list(
            range(self._bitmap_end, layout.block_dtype.itemsize)
        )
        self.plain_bitmap = self._full_bitmap.tobytes() if same and in_place else None
        """The bitmap of a row that stays as it is; None where every row is rearranged."""

    def __call__(self, raw: Bytes2D) -> Bytes2D:
        """Cached rows, in the order of `raw`, whose front is still to be filled in."""
        count = len(raw)
        block = np.empty(count, self._block)
        rows = block.view(np.uint8).reshape(count, self._block.itemsize)
        full = bool((raw[:, HEADER_BYTES : self._data_at] == self._full_bitmap).all())
        if full and self.plain_bitmap is not None:
            rows[:, PREFIX_BYTES:] = raw[:, HEADER_BYTES:]
            return rows
        rows[:] = self._template
        rows[:, self._target] = raw.take(self._source, axis=1)
        if self._widened:
            stored = np.ascontiguousarray(raw).view(self._stored).reshape(count)
            for before, run, start, end in self._widened:
                block[run][:, start:end] = stored[before]
        valid = self._validity(raw)
        if not valid.all():
            where = ~valid[:, self._column_of_byte]
            np.copyto(rows[:, self._bitmap_end :], self._template[self._bitmap_end :], where=where)
        rows[:, PREFIX_BYTES : self._bitmap_end] = np.packbits(valid, axis=1, bitorder="little")
        return rows

    def _validity(self, raw: Bytes2D) -> npt.NDArray[np.bool_]:
        """One bool for each row and column of the newest revision."""
        bitmap = raw[:, HEADER_BYTES : self._data_at]
        bits = np.unpackbits(bitmap, axis=1, count=self._columns_before, bitorder="little")
        return np.where(self._bit < 0, self._added_valid, bits[:, self._bit].astype(np.bool_))
