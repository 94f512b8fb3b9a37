"""A query on PostgreSQL as a program, through asyncpg.

PostgreSQL numbers its parameters, so the names of a query become numbers, in the order of their first appearance:
`WHERE tailnum = ANY($ids)` is sent as `= ANY($1)`, with the ids as an array. Names inside strings, quoted names,
comments and dollar quotes stay. Where the server cannot tell the type of an array, the query has to:
`unnest($origin::text[], $dest::text[])`.

The session is read-only, and the server itself ends a query after the view's timeout. A connection that was lost while
nobody used it is opened again, once, before the run is given up.
"""

import asyncio
import datetime
import decimal
import os
import re
from collections.abc import Awaitable, Sequence
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
from featureclient.schema import Id, PostgresSource, SqlCompute, View

CONNECT_TIMEOUT_S = 5.0
"""How long a worker that starts waits for the server."""

_PARAMETER = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | (\$\w*\$).*?\1 | \$(?P<name>[A-Za-z_]\w*)""",
    re.VERBOSE | re.DOTALL,
)


def numbered(sql: str) -> tuple[str, list[str]]:
    """The query with numbers for names, and the names in the order of their numbers."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None:
            return found[0]
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return _PARAMETER.sub(number, sql), names


class PostgresProgram:
    """Runs the query on a connection of its own. Construction connects to nothing."""

    def __init__(
        self,
        view: View,
        compute: SqlCompute,
        source: PostgresSource,
        setting: Setting,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        try:
            import asyncpg
        except ImportError as error:
            raise Unfit("SQL on PostgreSQL needs the extra `postgres`: pip install 'headrace[postgres]'") from error
        self._asyncpg = asyncpg
        self._view = view
        self._setting = setting
        self._loop = loop
        self._connection: Any = None
        self._statement: Any = None
        self._sql, self._named = numbered(compute.sql.strip().rstrip(";"))
        check_parameters(view, set(self._named))
        try:
            self._dsn = source.dsn_in(os.environ)
        except KeyError as error:
            raise Unfit(f"the environment variable {error} is not set: it holds the source's DSN") from error

    def check(self) -> None:
        """Prepare the query."""
        self._loop.run_until_complete(self._check())

    def run(self, ids: Sequence[Id]) -> Awaitable[dict[str, Any]]:
        """Execute it."""
        return self._run(ids)

    async def _check(self) -> None:
        asyncpg = self._asyncpg
        try:
            await self._connect(CONNECT_TIMEOUT_S)
        except (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, TimeoutError) as error:
            raise Unavailable(_said(error)) from error
        except asyncpg.PostgresError as error:
            # A server that starts or shuts down, or has no connection left, says so; anything else is the query's.
            if isinstance(error, asyncpg.OperatorInterventionError | asyncpg.InsufficientResourcesError):
                raise Unavailable(_said(error)) from error
            raise Unfit(_said(error)) from error
        described = [
            Described(one.name, one.type.name, _kind(one.type.name)) for one in self._statement.get_attributes()
        ]
        check_columns(self._view, described)

    async def _run(self, ids: Sequence[Id]) -> dict[str, Any]:
        asyncpg = self._asyncpg
        columns = key_columns(self._view, ids)
        keys = parameters(self._view)
        given = [columns[keys[name]] for name in self._named]
        used_before = self._connection is not None
        lost = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)
        try:
            try:
                rows = await self._fetch(given)
            except lost:
                if not used_before:
                    raise
                self._drop()
                rows = await self._fetch(given)
        except lost as error:
            self._drop()
            raise RunFailed("source", _said(error)) from error
        except asyncpg.QueryCanceledError as error:
            raise TimeoutError(_said(error)) from error
        except asyncpg.PostgresError as error:
            self._drop()
            down = isinstance(error, asyncpg.OperatorInterventionError | asyncpg.InsufficientResourcesError)
            raise RunFailed("source" if down else "query", _said(error)) from error
        names = [one.name for one in self._statement.get_attributes()]
        return {name: [_plain(row[i]) for row in rows] for i, name in enumerate(names)}

    async def _fetch(self, given: list[list[Any]]) -> Any:
        # The loop stood still since the last run. Two passes, and asyncpg knows of a session that was ended meanwhile.
        for _ in range(2):
            await asyncio.sleep(0)
        await self._connect(self._setting.timeout_s)
        return await self._statement.fetch(*given)

    async def _connect(self, timeout_s: float) -> None:
        if self._connection is not None and not self._connection.is_closed():
            return
        self._drop()
        settings = {
            "default_transaction_read_only": "on",
            "statement_timeout": str(max(1, round(self._setting.timeout_s * 1000))),
            "application_name": "headrace",
        }
        self._connection = await self._asyncpg.connect(self._dsn, timeout=timeout_s, server_settings=settings)
        self._statement = await self._connection.prepare(self._sql)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _plain(value: Any) -> Any:
    """What the wire room can take: numeric is a float, a date the instant at which it begins."""
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _kind(name: str) -> str:
    if name.endswith("[]"):
        return "list"
    if name.startswith(("timestamp", "date")):
        return "time"
    if name in {"text", "varchar", "bpchar", "name"}:
        return "string"
    if name == "bool":
        return "bool"
    return "number" if name in {"int2", "int4", "int8", "float4", "float8", "numeric"} else "other"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":")
