"""The dashboard's and the rules' expressions on a real Prometheus, and the files by what their programs check."""

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featureclient.cache import CacheSnapshot
from featureclient.events import ReadShed, RowInvalid, StoreRead, StoreWrite
from featureclient.schema import status
from gateway.client import BlockingClient, CallFailed
from gateway.journal.journal import Journal
from gateway.journal.options import JournalOptions
from gateway.records.drift import ColumnDrift, MonitorSnapshot, StreamKey, WindowDrift
from gateway.records.report import BatchReport, FailureReport
from gateway.server.http import HttpEndpoint, HttpOptions, metrics_page
from gateway.server.profile_cli import profile
from gateway.telemetry import Telemetry
from tests.integration.telemetry.conftest import Dashboard, Prometheus, Scraper
from tests.running import Site, make_site, running, write_users

pytestmark = pytest.mark.needs_prometheus

VIEW = "plane_stats@1"


class Synthetic:
    """Reports what a busy gateway would, of every kind."""

    def __init__(self) -> None:
        self.telemetry = Telemetry(version="test")
        self.telemetry.expect("flight_delay", [VIEW])
        self.telemetry.watch_caches(self._caches)
        for name in ("parked_rows", "rows_in_flight", "pending_keys"):
            self.telemetry.watch(name, "A number.", lambda: 3)
        self.telemetry.watch_journal(Journal(JournalOptions()).state)
        numbers = dict.fromkeys((one.name for one in fields(ColumnDrift)), 0.5)
        column = ColumnDrift(**numbers | {"column": "hour", "kind": "feature", "verdict": "stable", "reasons": ()})
        window = WindowDrift("sliding", 0, 1, 100, 10, (column,))
        streams = {StreamKey("flight_delay", 1, "default"): window}
        self.telemetry.watch_monitor(lambda: MonitorSnapshot(True, 0, {}, streams))
        self._ticks = 0

    def tick(self) -> None:
        """Report one of everything."""
        self._ticks += 1
        now = time.monotonic()
        absent = status.DEFAULTED | status.ABSENT
        self.telemetry.observe(
            BatchReport(
                model="flight_delay",
                version=1,
                variant="",
                arrived=[now - 0.004, now - 0.003],
                rows=2,
                parked=1,
                threaded=bool(self._ticks % 2),
                ready=now - 0.0025,
                assembled=now - 0.002,
                computed=now - 0.001,
                answered=now,
                statuses={VIEW: np.array([status.PRESENT, absent], np.uint8)},
            )
        )
        self.telemetry.failed(FailureReport("flight_delay", "INVALID_ARGUMENT", (now - 0.001,), now))
        for event in (
            StoreRead(keys=4, found=3, seconds=0.0004, error=None),
            StoreRead(keys=4, found=0, seconds=0.05, error="TimeoutError"),
            StoreWrite(rows=2, seconds=0.0005, error=None),
            RowInvalid(view=VIEW, reason="crc"),
            ReadShed(keys=1),
        ):
            self.telemetry.feature_event(event)

    def _caches(self) -> dict[str, CacheSnapshot]:
        ticks = self._ticks
        return {
            VIEW: CacheSnapshot(
                entries=50, bytes=5000, bytes_max=9000, hits=9 * ticks, misses=ticks, evictions=ticks, negatives=2
            )
        }


class Traffic:
    """What callers of a real gateway do: known and new users, writes, and mistakes."""

    def __init__(self, client: BlockingClient) -> None:
        self._client = client
        self._new_users = itertools.count()

    def tick(self) -> None:
        """Make one call of each kind."""
        item, context = {"item": 8}, {"hour": [2.0]}
        write_users(self._client, 5)
        self._client.predict("ranker", {"user": [f"u{number}" for number in range(10)], **item}, context)
        self._client.predict("ranker", {"user": f"new{next(self._new_users)}", **item}, context)
        for model, entities in (("no such model", item), ("ranker", {"no such key": 1})):
            with pytest.raises(CallFailed) as caught:
                self._client.predict(model, entities, context)
            assert caught.value.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}


@contextmanager
def under_load(tick: Callable[[], None]) -> Iterator[None]:
    """Call `tick` again and again in a thread."""
    done = threading.Event()
    failed: list[BaseException] = []

    def load() -> None:
        try:
            while not done.wait(0.01):
                tick()
        except BaseException as error:  # noqa: BLE001  # raised again in the test's thread
            failed.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failed:
        raise failed[0]


def check(dashboard: Dashboard, prometheus: Prometheus) -> None:
    dashboard.check(prometheus)
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    health = {
        rule["name"]: (rule["health"], rule.get("lastError", ""))
        for group in prometheus.get("rules")["groups"]
        for rule in group["rules"]
    }
    assert set(health.values()) == {("ok", "")}, health


def test_every_expression_has_data_when_everything_happens(dashboard: Dashboard, scraper: Scraper) -> None:
    synthetic = Synthetic()
    pages = {"/metrics": metrics_page(synthetic.telemetry.render)}
    with (
        HttpEndpoint(pages, HttpOptions(listen="127.0.0.1:0")) as endpoint,
        under_load(synthetic.tick),
        scraper.scrape(endpoint.address) as prometheus,
    ):
        check(dashboard, prometheus)


def profiled(site: Site) -> None:
    """Write the profile that drift is measured against."""
    rows, chance = 500, np.random.default_rng(1)
    columns = {name: chance.random(rows).astype(np.float32) for name in ("item.price", "user.age", "hour")}
    columns |= {"user.visits": np.arange(rows, dtype=np.int32), "pair.clicks": np.arange(rows, dtype=np.int16)}
    taste = pa.FixedSizeListArray.from_arrays(pa.array(chance.random(2 * rows), pa.float32()), 2)
    pq.write_table(pa.table({**columns, "user.taste": taste}), site.folder / "train.parquet")
    arguments = ["--config", str(site.config), "--model", "ranker", "--data", str(site.folder / "train.parquet")]
    written = CliRunner().invoke(profile, arguments)
    assert written.exit_code == 0, written.output


def test_every_expression_has_data_from_a_gateway_under_load(
    dashboard: Dashboard, scraper: Scraper, redis_url: str, tmp_path: Path
) -> None:
    site = make_site(tmp_path, redis_url)
    profiled(site)
    watched = {
        "journal": {"enabled": True, "path": str(tmp_path / "journal")},
        "monitor": {"poll_s": 0.2, "verdict_s": 0.0, "windows": {"rows": 100, "panes": 2}, "drift": {"rows_min": 20}},
    }
    with (
        running(site, watched) as gateway,
        BlockingClient(gateway.target) as client,
        under_load(Traffic(client).tick),
        scraper.scrape(gateway.gateway.http_address) as prometheus,
    ):
        check(dashboard, prometheus)


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
    ids=" ".join,
)
def test_promtool_accepts(arguments: tuple[str, ...], pytestconfig: pytest.Config) -> None:
    ended = subprocess.run(
        ["promtool", *arguments],
        cwd=pytestconfig.rootpath / "deploy" / "prometheus",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
