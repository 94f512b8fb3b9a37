"""Predictions from rows that are computed because no store had them, and rows that end at ages of their own."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from featureclient.schema import status
from gateway.client import BlockingClient
from tests import waiting
from tests.computing import Gate
from tests.running import Running, Site, make_site, running

ABSENT = status.DEFAULTED | status.ABSENT
THERE = {status.COMPUTED, status.PRESENT}
SOON_S = 15.0
soon = partial(waiting.soon_blocking, wait_s=SOON_S)
VIEWS = """
entities: {plane: {tailnum: string}}
views:
  sized@1:
    entity: plane
    columns: {a: {dtype: int64, default: -1}}
    on_missing: compute
    compute: {python: "tests.computing:lengths", timeout_ms: 20000}
  gated@1:
    entity: plane
    columns: {a: {dtype: int64, default: -1}}
    on_missing: compute
    compute: {python: "tests.computing:gated", timeout_ms: 20000, write_back: false}
  later@1:
    entity: plane
    columns: {a: {dtype: int64, default: -1}}
    on_missing: default_now_compute_later
    compute: {python: "tests.computing:gated", timeout_ms: 20000, write_back: false}
  soft@1: {entity: plane, soft_age: 50ms, hard_age: 10m, columns: {a: {dtype: int64, default: -1}}}
  hard@1: {entity: plane, hard_age: 10m, columns: {a: {dtype: int64, default: -1}}}
"""
SETTINGS = {"compute": {"compute_modules": ["tests.computing"], "workers": 1}, "features": {"watch": False}}


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    """A model for each view, which gives back what is in its row."""
    site = make_site(tmp_path, redis_url)
    (site.folder / "features.yaml").write_text(VIEWS)
    (site.models / "ranker").rename(tmp_path / "unused")
    for name in ("sized", "gated", "later"):
        manifest = f"name: {name}\nviews: {{v: {{view: {name}@1}}}}\ninputs: {{x: [v.a]}}\n"
        site.add_model(name, manifest, np.float32([[1]]))
    both = "name: both\nviews: {soft: {view: soft@1}, hard: {view: hard@1}}\ninputs: {x: [soft.a, hard.a]}\n"
    site.add_model("both", both, np.float32([[1], [1000]]))
    return site


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def ask(client: BlockingClient, model: str, *ids: str, timeout_s: float = 10.0) -> tuple[list[int], list[float]]:
    answer = client.predict(model, {"tailnum": list(ids)}, timeout_s=timeout_s)
    return answer.views["v"].status.tolist(), answer.outputs["score"].ravel().tolist()


def metric(gateway: Running, name: str, **labels: str) -> float:
    return gateway.gateway.telemetry.registry.get_sample_value(f"headrace_{name}", labels) or 0.0


def test_planes_that_were_never_loaded(site: Site) -> None:
    with running(site, SETTINGS) as gateway, BlockingClient(gateway.target) as client:
        codes, scores = ask(client, "sized", "abc", "-", "de")
        assert codes == [status.COMPUTED, ABSENT, status.COMPUTED]
        assert scores == [3, -1, 2]
        assert ask(client, "sized", "abc")[1] == [3]
        runs = {"view": "sized@1", "result": "OK"}
        assert metric(gateway, "compute_runs_total", **runs) == 1
        assert metric(gateway, "computed_rows_total", view="sized@1") == 2
        assert metric(gateway, "rows_total", view="sized@1", status="COMPUTED", cause="none") >= 2
        rows = client.get_features("sized@1", {"tailnum": ["wxyz"]})
        assert rows.rows.status.tolist() == [status.COMPUTED]
        assert rows.columns["a"].tolist() == [4]
        soon(lambda: metric(gateway, "store_written_rows_total") == 3)
    with running(site, SETTINGS) as gateway, BlockingClient(gateway.target) as client:
        assert ask(client, "sized", "abc", "de", "wxyz") == ([status.PRESENT] * 3, [3, 2, 4])
        assert metric(gateway, "computed_rows_total", view="sized@1") == 0


def test_the_deadline_holds_while_it_is_computed(site: Site, gate: Gate) -> None:
    one = gate.id("x")
    with running(site, SETTINGS) as gateway, BlockingClient(gateway.target) as client:
        for _ in range(2):
            began = time.monotonic()
            assert ask(client, "gated", one, timeout_s=0.5) == ([status.DEFAULTED | status.TIMED_OUT], [-1])
            assert time.monotonic() - began < 0.5
        assert metric(gateway, "computing_ids") == 1
        gate.open()
        soon(lambda: metric(gateway, "computing_ids") == 0)
        assert ask(client, "gated", one, timeout_s=0.5) == ([status.COMPUTED], [7])
        assert metric(gateway, "compute_runs_total", view="gated@1", result="OK") == 1


def test_the_default_now(site: Site, gate: Gate) -> None:
    with running(site, SETTINGS) as gateway, BlockingClient(gateway.target) as client:
        assert ask(client, "later", gate.id("x")) == ([ABSENT], [-1])
        gate.open()
        soon(lambda: ask(client, "later", gate.id("x")) == ([status.COMPUTED], [7]))
        assert metric(gateway, "compute_runs_total", view="later@1", result="OK") == 1


def test_without_a_store(site: Site) -> None:
    away = {"start_without_store": True, "store": {"url": f"unix://{site.folder}/nobody.sock"}}
    with running(site, {**SETTINGS, **away}) as gateway, BlockingClient(gateway.target) as client:
        codes, scores = ask(client, "sized", "abc", "-")
        assert codes == [status.COMPUTED, status.DEFAULTED | status.UNREACHED]
        assert scores == [3, -1]


def test_each_view_has_its_own_ages(site: Site) -> None:
    """Nobody tells of changes here. Past its soft age a row is served once more, and read again in the background."""
    with running(site, SETTINGS) as gateway, BlockingClient(gateway.target) as client:

        def score() -> int:
            answer = client.predict("both", {"tailnum": ["x"]})
            assert {code for rows in answer.views.values() for code in rows.status.tolist()} == {status.PRESENT}
            return int(answer.outputs["score"].ravel()[0])

        for view in ("soft@1", "hard@1"):
            client.write_features(view, {"tailnum": "x"}, {"a": [1]})
        assert score() == 1001
        with running(site, SETTINGS) as other, BlockingClient(other.target) as writer:
            for view in ("soft@1", "hard@1"):
                writer.write_features(view, {"tailnum": "x"}, {"a": [2]})
        soon(lambda: score() != 1001)
        assert score() == 1002
        assert metric(gateway, "cache_refreshes_total", view="soft@1") >= 1
        assert metric(gateway, "cache_refreshes_total", view="hard@1") == 0
