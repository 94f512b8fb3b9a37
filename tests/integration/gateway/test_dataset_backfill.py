"""`headrace dataset backfill` as a user types it: what it counts, and what it says of tables that do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from gateway.server.cli import main
from tests.retraining import CATALOGUE, MINUTE_MS, START_MS, Retraining, pair_row, user_row


def backfill(site: Retraining, entities: pa.Table, paths: dict[str, Path], *words: str) -> Result:
    path = site.folder / "entities.parquet"
    pq.write_table(entities, path)
    views = [word for ref, file in paths.items() for word in ("--view", f"{ref}={file}")]
    command = ["dataset", "backfill", "--config", str(site.config), "--model", "ranker", "--entities", str(path)]
    return CliRunner().invoke(main, [*command, *views, "-o", str(site.folder / "set.parquet"), *words])


def entities(**changed: Any) -> pa.Table:
    columns = {
        "user": pa.array(["u0", "u1", "u2"]),
        "product": pa.array([1, 1, 1]),
        "hour": pa.array([1.0, 2.0, 3.0], pa.float32()),
        "tag": pa.array(["a", "b", "c"]),
        "time": pa.array([START_MS] * 3, pa.timestamp("ms", "UTC")),
        "clicked": pa.array([True, False, None]),
    }
    return pa.table({name: one for name, one in {**columns, **changed}.items() if one is not None})


def arranged(folder: Path, **how: Any) -> Retraining:
    site = Retraining(folder, **how)
    for minutes in (10, 90):
        site.know("stats@1", START_MS - minutes * MINUTE_MS, user=f"u{minutes // 90}", **user_row(minutes))
        site.know("pairs@1", START_MS - 2 * minutes * MINUTE_MS, user=f"u{minutes // 90}", item=1, **pair_row(minutes))
    site.know("stats@1", START_MS - 10 * MINUTE_MS, user="u0", **user_row(77))
    site.know("stats@1", START_MS + 1, user="u2", **user_row(78))
    return site


def test_rows_and_counts(tmp_path: Path) -> None:
    site = arranged(tmp_path)
    result = backfill(site, entities(), site.write_histories(), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["found"] == {"u": 2, "p": 1}  # u2's row is of the future; u1's pair is past its ttl
    assert report["stale"] == {"u": 1, "p": 0}
    assert report["repeated"] == {"u": 1, "p": 0}
    table = pq.read_table(site.folder / "set.parquet")
    assert table["f.u.visits"].to_pylist() == [user_row(77)["visits"], user_row(90)["visits"], 7]
    assert table["f.p.clicks"].to_pylist() == [pair_row(10)["clicks"], 3, 3]
    assert table["label.clicked"].to_pylist() == [True, False, None]
    assert table["age_ms.u"].to_pylist() == [10 * MINUTE_MS, 90 * MINUTE_MS, -1]
    hour, spent = table["f.hour"].to_numpy(), table["f.p.spent"].to_numpy()
    np.testing.assert_array_equal(table["f.sine"].to_numpy(), np.sin(hour).astype(np.float32))
    assert np.isfinite(spent).all()


def test_a_view_that_rejects_leaves_rows_out(tmp_path: Path) -> None:
    catalogue = CATALOGUE.replace("    max_age: 1h\n", "    max_age: 1h\n    on_missing: reject\n")
    site = arranged(tmp_path, catalogue=catalogue)
    result = backfill(site, entities(), site.write_histories(), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["total"], report["rows"], report["rejected"]) == (3, 2, 1)
    assert pq.read_table(site.folder / "set.parquet")["entity.user"].to_pylist() == ["u0", "u1"]


def test_personal_data_is_treated_as_in_the_journal(tmp_path: Path) -> None:
    site = arranged(tmp_path)
    settings = site.config.read_text()
    secret = "path: journal, pii: {user: hash, tag: drop}, pii_salt: a secret of ours"
    site.config.write_text(settings.replace("path: journal", secret))
    assert backfill(site, entities(), site.write_histories()).exit_code == 0
    table = pq.read_table(site.folder / "set.parquet")
    assert "f.tag" not in table.column_names
    assert all(len(one) == 32 for one in table["entity.user"].to_pylist())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hour": None}, "has no column hour (the model's ids, context and time"),
        ({"product": pa.array(["1", "1", "1"])}, "the ids of product are VARCHAR, they have to be int64"),
        ({"time": pa.array([START_MS] * 3, pa.timestamp("ms"))}, "the times of time have no zone"),
        (
            {"time": pa.array([START_MS, None, None], pa.timestamp("ms", "UTC"))},
            "2 rows have no time, the first is row 2",
        ),
        ({"hour": pa.array([1.0, None, 1.0], pa.float32())}, "no value of the context column hour in row 2"),
        ({"tag": pa.array(["a", "b", "too long"])}, "column tag: "),
    ],
)
def test_entities_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    site = arranged(tmp_path)
    result = backfill(site, entities(**changed), site.write_histories())
    assert result.exit_code == 1
    assert said in result.output
    assert not (site.folder / "set.parquet").exists()


def test_histories_that_do_not_fit(tmp_path: Path) -> None:
    site = arranged(tmp_path)
    paths = site.write_histories()
    assert "no table of pairs@1 (p)" in backfill(site, entities(), {"u": paths["stats@1"]}).output
    table = pq.read_table(paths["stats@1"])
    for changed, said in (
        (table.drop(["visits"]), "has no column visits"),
        (table.drop(["event_time_ms"]), "has no column event_time_ms"),
        (table.set_column(6, "visits", pa.array([0.5] * 4)), "stats@1, column visits: 0.5 cannot be stored as int16"),
        (table.rename_columns({"user": "plane"}), "has no column user"),
    ):
        pq.write_table(changed, paths["stats@1"])
        result = backfill(site, entities(), paths)
        assert result.exit_code == 1
        assert said in result.output
    paths["stats@1"].write_bytes(b"no table")
    assert "cannot be read" in backfill(site, entities(), paths).output
    # What the model does not read may be missing.
    pq.write_table(table.drop(["unread"]), paths["stats@1"])
    assert backfill(site, entities(), paths).exit_code == 0
