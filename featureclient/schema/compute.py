"""What computes the rows that a view's store never had, and where its SQL runs. Values only: nothing here runs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

EMBEDDED = "duckdb"
"""The source that is there without being declared: a DuckDB in memory, for SQL that reads files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCompute:
    """A callable on arrays, sync or async. `function` is `module:name`, in a module that the settings allow."""

    function: str
    timeout_ms: int = 200
    """How long one batch may take, in milliseconds; its ids then settle as TIMED_OUT."""
    batch_rows_max: int = 1000
    """How many ids one call gets."""
    concurrency_max: int = 2
    """How many batches of the view may be under way at once."""
    write_back: bool = True
    """Whether computed rows are stored, unless the store has got one meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlCompute:
    """A query for the ids `$ids`, run on the catalogue's source `source`. The limits are those of `PythonCompute`."""

    sql: str
    source: str = EMBEDDED
    timeout_ms: int = 200
    batch_rows_max: int = 1000
    concurrency_max: int = 2
    write_back: bool = True


Compute: TypeAlias = PythonCompute | SqlCompute


@dataclass(frozen=True, slots=True)
class DuckdbSource:
    """A DuckDB. `path` is its file, None for one in memory; relative files in SQL are those of `folder`."""

    path: Path | None
    folder: Path


@dataclass(frozen=True, slots=True)
class PostgresSource:
    """A PostgreSQL, by its DSN or by the name of the environment variable that holds it. Exactly one is set."""

    dsn: str | None = None
    dsn_env: str | None = None

    def dsn_in(self, environment: Mapping[str, str]) -> str:
        """The DSN. Raises KeyError with the name of a variable that is not set."""
        return self.dsn if self.dsn is not None else environment[self.dsn_env or ""]

    def __repr__(self) -> str:
        # A DSN may hold a password, and a repr ends up in logs.
        return f"PostgresSource(dsn_env={self.dsn_env!r})" if self.dsn_env else "PostgresSource(dsn=…)"


Source: TypeAlias = DuckdbSource | PostgresSource
