"""`headrace dataset build`: labels meet what was served, and every row and every label is counted."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from gateway.journal import reader
from gateway.journal.compaction import compact
from gateway.journal.options import JournalOptions
from gateway.server.cli import main
from tests.retraining import MINUTE_MS, START_MS, Retraining, ordinary

START = datetime.fromtimestamp(START_MS / 1000, UTC)
MINUTE = timedelta(minutes=1)


def build(site: Retraining, labels: pa.Table | Path, *words: str) -> Result:
    path = labels if isinstance(labels, Path) else site.folder / "labels.parquet"
    if isinstance(labels, pa.Table):
        pq.write_table(labels, path)
    out = str(site.folder / "set.parquet")
    command = ["dataset", "build", "--config", str(site.config), "--model", "ranker", "--labels", str(path), "-o", out]
    return CliRunner().invoke(main, [*command, *words])


def built(site: Retraining, labels: pa.Table | Path, *words: str) -> tuple[pa.Table, dict[str, Any]]:
    result = build(site, labels, "--json", *words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    served = sum(report[name] for name in ("matched", "unmatched", "late", "before", "ambiguous", "repeated"))
    assert served == report["served"]
    assert report["labels"] == sum(report[name] for name in ("incomplete", "duplicates", "used", "unused"))
    table = pq.read_table(site.folder / "set.parquet")
    assert table.num_rows == report["rows_written"]
    return table, report


def by_time(site: Retraining, users: list[str | None], times: list[datetime | None], said: list[int]) -> pa.Table:
    return pa.table({"user": users, "at": pa.array(times, pa.timestamp("us", "UTC")), "clicked": said})


async def alone(folder: Path, minutes: list[int], user: str = "u1") -> Retraining:
    """One user, asked for at these minutes."""
    site = Retraining(folder)
    for minute in minutes:
        site.serve(START_MS + minute * MINUTE_MS, [{"user": user, "product": 1, "hour": float(minute), "tag": ""}])
    await site.keep()
    return site


ENTITY = ("--on", "entity", "--entity", "user", "--label-time", "at")


async def test_by_prediction_id_and_row(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    served = site.journaled()
    ids, rows = served["prediction_id"].to_pylist(), served["row"].to_pylist()
    keep = [0, 3, 4, 5, 9, 23]
    labels = pa.table(
        {
            "prediction_id": [*(ids[one] for one in keep), bytes(16)],
            "row": [*(rows[one] for one in keep), 0],
            "clicked": [*map(float, keep), -1.0],
        }
    )
    table, report = built(site, labels)
    assert (report["matched"], report["unmatched"], report["used"], report["unused"]) == (6, 18, 6, 1)
    assert sorted(table["label.clicked"].to_pylist()) == keep
    for name in served.column_names:
        column = table[name].combine_chunks()
        assert column.type == served[name].type, name
        assert column.to_pylist() == [served[name][int(one)].as_py() for one in table["label.clicked"].to_pylist()], (
            name
        )
    everything, report = built(site, labels, "--keep-unmatched")
    assert everything.num_rows == 24
    assert everything["label.clicked"].null_count == 18


@pytest.mark.parametrize("form", ["hex", "dashes", "csv"])
async def test_prediction_ids_as_text(tmp_path: Path, form: str) -> None:
    site = await alone(tmp_path, [0, 1])
    ids = [one.hex() for one in site.journaled()["prediction_id"].to_pylist()]
    if form == "dashes":
        ids = [f"{one[:8]}-{one[8:12]}-{one[12:16]}-{one[16:20]}-{one[20:]}" for one in ids]
    labels: pa.Table | Path = pa.table({"prediction_id": ids, "y": [10, 20]})
    if form == "csv":
        labels = site.folder / "labels.csv"
        labels.write_text(
            "".join(["prediction_id,y\n", *(f"{one},{y}\n" for one, y in zip(ids, [10, 20], strict=True))])
        )
    table, _ = built(site, labels)
    assert table["label.y"].to_pylist() == [10, 20]
    assert table["f.hour"].to_pylist() == [0.0, 1.0]


async def test_a_label_that_does_not_say_which_row_it_is_of(tmp_path: Path) -> None:
    site = ordinary(tmp_path, requests=3)  # of one row, two, and three
    await site.keep()
    labels = pa.table({"request_id": ["r0", "r1", "r2", "r9", None], "y": [0, 1, 2, 9, 5]})
    table, report = built(site, labels, "--on", "request_id")
    assert table["request_id"].to_pylist() == ["r0"]
    assert (report["ambiguous"], report["unused"], report["incomplete"]) == (5, 3, 1)


async def test_by_entity_a_label_belongs_to_what_was_served_before_it(tmp_path: Path) -> None:
    site = await alone(tmp_path, [0, 10, 20, 30, 100])
    # u2 was never asked for; the label at minute 20 is not one of what was served in that very moment.
    labels = by_time(site, ["u1", "u1", "u2"], [START + 20 * MINUTE, START + 90 * MINUTE, START], [1, 2, 3])
    table, report = built(site, labels, *ENTITY, "--window", "30m")
    assert table["f.hour"].to_pylist() == [0.0, 10.0]
    assert table["label.clicked"].to_pylist() == [1, 1]
    assert table["label.at"].to_pylist() == [START + 20 * MINUTE] * 2
    assert (report["late"], report["unmatched"], report["unused"]) == (2, 1, 2)
    table, report = built(site, labels, *ENTITY, "--window", "2h")
    assert table["label.clicked"].to_pylist() == [1, 1, 2, 2]
    last, report = built(site, labels, *ENTITY, "--window", "2h", "--match", "last")
    assert last["f.hour"].to_pylist() == [10.0, 30.0]
    assert report["repeated"] == 2


async def test_labels_by_id_may_be_late_or_before(tmp_path: Path) -> None:
    site = await alone(tmp_path, [0, 1, 2])
    ids = site.journaled()["prediction_id"].to_pylist()
    times = pa.array([START - MINUTE, START + 2 * MINUTE, START + 99 * MINUTE], pa.timestamp("us", "UTC"))
    labels = pa.table({"prediction_id": ids, "at": times, "y": [1, 2, 3]})
    table, report = built(site, labels, "--label-time", "at", "--window", "1h")
    assert table["label.y"].to_pylist() == [2]
    assert (report["before"], report["late"]) == (1, 1)


async def test_duplicates_are_resolved_by_a_rule_and_counted(tmp_path: Path) -> None:
    site = await alone(tmp_path, [0, 1])
    first, second = (one.hex() for one in site.journaled()["prediction_id"].to_pylist())
    labels = pa.table({"prediction_id": [first, second, first, second, first], "y": [1, 5, 2, 5, 3]})
    table, report = built(site, labels)
    assert table["label.y"].to_pylist() == [3, 5]
    assert (report["duplicates"], report["conflicting"]) == (3, 1)
    assert built(site, labels, "--duplicates", "first")[0]["label.y"].to_pylist() == [1, 5]
    refused = build(site, labels, "--duplicates", "refuse")
    assert (refused.exit_code, "1 keys have labels that say different things" in refused.output) == (1, True)
    # With a time, the newest counts, wherever it stands.
    times = pa.array([START + minute * MINUTE for minute in (9, 9, 3, 3, 5)], pa.timestamp("us", "UTC"))
    newest = built(site, labels.append_column("at", times), "--label-time", "at")[0]
    assert newest["label.y"].to_pylist() == [1, 5]


async def test_time_zones(tmp_path: Path) -> None:
    site = await alone(tmp_path, [0])
    at = START + 5 * MINUTE
    zurich = timezone(timedelta(hours=2))  # in summer
    naive = pa.table({"user": ["u1"], "at": [at.astimezone(zurich).replace(tzinfo=None)], "y": [1]})
    refused = build(site, naive, *ENTITY, "--window", "10m")
    assert refused.exit_code == 1
    assert "the times of at have no zone" in refused.output
    table, _ = built(site, naive, *ENTITY, "--window", "10m", "--time-zone", "Europe/Zurich")
    assert table["label.at"].to_pylist() == [at]
    assert build(site, naive, *ENTITY, "--window", "10m", "--time-zone", "UTC").exit_code == 1  # two hours late
    assert "no time zone 'Mars'" in build(site, naive, *ENTITY, "--window", "10m", "--time-zone", "Mars").output
    aware = pa.table({"user": ["u1"], "at": pa.array([at], pa.timestamp("ns", "Asia/Tokyo")), "y": [1]})
    assert built(site, aware, *ENTITY, "--window", "10m")[0]["label.at"].to_pylist() == [at]
    text = site.folder / "labels.csv"
    text.write_text(f"user,at,y\nu1,{at.astimezone(zurich).isoformat()},1\n")
    assert built(site, text, *ENTITY, "--window", "10m")[0]["label.at"].to_pylist() == [at]
    epoch = pa.table({"user": ["u1"], "at_ms": [int(at.timestamp() * 1000)], "y": [1]})
    table, _ = built(site, epoch, "--on", "entity", "--entity", "user", "--label-time", "at_ms", "--window", "10m")
    assert table["label.at_ms"].to_pylist() == [at]


async def test_hashed_ids_are_joined_by_their_hashes(tmp_path: Path) -> None:
    site = Retraining(tmp_path)
    site.serve(START_MS, [{"user": "u1", "product": 1, "hour": 1.0, "tag": ""}])
    site.serve(START_MS, [{"user": "u2", "product": 1, "hour": 2.0, "tag": ""}])
    await site.keep(pii={"user": "hash"}, pii_salt="a secret of ours")
    labels = by_time(site, ["u2"], [START + MINUTE], [1])
    assert "pii_salt is needed" in build(site, labels, *ENTITY, "--window", "1h").output
    settings = site.config.read_text()
    site.config.write_text(settings.replace("path: journal", "path: journal, pii_salt: a secret of ours"))
    table, _ = built(site, labels, *ENTITY, "--window", "1h")
    assert table["f.hour"].to_pylist() == [2.0]
    assert "u2" not in table["entity.user"].to_pylist()


async def test_rows_of_segments_and_of_parquet_files_are_there_once(tmp_path: Path) -> None:
    site = await alone(tmp_path, [0, 1])
    compact(JournalOptions(path=site.journal, free_bytes_min=0, keep_days=0), now_s=START_MS / 1000)
    site.served.clear()
    site.serve(START_MS + 2 * MINUTE_MS, [{"user": "u1", "product": 1, "hour": 2.0, "tag": ""}])
    await site.keep()
    labels = by_time(site, ["u1"], [START + 10 * MINUTE], [1])
    table, _ = built(site, labels, *ENTITY, "--window", "1h")
    assert table["f.hour"].to_pylist() == [0.0, 1.0, 2.0]
    table, report = built(site, labels, *ENTITY, "--window", "1h", "--since", "2026-05-28T20:27:40")
    assert (table["f.hour"].to_pylist(), report["served"]) == ([1.0, 2.0], 2)


async def test_what_cannot_be_joined(tmp_path: Path) -> None:
    site = await alone(tmp_path, [0])
    good = by_time(site, ["u1"], [START + MINUTE], [1])
    for labels, words, said in (
        (good, (), "has no column prediction_id"),
        (good.drop(["user"]), (*ENTITY, "--window", "1h"), "has no column user"),
        (good, ("--on", "entity", "--label-time", "at", "--window", "1h"), "has no column product"),
        (
            good,
            ("--on", "entity", "--entity", "plane", "--label-time", "at", "--window", "1h"),
            "no request column plane",
        ),
        (good.drop(["clicked"]), (*ENTITY, "--window", "1h"), "nothing but the columns that it is joined by"),
        (good.slice(0, 0), (*ENTITY, "--window", "1h"), "has no rows"),
        (good, (*ENTITY, "--window", "1h", "--since", "2031-01-01"), "nothing was served in this window"),
        (good, (*ENTITY, "--window", "1h", "--version", "7"), "no rows of version 7 (it has: 1)"),
        (good, (*ENTITY, "--window", "soon"), "'soon' is not a length of time"),
        (good, ENTITY, "needs the time of the labels and a window"),
        (pa.table({"user": [5], "at": good["at"], "y": [1]}), (*ENTITY, "--window", "1h"), "user is BIGINT"),
        (
            pa.table({"user": ["u1"], "at": ["noon"], "y": [1]}),
            (*ENTITY, "--window", "1h"),
            "is VARCHAR, and not a time",
        ),
        (pa.table({"prediction_id": ["xyz"], "y": [1]}), (), "the first is row 1"),
    ):
        result = build(site, labels, *words)
        assert result.exit_code != 0
        assert said in " ".join(result.output.split()), result.output
    broken = site.folder / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    assert "cannot be read" in build(site, broken).output
    assert "no such file" in build(site, site.folder / "none.parquet").output
    assert not (site.folder / "set.parquet").exists()
    assert not list(site.folder.glob(".set*"))


async def test_a_damaged_segment_is_left_out_and_said(tmp_path: Path) -> None:
    site = await alone(tmp_path, [0, 1])
    (path,) = reader.segments(site.journal)
    path.with_name("5-5-5.arrows").write_bytes(path.read_bytes()[:100])
    _, report = built(site, by_time(site, ["u1"], [START + 5 * MINUTE], [1]), *ENTITY, "--window", "1h")
    assert report["served"] == 2
    assert "5-5-5.arrows has no whole schema" in report["notes"][0]
