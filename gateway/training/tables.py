"""Training data in batches: Parquet, Arrow, CSV, a folder of them, or a window of the journal.

    open_files, open_journal -> Table(rows, columns, batches)

Columns are named as in a manifest, `alias.column` or a bare name. Only what is asked for is read, and no more than one
batch is held at a time. The journal's rows come with the values that the model saw.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from featureclient.schema import DType
from gateway.journal import reader
from gateway.journal.schema import JournalSchema, metadata_of
from gateway.plan.column import Derived
from gateway.plan.plan import FeaturePlan
from gateway.validation.compiler import columns_read

BATCH_ROWS = 16_384
"""Rows that are held at a time."""
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "ipc", ".feather": "ipc", ".csv": "csv"}


class TableError(Exception):
    """Data that cannot be read, or is not what the model needs."""


@dataclass(frozen=True, slots=True)
class Table:
    """Data that was opened. `batches` is to be called once, with the columns to read."""

    what: str
    rows: int | None
    """None where they are not known before they are read."""
    columns: Sequence[str]
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


def open_files(path: Path, dtypes: Mapping[str, DType]) -> Table:
    """Open a file, or every data file under a folder. `dtypes` says how a CSV file's columns are read."""
    files = sorted(one for one in path.rglob("*") if one.suffix in FORMATS) if path.is_dir() else [path]
    kinds = {FORMATS.get(one.suffix) for one in files}
    if len(kinds) != 1 or None in kinds:
        raise TableError(f"{path}: has to be files of one kind, with names that end with {', '.join(FORMATS)}")
    kind = kinds.pop()
    form: Any = _csv(dtypes) if kind == "csv" else kind
    try:
        data = ds.dataset([str(one) for one in files], format=form)
        rows = None if kind == "csv" else data.count_rows()
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from data.to_batches(columns=[*columns], batch_size=BATCH_ROWS)
        except (OSError, pa.ArrowException) as error:
            raise TableError(f"{path}: {error}") from error

    return Table(path.name, rows, data.schema.names, batches)


def open_journal(
    folder: Path, plan: FeaturePlan, version: int, since: datetime | None = None, until: datetime | None = None
) -> Table:
    """Open what the journal has of one version of a model, from `since` on and before `until`."""
    journal = _Journal(folder, plan, version)
    if not journal.parquet and not journal.segments:
        raise TableError(f"{folder}: the journal has nothing of the model {plan.model}")

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in journal.batches():
            kept = _within(batch, since, until)
            if kept.num_rows:
                yield _as_table(kept, plan, columns)

    # What nothing reads is in the views and not in the journal.
    read = {*columns_read(plan), *(name for one in plan.transforms for name in one.parameters.values())}
    names = [name for name, column in plan.columns.items() if name in read and not isinstance(column.source, Derived)]
    return Table(f"journal {folder.name}", None, names, batches)


class _Journal:
    """The files of one model version under a journal's folder."""

    def __init__(self, folder: Path, plan: FeaturePlan, version: int) -> None:
        self.folder = folder
        self.plan = plan
        self.version = version
        self.segments = [path for path in reader.segments(folder) if path.parent.parent.name == plan.model]
        self.parquet = sorted((folder / "parquet").glob(f"model={plan.model}/**/*.parquet"))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every batch of the version, of compacted files first."""
        for path in self.parquet:
            file = pq.ParquetFile(path)
            if self._wanted(metadata_of(file.schema_arrow)):
                yield from file.iter_batches(BATCH_ROWS)
        for path in self.segments:
            with reader.Segment(path) as segment:
                if self._wanted(segment.schema):
                    yield from (batch for batch, _ in segment.read_from())

    def _wanted(self, schema: JournalSchema) -> bool:
        if schema.version != self.version or schema.of_tensors:
            return False
        known = {binding.ref: binding.fingerprint for binding in schema.bindings}
        for binding in self.plan.bindings:
            if known.get(binding.ref) != binding.view.fingerprint:
                raise TableError(
                    f"{self.folder}: has rows that were served with another revision of {binding.ref}; "
                    "move those files away, or profile the training data"
                )
        return True


def _csv(dtypes: Mapping[str, DType]) -> Any:
    import pyarrow.csv as pcsv

    kinds = {
        name: pa.string() if dtype.kind == "string" else pa.from_numpy_dtype(dtype.numpy)
        for name, dtype in dtypes.items()
        if dtype.length is None
    }
    options = pcsv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
    return ds.CsvFileFormat(convert_options=options)


def _within(batch: pa.RecordBatch, since: datetime | None, until: datetime | None) -> pa.RecordBatch:
    when = batch.column("time")
    if since is not None:
        batch = batch.filter(pc.greater_equal(when, pa.scalar(since, when.type)))
        when = batch.column("time")
    if until is not None:
        batch = batch.filter(pc.less(when, pa.scalar(until, when.type)))
    return batch


def _as_table(batch: pa.RecordBatch, plan: FeaturePlan, columns: Sequence[str]) -> pa.RecordBatch:
    """The journal's columns under the manifest's names, with the nulls that stored rows had."""
    arrays = []
    for name in columns:
        if f"f.{name}" not in batch.schema.names:
            raise TableError(f"the journal has no values of {name}: they are redacted, or the model did not read them")
        values = batch.column(f"f.{name}")
        null = _nulls(batch, plan, name)
        if null is not None and null.any():
            values = pc.if_else(pa.array(null), pa.scalar(None, values.type), values)
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, [*columns])


def _nulls(batch: pa.RecordBatch, plan: FeaturePlan, name: str) -> npt.NDArray[np.bool_] | None:
    alias, dot, column = name.partition(".")
    if not dot or f"null.{alias}" not in batch.schema.names:
        return None
    view = next(binding.view for binding in plan.bindings if binding.alias == alias)
    byte, bit = divmod([one.name for one in view.columns].index(column), 8)
    bits = batch.column(f"null.{alias}").to_pylist()
    # As training data has them and as drift counts them: a row that was not there has nulls in all of its columns.
    return np.fromiter((one is not None and bool(one[byte] >> bit & 1) for one in bits), np.bool_, len(bits))
