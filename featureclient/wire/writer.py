"""From a table to keys and stored rows, vectorised: one structured array of the stored layout, then one slice a row.

Invariants: every value is stored exactly or its row is bad; a null is a zero bit of the bitmap, and the bytes of the
column's substitute; bad rows are found in all columns before anything is written, and left out of the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from featureclient.schema import BadRow, Id, InvalidId, InvalidTable, View
from featureclient.schema.layout import FLAG_COMPUTED, FORMAT
from featureclient.schema.view import JoinKey
from featureclient.wire.columns import ColumnError, Converted, convert, given
from featureclient.wire.keys import KeyCodec, canonical_part


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows ready for the store, and the first of those that are not. `bad_rows_total` counts all of them."""

    ids: Sequence[Id]
    keys: Sequence[bytes]
    values: Sequence[bytes]
    bad_rows: tuple[BadRow, ...]
    bad_rows_total: int


class RowWriter:
    """Makes stored rows of one view, in its newest revision. At most `bad_rows_max` bad rows are named."""

    def __init__(self, view: View, keys: KeyCodec, bad_rows_max: int = 20) -> None:
        self._view = view
        self._keys = keys
        self._bad_rows_max = bad_rows_max

    def encode(
        self,
        table: Mapping[str, Any],
        event_time_ms: Any,
        event_ms_max: int,
        *,
        first_row: int = 0,
        computed: bool = False,
    ) -> EncodedRows:
        """Encode a table, given as its columns by name: the join keys, and those of the view.

        A column left out is null in every row. `event_time_ms` is one number, or one a row (int64 milliseconds, or
        datetime64); -1 stands for unknown, and events later than `event_ms_max` are bad rows. Bad rows are numbered
        from `first_row`. `computed` marks rows that were computed on demand. Raises InvalidTable when a column as a
        whole is wrong.
        """
        problems = self._unknown_columns(table)
        view = self._view
        bad: dict[int, BadRow] = {}
        parts = []
        for key in view.entity.join_keys:
            try:
                parts.append(_id_parts(key, table.get(key.name), bad))
            except ColumnError as error:
                problems.append(f"{key.name}: {error}")
        converted: list[Converted | None] = []
        for column in view.columns:
            try:
                converted.append(convert(column.dtype, given(table[column.name])) if column.name in table else None)
            except ColumnError as error:
                problems.append(f"{column.name}: {error}")
                converted.append(None)
        lengths = {len(part) for part in parts} | {len(one.values) for one in converted if one is not None}
        if not problems and len(lengths) > 1:
            problems.append(f"the columns have different lengths: {sorted(lengths)}")
        if problems:
            raise InvalidTable(view.ref, problems)
        count = lengths.pop()
        try:
            events = _event_times(event_time_ms, count, event_ms_max, bad)
        except ColumnError as error:
            raise InvalidTable(view.ref, [f"event_time_ms: {error}"]) from error
        for column, one in zip(view.columns, converted, strict=True):
            for row, why in one.bad.items() if one is not None else ():
                bad.setdefault(row, BadRow(row, column.name, why))
        ids, keys, kept = self._encode_ids(parts, count, bad)
        values = self._encode_values(converted, events, keys, kept, FLAG_COMPUTED if computed else 0)
        named = [bad[row] for row in sorted(bad)[: self._bad_rows_max]]
        shifted = tuple(BadRow(one.row + first_row, one.column, one.why) for one in named)
        return EncodedRows(ids, keys, values, shifted, len(bad))

    def _unknown_columns(self, table: Mapping[str, Any]) -> list[str]:
        view = self._view
        existing = [*(key.name for key in view.entity.join_keys), *(column.name for column in view.columns)]
        return [f"no column {name!r}; there are: {', '.join(existing)}" for name in table if name not in existing]

    def _encode_ids(
        self, parts: Sequence[Sequence[Any]], count: int, bad: dict[int, BadRow]
    ) -> tuple[Sequence[Id], list[bytes], npt.NDArray[np.intp] | None]:
        """Ids and keys of the good rows; which rows those are, or None for all."""
        ids: Sequence[Id] = parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
        if not bad:
            try:
                return *self._keys.encode(ids), None
            except InvalidId:
                pass  # found again below, with its row
        good_ids: list[Id] = []
        keys: list[bytes] = []
        kept = []
        for row in range(count):
            if row in bad:
                continue
            try:
                made, key = self._keys.encode(ids[row : row + 1])
            except InvalidId as error:
                bad[row] = BadRow(row, "", error.why)
                continue
            good_ids += made
            keys += key
            kept.append(row)
        return good_ids, keys, np.array(kept, np.intp)

    def _encode_values(
        self,
        converted: Sequence[Converted | None],
        events: npt.NDArray[np.int64],
        keys: Sequence[bytes],
        kept: npt.NDArray[np.intp] | None,
        flags: int,
    ) -> list[bytes]:
        view = self._view
        count = len(events)
        rows = np.zeros(count, view.newest.stored)
        valid = np.ones((count, len(view.columns)), np.bool_)
        for i, (column, one) in enumerate(zip(view.columns, converted, strict=True)):
            place = rows[f"c{i}"]
            substitute: Any = column.substitute
            substitute = substitute.encode() if isinstance(substitute, str) else substitute
            if one is None:
                valid[:, i] = False
                place[:] = substitute
                continue
            place[:] = one.values.reshape(count, column.dtype.width)
            if one.null is not None:
                valid[:, i] = ~one.null
                place[one.null] = substitute
        rows["format"] = FORMAT
        rows["flags"] = flags
        rows["fingerprint"] = view.fingerprint
        rows["event_ms"] = events
        rows["valid"] = np.packbits(valid, axis=1, bitorder="little")
        return sealed(rows if kept is None else rows[kept], keys)


def sealed(rows: npt.NDArray[Any], keys: Sequence[bytes]) -> list[bytes]:
    """The bytes of stored rows (`layout.stored_dtype`), each with its crc32 under its key. `rows` is changed."""
    size = rows.dtype.itemsize
    data = rows.tobytes()
    starts = range(0, len(keys) * size, size)
    rows["crc32"] = [
        crc32(key + data[start : start + 16] + data[start + 20 : start + size])
        for start, key in zip(starts, keys, strict=True)
    ]
    data = rows.tobytes()
    return [data[start : start + size] for start in starts]


def _id_parts(key: JoinKey, column: Any, bad: dict[int, BadRow]) -> Sequence[Any]:
    """A join key's column as a list of str or int; nulls and wrong values become bad rows."""
    if column is None:
        raise ColumnError("the join key is required")
    if type(column) is list and set(map(type, column)) <= {str if key.dtype == "string" else int}:
        return list(column)
    values, null = given(column)
    if values.ndim != 1:
        raise ColumnError(f"an array of shape {list(values.shape)} for a join key")
    parts: list[Any] = values.tolist()
    for row, part in enumerate(parts):
        if part is None or (null is not None and null[row]):
            bad.setdefault(row, BadRow(row, key.name, "the join key is null"))
            continue
        try:
            parts[row] = canonical_part(key, part)
        except ValueError as error:
            bad.setdefault(row, BadRow(row, key.name, str(error)))
    return parts


def _event_times(times: Any, count: int, event_ms_max: int, bad: dict[int, BadRow]) -> npt.NDArray[np.int64]:
    values, null = given([times] if isinstance(times, int) else times)
    if values.shape not in {(1,), (count,)}:
        raise ColumnError(f"an array of shape {list(values.shape)}; one time, or one a row")
    if values.dtype.kind == "M":
        null = np.isnat(values) if null is None else null | np.isnat(values)
        values = values.astype("datetime64[ms]").astype(np.int64)
    elif values.dtype == object and all(type(one) is int for one in values):
        values = values.astype(np.int64)
    elif values.dtype.kind not in "iu":
        raise ColumnError(f"{values.dtype} values for times in milliseconds")
    times_ms = np.broadcast_to(values, (count,)).astype(np.int64)
    nowhen = np.zeros(count, np.bool_) if null is None else np.broadcast_to(null, (count,))
    wrong = nowhen | (times_ms < -1) | (times_ms > event_ms_max)
    for row in np.flatnonzero(wrong).tolist():
        why = "is null" if nowhen[row] else f"{times_ms[row]} is in the future, or before the epoch"
        bad.setdefault(row, BadRow(row, "event_time_ms", why))
    return times_ms
