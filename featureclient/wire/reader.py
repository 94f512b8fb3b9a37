"""From the bytes of the store to the bytes of the cache, each row checked once.

A stored row is admitted when its first eight bytes (format, flags, fingerprint) are those of a revision that the view
lists, its length is that revision's, its crc32 covers it under its own key, its event is not of the future, and its
strings and bools are ones. Everything else is INVALID and says why; nothing is decoded by guess.

    crc32 = zlib.crc32(row[20:], zlib.crc32(row[:16], zlib.crc32(key)))

Admitted rows of the newest revision without nulls, whose declared order is also the order of the runs, only get a new
front. The others go through `_Rearrange` together, a handful of array operations for all rows of one revision: columns
move to their runs, nulls get their defaults (the bitmap stays), and rows of an earlier revision become rows of the
newest: a column added since then has its default (and is null where none is declared), one that was removed is
dropped, one that was widened is cast.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from featureclient.schema import Revision, View, status
from featureclient.schema.dtype import Value
from featureclient.schema.layout import FLAG_COMPUTED, FORMAT, HEADER_BYTES, PREFIX_BYTES

REASONS = ("length", "format", "fingerprint", "crc", "event_time", "content")
"""Why a row can be INVALID."""

_FRESH_UNTIL = struct.Struct(">d")
_FRONT = struct.Struct(">dqB")
_HEAD = struct.Struct("<BBHI")
_CHECKED = struct.Struct("<qII")
_NO_TIME = struct.Struct("<q").pack(-1)
_STATUS_AT = 16


class Admitted(NamedTuple):
    """What became of the values of one read. `rows` has None where there was no value, and where it was refused."""

    rows: list[bytes | None]
    invalid: Mapping[int, str]
    """The positions that were refused, with one of REASONS."""


class _Known(NamedTuple):
    """What the first eight bytes of a row tell."""

    size: int
    status: bytes
    plain: bytes | None
    """The bitmap of a row that needs no rearranging; None where every row does."""
    sound: Callable[[bytes], bool] | None
    rearrange: "_Rearrange"


def with_status(row: bytes, row_status: int) -> bytes:
    """A cached row with another status."""
    return b"%b%c%b" % (row[:_STATUS_AT], row_status, row[_STATUS_AT + 1 :])


def fresh_until_of(row: bytes) -> float:
    """Until when a cached row is fresh, in monotonic seconds."""
    moment: float = _FRESH_UNTIL.unpack_from(row)[0]
    return moment


class RowReader:
    """Admits the stored rows of one view."""

    def __init__(self, view: View) -> None:
        self._known: dict[bytes, _Known] = {}
        for revision in (*view.revisions, view.newest):
            known = _known(view, revision)
            for flags, row_status in ((0, status.PRESENT), (FLAG_COMPUTED, status.COMPUTED)):
                head = _HEAD.pack(FORMAT, flags, 0, revision.fingerprint)
                self._known[head] = known._replace(status=bytes([row_status]))
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
        rows: list[bytes | None] = []
        invalid: dict[int, str] = {}
        waiting: dict[_Rearrange, list[int]] = {}
        known_of = self._known.get
        for position, (key, value) in enumerate(zip(keys, values, strict=True)):
            if value is None:
                rows.append(None)
                continue
            known = known_of(value[:8])
            if known is None or len(value) != known.size:
                invalid[position] = _why_unknown(value, known)
                rows.append(None)
                continue
            event_ms, crc, reserved = _CHECKED.unpack_from(value, 8)
            if crc != crc32(value[20:], crc32(value[:16], crc32(key))):
                invalid[position] = "crc"
                rows.append(None)
            elif not -1 <= event_ms <= event_ms_max:
                invalid[position] = "event_time"
                rows.append(None)
            elif reserved or (known.sound is not None and not known.sound(value)):
                invalid[position] = "format" if reserved else "content"
                rows.append(None)
            elif known.plain is not None and value.startswith(known.plain, HEADER_BYTES):
                rows.append(fresh + value[8:16] + known.status + value[HEADER_BYTES:])
            else:
                waiting.setdefault(known.rearrange, []).append(position)
                rows.append(fresh + value[8:16] + known.status)
        for rearrange, positions in waiting.items():
            tails = rearrange([values[position] for position in positions])  # type: ignore[misc]  # None never waits
            for position, tail in zip(positions, tails, strict=True):
                front = rows[position]
                assert front is not None  # what waits has its front
                rows[position] = front + tail
        return Admitted(rows, invalid)


def _why_unknown(value: bytes, known: _Known | None) -> str:
    if known is not None or len(value) < HEADER_BYTES:
        return "length"
    return "format" if value[0] != FORMAT or value[1] & ~FLAG_COMPUTED or value[2:4] != b"\0\0" else "fingerprint"


def _known(view: View, revision: Revision) -> _Known:
    rearrange = _Rearrange(view, revision)
    plain = rearrange.full_bitmap if rearrange.keeps_order else None
    return _Known(revision.stored.itemsize, b"", plain, _soundness(revision), rearrange)


def _soundness(revision: Revision) -> Callable[[bytes], bool] | None:
    """The check of strings and bools, whose bytes can be ones that no writer would write. None where there are none."""
    offsets = [(column, _offset(revision.stored, f"c{i}")) for i, column in enumerate(revision.columns)]
    strings = [(at, at + column.dtype.bytes) for column, at in offsets if column.dtype.kind == "string"]
    bools = [at for column, at in offsets if column.dtype.kind == "bool"]
    if not strings and not bools:
        return None
    # itemgetter gives a tuple only for two or more, so one offset is asked for twice.
    bool_bytes = itemgetter(*bools, bools[0]) if bools else None

    def sound(value: bytes) -> bool:
        if bool_bytes is not None and max(bool_bytes(value)) > 1:
            return False
        for start, end in strings:
            text = value[start:end].rstrip(b"\0")
            if b"\0" in text:
                return False
            if not text.isascii():
                try:
                    text.decode()
                except UnicodeDecodeError:
                    return False
        return True

    return sound


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
    """Brings stored rows of one revision into the view's cached layout, from the bitmap on."""

    def __init__(self, view: View, revision: Revision) -> None:
        layout = view.layout
        self._stored = revision.stored
        self._block = layout.block_dtype
        self._tail_bytes = layout.block_dtype.itemsize - PREFIX_BYTES
        self._valid_bytes = layout.valid_bytes
        self._template = np.frombuffer(_template(view), np.uint8)
        was = {column.name: i for i, column in enumerate(revision.columns)}
        self._columns_before = len(revision.columns)
        # Where each column's validity comes from: a bit of the stored row, or the constant of a column added since.
        self._bit = np.array([was.get(column.name, -1) for column in view.columns])
        self._added_valid = np.array([column.default is not None for column in view.columns])
        self._column_of_byte = np.zeros(self._tail_bytes - self._valid_bytes, np.intp)
        source: list[int] = []
        target: list[int] = []
        self._widened: list[tuple[str, str, int, int]] = []
        for i, column in enumerate(view.columns):
            place = layout.places[column.name]
            at = _offset(layout.block_dtype, place.run) - PREFIX_BYTES + place.start * column.dtype.numpy.itemsize
            self._column_of_byte[at - self._valid_bytes : at - self._valid_bytes + column.dtype.bytes] = i
            before = was.get(column.name)
            if before is None:
                continue
            if revision.columns[before].dtype == column.dtype:
                start = _offset(revision.stored, f"c{before}")
                source += range(start, start + column.dtype.bytes)
                target += range(at, at + column.dtype.bytes)
            else:
                self._widened.append((f"c{before}", place.run, place.start, place.start + place.width))
        self._source = np.array(source, np.intp)
        self._target = np.array(target, np.intp)
        self.full_bitmap = np.packbits(np.ones(self._columns_before, np.uint8), bitorder="little").tobytes()
        same = [(c.name, c.dtype) for c in revision.columns] == [(c.name, c.dtype) for c in view.columns]
        first = HEADER_BYTES + self._valid_bytes
        in_place = source == list(range(first, revision.stored.itemsize)) and target == list(
            range(self._valid_bytes, self._tail_bytes)
        )
        self.keeps_order = same and in_place
        """A row without nulls is already what it has to be."""

    def __call__(self, values: Sequence[bytes]) -> list[bytes]:
        """The tails of cached rows, in the order of `values`."""
        count = len(values)
        joined = b"".join(values)
        stored = np.frombuffer(joined, self._stored)
        block = np.empty(count, self._block)
        tail = block.view(np.uint8).reshape(count, self._block.itemsize)[:, PREFIX_BYTES:]
        tail[:] = self._template
        tail[:, self._target] = np.frombuffer(joined, np.uint8).reshape(count, -1)[:, self._source]
        for before, run, start, end in self._widened:
            block[run][:, start:end] = stored[before]
        valid = self._validity(stored)
        if not valid.all():
            where = ~valid[:, self._column_of_byte]
            np.copyto(tail[:, self._valid_bytes :], self._template[self._valid_bytes :], where=where)
        tail[:, : self._valid_bytes] = np.packbits(valid, axis=1, bitorder="little")
        data = tail.tobytes()
        size = self._tail_bytes
        return [data[start : start + size] for start in range(0, count * size, size)]

    def _validity(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """One bool for each row and column of the newest revision."""
        bits = np.unpackbits(stored["valid"], axis=1, count=self._columns_before, bitorder="little")
        return np.where(self._bit < 0, self._added_valid, bits[:, self._bit].astype(np.bool_))
