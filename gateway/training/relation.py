"""Files that a user has, as DuckDB relations: Parquet, CSV and Arrow, their column types, and what their times mean.

    table_of(connection, path, name)   -> the columns and their types
    instant(name, kind, zone)          -> SQL that gives a time column as a TIMESTAMP in UTC

Invariant: a time without a zone is refused, or read in the zone that was named. It is never guessed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
from pyarrow import feather

SUFFIXES = ".parquet, .pq, .csv, .arrow or .feather"
_WITH_ZONE = ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS")
_NAIVE = ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE")
_EPOCH_MS = "_ms"
"""Integers are milliseconds since the epoch where the column's name ends like this."""


class RelationError(Exception):
    """A file that cannot be read, or is not what is needed. The message says what to do."""


@contextmanager
def connected(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that puts what does not fit into memory under `folder`. What DuckDB raises becomes RelationError."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET temp_directory = {literal(str(folder / 'spill'))}")
        connection.execute("SET enable_progress_bar = false")
        try:
            yield connection
        except duckdb.Error as error:
            raise RelationError(str(error)) from error


def table_of(
    connection: duckdb.DuckDBPyConnection, path: Path, name: str, texts: Sequence[str] = ()
) -> Mapping[str, str]:
    """Make the view `name` of a file: its columns, and `_row`, the number of the row from 1. Return column -> type.

    `texts` are columns of ids: those of a CSV file are text even where they look like numbers.
    """
    if not path.is_file():
        raise RelationError(f"{path}: there is no such file")
    suffix = path.suffix.lower()
    counted = "*, row_number() OVER () AS _row"
    if suffix in {".parquet", ".pq"}:
        # Not row_number: its order is that of the file only as long as nothing is done to the view in parallel.
        counted = "* EXCLUDE (file_row_number), file_row_number + 1 AS _row"
        source = f"read_parquet({literal(str(path))}, file_row_number = true)"
    elif suffix == ".csv":
        source = f"read_csv({literal(str(path))}{_as_texts(connection, path, texts)})"
    elif suffix in {".arrow", ".feather"}:
        connection.register(f"{name} file", _arrow(path))
        source = quoted(f"{name} file")
    else:
        raise RelationError(f"{path}: the name has to end with {SUFFIXES}")
    try:
        connection.execute(f"CREATE VIEW {quoted(name)} AS SELECT {counted} FROM {source}")  # noqa: S608 - names are quoted
        described = connection.execute(f"DESCRIBE {quoted(name)}").fetchall()
    except duckdb.Error as error:
        raise RelationError(f"{path}: cannot be read: {error}") from error
    return {row[0]: row[1] for row in described if row[0] != "_row"}


def _as_texts(connection: duckdb.DuckDBPyConnection, path: Path, texts: Sequence[str]) -> str:
    try:
        found = {row[0] for row in connection.execute("DESCRIBE SELECT * FROM read_csv(?)", [str(path)]).fetchall()}
    except duckdb.Error as error:
        raise RelationError(f"{path}: cannot be read: {error}") from error
    named = [f"{literal(name)}: 'VARCHAR'" for name in texts if name in found]
    return f", types = {{{', '.join(named)}}}" if named else ""


def _arrow(path: Path) -> pa.Table:
    try:
        return feather.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RelationError(f"{path}: cannot be read: {error}") from error


def needed(path: Path, columns: Mapping[str, str], names: Sequence[str], what: str) -> None:
    """Raise RelationError unless all of these columns are there."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise RelationError(f"{path}: has no column {', '.join(missing)} ({what}; it has: {', '.join(columns)})")


def instant(path: Path, name: str, kind: str, zone: str | None) -> str:
    """SQL for a column of times as TIMESTAMP in UTC. `zone` is what times without a zone are read in."""
    column = quoted(name)
    if kind in _WITH_ZONE:
        return f"timezone('UTC', CAST({column} AS TIMESTAMPTZ))"
    if kind in _NAIVE:
        if zone is None:
            raise RelationError(
                f"{path}: the times of {name} have no zone; write them with one, or name it with --time-zone (UTC, "
                "Europe/Zurich, …)"
            )
        return f"timezone('UTC', timezone({literal(zone)}, CAST({column} AS TIMESTAMP)))"
    if kind in {"BIGINT", "INTEGER", "UBIGINT"} and name.endswith(_EPOCH_MS):
        return f"make_timestamp_ms(CAST({column} AS BIGINT))"
    hint = f"; integers are milliseconds since the epoch where the name ends with {_EPOCH_MS}" if "INT" in kind else ""
    raise RelationError(f"{path}: the column {name} is {kind}, and not a time{hint}")


def check_zone(connection: duckdb.DuckDBPyConnection, zone: str | None) -> None:
    """Raise RelationError for a time zone that there is not."""
    if zone is None:
        return
    if not connection.execute("SELECT count(*) FROM pg_timezone_names() WHERE name = ?", [zone]).fetchall()[0][0]:
        raise RelationError(f"there is no time zone {zone!r}; they are named as UTC or Europe/Zurich")


def reader(connection: duckdb.DuckDBPyConnection, sql: str, rows: int) -> pa.RecordBatchReader:
    """The result in record batches of so many rows."""
    relation = connection.sql(sql)
    read = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader  # its name before DuckDB 1.5
    return read(rows)


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"
