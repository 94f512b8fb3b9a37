"""From a record batch of the journal to one histogram per column.

    batch ─▶ values of each column that has a reference, as they were before a policy changed them ─▶ Histogram

Invariants
- Nulls are the nulls of stored columns (the row had a default in place of them), NaN, and nulls of Arrow.
- A vector counts by its Euclidean norm, as in the profile.
- A column that was hashed, masked or dropped when it was written cannot be compared and is left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gateway.journal.schema import METADATA, JournalColumn, JournalSchema
from gateway.validation.drift import AGE, OUTPUT, STATUS, Reference
from gateway.validation.histogram import AGE_EDGES_MS, Binning, Histogram

STATUSES = Binning.between((0.5, 1.5, 2.5, 3.5, 4.5, 5.5))
"""A bin for each outcome of a row's status: unset, PRESENT, STALE, COMPUTED, DEFAULTED, MISSING, OVERRIDDEN."""
AGES = Binning.between(AGE_EDGES_MS)
_OUTCOME = 0x0F


class Counter:
    """Counts the columns of one stream's batches. `known` has the references of features and outputs."""

    def __init__(
        self, schema: JournalSchema, arrow: pa.Schema, known: Mapping[str, Reference], columns_max: int
    ) -> None:
        hidden = set(json.loads(arrow.metadata[METADATA]).get("redacted", {}))
        there = set(arrow.names)
        self._plan: list[tuple[str, str, Binning, JournalColumn | None]] = []
        for name, reference in known.items():
            column = next((one for one in schema.columns if one.name == name), None)
            source = name if name.startswith(OUTPUT) else f"f.{name}"
            if source in there and not hidden & {name, name.rpartition(".")[2]}:
                self._plan.append((name, source, reference.binning, column))
        del self._plan[columns_max:]
        self._aliases = [one.alias for one in schema.bindings if f"{STATUS}{one.alias}" in there]
        self._places = dict(enumerate(schema.checked))
        self._needed = [source for _, source, _, _ in self._plan] + [
            name for one in self._aliases for name in (STATUS + one, AGE + one, f"null.{one}") if name in there
        ]
        self._needed += [name for name in ("time", "changed") if name in there]
        self._bindings = schema.bindings

    @property
    def names(self) -> list[str]:
        """The columns that are counted."""
        return [name for name, _, _, _ in self._plan]

    def narrowed(self, batch: pa.RecordBatch, rows: npt.NDArray[np.int64] | None) -> pa.RecordBatch:
        """Return only the columns that are counted, and only `rows` where given."""
        batch = batch.select(self._needed)
        return batch if rows is None else batch.take(pa.array(rows))

    def count(self, batch: pa.RecordBatch) -> dict[str, Histogram]:
        """Return the histograms of a batch that was narrowed."""
        changed = dict(_changed(batch.column("changed"), self._places)) if "changed" in batch.schema.names else {}
        counted = {
            name: _histogram(batch.column(source), binning, self._nulls(batch, column), changed.get(name))
            for name, source, binning, column in self._plan
        }
        for alias in self._aliases:
            outcomes = batch.column(STATUS + alias).to_numpy(zero_copy_only=False) & _OUTCOME
            counted[STATUS + alias] = Histogram.of(outcomes, STATUSES)
            counted[AGE + alias] = Histogram.of(batch.column(AGE + alias).to_numpy(zero_copy_only=False), AGES)
        return counted

    def _nulls(self, batch: pa.RecordBatch, column: JournalColumn | None) -> npt.NDArray[np.bool_] | None:
        """Which values of a stored column were null: a bit is set where one was; bytes are null where none was."""
        if column is None or column.kind != "stored" or column.where.bit < 0:
            return None
        name = f"null.{self._bindings[column.where.part].alias}"
        if name not in batch.schema.names or batch.column(name).null_count == len(batch):
            return None
        bits = batch.column(name)
        width = bits.type.byte_width
        place = column.where.bit
        held = np.frombuffer(bits.buffers()[1], np.uint8)[bits.offset * width :][: len(bits) * width]
        nulls: npt.NDArray[np.bool_] = (held.reshape(-1, width)[:, place // 8] >> (place % 8) & 1) == 1
        return nulls & bits.is_valid().to_numpy(zero_copy_only=False) if bits.null_count else nulls


Change = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], Sequence[str | None]]
"""Rows, and the numbers and texts that were there before a policy changed them."""


def _changed(changed: pa.Array, places: Mapping[int, str]) -> Iterator[tuple[str, Change]]:
    if changed.null_count == len(changed):
        return
    cells = changed.flatten()
    if not len(cells):
        return
    rows = pc.list_parent_indices(changed).to_numpy(zero_copy_only=False)
    columns = cells.field("column").to_numpy(zero_copy_only=False)
    raw = cells.field("raw").cast(pa.float64()).to_numpy(zero_copy_only=False)
    texts = cells.field("text").to_pylist() if cells.type.get_field_index("text") >= 0 else [None] * len(cells)
    for index in np.unique(columns):
        here = np.flatnonzero(columns == index)
        if int(index) in places:
            yield places[int(index)], (rows[here].astype(np.int64), raw[here], [texts[place] for place in here])


def _histogram(
    values: pa.Array, binning: Binning, nulls: npt.NDArray[np.bool_] | None, changed: Change | None
) -> Histogram:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _categories(values, binning, nulls, changed)
    numbers = _NUMBERS.get(values.type.id, _plain_numbers)(values)
    if changed is not None and not pa.types.is_nested(values.type):
        numbers = numbers.astype(np.float64)
        numbers[changed[0]] = changed[1]
    return Histogram.of(numbers, binning, nulls)


def _categories(
    values: pa.Array, binning: Binning, nulls: npt.NDArray[np.bool_] | None, changed: Change | None
) -> Histogram:
    if changed is not None:
        texts = values.to_pylist()
        for row, text in zip(changed[0].tolist(), changed[2], strict=True):
            texts[row] = text
        values = pa.array(texts, values.type)
    if nulls is not None and nulls.any():
        values = pc.if_else(pa.array(nulls), pa.scalar(None, values.type), values)
    counted = values.value_counts()
    return Histogram.of_categories(counted.field(0).to_pylist(), counted.field(1).to_pylist(), binning)


def _plain_numbers(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if values.null_count:
        values = values.cast(pa.float64())
    numbers: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers


def _fixed_norms(values: pa.Array) -> npt.NDArray[Any]:
    width = values.type.list_size
    flat = _plain_numbers(values.values)[values.offset * width : (values.offset + len(values)) * width]
    vectors = flat.reshape(len(values), width).astype(np.float64)
    if values.null_count:
        vectors[~values.is_valid().to_numpy(zero_copy_only=False)] = np.nan
    norms: npt.NDArray[Any] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return norms


def _list_norms(values: pa.Array) -> npt.NDArray[Any]:
    flat = _plain_numbers(values.flatten()).astype(np.float64)
    parents = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
    norms = np.sqrt(np.bincount(parents, flat * flat, len(values)))
    norms[~values.is_valid().to_numpy(zero_copy_only=False)] = np.nan
    return norms


_NUMBERS: dict[int, Callable[[pa.Array], npt.NDArray[Any]]] = {
    pa.list_(pa.float32(), 2).id: _fixed_norms,
    pa.list_(pa.float32()).id: _list_norms,
}
