"""Rows computed by functions and by DuckDB, in real worker processes."""

import asyncio
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvloop

from featureclient.client import FeatureClient
from featureclient.compute import ComputeFailed, ComputeOptions, Computer, ComputeTimedOut
from featureclient.events import ComputeRun, Event
from featureclient.schema import Catalogue, ConfigError, InvalidId, View, status
from featureclient.store.redis import RedisOptions, RedisStore

ENTITIES = "entities: {plane: {tailnum: string}, hour: {origin: string, hour: int64}}\nviews:\n"
OPTIONS = ComputeOptions(compute_modules=("tests.computing",), workers=1)
LATE_S = 30.0
"""What a run may take on a machine that is busy with other tests."""


def catalogue_of(folder: Path, sources: str = "", **views: str) -> Catalogue:
    """Views of planes with the columns a and b; each is computed by what is given."""
    text = ENTITIES
    for name, compute in views.items():
        entity = "hour" if name.startswith("hour") else "plane"
        text += f"  {name}@1:\n    entity: {entity}\n    columns: {{a: int64, b: float32}}\n    on_missing: compute\n"
        text += f"    compute: {{timeout_ms: 20000, {compute}}}\n"
    return Catalogue.parse(text + (f"sources:\n  {sources}\n" if sources else ""), str(folder / "features.yaml"))


def python(function: str) -> str:
    return f'python: "tests.computing:{function}"'


def sql(query: str, on: str = "duckdb") -> str:
    return f"sql: {query!r}, on: {on}"


def values(table: Any, key: str = "tailnum", column: str = "a") -> dict[Any, Any]:
    return dict(zip(table[key], np.ma.MaskedArray(table[column]).tolist(), strict=True))


async def compute(view: View, ids: Sequence[Any], computer: Computer) -> Any:
    async with asyncio.timeout(LATE_S):
        return await computer.compute(view, ids, math.inf)


@pytest.fixture
def flights(tmp_path: Path) -> Path:
    """A folder with a Parquet file: plane A1 has 3 flights, B2 has 2, and there are 1,000 more with 1."""
    planes = ["A1", "A1", "A1", "B2", "B2", *(f"P{n}" for n in range(1000))]
    delays = pa.array([1.0, 2.0, 3.0, None, None, *range(1000)], pa.float64())
    pq.write_table(pa.table({"tailnum": planes, "delay": delays}), tmp_path / "flights.parquet")
    return tmp_path


COUNTED = (
    "SELECT tailnum, count(*) AS a, avg(delay) AS b FROM 'flights.parquet'"
    " WHERE tailnum IN (SELECT unnest($ids)) GROUP BY tailnum"
)


async def test_a_function_computes_the_rows_of_the_ids_that_it_knows(tmp_path: Path) -> None:
    catalogue = catalogue_of(tmp_path, v=python("lengths"), w=python("slow_lengths"), hours=python("by_route"))
    events: list[Event] = []
    async with Computer(catalogue, OPTIONS, on_event=events.append) as computer:
        for name in ("v@1", "w@1"):
            assert computer.names(catalogue.view(name))
            table = await compute(catalogue.view(name), ["abc", "-", "de", "abc"], computer)
            assert values(table) == {"abc": 3, "de": 2}
        table = await compute(catalogue.view("hours@1"), [("JFK", 4), ("EWR", "-3")], computer)
        assert (table["origin"], table["hour"], table["a"].tolist()) == (["JFK", "EWR"], [4, -3], [8, -6])
        assert (await computer.attempt(catalogue.view("v@1"), [], math.inf)).table == {"tailnum": []}
        with pytest.raises(InvalidId):
            await computer.compute(catalogue.view("v@1"), [7], math.inf)
    runs = [event for event in events if isinstance(event, ComputeRun)]
    assert [(run.view, run.rows, run.found, run.error) for run in runs] == [
        ("v@1", 3, 2, None),
        ("w@1", 3, 2, None),
        ("hours@1", 2, 2, None),
    ]


async def test_rows_go_to_the_ids_that_they_name(tmp_path: Path) -> None:
    catalogue = catalogue_of(tmp_path, v=python("backwards"))
    events: list[Event] = []
    async with Computer(catalogue, OPTIONS, on_event=events.append) as computer:
        tables = await asyncio.gather(
            *[compute(catalogue.view("v@1"), ["x" * (i + 1), "y" * (i + 2)], computer) for i in range(20)]
        )
    assert [values(table) for table in tables] == [{"x" * (i + 1): i + 1, "y" * (i + 2): i + 2} for i in range(20)]
    assert {event.unasked for event in events if isinstance(event, ComputeRun)} == {1}


async def test_ids_that_wait_are_computed_together_and_cut_at_the_bound(tmp_path: Path) -> None:
    catalogue = catalogue_of(tmp_path, v=python("who") + ", batch_rows_max: 10")
    async with Computer(catalogue, OPTIONS) as computer:
        view = catalogue.view("v@1")
        tables = await asyncio.gather(*[compute(view, [f"k{i}"], computer) for i in range(25)])
        sizes = [int(table["b"][0]) for table in tables]
        assert sizes == [10] * 20 + [5] * 5
        table = await compute(view, [f"n{i}" for i in range(1_005)], computer)
        assert table["tailnum"] == [f"n{i}" for i in range(1_005)]
        assert os.getpid() not in set(table["a"].tolist())


async def test_offline_any_number_of_ids_is_computed(tmp_path: Path) -> None:
    catalogue = catalogue_of(tmp_path, v=python("lengths") + ", batch_rows_max: 100")
    options = ComputeOptions(compute_modules=("tests.computing",), workers=1, waiting_ids_max=500)
    ids = [f"{i:05d}" for i in range(5_000)]
    async with Computer(catalogue, options) as computer:
        assert (await compute(catalogue.view("v@1"), ids, computer))["tailnum"] == ids


async def test_duckdb_over_parquet(flights: Path) -> None:
    catalogue = catalogue_of(flights, v=sql(COUNTED))
    async with Computer(catalogue, OPTIONS) as computer:
        assert list(computer.check()) == []
        table = await compute(catalogue.view("v@1"), ["A1", "nobody", "B2"], computer)
        assert values(table) == {"A1": 3, "B2": 2}
        assert values(table, column="b") == {"A1": 2.0, "B2": None}
        # An id is a value and never text of the query.
        table = await compute(catalogue.view("v@1"), ["A1') OR 1=1 --", "'", "$ids"], computer)
        assert table["tailnum"] == []
        table = await compute(catalogue.view("v@1"), [f"P{n}" for n in range(1000)], computer)
        assert len(table["tailnum"]) == 1000


async def test_duckdb_over_its_own_file_which_may_be_replaced(tmp_path: Path) -> None:
    def build(path: Path, offset: int) -> None:
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE hours (origin VARCHAR, hour BIGINT, a BIGINT)")
            connection.execute("INSERT INTO hours VALUES ('JFK', 1, ?), ('JFK', 2, ?), ('EWR', 1, ?)", [offset] * 3)

    build(tmp_path / "a.duckdb", 10)
    query = (
        "SELECT origin, hour, a, CAST(NULL AS FLOAT) AS b FROM hours"
        " WHERE (origin, hour) IN (SELECT (unnest($origin), unnest($hour)))"
    )
    catalogue = catalogue_of(tmp_path, "file: {duckdb: {path: a.duckdb}}", hours=sql(query, on="file"))
    view = catalogue.view("hours@1")
    async with Computer(catalogue, OPTIONS) as computer:
        table = await compute(view, [("JFK", 2), ("EWR", 1), ("EWR", 2)], computer)
        found = zip(table["origin"], table["hour"], table["a"].tolist(), strict=True)
        assert sorted(found) == [("EWR", 1, 10), ("JFK", 2, 10)]
        build(tmp_path / "b.duckdb", 20)
        (tmp_path / "b.duckdb").rename(tmp_path / "a.duckdb")
        table = await compute(view, [("JFK", 2)], computer)
        assert table["a"].tolist() == [20]


@pytest.mark.parametrize(
    ("compute_form", "why"),
    [
        ('python: "os:system"', "module 'os' is not in the setting compute_modules"),
        (python("nothing"), "module 'tests.computing' has no function 'nothing'"),
        (sql("SELECT tailnum, 1 AS a, 2 AS b FROM flights.parquet WHER $ids"), "Parser Error"),
        (sql("SELECT nope FROM 'flights.parquet' WHERE tailnum IN $ids"), "Binder Error"),
        (sql("SELECT tailnum, 1 AS a, 2 AS b FROM missing_table WHERE tailnum IN $ids"), "missing_table"),
        (sql("SELECT tailnum, 1 AS a FROM 'flights.parquet' WHERE tailnum IN $ids"), "gives no column 'b'"),
        (sql("SELECT *, 1 AS a, 2 AS b FROM 'flights.parquet' WHERE tailnum IN $ids"), "gives 'delay', which the view"),
        (
            sql("SELECT tailnum, 'x' AS a, 2 AS b FROM 'flights.parquet' WHERE tailnum IN $ids"),
            "gives 'a' as VARCHAR, the view has int64: cast it",
        ),
        (sql("SELECT 1 AS tailnum, 1 AS a, 2 AS b WHERE 'x' IN $ids"), "the view has string: cast it"),
        (
            sql("SELECT tailnum, 1 AS a, 2 AS b FROM 'f' WHERE tailnum IN $ids AND 1 = $x"),
            r"names \$x; there are: \$ids",
        ),
        (sql("COPY (SELECT $ids) TO 'out.csv'"), "one SELECT"),
        (sql("SELECT 1 WHERE 1 IN $ids; SELECT 2"), "one SELECT"),
    ],
)
async def test_what_can_never_work_is_told_at_the_start(flights: Path, compute_form: str, why: str) -> None:
    catalogue = catalogue_of(flights, v=compute_form)
    with pytest.raises(ConfigError, match=rf"views\.v@1\.compute: .*{why}"):
        async with Computer(catalogue, OPTIONS):
            pass


async def test_a_missing_extra_is_named(flights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (flights / "shadow").mkdir()
    (flights / "shadow" / "duckdb.py").write_text("raise ImportError('not installed')")
    monkeypatch.setattr(sys, "path", [str(flights / "shadow"), *sys.path])
    with pytest.raises(ConfigError, match=r"pip install 'headrace\[duckdb\]'"):
        async with Computer(catalogue_of(flights, v=sql(COUNTED)), OPTIONS):
            pass


async def test_without_computed_views_nothing_is_started() -> None:
    catalogue = Catalogue.parse("entities: {e: {k: string}}\nviews:\n  v@1: {entity: e, columns: {a: int64}}\n")
    async with Computer(catalogue) as computer:
        assert not computer.names(catalogue.view("v@1"))
        assert "idle=0" in repr(computer)


async def test_an_answer_that_is_none_of_the_view_says_so(tmp_path: Path) -> None:
    catalogue = catalogue_of(tmp_path, v=python("broken"), w=python("twice"))
    async with Computer(catalogue, OPTIONS) as computer:
        with pytest.raises(ComputeFailed, match=r"no join key 'tailnum'.*no column 'c'") as failed:
            await compute(catalogue.view("v@1"), ["x"], computer)
        assert failed.value.fault == "answer"
        computed = await computer.attempt(catalogue.view("w@1"), ["once", "twice"], math.inf)
        assert values(computed.table) == {"once": 1}
        assert "more than one row for the id 'twice'" in str(computed.failed["twice"])


async def test_what_is_computed_can_be_written(flights: Path, redis_url: str) -> None:
    catalogue = catalogue_of(flights, v=sql(COUNTED))
    view = catalogue.view("v@1")
    async with (
        Computer(catalogue, OPTIONS) as computer,
        FeatureClient(catalogue, RedisStore(RedisOptions(url=redis_url))) as client,
    ):
        table = await compute(view, ["A1", "B2"], computer)
        assert (await client.write(view, table)).written == 2
        rows = await client.read(view, ["B2", "A1"], timeout_s=LATE_S)
        assert rows.status.tolist() == [status.PRESENT] * 2
        assert rows.columns["a"].tolist() == [2, 3]


async def test_what_a_function_prints_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    catalogue = catalogue_of(tmp_path, v=python("prints"))
    async with Computer(catalogue, OPTIONS) as computer:
        await compute(catalogue.view("v@1"), ["x"], computer)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "said by a function\n")


def test_on_uvloop_and_with_a_large_answer(tmp_path: Path) -> None:
    catalogue = catalogue_of(tmp_path, v=python("lengths") + ", batch_rows_max: 100000")

    async def main() -> None:
        options = replace(OPTIONS, waiting_ids_max=100_000)
        async with Computer(catalogue, options) as computer:
            ids = [f"{i:060d}" for i in range(100_000)]
            table = await compute(catalogue.view("v@1"), ids, computer)
            assert table["tailnum"] == ids
            assert set(table["a"].tolist()) == {60}

    uvloop.run(main())


async def test_a_caller_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    catalogue = catalogue_of(tmp_path, v=python("sleeps"))
    view = catalogue.view("v@1")
    loop = asyncio.get_running_loop()
    async with Computer(catalogue, OPTIONS) as computer:
        patient = asyncio.create_task(compute(view, ["0.5"], computer))
        await asyncio.sleep(0)
        with pytest.raises(ComputeTimedOut, match="in the time that the caller had"):
            await computer.compute(view, ["0.5", "never:1"], loop.time() + 0.05)
        with pytest.raises(ComputeTimedOut):
            await computer.compute(view, ["late"], loop.time() - 1)
        # The run went on for who still waited, and what nobody waits for was not computed.
        assert values(await patient, column="b") == {"0.5": 2.0}
        assert computer.restarts == 0
        assert "'v@1': 0" in repr(computer)
