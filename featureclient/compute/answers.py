"""What a function or a query gave, checked against its view and brought into plain arrays. Pure; runs in the worker.

    table ──▶ the join keys name the ids ──▶ every other column in the view's dtype ──▶ Answer

Invariants
- A row reaches the id that it names and no other; its place in the table means nothing.
- A row for an id that nobody asked for is dropped and counted. An id with two rows has none: which would be right?
- An answer holds numpy arrays of numbers, bools and strings only, so reading it runs nobody's code.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featureclient.schema import EVENT_TIME, DType, Id, JoinKey, View
from featureclient.wire.columns import ColumnError, convert, given

_INT64 = DType("int64")
_TIMESTAMP = DType("timestamp")


class AnswerWrong(Exception):
    """The table as a whole is not one of the view."""


@dataclass(frozen=True, slots=True)
class Values:
    """One column: its values, and where they are null (None: nowhere)."""

    values: npt.NDArray[Any]
    null: npt.NDArray[np.bool_] | None

    def take(self, which: npt.NDArray[np.intp]) -> "Values":
        """The values at positions."""
        return Values(self.values[which], None if self.null is None else self.null[which])


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a run. Row i is of the id at `positions[i]` of those that were asked for.

    `wrong` tells, by such positions, for which ids there was a row that cannot be used, and why.
    """

    positions: npt.NDArray[np.intp]
    columns: Mapping[str, Values]
    wrong: Mapping[int, str]
    unasked: int


def checked(view: View, ids: Sequence[Id], table: object) -> Answer:
    """Check a table: a mapping of names to columns, a pyarrow Table or a data frame. Raises AnswerWrong."""
    columns = columns_of(table)
    keys = [key.name for key in view.entity.join_keys]
    dtypes = {column.name: column.dtype for column in view.columns} | {EVENT_TIME: _TIMESTAMP}
    problems = names_trouble(view, columns)
    parts: list[Sequence[Any]] = []
    read = {}
    bad: dict[int, str] = {}
    for name, column in columns.items() if not problems else ():
        try:
            if name in keys:
                continue
            values = convert(dtypes[name], given(column))
        except ColumnError as error:
            problems.append(f"{name}: {error}")
            continue
        read[name] = Values(_texts(values.values) if dtypes[name].kind == "string" else values.values, values.null)
        for row, why in values.bad.items():
            bad.setdefault(row, f"{name}: {why}")
    for key in view.entity.join_keys if not problems else ():
        try:
            parts.append(_parts_of(key, columns[key.name]))
        except ColumnError as error:
            problems.append(f"{key.name}: {error}")
    lengths = {len(part) for part in parts} | {len(column.values) for column in read.values()}
    if not problems and len(lengths) > 1:
        sizes = {name: len(column.values) for name, column in read.items()}
        sizes |= {name: len(part) for name, part in zip(keys, parts, strict=True)}
        problems.append(f"the columns have different lengths: {sizes}")
    if problems:
        raise AnswerWrong("; ".join(problems))
    return _placed(ids, list(parts[0]) if len(parts) == 1 else list(zip(*parts, strict=True)), read, bad)


def names_trouble(view: View, names: Iterable[str]) -> list[str]:
    """What is wrong with the names of a table's columns."""
    keys = [key.name for key in view.entity.join_keys]
    existing = [*keys, *(column.name for column in view.columns), EVENT_TIME]
    there = set(names)
    problems = [f"no join key {name!r}: each row has to say whose it is" for name in keys if name not in there]
    unknown = [name for name in names if name not in existing]
    return problems + [f"the view has no column {name!r}; there are: {', '.join(existing)}" for name in unknown]


def columns_of(table: Any) -> dict[str, Any]:
    """The columns of a table by name."""
    if isinstance(table, Mapping):
        return {str(name): column for name, column in table.items()}
    if hasattr(table, "column_names"):  # a pyarrow Table
        return {name: table.column(name) for name in table.column_names}
    if hasattr(table, "columns") and hasattr(table, "items"):  # a pandas data frame
        return {str(name): column for name, column in table.items()}
    raise AnswerWrong(f"a table is a mapping of names to columns, not {type(table).__name__}")


def _parts_of(key: JoinKey, column: object) -> Sequence[Any]:
    """A join key's column as str or int; None where it is null."""
    if type(column) is list and set(map(type, column)) <= {str if key.dtype == "string" else int}:
        return column
    values, null = given(column)
    if values.ndim != 1:
        raise ColumnError(f"an array of shape {list(values.shape)} for a join key")
    if key.dtype == "int64":
        made = convert(_INT64, given(column))
        parts: list[Any] = made.values.tolist()
        blank, null = set(made.bad), made.null
    else:
        parts, blank = values.tolist(), set()
    for row in blank if null is None else blank | set(np.flatnonzero(null).tolist()):
        parts[row] = None
    strange = next((part for part in parts if part is not None and not isinstance(part, str | int)), None)
    if strange is None and key.dtype == "string":
        strange = next((part for part in parts if isinstance(part, int)), None)
    if strange is not None:
        raise ColumnError(f"{type(strange).__name__} values for a join key of {key.dtype}: cast them")
    return parts


def _placed(ids: Sequence[Id], found: Sequence[Any], columns: Mapping[str, Values], bad: Mapping[int, str]) -> Answer:
    """Which rows are whose."""
    if not bad and len(found) == len(ids) and found == list(ids):
        return Answer(np.arange(len(ids)), columns, {}, 0)
    place = {one: position for position, one in enumerate(ids)}
    rows: dict[int, int] = {}
    wrong: dict[int, str] = {}
    unasked = 0
    for row, one in enumerate(found):
        position = place.get(one)
        if position is None:
            unasked += 1
        elif position in rows or position in wrong:
            rows.pop(position, None)
            wrong.setdefault(position, f"more than one row for the id {one!r}: group by the join keys")
        elif row in bad:
            wrong[position] = f"the id {one!r}: {bad[row]}"
        else:
            rows[position] = row
    which = np.fromiter(rows.values(), np.intp, len(rows))
    kept = {name: column.take(which) for name, column in columns.items()}
    return Answer(np.fromiter(rows, np.intp, len(rows)), kept, wrong, unasked)


def _texts(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Stored strings as text again, which is what a table has. NUL-padded bytes are never longer than the column."""
    texts = np.empty(len(values), object)
    texts[:] = [value.decode() for value in values.tolist()]
    return texts
