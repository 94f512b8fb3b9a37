"""SQL over a journal: its Parquet files and the segments that are not compacted yet, as one.

    journal           every prediction of every model
    <model>           those of one model, with all of its columns
    failures          requests that got an error

A view has the columns of its files and `model`, `version`, `variant`, `date`. Where a column has changed its type,
files with an older type have null in it; `Query.notes` says so.

Invariants: files are listed, and segments are read, under the compactor's reading lock, so that no row is missing or
there twice. Times are UTC. Segments go through temporary Parquet files, deleted at the end, so that memory stays flat.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.journal.compaction import reading_lock, unfinished, with_version
from gateway.journal.locks import locked
from gateway.journal.reader import BadSegment, Segment, failures, segments
from gateway.journal.schema import metadata_of

_FAILURES = "failures"
_TIME = 'CAST("time" AS TIMESTAMP) AS "time"'
"""In UTC without saying so: DuckDB gives times with a zone to Python only where pytz is installed."""


class BadQuery(ValueError):
    """SQL that DuckDB does not take, or cannot run."""


@dataclass(slots=True)
class Query:
    """A connection with the views of a journal."""

    connection: duckdb.DuckDBPyConnection
    models: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def opened(root: Path, models: Sequence[str] = ()) -> Iterator[Query]:
    """Views over a journal. `models` limits them to some. Raises FileNotFoundError when there is no journal.

    What DuckDB raises inside becomes a BadQuery.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no journal in {root}")
    with tempfile.TemporaryDirectory(prefix="headrace-query-") as folder, duckdb.connect() as connection:
        query = Query(connection)
        connection.execute("SET TimeZone = 'UTC'")
        files = _files(root, Path(folder), models, query.notes)
        for model, groups in files.items():
            _create(query, model, groups)
        query.models = [model for model in files if model != _FAILURES]
        _create_journal(query)
        try:
            yield query
        except duckdb.Error as error:
            raise BadQuery(f"{error}\nviews: {', '.join(['journal', *files]) if files else 'none yet'}") from error


_Groups = dict[pa.Schema, list[Path]]


def _files(root: Path, folder: Path, models: Sequence[str], notes: list[str]) -> dict[str, _Groups]:
    """Parquet files by model and by schema, oldest first."""
    found: dict[str, _Groups] = {}
    with locked(reading_lock(root), shared=True):
        done, nameless = unfinished(root)
        parquet = sorted((root / "parquet").glob("model=*/date=*/*.parquet"))
        for path in [*parquet, *sorted((root / "parquet-failures").glob("date=*/*.parquet")), *nameless]:
            name = path.parent.parent.name
            _add(found, unquote(name.removeprefix("model=")) if name.startswith("model=") else _FAILURES, path, models)
        for number, path in enumerate([*segments(root), *failures(root)]):
            if path not in done:
                _pour(path, folder / f"{number}.parquet", found, models, notes)
    return found


def _pour(path: Path, copy: Path, found: dict[str, _Groups], models: Sequence[str], notes: list[str]) -> None:
    """A segment as a Parquet file."""
    try:
        with Segment(path) as segment:
            try:
                model = metadata_of(segment.arrow).model
            except ValueError:
                model = _FAILURES
            if models and model not in (*models, _FAILURES):
                return
            writer = None
            for batch, _ in segment.read_from():
                whole = with_version(batch)
                if writer is None:
                    writer = pq.ParquetWriter(copy, whole.schema, compression="none")
                writer.write_batch(whole)
            if writer is not None:
                writer.close()
                _add(found, model, copy, models)
    except FileNotFoundError:
        return
    except BadSegment as error:
        notes.append(f"left out: {error}")


def _add(found: dict[str, _Groups], model: str, path: Path, models: Sequence[str]) -> None:
    if not models or model in (*models, _FAILURES):
        schema = pq.read_schema(path).remove_metadata()
        found.setdefault(model, {}).setdefault(schema, []).append(path)


def _create(query: Query, model: str, groups: _Groups) -> None:
    """The view of one model."""
    kinds = _kinds(list(groups))
    parts = []
    for schema, paths in groups.items():
        other = [name for name in schema.names if schema.field(name).type != kinds[name]]
        if other:
            query.notes.append(f"{model}: {', '.join(other)} had another type in {len(paths)} files, null there")
        kept = ", ".join(_TIME if name == "time" else _quoted(name) for name in schema.names if name not in other)
        listed = ", ".join(_literal(str(path)) for path in paths)
        day = 'CAST("time" AS DATE) AS "date"'
        named = f"{day}, {kept}" if model == _FAILURES else f'{_literal(model)} AS "model", {day}, {kept}'
        parts.append(f"SELECT {named} FROM read_parquet([{listed}], hive_partitioning = false)")  # noqa: S608 - names are quoted
    query.connection.execute(f"CREATE VIEW {_quoted(model)} AS {' UNION ALL BY NAME '.join(parts)}")


def _create_journal(query: Query) -> None:
    """The view of all models. A column that two models have in different types is in their own views only."""
    columns: dict[str, Mapping[str, str]] = {}
    for model in query.models:
        described = query.connection.execute(f"DESCRIBE {_quoted(model)}").fetchall()
        columns[model] = {row[0]: row[1] for row in described}
    kinds: dict[str, set[str]] = {}
    for of_model in columns.values():
        for name, kind in of_model.items():
            kinds.setdefault(name, set()).add(kind)
    other = {name for name, found in kinds.items() if len(found) > 1}
    if other:
        query.notes.append(f"journal: without {', '.join(sorted(other))}, whose types differ from model to model")
    parts = [
        f"SELECT {', '.join(_quoted(name) for name in of_model if name not in other)} FROM {_quoted(model)}"  # noqa: S608 - names are quoted
        for model, of_model in columns.items()
    ]
    if parts and "journal" not in query.models:
        query.connection.execute(f"CREATE VIEW journal AS {' UNION ALL BY NAME '.join(parts)}")


def _kinds(schemas: Sequence[pa.Schema]) -> dict[str, pa.DataType]:
    """The newest type of each column."""
    return {field.name: field.type for schema in schemas for field in schema}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
