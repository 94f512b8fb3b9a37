"""Files as pieces of columns: Parquet, Arrow IPC (file or stream), CSV.

A source gives the columns that a view needs, a few thousand rows at a time, and can start behind rows that were done
before. Everything here blocks; the loader runs it in a thread.

A CSV file is read as text and converted here, because Arrow gives up on a whole block for one bad cell. What cannot be
converted stays text, which the column's dtype then refuses by name. An empty cell without quotes is null, and outside
of string columns so are `NA`, `null` and `NULL`. A vector is a JSON list.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from featureclient.schema import EVENT_TIME, BadRow, DType, FeatureError, View

END_BYTES = 65_536
CSV_NULLS = frozenset({"NA", "null", "NULL"})
FORMATS = ".parquet, .csv, .csv.gz, .arrow, .feather or .arrows"


class LoadError(FeatureError):
    """The file as a whole cannot be loaded into the view."""


class Piece(NamedTuple):
    """Some rows of a file. `number_of` has the number of each in the file, from 1, a header not counted.

    `malformed` are rows before the last of them that could not even be cut into columns.
    """

    columns: Mapping[str, Any]
    rows: int
    number_of: Callable[[int], int]
    malformed: Sequence[BadRow] = ()


class Source(Protocol):
    """A file that was opened."""

    rows_total: int | None

    def pieces(self, skip_rows: int) -> Iterator[Piece]:
        """The rows behind the first `skip_rows` (malformed ones are not counted), in order. To be called once."""
        ...


def open_source(path: Path, view: View, piece_rows: int) -> Source:
    """Open a file by what its name ends with. Raises LoadError when it is not what the view needs."""
    import pyarrow as pa

    suffixes = path.suffixes[-2:]
    try:
        if suffixes[-1:] in ([".parquet"], [".pq"]):
            return _Parquet(path, view, piece_rows)
        if suffixes[-1:] in ([".arrow"], [".feather"], [".arrows"], [".ipc"]):
            return _ArrowIpc(path, view, piece_rows)
        if suffixes[-1:] == [".csv"] or suffixes == [".csv", ".gz"]:
            return _Csv(path, view, piece_rows)
    except (OSError, pa.ArrowException) as error:
        raise LoadError(f"{path}: cannot be read: {error}") from error
    raise LoadError(f"{path}: not a format that can be loaded; the name has to end with {FORMATS}")


def _needed(path: Path, view: View, existing: Sequence[str]) -> list[str]:
    """The columns to read: join keys, the view's columns, and the event time where the file has one."""
    needed = [*(key.name for key in view.entity.join_keys), *(column.name for column in view.columns)]
    missing = [name for name in needed if name not in existing]
    if missing:
        raise LoadError(f"{path}: no column {', '.join(missing)}; there are: {', '.join(existing)}")
    return [*needed, EVENT_TIME] if EVENT_TIME in existing else needed


def _cut(batches: Iterator[Any], skip_rows: int, piece_rows: int) -> Iterator[Piece]:
    """Record batches of any size as pieces, without the first rows."""
    before = 0
    for batch in batches:
        for start in range(min(max(0, skip_rows - before), batch.num_rows), batch.num_rows, piece_rows):
            some = batch.slice(start, piece_rows)
            columns = {name: some.column(i) for i, name in enumerate(some.schema.names)}
            yield Piece(columns, some.num_rows, (before + start + 1).__add__)
        before += batch.num_rows


class _Parquet:
    """Row groups that were done are skipped without being read."""

    def __init__(self, path: Path, view: View, piece_rows: int) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        self._needed = _needed(path, view, self._file.schema_arrow.names)
        self._piece_rows = piece_rows
        self.rows_total: int | None = self._file.metadata.num_rows

    def pieces(self, skip_rows: int) -> Iterator[Piece]:
        """One row group after the other."""
        metadata = self._file.metadata
        first = before = 0
        while first < metadata.num_row_groups and before + metadata.row_group(first).num_rows <= skip_rows:
            before += metadata.row_group(first).num_rows
            first += 1
        groups = list(range(first, metadata.num_row_groups))
        if groups:
            batches = self._file.iter_batches(self._piece_rows, row_groups=groups, columns=self._needed)
            for piece in _cut(batches, skip_rows - before, self._piece_rows):
                yield piece._replace(number_of=(piece.number_of(0) + before).__add__)


class _ArrowIpc:
    """The file format (Feather V2 is the same), or the stream format."""

    def __init__(self, path: Path, view: View, piece_rows: int) -> None:
        import pyarrow as pa

        self._mapped = pa.memory_map(str(path))
        self._piece_rows = piece_rows
        self.rows_total: int | None = None
        try:
            reader = pa.ipc.open_file(self._mapped)
        except pa.ArrowInvalid:
            self._mapped.seek(0)
            stream = pa.ipc.open_stream(self._mapped)
            self._batches: Iterator[Any] = iter(stream)
            names = stream.schema.names
        else:
            self._batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            names = reader.schema.names
            # Mapped, not read: counting touches the footers only.
            self.rows_total = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        self._needed = _needed(path, view, names)

    def pieces(self, skip_rows: int) -> Iterator[Piece]:
        """One record batch after the other."""
        chosen = (batch.select(self._needed) for batch in self._batches)
        return _cut(chosen, skip_rows, self._piece_rows)


class _Csv:
    """Text, read in one thread so that malformed rows have their numbers."""

    def __init__(self, path: Path, view: View, piece_rows: int) -> None:
        import pyarrow as pa
        from pyarrow import csv

        self._malformed: list[BadRow] = []
        """In the order of the file. Arrow finds them a block ahead of the rows that it gives."""
        self._piece_rows = piece_rows
        self.rows_total: int | None = None
        with csv.open_csv(path, parse_options=csv.ParseOptions(invalid_row_handler=_skip)) as head:
            needed = _needed(path, view, head.schema.names)
        self._dtypes: dict[str, DType | None] = {column.name: column.dtype for column in view.columns}
        self._dtypes[EVENT_TIME] = DType("timestamp")
        self._reader = csv.open_csv(
            path,
            csv.ReadOptions(use_threads=False),
            csv.ParseOptions(newlines_in_values=True, invalid_row_handler=self._malformed_row),
            csv.ConvertOptions(
                include_columns=needed,
                column_types=dict.fromkeys(needed, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )

    def _malformed_row(self, row: Any) -> str:
        why = f"{row.actual_columns} cells instead of {row.expected_columns}"
        # Arrow counts the header as row 1.
        self._malformed.append(BadRow(row.number - 1, "", why))
        return "skip"

    def pieces(self, skip_rows: int) -> Iterator[Piece]:
        """One block of text after the other."""
        told: int | None = None
        for piece in _cut(iter(self._reader), skip_rows, self._piece_rows):
            columns = {name: self._converted(name, column) for name, column in piece.columns.items()}
            first = piece.number_of(0)
            if told is None:
                told = self._number_of(skip_rows)
            last = self._number_of(first + piece.rows - 1)
            malformed = [row for row in self._malformed if told < row.row < last]
            told = last
            yield Piece(columns, piece.rows, partial(self._number_behind, first), malformed)
        if told is None:
            told = self._number_of(skip_rows)
        malformed = [row for row in self._malformed if row.row > told]
        if malformed:
            yield Piece({}, 0, int, malformed)

    def _number_behind(self, first: int, row: int) -> int:
        return self._number_of(first + row)

    def _number_of(self, row: int) -> int:
        """The number in the file of the row that is number `row` among those that are not malformed."""
        for malformed in self._malformed:
            if malformed.row > row:
                break
            row += 1
        return row

    def _converted(self, name: str, texts: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        dtype = self._dtypes.get(name)
        if dtype is None or dtype.kind == "string":
            return texts
        trimmed = pc.utf8_trim_whitespace(texts)
        trimmed = pc.if_else(pc.is_in(trimmed, pa.array(sorted(CSV_NULLS))), pa.scalar(None, pa.string()), trimmed)
        if dtype.length is None and dtype.kind != "timestamp":
            kind = pa.float64() if dtype.is_float else pa.bool_() if dtype.kind == "bool" else pa.int64()
            try:
                return trimmed.cast(kind)
            except pa.ArrowInvalid:
                pass  # one cell at a time, to find the one
        values = np.empty(len(trimmed), object)
        values[:] = [None if text is None else _parsed(dtype, text) for text in trimmed.to_pylist()]
        return values


def _skip(_row: Any) -> str:
    return "skip"


def _parsed(dtype: DType, text: str) -> Any:
    """The value in a cell; the text itself where it is not one, for the dtype to refuse."""
    try:
        if dtype.length is not None:
            return json.loads(text)
        if dtype.is_float:
            return float(text)
        if dtype.kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        return int(text)
    except ValueError:
        return _time(text) if dtype.kind == "timestamp" else text


def _time(text: str) -> Any:
    try:
        return DType("timestamp").value_of(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What makes a file the same file: its size, when it was changed, and its first and last bytes."""

    size: int
    changed_ns: int
    ends: str

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        """Look at the file. Raises LoadError when it is not there."""
        try:
            seen = path.stat()
            with path.open("rb") as file:
                digest = hashlib.blake2b(file.read(END_BYTES), digest_size=16)
                file.seek(max(0, seen.st_size - END_BYTES))
                digest.update(file.read(END_BYTES))
        except OSError as error:
            raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error
        return cls(seen.st_size, seen.st_mtime_ns, digest.hexdigest())
