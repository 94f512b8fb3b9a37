"""The journal as Feast logs the features that it serves: the schema of `FeatureServiceLoggingSource`.

For each view of the model, which stands for a projection under its alias: its join keys by the request's names, and
for each of its features `<alias>__<feature>`, `…__timestamp` (of the event, in seconds) and `…__status` (FieldStatus).
At the end `__log_timestamp`, `__log_date`, `__request_id`. Context, outputs and what is derived have no place in it.

As in Feast, a feature that was not found or null is null here, though the model saw its default.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featureclient.schema import DType, status
from gateway.journal.schema import JournalBinding, JournalColumn, JournalSchema
from gateway.training.window import Part, Window

LOG_TIMESTAMP, LOG_DATE, REQUEST_ID = "__log_timestamp", "__log_date", "__request_id"
_EVENT = pa.timestamp("s", tz="UTC")
_LOGGED = pa.timestamp("us", tz="UTC")
PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = 1, 2, 3, 4
"""The numbers of `feast.serving.FieldStatus`."""
_TYPES = {
    "bool": pa.bool_(),
    "float16": pa.float32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int8": pa.int32(),
    "int16": pa.int32(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("s"),
}


class FeastLogError(Exception):
    """A journal that cannot be told in Feast's schema. The message says why."""


def feast_schema(schema: JournalSchema) -> pa.Schema:
    """The columns of the log of a model."""
    fields: dict[str, pa.DataType] = {}
    for binding in schema.bindings:
        for key in binding.keys:
            fields[key] = pa.int64() if schema.entities[key] == "int64" else pa.string()
        for column, name in _features(schema, binding):
            fields[name] = _type(column.dtype)
            fields[f"{name}__timestamp"] = _EVENT
            fields[f"{name}__status"] = pa.int32()
    fields |= {LOG_TIMESTAMP: _LOGGED, LOG_DATE: pa.date32(), REQUEST_ID: pa.string()}
    return pa.schema([*fields.items()])


def feast_log(window: Window, version: int | None = None) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield the rows of a window, with how many there are so far. Raises FeastLogError.

    All rows have the schema of the version, or of the newest in the window.
    """
    parts = [part for part in window.parts if version in (None, part.schema.version) and part.schema.bindings]
    if not parts:
        raise FeastLogError(f"the journal has no rows of {window.model} with features of views")
    wanted = feast_schema(parts[-1].schema)
    for part in parts:
        if feast_schema(part.schema) != wanted:
            raise FeastLogError(
                f"version {part.schema.version} has other features than version {parts[-1].schema.version} in this "
                "window, and a log has one schema: name a --version, or narrow the window"
            )
        _check_clear(part)
    rows = 0
    for part, batch in window.batches(parts):
        rows += batch.num_rows
        yield logged(part.schema, batch), rows


def _check_clear(part: Part) -> None:
    names = [*part.schema.entities, *(column.name for column in part.schema.columns if column.kind == "stored")]
    hidden = [name for name in names if part.policy(name) is not None]
    if hidden:
        raise FeastLogError(f"{', '.join(hidden)}: the journal has it hashed, masked or not at all (pii)")


def logged(schema: JournalSchema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of the journal as Feast would have logged it."""
    wanted = feast_schema(schema)
    time_ms = batch.column("time").cast(pa.int64()).to_numpy()
    columns: dict[str, pa.Array] = {key: batch.column(f"entity.{key}") for key in schema.entities}
    for binding in schema.bindings:
        codes = batch.column(f"status.{binding.alias}").to_numpy()
        ages_ms = batch.column(f"age_ms.{binding.alias}").to_numpy()
        events = pa.array((time_ms - ages_ms) // 1000, pa.int64(), mask=ages_ms < 0).cast(_EVENT)
        nulls = _null_bits(batch, binding)
        for column, name in _features(schema, binding):
            statuses = _statuses(codes, nulls[:, column.where.bit])
            there = (statuses == PRESENT) | (statuses == OUTSIDE_MAX_AGE)
            columns[name] = _value(batch.column(f"f.{column.name}"), column, wanted.field(name).type, there)
            columns[f"{name}__timestamp"] = events
            columns[f"{name}__status"] = pa.array(statuses)
    moment = batch.column("time").cast(_LOGGED)
    columns |= {LOG_TIMESTAMP: moment, LOG_DATE: moment.cast(pa.date32()), REQUEST_ID: _request_ids(batch)}
    return pa.RecordBatch.from_arrays([columns[field.name] for field in wanted], schema=wanted)


def _features(schema: JournalSchema, binding: JournalBinding) -> Iterator[tuple[JournalColumn, str]]:
    """The journaled columns of a view, in the view's order, and what Feast calls them."""
    own = f"{binding.alias}."
    stored = [one for one in schema.columns if one.kind == "stored" and one.name.startswith(own)]
    for column in sorted(stored, key=lambda one: one.where.bit):
        yield column, f"{binding.alias}__{column.name.removeprefix(own)}"


def _type(dtype: DType) -> pa.DataType:
    kind = _TYPES[dtype.kind]
    return pa.list_(kind) if dtype.length else kind


def _value(values: pa.Array, column: JournalColumn, kind: pa.DataType, there: npt.NDArray[np.bool_]) -> pa.Array:
    if column.dtype.kind == "timestamp":
        numbers = values.flatten() if column.dtype.length else values
        seconds = pa.array(numbers.to_numpy() // 1000, pa.int64()).cast(_TYPES["timestamp"])
        values = pa.FixedSizeListArray.from_arrays(seconds, column.dtype.length) if column.dtype.length else seconds
    # By taking, because a null of its own is not known to casts of lists of a fixed size.
    cast = values.cast(kind)
    return cast.take(pa.array(np.arange(len(cast)), mask=~there))


def _null_bits(batch: pa.RecordBatch, binding: JournalBinding) -> npt.NDArray[np.bool_]:
    """[rows, columns of the view]: which were null."""
    width = max((binding.columns + 7) // 8, 1)
    raw = b"".join(bytes(width) if one is None else one for one in batch.column(f"null.{binding.alias}").to_pylist())
    bits = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(-1, width), axis=1, bitorder="little")
    return bits.astype(np.bool_)


def _statuses(codes: npt.NDArray[np.uint8], null: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    outcome, cause = codes & status.OUTCOME_MASK, codes & status.CAUSE_MASK
    statuses = np.full(len(codes), PRESENT, np.int32)
    statuses[(outcome == status.STALE) & (cause == status.EXPIRED)] = OUTSIDE_MAX_AGE
    statuses[null] = NULL_VALUE
    statuses[np.isin(outcome, (status.UNSET, status.DEFAULTED, status.MISSING))] = NOT_FOUND
    return statuses


def _request_ids(batch: pa.RecordBatch) -> pa.Array:
    """The caller's ids; where it sent none, the prediction's."""
    ids = zip(batch.column("request_id").to_pylist(), batch.column("prediction_id").to_pylist(), strict=True)
    return pa.array([asked or predicted.hex() for asked, predicted in ids], pa.string())
