"""What telemetry costs: a batch on the event loop, and a scrape in its thread.

`pytest tests/bench/test_telemetry.py --benchmark-enable`
"""

import time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from featureclient.events import StoreRead
from gateway.records.report import BatchReport
from gateway.telemetry import Telemetry

VIEWS = ("plane_stats@1", "route_stats@1", "airport_weather@1")


def report(requests: int, rows: int, model: str = "flight_delay") -> BatchReport:
    now = time.monotonic()
    return BatchReport(
        model=model,
        version=1,
        variant="",
        arrived=[now - 1e-3 - 1e-6 * number for number in range(requests)],
        rows=requests * rows,
        parked=0,
        threaded=False,
        ready=now - 5e-4,
        assembled=now - 4e-4,
        computed=now - 1e-4,
        answered=now,
        statuses={view: np.ones(requests * rows, np.uint8) for view in VIEWS},
    )


@pytest.mark.parametrize(("requests", "rows"), [(1, 1), (8, 1), (16, 1), (64, 1), (16, 200)])
def test_observe(benchmark: BenchmarkFixture, requests: int, rows: int) -> None:
    telemetry = Telemetry()
    benchmark(telemetry.observe, report(requests, rows))


def test_feature_event(benchmark: BenchmarkFixture) -> None:
    telemetry = Telemetry()
    benchmark(telemetry.feature_event, StoreRead(keys=64, found=60, seconds=4e-4, error=None))


@pytest.mark.parametrize("models", [1, 20])
def test_scrape(benchmark: BenchmarkFixture, models: int) -> None:
    telemetry = Telemetry()
    for number in range(models):
        telemetry.observe(report(1, 1, f"model{number}"))
    body, _ = benchmark(telemetry.render)
    assert b"headrace_requests_total" in body
