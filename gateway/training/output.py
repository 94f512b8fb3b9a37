"""Batches -> one Parquet file, written whole or not at all."""

import os
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq


class ParquetOutput:
    """Gets its name when it is closed; what an error or Ctrl-C ends is deleted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "ParquetOutput":
        self._partial.touch()  # a folder that is not there, or not ours, is told before the work
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                if kind is None:
                    self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<ParquetOutput {self.path} {self.rows} rows>"

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. All batches have the columns of the first."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._partial, batch.schema, compression="zstd")
        self._writer.write_batch(batch)
        self.rows += batch.num_rows
