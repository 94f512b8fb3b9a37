"""A whole gateway with a shadow in its experiments.yaml: journal, metrics, the page, and an edit while it runs."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gateway.client import BlockingClient
from gateway.journal import reader
from tests.running import COLUMNS, WEIGHTS, Running, Site, running, write_items, write_users
from tests.shadowing import shadow_site
from tests.waiting import eventually

USERS = 20
EXPERIMENTS = """
experiments:
  window:
    model: ranker
    variants: {second: {views: {user: user_stats@2}}}
    shadow: {variants: [second], share: 100}
    compare: {threshold: 0.0}
"""


@pytest.fixture
def site(tmp_path: Path, redis_url: str) -> Site:
    site = shadow_site(tmp_path, redis_url)
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    with site.config.open("a") as file:
        file.write("experiments: experiments.yaml\nshadow: {load_max: 1.0, cpu_share: 1.0}\n")
    return site


@pytest.fixture
def gateway(site: Site) -> Iterator[Running]:
    journal = {"enabled": True, "path": str(site.folder / "journal")}
    with running(site, {"journal": journal, "monitor": {"enabled": False}}) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: Running) -> Iterator[BlockingClient]:
    with BlockingClient(gateway.target) as client:
        write_users(client, USERS)
        write_items(client, USERS)
        ids = np.arange(USERS)
        columns = {
            "age": np.float32(ids + 1.5),
            "visits": np.int32(ids * 10),
            "taste": np.zeros((USERS, 2), np.float32),
        }
        client.write_features("user_stats@2", {"user": [f"u{i}" for i in ids]}, columns)
        yield client


def predict(client: BlockingClient, i: int) -> Any:
    return client.predict("ranker", {"user": [f"u{i}"], "item": [i]}, {"hour": np.float32([1])})


def page(gateway: Running, name: str) -> bytes:
    return bytes(urllib.request.urlopen(f"{gateway.http}/{name}").read())


def told(gateway: Running) -> dict[str, Any]:
    found = json.loads(page(gateway, "experiments"))["experiments"]
    return next((one.get("comparisons", {}) for one in found if one["name"] == "window"), {})


def kept(site: Site, variant: str) -> pa.Table | None:
    batches = [
        batch
        for path in reader.segments(site.folder / "journal")
        for batch in reader.batches(path)
        if json.loads(batch.schema.metadata[b"headrace"])["variant"] == variant
    ]
    return pa.Table.from_batches(batches) if batches else None


def test_both_answers_are_in_the_journal_under_one_id_and_compared(
    gateway: Running, client: BlockingClient, site: Site
) -> None:
    for i in range(USERS):
        assert predict(client, i).variant == "default"

    def summary() -> Any:
        return next((one for one in told(gateway).values() if one["rows"] == USERS), None)

    found = eventually(summary)
    assert found["outputs"]["score"]["rows"] == USERS
    assert found["columns"]["user.age"]["mean_difference"] == 1.0
    assert found["outputs"]["score"]["decision_flips"] >= 0
    (variant,) = told(gateway)

    def both() -> tuple[pa.Table, pa.Table] | None:
        primary, shadow = kept(site, "default"), kept(site, variant)
        if primary is None or shadow is None or (primary.num_rows, shadow.num_rows) != (USERS, USERS):
            return None
        return primary, shadow

    primary, shadow = (table.sort_by("prediction_id") for table in eventually(both))
    assert primary["prediction_id"].to_pylist() == shadow["prediction_id"].to_pylist()
    assert (np.array(shadow["f.user.age"]) - np.array(primary["f.user.age"])).tolist() == [1.0] * USERS
    scores = np.array(shadow["out.score"].to_pylist()) - np.array(primary["out.score"].to_pylist())
    tastes = [COLUMNS.index("user.taste"), COLUMNS.index("user.taste") + 1]
    ids = np.arange(USERS)
    expected = WEIGHTS[COLUMNS.index("user.age"), 0] - ids * (WEIGHTS[tastes[0], 0] - WEIGHTS[tastes[1], 0])
    np.testing.assert_allclose(np.sort(scores.ravel()), np.sort(expected), rtol=1e-4, atol=1e-4)
    metrics = page(gateway, "metrics")
    assert b'headrace_shadow_rows_total{experiment="window",result="compared"' in metrics
    assert b"headrace_shadow_cpu_seconds_total" in metrics
    assert b"headrace_shadow_difference{" in metrics
    assert b"headrace_unreadable_metrics_total 0.0" in metrics


def test_an_edit_stops_it_and_the_gateway_goes_on(gateway: Running, client: BlockingClient, site: Site) -> None:
    predict(client, 1)
    eventually(lambda: told(gateway))
    (site.folder / "experiments.yaml").write_text(
        EXPERIMENTS.replace("model: ranker", "model: ranker\n    state: stopped")
    )
    state = b'"state": "stopped"'
    eventually(lambda: state in page(gateway, "experiments"))
    rows = page(gateway, "metrics").count(b"headrace_shadow_rows_total")
    for i in range(5):
        predict(client, i)
    assert page(gateway, "metrics").count(b"headrace_shadow_rows_total") == rows
    shadow = kept(site, "default")
    assert shadow is None or shadow.num_rows <= 6
