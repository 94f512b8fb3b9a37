"""`headrace journal`: SQL over live segments and Parquet together, predictions shown, and compacting by hand."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from gateway.journal.journal import Journal
from gateway.journal.options import JournalOptions
from gateway.journal.query import opened
from gateway.records.served import Failed
from gateway.server.cli import main
from tests.journaling import model_of, served_of

MODEL = model_of({"age": "float32", "half": "float16", "email": "string[20]", "taste": "float32[2]"})
OTHER = model_of({"age": "int32"}, name="other")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["journal", *arguments], catch_exceptions=False)


def rows(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


async def write(folder: Path, *, first: int = 0) -> None:
    at_ms = int(time.time() * 1000)  # what is old is deleted by `compact`
    async with Journal(JournalOptions(enabled=True, path=folder, free_bytes_min=0)) as journal:
        journal.offer(MODEL.schema, served_of(MODEL, [1, 2], first=first, at_ms=at_ms))
        journal.offer(OTHER.schema, served_of(OTHER, [1], first=first + 50, at_ms=at_ms))
        journal.fail(Failed(at_ms, "ranker", "INTERNAL", "no", "bad", None))


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A journal of which one part is compacted."""
    await write(tmp_path / "journal")
    assert run("compact", "--journal", str(tmp_path / "journal")).exit_code == 0
    await write(tmp_path / "journal", first=10)
    return tmp_path / "journal"


def test_sql_sees_segments_and_parquet_as_one(folder: Path) -> None:
    sql = "SELECT model, version, count(*) n FROM journal GROUP BY ALL ORDER BY 1"
    counted = rows("query", "--journal", str(folder), sql)
    assert counted == [{"model": "other", "version": 1, "n": 2}, {"model": "ranker", "version": 1, "n": 6}]
    sql = """SELECT "entity.user" u, date > today() - 2 today, len("f.u.taste") l FROM ranker
        WHERE request_id = 'r10'"""
    (row,) = rows("query", "--journal", str(folder), sql)
    assert row == {"u": "u10.0", "today": True, "l": 2}
    failed = rows("query", "--journal", str(folder), "SELECT code FROM failures")
    assert failed == [{"code": "INTERNAL"}] * 2
    with opened(folder, ["other"]) as query:
        assert query.models == ["other"]


def test_a_column_of_two_types_is_named_and_left_out_of_the_view_of_all(folder: Path) -> None:
    result = run("query", "--journal", str(folder), "SELECT * FROM journal LIMIT 1", "--format", "csv")
    assert "f.u.age, whose types differ" in result.stderr
    assert "f.u.age" not in result.stdout


def test_results_go_to_files(folder: Path, tmp_path: Path) -> None:
    for name in ("out.parquet", "out.csv", "out.json"):
        assert run("query", "--journal", str(folder), "SELECT * FROM ranker", "-o", str(tmp_path / name)).exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 6
    assert len(json.loads((tmp_path / "out.json").read_text())) == 6
    assert run("query", "--journal", str(folder), "SELECT 1", "-o", "x.txt").exit_code == 1


def test_show_and_stats(folder: Path) -> None:
    shown = run("show", "--journal", str(folder), "--request-id", "r11")
    assert "u11.1" in shown.stdout
    assert b"prefix__".hex() + f"{11:016x}" in shown.stdout
    by_id = run(
        "show", "--journal", str(folder), "--model", "ranker", "--prediction-id", b"prefix__".hex() + f"{0:016X}"
    )
    assert "u0.0" in by_id.stdout
    assert run("show", "--journal", str(folder), "--request-id", "nobody").exit_code == 1
    stats = run("stats", "--journal", str(folder))
    assert "ranker" in stats.stdout
    assert "3 segments" in stats.stdout


def test_what_is_wrong_is_said_in_a_line(folder: Path, tmp_path: Path) -> None:
    nothing = run("query", "--journal", str(tmp_path / "nowhere"), "SELECT 1")
    assert (nothing.exit_code, nothing.stderr) == (1, f"headrace: no journal in {tmp_path / 'nowhere'}\n")
    wrong = run("query", "--journal", str(folder), "SELECT nothing FROM journal")
    assert wrong.exit_code == 1
    assert "views: journal, " in wrong.stderr
    assert run("compact", "--journal", str(tmp_path / "nowhere")).exit_code == 1
