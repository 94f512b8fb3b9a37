"""`headrace profile` as a user types it, on files of every kind, and what it says of data that does not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from pyarrow import feather

from gateway.server.cli import main
from gateway.validation.profile import Profile
from tests.running import COLUMNS, WEIGHTS, Site, make_site

ROWS = 30_000
"""More than two batches."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, "redis://127.0.0.1:1")


def training() -> dict[str, Any]:
    generator = np.random.default_rng(7)
    taste = generator.normal(size=(ROWS, 2)).astype(np.float32)
    return {
        "item.price": generator.gamma(2, 5, ROWS).astype(np.float32),
        "user.age": pa.array(generator.normal(40, 9, ROWS).astype(np.float32), mask=np.arange(ROWS) % 10 == 0),
        "user.visits": generator.integers(0, 9, ROWS).astype(np.int32),
        "user.taste": pa.FixedSizeListArray.from_arrays(pa.array(taste.ravel()), 2),
        "pair.clicks": generator.integers(0, 500, ROWS).astype(np.int16),
        "hour": generator.integers(0, 24, ROWS).astype(np.float32),
        "noted": np.zeros(ROWS),
    }


def profiled(site: Site, *words: str) -> Result:
    return CliRunner().invoke(main, ["profile", "--config", str(site.config), "--model", "ranker", *words])


def made(site: Site) -> Profile:
    return Profile.load(site.models / "ranker/1/profile.json")


def test_a_parquet_file_in_one_pass(site: Site) -> None:
    columns = training()
    pq.write_table(pa.table(columns), site.folder / "train.parquet", row_group_size=7_000)
    result = profiled(site, "--data", str(site.folder / "train.parquet"))
    assert result.exit_code == 0, result.output
    profile = made(site)
    assert (profile.rows, profile.source) == (ROWS, "train.parquet")
    assert set(profile.columns) == set(COLUMNS)
    assert profile.columns["user.age"].null_share == pytest.approx(0.1)
    assert profile.columns["user.taste"].measure == "norm"
    assert profile.columns["user.visits"].complete
    hour = profile.columns["hour"]
    assert hour.mean == pytest.approx(columns["hour"].mean())
    shares = np.histogram(columns["hour"], hour.edges)[0] / ROWS
    np.testing.assert_allclose(hour.shares, shares, atol=0.002)
    # The outputs are those of the graph over rows whose nulls have their default, -1.
    age = columns["user.age"].fill_null(-1.0).to_numpy()
    taste = columns["user.taste"].flatten().to_numpy().reshape(-1, 2)
    inputs = [columns["item.price"], age, columns["user.visits"], *taste.T, columns["pair.clicks"], columns["hour"]]
    scores = np.stack(inputs, axis=1).astype(np.float32) @ WEIGHTS
    assert profile.outputs["score"].mean == pytest.approx(float(scores.mean()), rel=1e-4)
    assert profile.outputs["score"].max == pytest.approx(float(scores.max()), rel=1e-5)


def test_every_kind_of_file_says_the_same(site: Site) -> None:
    columns = {name: values for name, values in training().items() if name != "user.taste"}
    manifest = site.models / "ranker/model.yaml"
    manifest.write_text(manifest.read_text().replace("user.taste", "user.age, user.visits"))
    table = pa.table(columns)
    folder = site.folder / "parts"
    folder.mkdir()
    for part in range(3):
        pq.write_table(table.slice(part * 10_000, 10_000), folder / f"{part}.parquet")
    feather.write_feather(table, site.folder / "train.feather")
    pcsv.write_csv(table, site.folder / "train.csv")
    found = []
    for name in ("parts", "train.feather", "train.csv"):
        result = profiled(site, "--data", str(site.folder / name))
        assert result.exit_code == 0, result.output
        found.append(made(site))
    for profile in found:
        assert profile.rows == ROWS
        assert profile.columns["user.age"].nulls == ROWS // 10
        assert profile.columns["hour"].mean == pytest.approx(found[0].columns["hour"].mean)
        assert profile.outputs["score"].std == pytest.approx(found[0].outputs["score"].std, rel=1e-5)


def test_a_profile_makes_groups_that_the_manifest_names(site: Site) -> None:
    manifest = site.models / "ranker/model.yaml"
    manifest.write_text(
        manifest.read_text() + "validation: {mahalanobis: {pair: {columns: [user.age, hour], beyond: 0.001}}}\n"
    )
    pq.write_table(pa.table(training()), site.folder / "train.parquet")
    assert profiled(site, "--data", str(site.folder / "train.parquet")).exit_code == 0
    assert made(site).groups["pair"].columns == ("user.age", "hour")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hour": None}, "the data has no column hour"),
        ({"hour": ["noon"] * ROWS}, "column hour: "),
        ({"user.visits": [0.5] * ROWS}, "column user.visits: 0.5 cannot be stored as int32"),
    ],
)
def test_data_that_does_not_fit(site: Site, change: dict[str, Any], said: str) -> None:
    columns = {name: values for name, values in {**training(), **change}.items() if values is not None}
    pq.write_table(pa.table(columns), site.folder / "train.parquet")
    result = profiled(site, "--data", str(site.folder / "train.parquet"))
    assert result.exit_code == 1
    assert said in result.output
    assert not (site.models / "ranker/1/profile.json").exists()


def test_files_that_are_none(site: Site) -> None:
    broken, empty = site.folder / "broken.parquet", site.folder / "empty.parquet"
    broken.write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table(training()).slice(0, 0), empty)
    (site.folder / "none").mkdir()
    for path, said in ((broken, "cannot be read"), (empty, "has no rows"), (site.folder / "none", "files of one kind")):
        result = profiled(site, "--data", str(path))
        assert result.exit_code == 1
        assert said in result.output
    result = profiled(site, "--data", str(empty), "--version", "9")
    assert "no version 9 (there are: [1])" in result.output
    assert profiled(site).exit_code != 0
    journal = profiled(site, "--from-journal", str(site.folder / "none"))
    assert "the journal has nothing of the model ranker" in journal.output


def test_the_file_of_the_flights_example_is_a_profile() -> None:
    path = Path(__file__).parents[3] / "models/flight_delay/1/profile.json"
    profile = Profile.load(path)
    assert profile.rows == 244_737
    assert profile.columns["dep_delay"].max == 1301
    assert json.loads(path.read_text())["source"] == "train.parquet"
