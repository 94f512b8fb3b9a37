"""Experiments on the flights example: a version is backfilled, shadowed and split, and a bad one is rolled back."""

import asyncio
import json
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from examples.flights.build import write_sources
from examples.flights.data import Flights
from examples.flights.demo import ROWS_FROM_CATALOGUE
from examples.flights.experiment_traffic import FIRST_MONTH, Replayed, by_plane, replay
from examples.flights.features import CATALOGUE, STATISTICS, VIEWS, Features
from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, status
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.client import HeadraceClient
from gateway.experiments.experiment import load
from gateway.server.cli import main
from gateway.training import experiment_rows, window
from gateway.training.dataset import DatasetOptions
from gateway.training.experiment import compare
from tests.running import Running, Site, running
from tests.waiting import eventually

EXAMPLE = CATALOGUE.with_name("experiments.yaml")
ROLLED_BACK_WITHIN = 3_000
"""Requests, of both arms, until a version with a wrong unit is rolled back."""

# What a build makes that was changed by mistake: the minutes lost are hours.
BAD = "".join(
    f"""
  {view}@3:
    entity: {view.removesuffix("_stats")}
    columns:
      flights: {{dtype: int32, default: 0}}
      late_share: {{dtype: float32, default: 0.25}}
      lost_min: {{dtype: float32, default: -6.1}}
"""
    + (
        "      built: {dtype: int16, default: 2002}\n      seats: {dtype: int16, default: 149}\n"
        * (view == "plane_stats")
    )
    for view in STATISTICS
)
CANARY = """
experiments:
  bad_unit:
    model: flight_delay
    variants:
      as_it_is: {}
      hours: {views: {plane_stats: plane_stats@3, route_stats: route_stats@3, carrier_stats: carrier_stats@3}}
    canary:
      by: tailnum
      baseline: as_it_is
      candidate: hours
      steps: [{share: 50, hold: 1h}, {share: 100, hold: 1h}]
      guardrails: {score_shift: 0.1, latency_ratio: null}
    compare: {output: probability}
"""
SPLIT = """
experiments:
  window_split:
    model: flight_delay
    variants:
      all_time: {}
      last_30_days: {views: {plane_stats: plane_stats@2}}
    split: {by: tailnum, weights: {all_time: 50, last_30_days: 50}}
    compare: {output: probability, threshold: 0.5, effect: 0.05, margin: 0.05}
"""


@dataclass(frozen=True)
class Example:
    """The files of the example on a Redis that has the views of the end of September."""

    site: Site
    redis_url: str
    test: Flights
    features: Features

    def command(self, *words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--config", str(self.site.config)])

    def backfill(self) -> Mapping[str, Any]:
        done = self.command("features", "backfill", "plane_stats@2", "--json")
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def experiments(self, text: str) -> None:
        (self.site.folder / "experiments.yaml").write_text(text)

    def write(self, tables: Mapping[str, pa.Table]) -> None:
        async def write() -> None:
            async with self._client() as client:
                for view, table in tables.items():
                    await client.write(view, table)

        asyncio.run(write())

    def read(self, view: str, ids: list[str]) -> Any:
        async def read() -> Any:
            async with self._client() as client:
                return await client.read(view, ids, timeout_s=30)

        return asyncio.run(read())

    def _client(self) -> FeatureClient:
        catalogue = Catalogue.load(self.site.folder / "features.yaml")
        return FeatureClient(catalogue, RedisStore(RedisOptions(self.redis_url)))


@pytest.fixture
def example(redis_url: str, tmp_path: Path, features: Features, flights: Flights, model_folder: Path) -> Example:
    write_sources(features, tmp_path)
    (tmp_path / "features.yaml").write_text(CATALOGUE.read_text().replace(ROWS_FROM_CATALOGUE, "") + BAD)
    shutil.copytree(model_folder, tmp_path / "models" / "flight_delay")
    (tmp_path / "headrace.yaml").write_text(f"""
catalogue: features.yaml
models: models
transform_modules: [flight_transforms]
transform_path: {CATALOGUE.parent}
grpc: {{listen: ["127.0.0.1:0"]}}
http: {{listen: "127.0.0.1:0"}}
store: {{url: "{redis_url}"}}
experiments: experiments.yaml
journal: {{enabled: true, path: journal}}
monitor: {{enabled: false}}
""")
    test = flights.take(flights.month >= FIRST_MONTH)
    made = Example(Site(tmp_path), redis_url, test, features)
    made.write({f"{view}@1": features.table(view) for view in VIEWS})
    made.experiments("experiments: {}\n")
    return made


def in_hours(table: pa.Table) -> pa.Table:
    place = table.column_names.index("lost_min")
    return table.set_column(place, "lost_min", pc.divide(table["lost_min"], pa.scalar(60, pa.float32())))


def page(server: Running) -> dict[str, Any]:
    """The experiments of the gateway by name."""
    with urllib.request.urlopen(f"{server.http}/experiments", timeout=10) as response:
        content = json.load(response)
    return {one["name"]: one for one in content["experiments"]}


def ask(server: Running, asked: list[Flights], in_flight: int = 4, done: Replayed | None = None) -> Replayed:
    async def send() -> Replayed:
        async with HeadraceClient(server.target) as client:
            return await replay(client, asked, in_flight=in_flight, done=done)

    return asyncio.run(send())


def test_the_new_version_is_backfilled_beside_the_old(example: Example) -> None:
    built = example.features.windowed()
    report = example.backfill()
    assert (report["ids"], report["written"], report["failed"]) == (built.num_rows, built.num_rows, {})
    rows = example.read("plane_stats@2", built["tailnum"].to_pylist())
    assert (rows.status == status.PRESENT).all()
    for column in ("flights", "late_share", "lost_min"):
        np.testing.assert_array_equal(rows.columns[column], built[column].to_numpy(), err_msg=column)
    old = example.features.table("plane_stats")
    before = example.read("plane_stats@1", old["tailnum"].to_pylist())
    np.testing.assert_array_equal(before.columns["flights"], old["flights"].to_numpy())


def test_a_version_with_minutes_turned_into_hours_is_rolled_back(example: Example) -> None:
    example.write({f"{view}@3": in_hours(example.features.table(view)) for view in STATISTICS})
    example.experiments(CANARY)
    asked = by_plane(example.test, 3 * ROLLED_BACK_WITHIN, rows_max=1)
    done = Replayed()
    with running(example.site) as server:
        for start in range(0, ROLLED_BACK_WITHIN, 250):
            ask(server, asked[start : start + 250], done=done)
            if page(server)["bad_unit"]["state"] == "rolled_back":
                break
        sent = done.variants.total()
        assert done.errors == {}
        assert set(done.variants) == {"bad_unit.as_it_is", "bad_unit.hours"}
        told = eventually(lambda: one if (one := page(server)["bad_unit"])["state"] == "rolled_back" else None)
        print(f"rolled back after {sent} requests: {told['why']}")
        assert sent <= ROLLED_BACK_WITHIN
        assert "the mean score has moved by at least" in told["why"]
        # From then on all get the model as it is.
        after = ask(server, asked[-500:])
        assert "bad_unit.hours" not in after.variants
        assert after.errors == {}


def test_a_version_that_is_as_good_is_not_rolled_back(example: Example) -> None:
    """The same canary, the same guardrails, on rows that are those of version 1."""
    example.write({f"{view}@3": example.features.table(view) for view in STATISTICS})
    example.experiments(CANARY)
    with running(example.site) as server:
        done = ask(server, by_plane(example.test, ROLLED_BACK_WITHIN, rows_max=1))
        assert done.errors == {}
        assert done.variants["bad_unit.hours"] > ROLLED_BACK_WITHIN / 3
        assert page(server)["bad_unit"]["state"] == "running"


def test_the_shadow_of_the_backfilled_version_explains_the_difference(example: Example) -> None:
    example.backfill()
    example.experiments(EXAMPLE.read_text())
    with running(example.site) as server:
        done = ask(server, by_plane(example.test, 5_000), in_flight=1)
        assert done.errors == {}
        # Nobody was answered by anything but the model as it is.
        assert set(done.variants) == {"default"}
        variant = "window_30d.last_30_days"

        def compared() -> dict[str, Any] | None:
            found: dict[str, Any] = page(server)["window_30d"]["comparisons"].get(variant, {})
            return found if found.get("rows", 0) >= 1_000 else None

        found = eventually(compared)
    scores = found["outputs"]["probability"]
    # Another window moves scores a little and turns few decisions round.
    assert 0.05 < scores["share_beyond_tolerance"] < 0.5
    assert 0 < scores["decision_flips"] < 0.02
    assert scores["pearson"] > 0.99
    # What differs is what the version changes, and nothing else.
    changed = {name: column["share_changed"] for name, column in found["columns"].items()}
    assert changed["plane_stats.built"] == changed["plane_stats.seats"] == 0
    for name in ("flights", "late_share", "lost_min"):
        assert changed[f"plane_stats.{name}"] > 0.9
    assert found["columns"]["plane_stats.flights"]["mean_difference"] < 0


@dataclass(frozen=True)
class Shape:
    """What an experiments.yaml is checked against."""

    versions: tuple[int, ...] = (1,)
    columns: tuple[str, ...] = ("tailnum", "origin", "dest", "carrier", "hour")
    functions: tuple[str, ...] = ("flight_transforms:cyclical_hour",)
    views: Mapping[str, str] = field(default_factory=lambda: {view: f"{view}@1" for view in VIEWS})


def test_a_split_with_labels_reaches_a_verdict(example: Example) -> None:
    example.backfill()
    example.experiments(SPLIT)
    with running(example.site) as server:
        done = ask(server, by_plane(example.test, 40_000, rows_max=200))
        assert done.errors == {}
    labels = example.site.folder / "labels.parquet"
    pq.write_table(done.labels(), labels)
    refs = [*Catalogue.load(example.site.folder / "features.yaml").views]
    (experiment,) = load(example.site.folder / "experiments.yaml", {"flight_delay": Shape()}, refs)
    options = experiment.form.compare
    asked = experiment_rows.Asked("window_split", options.output, by="tailnum", labels=DatasetOptions(labels))
    with (
        window.opened(example.site.folder / "journal", "flight_delay") as found,
        experiment_rows.opened(found, asked) as rows,
    ):
        (comparison,) = compare(experiment, rows, options, label="late")
    plain = comparison.plain()
    print(plain["verdict"], plain["why"])
    assert comparison.baseline.rows + comparison.candidate.rows == len(done.rows)
    assert comparison.mismatch is not None
    assert comparison.mismatch.p > 0.01
    # The same model with other statistics of the plane: its AUC is surely no worse by more than 0.05.
    assert plain["verdict"] == "promote"
    assert any("up to 0.05 is accepted" in why for why in plain["why"])


def test_a_split_assigns_planes_as_planned_and_keeps_them(example: Example) -> None:
    example.backfill()
    example.experiments(SPLIT)
    with running(example.site) as server:
        asked = by_plane(example.test, 6_000)
        first = ask(server, asked)
        arms = {arm["name"]: arm["seen"] for arm in page(server)["window_split"]["arms"]}
        assert first.errors == {}
        total = first.variants.total()
        assert set(first.variants) == {"window_split.all_time", "window_split.last_30_days"}
        # About 2,000 planes, some asked twice: 0.42 to 0.58 is beyond six standard deviations.
        assert 0.42 < first.variants["window_split.last_30_days"] / total < 0.58
        # The same requests once more get the same arms.
        assert ask(server, asked).variants == first.variants
    assert sum(arm["requests"] for arm in arms.values()) <= total
