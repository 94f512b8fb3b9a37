"""The second process for real: it reads, tells, dies, hangs, and is started again."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.journal.options import JournalOptions
from gateway.monitor.options import MonitorOptions
from gateway.monitor.supervisor import Supervisor
from gateway.records.drift import StreamKey
from gateway.telemetry import Telemetry
from gateway.validation.options import WindowOptions
from tests.drifting import batch_of, profile_of, save_profile, schema_of_columns, segment
from tests.waiting import soon

RANDOM = np.random.default_rng(0)
OPTIONS = MonitorOptions(
    windows=WindowOptions(rows=2000, panes=2),
    poll_s=0.02,
    verdict_s=0.0,
    cpu_share=1.0,
    checkpoint_s=0.05,
    restart_wait_s=0.05,
)
KEY = StreamKey("flight_delay", 1, "default")
START_S = 30.0
"""A fresh interpreter, on a machine that is busy with other tests."""


def drawn(rows: int, mean: float = 0.0) -> dict[str, np.ndarray]:
    return {"v.x": RANDOM.normal(mean, 1, rows).astype(np.float32)}


class Site:
    """A journal that is written, and a profile."""

    def __init__(self, folder: Path) -> None:
        self.journal = JournalOptions(path=folder / "journal", free_bytes_min=0, keep_days=0)
        self.models = folder / "models"
        reference = drawn(20_000)
        save_profile(self.models, profile_of(reference, {}))
        self.schema = schema_of_columns(reference)
        self.file = segment(self.journal.path, self.schema)

    def write(self, rows: int, mean: float = 0.0) -> None:
        self.file.write(batch_of(self.schema, drawn(rows, mean), {}))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@asynccontextmanager
async def supervised(site: Site, options: MonitorOptions = OPTIONS) -> AsyncIterator[Supervisor]:
    async with Supervisor(site.journal, site.models, options) as supervisor:
        yield supervisor


def verdict(supervisor: Supervisor) -> str:
    window = supervisor.snapshot().streams.get(KEY)
    return window.verdict if window is not None else ""


async def test_drift_reaches_the_metrics(site: Site) -> None:
    async with supervised(site) as supervisor:
        telemetry = Telemetry()
        telemetry.watch_monitor(supervisor.snapshot)
        site.write(2000)
        await soon(lambda: verdict(supervisor) == "stable", START_S)
        site.write(2000, mean=1.0)
        await soon(lambda: verdict(supervisor) == "drifted", START_S)
        await soon(lambda: supervisor.snapshot().status.get("rows_counted") == 4000, START_S)
        page = telemetry.render()[0].decode()
    labels = 'column="v.x",model="flight_delay",variant="default",version="1",window="sliding"'
    assert f"headrace_drift_verdict{{{labels}}} 2.0" in page
    assert f"headrace_drift_psi{{{labels}}}" in page
    assert f"headrace_drift_verdict{{{labels.replace('sliding', 'tumbling')}}} 2.0" in page
    assert f"headrace_drift_ks_pvalue{{{labels}}}" in page
    assert "headrace_monitor_up 1.0" in page
    assert 'headrace_monitor_rows_total{what="counted"} 4000.0' in page


async def test_a_killed_process_is_started_again_and_goes_on(site: Site) -> None:
    async with supervised(site) as supervisor:
        site.write(2000)
        await soon(lambda: verdict(supervisor) == "stable", START_S)
        state = site.journal.path / "monitor" / "state.json"
        await soon(state.exists, START_S)
        killed = supervisor.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await soon(lambda: supervisor.restarts == 1 and supervisor.pid not in {None, killed}, START_S)
        site.write(2000, mean=1.0)
        await soon(lambda: verdict(supervisor) == "drifted", START_S)
        assert supervisor.trouble == ""


@pytest.mark.slow
async def test_a_process_that_hangs_is_ended(site: Site) -> None:
    async with supervised(site, replace(OPTIONS, silence_s=4.0)) as supervisor:
        site.write(1000)
        await soon(lambda: verdict(supervisor) != "", START_S)
        hanging = supervisor.pid
        assert hanging is not None
        os.kill(hanging, signal.SIGSTOP)
        await soon(lambda: supervisor.restarts >= 1 and supervisor.pid not in {None, hanging}, START_S)


@pytest.mark.slow
async def test_a_process_that_cannot_run_is_given_up_and_health_says_so(site: Site) -> None:
    folder = site.journal.path / "monitor"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where the folder should be")
    options = replace(OPTIONS, restart_wait_s=0.01, restarts_max=2)
    async with supervised(site, options) as supervisor:
        await soon(lambda: supervisor.given_up, 3 * START_S)
        assert "ended 2 times" in supervisor.trouble
        assert not supervisor.snapshot().up


async def test_a_second_gateway_stands_by_and_takes_over(site: Site) -> None:
    async with supervised(site) as second_gateway:
        await soon(lambda: "rows_read" in second_gateway.snapshot().status, START_S)
        async with supervised(site) as first:
            await soon(lambda: first.snapshot().status.get("standby") == 1, START_S)
            site.write(2000)
            await soon(lambda: verdict(second_gateway) == "stable", START_S)
            await second_gateway.__aexit__(None, None, None)
            site.write(2000, mean=1.0)
            await soon(lambda: verdict(first) == "drifted", START_S)


async def test_stopping_saves_and_leaves_no_process(site: Site) -> None:
    async with supervised(site, replace(OPTIONS, checkpoint_s=3600.0)) as supervisor:
        site.write(1500)
        await soon(lambda: verdict(supervisor) != "", START_S)
        pid = supervisor.pid
        assert pid is not None
        state = site.journal.path / "monitor" / "state.json"
        await soon(state.exists, START_S)
        before = state.stat().st_mtime_ns
    assert state.stat().st_mtime_ns > before
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_closed_segments_become_parquet_and_were_counted_before(site: Site) -> None:
    async with supervised(site, replace(OPTIONS, compact_s=0.1)) as supervisor:
        site.write(2000)
        site.file.close()
        await soon(lambda: supervisor.snapshot().status.get("compacted_rows") == 2000, START_S)
        assert supervisor.snapshot().status["rows_counted"] == 2000
    assert len(list((site.journal.path / "parquet").rglob("*.parquet"))) == 1
    assert not site.file.path.exists()
