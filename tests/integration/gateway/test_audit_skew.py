"""`headrace audit skew`: nothing on an untouched journal, and one changed bit is found, with the row it is in."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from gateway.journal import reader
from gateway.journal.compaction import compact
from gateway.journal.options import JournalOptions
from gateway.server.cli import main
from tests.retraining import START_MS, Retraining, ordinary

FLAGGED = """
validation:
  columns:
    u.age: {range: {min: 20, max: 45}, policy: clip}
    hour: {range: {min: -0.5, max: 0.5}, policy: default, default: 0.125}
    ratio: {range: {min: -0.0625, max: 0.0625}, policy: clip}
    p.spent: {range: {min: 0, max: 60}, policy: fallback}
  fallback: {constant: {score: 0.5, said: none, later: 1}}
"""


def skewed(site: Retraining, *words: str) -> Result:
    command = ["audit", "skew", "--config", str(site.config), "--model", "ranker", *words]
    return CliRunner().invoke(main, command)


def report(site: Retraining, *words: str) -> Any:
    result = skewed(site, "--json", *words)
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def rewrite(site: Retraining, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write the journal's one segment again, changed."""
    (path,) = reader.segments(site.journal)
    table = change(pa.Table.from_batches(reader.batches(path)))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def flipped(table: pa.Table, name: str, row: int, bit: int) -> pa.Table:
    """The table with one bit of one cell the other way round."""
    place = table.schema.get_field_index(name)
    column = table.column(name).combine_chunks()
    kind = column.type
    flat = column.flatten() if pa.types.is_nested(kind) else column
    raw = flat.to_numpy(zero_copy_only=False).copy()
    width = kind.list_size if pa.types.is_nested(kind) else 1
    raw.view(f"u{raw.itemsize}")[row * width] ^= 1 << bit
    made = pa.array(raw, flat.type)
    if pa.types.is_nested(kind):
        made = pa.FixedSizeListArray.from_arrays(made, width)
    return table.set_column(place, table.schema.field(place), made)


async def test_an_untouched_journal_has_no_skew(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    result = skewed(site)
    assert result.exit_code == 0, result.output
    assert "24 rows replayed, 0 differ" in result.output
    found = report(site)
    assert {one["name"] for one in found["columns"]} == {"sine", "ratio", "score", "said", "later"}
    assert all(one["rows"] == 24 and one["differ"] == 0 for one in found["columns"])
    assert found["unverified"] == []


async def test_compacted_rows_are_replayed_like_those_of_segments(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    done = compact(JournalOptions(path=site.journal, free_bytes_min=0, keep_days=0), now_s=START_MS / 1000)
    assert (done.rows, reader.segments(site.journal)) == (24, [])
    served, site.served = site.served, []
    site.serve(START_MS, [{"user": "u1", "product": 1, "hour": 0.1, "tag": "x"}])
    await site.keep()
    assert report(site)["rows"] == 25
    assert report(site)["differ"] == 0
    assert len(served) == 12


@pytest.mark.parametrize(("name", "bit"), [("f.sine", 0), ("f.ratio", 0), ("f.ratio", 31), ("out.score", 20)])
async def test_one_bit_of_what_the_model_makes_is_found(tmp_path: Path, name: str, bit: int) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    rewrite(site, lambda table: flipped(table, name, 7, bit))
    assert skewed(site).exit_code == 1
    found = report(site)
    assert found["differ"] == 1
    (column,) = [one for one in found["columns"] if one["differ"]]
    assert column["name"] == name.partition(".")[2]
    (example,) = column["examples"]
    table = site.journaled()
    assert example[0] == table["prediction_id"][7].as_py().hex()
    assert example[1] == table["row"][7].as_py()
    assert example[2] != example[3]


@pytest.mark.parametrize("name", ["f.hour", "f.p.spent", "f.u.taste", "f.p.clicks", "f.u.half"])
async def test_a_bit_of_what_the_model_is_given_shows_in_what_follows(tmp_path: Path, name: str) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    highest = {"f.u.taste": 29, "f.u.half": 13, "f.p.clicks": 12, "f.hour": 22, "f.p.spent": 51}[name]
    rewrite(site, lambda table: flipped(table, name, 7, highest))
    assert report(site)["differ"] == 1


async def test_a_bit_of_text_shows_in_what_follows(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()

    def change(table: pa.Table) -> pa.Table:
        names = table["f.u.name"].to_pylist()
        names[3] += "x"
        place = table.schema.get_field_index("f.u.name")
        return table.set_column(place, table.schema.field(place), pa.array(names))

    rewrite(site, change)
    found = report(site)
    assert [one["name"] for one in found["columns"] if one["differ"]] == ["said"]


async def test_what_checks_changed_and_replaced_is_no_skew(tmp_path: Path) -> None:
    site = ordinary(tmp_path, requests=60, validation=FLAGGED)
    await site.keep()
    table = site.journaled()
    assert sum(table["violations"].to_pylist()) > 50
    found = report(site)
    assert found["differ"] == 0, found
    assert found["changed_cells"] > 5
    assert 0 < found["replaced"] < found["rows"] == 120
    constants = np.array(table["out.score"].to_pylist()) == 0.5
    assert found["replaced"] == constants.sum()


async def test_a_changed_cell_is_still_seen_by_the_graph(tmp_path: Path) -> None:
    """What a check left behind is what is replayed: with another value there, the output differs."""
    site = ordinary(tmp_path, requests=60, validation=FLAGGED)
    await site.keep()
    table = site.journaled()
    clipped = (np.array(table["f.ratio"]) == 0.0625) & (np.array(table["out.score"].to_pylist()) != 0.5)
    row = int(np.flatnonzero(clipped)[0])
    rewrite(site, lambda table: flipped(table, "f.ratio", row, 28))
    found = report(site)
    assert found["differ"] == 1
    assert [one["name"] for one in found["columns"] if one["differ"]] == ["score"]


async def test_another_model_is_refused(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    manifest = site.manifest.read_text()
    site.manifest.write_text(manifest + "\n# changed\n")
    assert "served with another model.yaml" in skewed(site).output
    site.manifest.write_text(manifest)
    site.write_graph(2.0)
    assert "served with another graph of version 1" in skewed(site).output
    site.write_graph(1.0)
    source = site.folder / f"{site.module}.py"
    source.write_text(source.read_text() + "\n# changed\n")
    refused = skewed(site)
    assert refused.exit_code == 1
    assert f"served with another source of {site.module}" in refused.output
    assert "choose a window" in refused.output


async def test_another_revision_of_a_view_is_refused(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    catalogue = site.folder / "features.yaml"
    catalogue.write_text(catalogue.read_text().replace("visits: {dtype: int16", "visits: {dtype: int32"))
    assert "another revision of stats@1" in skewed(site).output


async def test_another_version_and_an_empty_window(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    shutil.copytree(site.folder / "models/ranker/1", site.folder / "models/ranker/2")
    assert "no rows of version 2 of ranker (it has: 1)" in skewed(site).output
    assert "no version 9 (there are: [1, 2])" in skewed(site, "--version", "9").output
    assert skewed(site, "--version", "1").exit_code == 0
    later = skewed(site, "--version", "1", "--since", "2030-01-01")
    assert (later.exit_code, "the window has no rows" in later.output) == (1, True)
    assert "nothing of the model ranker" in skewed(site, "--journal", str(site.folder / "models")).output
    assert "no journal in" in skewed(site, "--journal", str(site.folder / "none")).output


async def test_a_window_and_a_limit(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    assert report(site, "--limit", "5")["rows"] == 5
    half = report(site, "--since", "2026-05-28T20:28:20")["rows"]  # 2026-05-28 20:26:40 is the first
    assert half == 24 - 1 - 2


async def test_redacted_columns_cannot_be_replayed(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep(pii={"u.age": "mask"})
    assert "column u.age is not in the journal as the model saw it (pii: mask)" in skewed(site).output
    shutil.rmtree(site.journal)
    await site.keep(pii={"user": "hash"}, pii_salt="a secret of ours")
    assert report(site)["differ"] == 0


async def test_damaged_files(tmp_path: Path) -> None:
    site = ordinary(tmp_path)
    await site.keep()
    (path,) = reader.segments(site.journal)
    whole = path.read_bytes()
    path.with_name("1-1-1.arrows").write_bytes(os.urandom(500))
    found = report(site)
    assert (found["rows"], found["differ"]) == (24, 0)
    assert "left out" in found["notes"][0]
    path.write_bytes(whole[:-400])  # the last batch is not whole
    torn = skewed(site)
    assert torn.exit_code == 1
    assert "no rows" in torn.output or "nothing of the model" in torn.output
    folder = site.journal / "parquet/model=ranker/date=2026-05-28"
    folder.mkdir(parents=True)
    (folder / "1.parquet").write_bytes(b"PAR1 and no more")
    assert "1.parquet: is no file of a journal, or is damaged" in skewed(site).output
