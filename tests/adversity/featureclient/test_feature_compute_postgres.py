"""Rows computed by SQL on a real PostgreSQL, also while it is down, ends a session, or takes too long."""

import asyncio
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featureclient.compute import ComputeFailed, ComputeOptions, Computer, ComputeShed, ComputeTimedOut
from featureclient.events import ComputeUnavailable, Event
from featureclient.schema import Catalogue, ConfigError
from tests.postgres import Postgres

pytestmark = pytest.mark.needs_postgres

OPTIONS = ComputeOptions(workers=1, breaker_open_s=0.2)
LATE_S = 60.0

TABLES = """
CREATE TABLE flights (tailnum text, delay numeric(6,2), seen date);
INSERT INTO flights VALUES ('A1', 1.5, '2013-01-02'), ('A1', 2.5, '2013-01-01'), ('B2', NULL, NULL);
CREATE TABLE hours (origin text, hour bigint, a bigint, v real[]);
INSERT INTO hours VALUES ('JFK', 1, 11, '{1,2}'), ('JFK', 2, 12, '{3,4}'), ('EWR', 1, 21, NULL)
"""
ACTIVE = "SELECT query FROM pg_stat_activity WHERE state = 'active' AND application_name = 'headrace'"
COUNTED = (
    "SELECT tailnum, count(*) AS a, avg(delay) AS b, min(seen) AS t, true AS ok FROM flights"
    " WHERE tailnum = ANY($ids) GROUP BY tailnum"
)
BY_HOUR = (
    "SELECT origin, hour, a, v FROM hours JOIN unnest($origin::text[], $hour::bigint[]) AS asked(origin, hour)"
    " USING (origin, hour)"
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with two tables."""
    with tempfile.TemporaryDirectory(prefix="hr-pg-") as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            server.sql(TABLES)
            yield server
        finally:
            server.stop()


def catalogue_of(dsn: str, counted: str = COUNTED, timeout_ms: int = 20_000) -> Catalogue:
    return Catalogue.parse(f"""
entities: {{plane: {{tailnum: string}}, hour: {{origin: string, hour: int64}}}}
sources: {{billing: {{postgres: {{dsn: "{dsn}"}}}}}}
views:
  v@1:
    entity: plane
    columns: {{a: int64, b: float32, t: timestamp, ok: bool}}
    on_missing: compute
    compute: {{sql: "{counted}", on: billing, timeout_ms: {timeout_ms}}}
  h@1:
    entity: hour
    columns: {{a: int64, v: "float32[2]"}}
    on_missing: compute
    compute: {{sql: "{BY_HOUR}", on: billing, timeout_ms: {timeout_ms}}}
""")


async def compute(computer: Computer, catalogue: Catalogue, view: str, ids: list[Any]) -> Any:
    async with asyncio.timeout(LATE_S):
        return await computer.compute(catalogue.view(view), ids, math.inf)


async def test_rows_come_with_their_types(postgres: Postgres) -> None:
    catalogue = catalogue_of(postgres.dsn)
    async with Computer(catalogue, OPTIONS) as computer:
        table = await compute(computer, catalogue, "v@1", ["A1", "nobody", "B2", "'; DROP TABLE flights; --"])
        rows = dict(zip(table["tailnum"], zip(*(table[name].tolist() for name in "abt"), strict=True), strict=True))
        assert rows == {"A1": (2, 2.0, 1356998400000), "B2": (1, None, None)}
        assert table["ok"].tolist() == [True, True]
        table = await compute(computer, catalogue, "h@1", [("JFK", 2), ("EWR", 1), ("EWR", 2)])
        found = zip(table["origin"], table["hour"], table["a"].tolist(), table["v"].tolist(), strict=True)
        assert sorted(found) == [("EWR", 1, 21, [None, None]), ("JFK", 2, 12, [3.0, 4.0])]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("SELECT nope FROM flights WHERE tailnum = ANY($ids)", 'UndefinedColumnError: column "nope" does not exist'),
        ("SELEC $ids", "PostgresSyntaxError"),
        ("SELECT tailnum FROM flights WHERE tailnum = ANY($ids)", "gives no column 'a'"),
        (COUNTED.replace("true AS ok", "1 AS ok"), "gives 'ok' as int4, the view has bool: cast it"),
        (COUNTED.replace("GROUP", "AND delay = $x GROUP"), r"the query names \$x; there are: \$ids, \$tailnum"),
    ],
)
async def test_a_query_that_is_wrong_is_told_at_the_start(postgres: Postgres, query: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"views\.v@1\.compute: .*{why}"):
        async with Computer(catalogue_of(postgres.dsn, query.replace('"', "'")), OPTIONS):
            pass


async def test_a_query_cannot_write(postgres: Postgres) -> None:
    query = COUNTED.replace("count(*)", "count(*) + nextval('serial')")
    postgres.sql("CREATE SEQUENCE serial")
    catalogue = catalogue_of(postgres.dsn, query)
    async with Computer(catalogue, OPTIONS) as computer:
        with pytest.raises(ComputeFailed, match="ReadOnlySQLTransactionError"):
            await compute(computer, catalogue, "v@1", ["A1"])


async def test_a_query_that_takes_too_long_is_ended_by_the_server(postgres: Postgres) -> None:
    slow = COUNTED.replace("WHERE", "WHERE (tailnum <> 'A1' OR pg_sleep(3600) IS NOT NULL) AND")
    catalogue = catalogue_of(postgres.dsn, slow, timeout_ms=400)
    async with Computer(catalogue, OPTIONS) as computer:
        with pytest.raises(ComputeTimedOut):
            await compute(computer, catalogue, "v@1", ["A1"])
        async with asyncio.timeout(LATE_S):
            while "pg_sleep" in postgres.sql(ACTIVE):  # noqa: ASYNC110  # another process's state
                await asyncio.sleep(0.05)
            while True:
                computed = await computer.attempt(catalogue.view("v@1"), ["B2"], math.inf)
                if not computed.failed:
                    break
                await asyncio.sleep(0.1)
        assert computed.table["a"].tolist() == [1]


async def test_a_session_that_was_ended_is_opened_again_unseen(postgres: Postgres) -> None:
    catalogue = catalogue_of(postgres.dsn)
    async with Computer(catalogue, OPTIONS) as computer:
        for _ in range(3):
            assert (await compute(computer, catalogue, "v@1", ["A1"]))["a"].tolist() == [2]
            postgres.sql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'headrace'"
            )


async def test_a_server_that_is_down_is_shed_and_comes_back(postgres: Postgres) -> None:
    catalogue = catalogue_of(postgres.dsn)
    async with Computer(catalogue, OPTIONS) as computer:
        assert (await compute(computer, catalogue, "v@1", ["A1"]))["a"].tolist() == [2]
        postgres.stop()
        try:
            for _ in range(OPTIONS.breaker_failures):
                with pytest.raises(ComputeFailed, match="the source of the query does not answer"):
                    await compute(computer, catalogue, "v@1", ["A1"])
            with pytest.raises(ComputeShed):
                await compute(computer, catalogue, "v@1", ["A1"])
        finally:
            postgres.start()
        await asyncio.sleep(OPTIONS.breaker_open_s)
        assert (await compute(computer, catalogue, "v@1", ["A1"]))["a"].tolist() == [2]
        assert computer.restarts == 0


async def test_a_server_that_is_down_at_the_start_is_a_warning(postgres: Postgres) -> None:
    catalogue = catalogue_of(postgres.dsn)
    events: list[Event] = []
    postgres.stop()
    try:
        async with Computer(catalogue, OPTIONS, on_event=events.append) as computer:
            assert {event.view for event in events if isinstance(event, ComputeUnavailable)} == {"v@1", "h@1"}
            with pytest.raises(ComputeShed):
                await compute(computer, catalogue, "v@1", ["A1"])
            postgres.start()
            await asyncio.sleep(OPTIONS.breaker_open_s)
            assert (await compute(computer, catalogue, "v@1", ["A1"]))["a"].tolist() == [2]
    finally:
        if "no server" in postgres.status():
            postgres.start()


async def test_the_dsn_may_be_in_the_environment(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""
entities: {{plane: {{tailnum: string}}}}
sources: {{billing: {{postgres: {{dsn_env: BILLING_DSN}}}}}}
views:
  v@1:
    entity: plane
    columns: {{a: int64}}
    on_missing: compute
    compute:
      sql: SELECT tailnum, count(*) AS a FROM flights WHERE tailnum = ANY($tailnum) GROUP BY 1
      on: billing
      timeout_ms: {20_000}
"""
    catalogue = Catalogue.parse(text)
    monkeypatch.delenv("BILLING_DSN", raising=False)
    with pytest.raises(ConfigError, match="the environment variable 'BILLING_DSN' is not set"):
        async with Computer(catalogue, OPTIONS):
            pass
    monkeypatch.setenv("BILLING_DSN", postgres.dsn)
    async with Computer(catalogue, OPTIONS) as computer:
        assert (await compute(computer, catalogue, "v@1", ["A1"]))["a"].tolist() == [2]
