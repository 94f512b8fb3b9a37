"""Hashes of Feast into stored rows of ours.

    names and values of a hash  ──▶ pick: the values of the view's columns, columns of one dtype side by side
    all rows of a read          ──▶ decode: the values of one dtype at a time, as arrays
                                ──▶ rows of `featureclient.schema.layout`, under our keys, with their crc32

Everything behind this reads such a row as any other. `_ts:<view>`, which Feast writes with every row, is the event's
time. A hash without it and without any of the view's fields has no row of the view; a field that is not there is null.

Invariant: a row of which one value is refused is refused as a whole, and says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from featureclient.feast.murmur import murmur3_32
from featureclient.feast.values import ColumnDecoder, Trouble
from featureclient.schema import Column, View
from featureclient.schema.layout import FORMAT
from featureclient.wire import refused, sealed

FIELD_BYTES = 4

UNKNOWN_MS = -1
"""The event time of a row without one."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row of Feast's that was refused. `column` is empty where the hash as a whole is wrong.

    `reason` is one of `featureclient.wire.reader.REFUSALS`, `why` the same in words.
    """

    view: str
    key: bytes
    column: str
    reason: str
    why: str

    def __str__(self) -> str:
        place = f"{self.view}, {self.column}" if self.column else self.view
        return f"{place}: {self.why} (Feast's row under our key {self.key!r})"


def field_of(view: str, feature: str) -> bytes:
    """The name of a feature's field in a hash."""
    return murmur3_32(f"{view}:{feature}".encode()).to_bytes(FIELD_BYTES, "little")


class _Run(NamedTuple):
    """Columns of one dtype that are side by side in a stored row, at bytes [start, end)."""

    first: int
    columns: int
    start: int
    end: int


class _Group(NamedTuple):
    """All columns of one dtype: values [first, last) of a picked row."""

    decoder: ColumnDecoder
    first: int
    last: int
    columns: npt.NDArray[np.intp]
    runs: Sequence[_Run]


class FeastRows:
    """Makes stored rows of one view, which has to have a `feast` source."""

    def __init__(self, view: View) -> None:
        source = view.feast
        if source is None:
            raise ValueError(f"{view.ref} does not say where it is in Feast")
        self._view = view
        order = _by_dtype(view.columns)
        self._columns = [view.columns[i] for i in order]
        names = [source.features.get(column.name, column.name) for column in self._columns]
        self.fields: tuple[bytes, ...] = (
            *(field_of(source.view, name) for name in names),
            f"_ts:{source.view}".encode(),
        )
        """The fields to ask for. The values of a hash, in this order, are what `rows` takes."""
        self._groups = _groups(view, order)
        self._substitutes = np.zeros((), view.newest.stored)
        for i, column in enumerate(view.columns):
            substitute: Any = column.substitute
            self._substitutes[f"c{i}"] = substitute.encode() if isinstance(substitute, str) else substitute
        self._valid_bytes = np.packbits(np.ones(len(order), np.uint8), bitorder="little")
        self._usual: list[bytes] | None = None
        self._pick = itemgetter(0, 1)  # of no hash yet

    def pick(self, hashes: Sequence[Sequence[bytes]]) -> list[Sequence[bytes | None]]:
        """What HGETALL gives, names and values by turns, as what HMGET of `fields` would have given."""
        usual, pick = self._usual, self._pick
        named = [found[::2] for found in hashes]
        if usual is not None and named.count(usual) == len(named):
            return list(map(pick, hashes))
        learnt = False
        picked: list[Sequence[bytes | None]] = []
        for names, found in zip(named, hashes, strict=True):
            if names == usual:
                picked.append(pick(found))
            elif not learnt and set(self.fields).issubset(names):
                # Hashes that were written alike have their fields in one order, so the next ones cost less.
                self._usual, learnt = list(names), True
                usual = self._usual
                places = {name: 2 * i + 1 for i, name in enumerate(names)}
                self._pick = pick = itemgetter(*[places[field] for field in self.fields])
                picked.append(pick(found))
            else:
                values = dict(zip(names, found[1::2], strict=True))
                picked.append([values.get(field) for field in self.fields])
        return picked

    def rows(
        self, keys: Sequence[bytes], picked: Sequence[Sequence[bytes | None]]
    ) -> tuple[list[bytes | None], list[Refusal]]:
        """The stored rows under `keys`, our keys, and those that were refused. None where there is no row."""
        here = [i for i, values in enumerate(picked) if any(values)]
        made: list[bytes | None] = [None] * len(picked)
        if len(here) == len(picked):
            rows, refusals = self._rows(keys, picked)
            made[:] = rows
            return made, refusals
        rows, refusals = self._rows([keys[i] for i in here], [picked[i] for i in here])
        for i, row in zip(here, rows, strict=True):
            made[i] = row
        return made, refusals

    def _rows(
        self, keys: Sequence[bytes], picked: Sequence[Sequence[bytes | None]]
    ) -> tuple[list[bytes], list[Refusal]]:
        view, count = self._view, len(picked)
        block = np.zeros(count, view.newest.stored)
        raw = block.view(np.uint8).reshape(count, block.dtype.itemsize)
        block["format"] = FORMAT
        block["fingerprint"] = view.fingerprint
        block["valid"] = self._valid_bytes
        troubles: dict[int, tuple[str, Trouble]] = {}
        nulls: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]] = []
        for decoder, first, last, columns, runs in self._groups:
            messages = list(chain.from_iterable([values[first:last] for values in picked]))
            values, null, bad = decoder.decode(messages)
            width = values.shape[1]
            wide = values.reshape(count, (last - first) * width)
            for start, many, at, end in runs:
                raw[:, at:end].view(values.dtype)[:] = wide[:, start * width : (start + many) * width]
            if null is not None:
                nulls.append((columns, null.reshape(count, last - first)))
            for i, trouble in bad.items():
                row, column = divmod(i, last - first)
                troubles.setdefault(row, (self._columns[first + column].name, trouble))
        if nulls:
            self._put_nulls(block, nulls)
        block["event_ms"] = self._event_times([values[-1] for values in picked], troubles)
        rows = sealed(block, keys)
        refusals = []
        for row, (column_name, (reason, why)) in sorted(troubles.items()):
            rows[row] = refused(reason)
            refusals.append(Refusal(view.ref, keys[row], column_name, reason, why))
        return rows, refusals

    def _put_nulls(
        self,
        block: npt.NDArray[Any],
        nulls: Sequence[tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]],
    ) -> None:
        valid = np.ones((len(block), len(self._columns)), np.bool_)
        for columns, null in nulls:
            valid[:, columns] = ~null
        block["valid"] = np.packbits(valid, axis=1, bitorder="little")
        for i in np.flatnonzero(~valid.all(axis=0)).tolist():
            block[f"c{i}"][~valid[:, i]] = self._substitutes[f"c{i}"]

    def _event_times(self, stamps: Sequence[bytes | None], troubles: dict[int, tuple[str, Trouble]]) -> Sequence[int]:
        known: dict[bytes | None, int] = {None: UNKNOWN_MS}
        for stamp in set(stamps):
            if stamp is not None:
                try:
                    at = Timestamp.FromString(stamp)
                except DecodeError:
                    continue
                known[stamp] = at.seconds * 1000 + at.nanos // 1_000_000
        if len(known) < len(set(stamps) | {None}):
            trouble = Trouble("protobuf", f"the time of the row, {self.fields[-1].decode()}, is not a Timestamp")
            for row, stamp in enumerate(stamps):
                if stamp not in known:
                    troubles.setdefault(row, ("", trouble))
                    known[stamp] = UNKNOWN_MS
        return [known[stamp] for stamp in stamps]


def _by_dtype(columns: Sequence[Column]) -> list[int]:
    """The columns' positions, those of one dtype together, else in order."""
    first: dict[Any, int] = {}
    for i, column in enumerate(columns):
        first.setdefault(column.dtype, i)
    return sorted(range(len(columns)), key=lambda i: (first[columns[i].dtype], i))


def _groups(view: View, order: Sequence[int]) -> list[_Group]:
    groups = []
    fields = view.newest.stored.fields
    assert fields is not None  # every row dtype is structured
    first = 0
    while first < len(order):
        dtype = view.columns[order[first]].dtype
        last = first
        runs: list[_Run] = []
        while last < len(order) and view.columns[order[last]].dtype == dtype:
            at = fields[f"c{order[last]}"][1]
            if runs and runs[-1].end == at:
                runs[-1] = runs[-1]._replace(columns=runs[-1].columns + 1, end=at + dtype.bytes)
            else:
                runs.append(_Run(last - first, 1, at, at + dtype.bytes))
            last += 1
        groups.append(_Group(ColumnDecoder(dtype), first, last, np.array(order[first:last], np.intp), runs))
        first = last
    return groups
