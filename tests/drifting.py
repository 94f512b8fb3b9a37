"""Journals and profiles for tests of drift: columns of numbers and strings as the journal writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featureclient.schema import DType, status
from gateway.journal.schema import JournalBinding, JournalColumn, JournalSchema, Redaction, Where, arrow_schema
from gateway.journal.segment import SegmentFile
from gateway.records.signature import TensorSpec
from gateway.validation.accumulator import ColumnAccumulator
from gateway.validation.profile import Profile

Columns = Mapping[str, npt.NDArray[Any]]

START_MS = 1_700_000_000_000
FINGERPRINT = 7


def dtype_of(values: npt.NDArray[Any]) -> DType:
    if values.dtype.kind == "O":
        return DType.parse("string[16]")
    return DType.parse(f"{values.dtype.name}[{values.shape[1]}]" if values.ndim > 1 else values.dtype.name)


def schema_of_columns(
    columns: Columns, outputs: Sequence[str] = (), model: str = "flight_delay", variant: str = "default"
) -> JournalSchema:
    """The first column is of the view `v@1`, all others came with the request."""
    made = []
    for place, (name, values) in enumerate(columns.items()):
        dtype = dtype_of(values)
        where = Where(0, bit=0) if place == 0 else Where(place - 1, width=dtype.width)
        kind = "stored" if place == 0 else "context"
        element = "string" if dtype.kind == "string" else values.dtype.name
        made.append(JournalColumn(name, dtype, kind, where, element))
    return JournalSchema(
        model,
        1,
        variant,
        "hash",
        tuple(made),
        {"id": "int64"},
        (JournalBinding("v", "v@1", FINGERPRINT, ("id",), 1),),
        tuple(TensorSpec(name, "float32", (None,)) for name in outputs),
        tuple(columns),
    )


def batch_of(
    schema: JournalSchema,
    columns: Columns,
    outputs: Columns,
    at_ms: int = START_MS,
    *,
    nulls: npt.NDArray[np.bool_] | None = None,
    changed: Sequence[Sequence[tuple[int, float | None]]] | None = None,
    outcome: int = status.PRESENT,
    redaction: Redaction | None = None,
) -> pa.RecordBatch:
    """One batch. `nulls` are of the stored column; `changed` has (column, raw value) of each row."""
    rows = len(next(iter(columns.values())))
    arrow = arrow_schema(schema, redaction or Redaction())
    given: dict[str, Any] = {
        "time": pa.array(np.full(rows, at_ms, np.int64), pa.timestamp("ms", tz="UTC")),
        "status.v": np.full(rows, outcome, np.uint8),
        "age_ms.v": np.random.default_rng(at_ms % 1000).integers(0, 50_000, rows),
        "prediction_id": [bytes(16)] * rows,
    }
    if nulls is not None:
        given["null.v"] = pa.array([b"\x01" if null else None for null in nulls], pa.binary(1))
    if changed is not None:
        cells = [[{"column": column, "raw": raw} for column, raw in row] for row in changed]
        given["changed"] = pa.array(cells, arrow.field("changed").type)
    for name, values in columns.items():
        given[f"f.{name}"] = list(values) if values.ndim > 1 else values
    for name, values in outputs.items():
        given[f"out.{name}"] = values
    arrays = [
        pa.nulls(rows, field.type)
        if field.name not in given
        else value
        if isinstance(value := given[field.name], pa.Array)
        else pa.array(value, field.type, from_pandas=False)
        for field in arrow
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow)


def profile_of(columns: Columns, outputs: Columns, model: str = "flight_delay") -> Profile:
    """The profile of these columns."""

    def profiled(values: npt.NDArray[Any]) -> Any:
        accumulator = ColumnAccumulator(dtype_of(values))
        accumulator.add(values)
        return accumulator.profile()

    return Profile(
        model=model,
        version=1,
        manifest_hash="hash",
        views={"v@1": FINGERPRINT},
        rows=len(next(iter(columns.values()))),
        created="2026-01-01T00:00:00+00:00",
        source="test",
        columns={name: profiled(values) for name, values in columns.items()},
        outputs={name: profiled(values) for name, values in outputs.items()},
    )


def segment(folder: Path, schema: JournalSchema, started_ms: int = START_MS, number: int = 0) -> SegmentFile:
    """A segment of a journal, still open."""
    inside = folder / "segments" / schema.model / f"{schema.version}-{schema.variant}-{schema.hash}"
    return SegmentFile(inside, f"{started_ms}-1-{number}", arrow_schema(schema, Redaction()), 0.0)


def save_profile(models: Path, profile: Profile) -> Path:
    """Put the profile where the model repository has it."""
    path = models / profile.model / str(profile.version) / "profile.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profile.to_json())
    return path
