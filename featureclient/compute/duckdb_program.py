"""A query on DuckDB as a program: over Parquet files, CSV files, or the tables of a `.duckdb` file.

The ids are a list parameter, `$ids`, or one list per join key, `$origin` and `$dest`; no id ever becomes text of the
query. The query is one SELECT. A database file is opened read-only, and opened again when it is another file than
before, so that it can be replaced (by a rename) while it serves. Nothing is downloaded: extensions that are not there
are not installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featureclient.compute.programs import (
    Described,
    RunFailed,
    Setting,
    Unavailable,
    Unfit,
    check_columns,
    check_parameters,
    key_columns,
    parameters,
)
from featureclient.schema import DuckdbSource, Id, SqlCompute, View


class DuckdbProgram:
    """Runs the query on a connection of its own. Construction parses the query and connects to nothing."""

    def __init__(self, view: View, compute: SqlCompute, source: DuckdbSource, setting: Setting) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise Unfit("SQL on DuckDB needs the extra `duckdb`: pip install 'headrace[duckdb]'") from error
        self._duckdb = duckdb
        self._view = view
        self._source = source
        self._setting = setting
        self._connection: Any = None
        self._opened: tuple[int, int] | None = None
        try:
            statements = duckdb.extract_statements(compute.sql)
        except duckdb.Error as error:
            raise Unfit(_said(error)) from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise Unfit("the query has to be one SELECT")
        self._sql = statements[0].query.strip().rstrip(";")
        self._named = {str(name) for name in statements[0].named_parameters}
        check_parameters(view, self._named)

    def check(self) -> None:
        """Bind the query to what is there, without reading rows."""
        duckdb = self._duckdb
        try:
            connection = self._connect()
        except duckdb.Error as error:
            raise Unavailable(_said(error)) from error
        sample = key_columns(self._view, [_sample(self._view)])
        try:
            result = connection.execute(f"SELECT * FROM ({self._sql}\n) LIMIT 0", self._given(sample))  # noqa: S608  # configuration
        except (duckdb.IOException, duckdb.HTTPException) as error:
            raise Unavailable(_said(error)) from error
        except duckdb.Error as error:
            raise Unfit(_said(error)) from error
        check_columns(
            self._view, [Described(name, str(kind), _kind(str(kind))) for name, kind, *_ in result.description]
        )

    def run(self, ids: Sequence[Id]) -> dict[str, Any]:
        """Execute it."""
        duckdb = self._duckdb
        try:
            connection = self._connect()
            found: dict[str, Any] = connection.execute(
                self._sql, self._given(key_columns(self._view, ids))
            ).fetchnumpy()
        except (duckdb.IOException, duckdb.ConnectionException, duckdb.HTTPException) as error:
            self._close()
            raise RunFailed("source", _said(error)) from error
        except duckdb.Error as error:
            raise RunFailed("query", _said(error)) from error
        return found

    def _given(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        keys = parameters(self._view)
        return {name: columns[keys[name]] for name in self._named}

    def _connect(self) -> Any:
        path = self._source.path
        now = None if path is None else _identity(path)
        if self._connection is None or now != self._opened:
            self._close()
            options = self._setting.options
            config: dict[str, str | bool | int | float | list[str]] = {
                "threads": options.duckdb_threads,
                "memory_limit": f"{options.duckdb_memory_mb}MB",
                "autoinstall_known_extensions": False,
                # Without it a query could read variables of this module, taken for tables.
                "python_enable_replacements": False,
                "file_search_path": str(self._source.folder),
            }
            database = ":memory:" if path is None else str(path)
            self._connection = self._duckdb.connect(database, read_only=path is not None, config=config)
            self._opened = now
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _sample(view: View) -> Id:
    parts: list[str | int] = ["" if key.dtype == "string" else 0 for key in view.entity.join_keys]
    return parts[0] if len(parts) == 1 else tuple(parts)


def _kind(name: str) -> str:
    """The kind of values of a type, which is spelled as SQL spells it."""
    if name.endswith("]"):
        return "list"
    if name.startswith(("TIMESTAMP", "DATE")):
        return "time"
    if name in {"VARCHAR", "BOOLEAN"} or name.startswith("ENUM"):
        return "bool" if name == "BOOLEAN" else "string"
    numbers = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
    return "number" if name.removeprefix("U").startswith(numbers) else "other"


def _said(error: Exception) -> str:
    """The message up to the picture of the query."""
    return str(error).split("\n\n", 1)[0].strip()
