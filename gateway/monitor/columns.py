"""From a record batch of the journal to one histogram per column.

    batch ─▶ values of each column that has a reference, as they were before a policy changed them ─▶ Histogram

Invariants
- Nulls are the nulls of stored columns (the row had a default in place of them), NaN, and nulls of Arrow.
- A vector counts by its Euclidean norm, as in the profile.
- A column that was hashed, masked or dropped when it was written cannot be compared and is left out.
- Rows that got a fallback's answer, or none, say nothing of the model's outputs.
- One stream may have batches of several kinds: the settings of personal data changed, two gateways have two manifests,
  some callers send tensors. All count into the same bins; those that the profile knows no feature of are left out.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gateway.journal.schema import METADATA, JournalColumn, JournalSchema, metadata_of
from gateway.records.violations import FALLBACK
from gateway.validation.drift import AGE, OUTPUT, STATUS, Reference, references
from gateway.validation.histogram import AGE_EDGES_MS, Binning, Histogram
from gateway.validation.profile import Profile, ProfileError

STATUSES = Binning.between((0.5, 1.5, 2.5, 3.5, 4.5, 5.5))
"""A bin for each outcome of a row's status: unset, PRESENT, STALE, COMPUTED, DEFAULTED, MISSING, OVERRIDDEN."""
AGES = Binning.between(AGE_EDGES_MS)
_OUTCOME = 0x0F
KINDS_MAX = 16
"""Kinds of batches of one stream that are known at once."""


class Counters:
    """A `Counter` for each kind of batches that a stream has had. `profile` is of the stream's model version."""

    def __init__(self, profile: Profile | None, columns_max: int) -> None:
        self._profile = profile
        self._columns_max = columns_max
        self._kinds: list[tuple[pa.Schema, Counter | None]] = []
        self.known: dict[str, Reference] = references(profile) if profile is not None else {}

    @property
    def digest(self) -> str:
        """What the bins are: counts under another digest cannot be added to these."""
        digest = hashlib.blake2b(digest_size=8)
        for name, reference in self.known.items():
            digest.update(repr((name, reference.binning.edges.tobytes(), reference.binning.categories)).encode())
        return digest.hexdigest()

    def of(self, arrow: pa.Schema) -> "Counter | None":
        """Return what counts batches of this schema; None where they are no part of drift.

        Raises `ProfileError`, once for each schema, where the profile does not fit; ValueError for no journal's schema.
        """
        for kind, counter in self._kinds:
            if kind.equals(arrow, check_metadata=True):
                return counter
        del self._kinds[: 1 - KINDS_MAX]
        schema = metadata_of(arrow)
        wrong = self._mismatches(schema)
        counter = None if wrong else self._counter(schema, arrow)
        self._kinds.append((arrow, counter))
        if wrong:
            raise ProfileError(f"the profile does not fit the journal of {schema.model}: {'; '.join(wrong)}")
        return counter

    def _mismatches(self, schema: JournalSchema) -> list[str]:
        if self._profile is None or not self._knows(schema):
            return []
        views = {binding.ref: binding.fingerprint for binding in schema.bindings}
        dtypes = {one.name: str(one.dtype) for one in schema.columns if one.name in self._profile.columns}
        return self._profile.mismatches(schema.model, schema.version, views, dtypes)

    def _knows(self, schema: JournalSchema) -> bool:
        """Whether the profile has a feature of these rows, or has none at all."""
        features = self._profile.columns if self._profile is not None else {}
        return not features or any(one.name in features for one in schema.columns)

    def _counter(self, schema: JournalSchema, arrow: pa.Schema) -> "Counter | None":
        if not self._knows(schema):
            return None
        counter = Counter(schema, arrow, self.known, self._columns_max)
        return counter if counter.names or schema.bindings else None


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
        self._needed += [name for name in ("time", "changed", "verdict") if name in there]
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
        answered = _answered(batch)
        counted = {
            name: _histogram(answered.column(source), binning, None, None)
            if name.startswith(OUTPUT)
            else _histogram(batch.column(source), binning, self._nulls(batch, column), changed.get(name))
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


def _answered(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that the model answered. Older files do not say."""
    if "verdict" not in batch.schema.names:
        return batch
    own = batch.column("verdict").fill_null(0).to_numpy(zero_copy_only=False) < FALLBACK
    return batch if own.all() else batch.filter(pa.array(own))


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
    if changed is not None:
        numbers = numbers.astype(np.float64)
        if pa.types.is_nested(values.type):  # one entry for each element of a vector
            rows, places = np.unique(changed[0], return_inverse=True)
            numbers[rows] = np.sqrt(np.bincount(places, changed[1] ** 2))
        else:
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
