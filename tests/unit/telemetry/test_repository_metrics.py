"""The model repository as one scrape shows it."""

import pytest

from gateway.inference.loading import REASONS
from gateway.inference.model import ModelState
from gateway.inference.repository import LoadCounts
from gateway.telemetry import Telemetry
from gateway.telemetry.model_families import Repository, repository_families


def test_states_and_loads_are_shown() -> None:
    counts = LoadCounts()
    counts.loaded, counts.failed, counts.seconds = 3, 1, 1.5
    counts.reasons["m", "golden"] += 1
    states = [ModelState("m", 1, "READY", "", 0.0), ModelState("m", 2, "UNAVAILABLE", "NaN", 0.0)]
    telemetry = Telemetry()
    telemetry.watch_repository(lambda: Repository(states, counts))
    page = telemetry.render()[0].decode()
    for line in (
        'headrace_model_state{model="m",state="READY",version="1"} 1.0',
        'headrace_model_state{model="m",state="UNAVAILABLE",version="1"} 0.0',
        'headrace_model_state{model="m",state="UNAVAILABLE",version="2"} 1.0',
        'headrace_model_loads_total{result="loaded"} 3.0',
        'headrace_model_loads_total{result="failed"} 1.0',
        'headrace_model_load_failures_total{model="m",reason="golden"} 1.0',
        "headrace_model_load_seconds_count 3.0",
        "headrace_model_load_seconds_sum 1.5",
    ):
        assert line in page.splitlines()


def test_each_metric_and_each_reason_is_documented(pytestconfig: pytest.Config) -> None:
    documented = (pytestconfig.rootpath / "docs" / "metrics.md").read_text()
    for family in repository_families(Repository([], LoadCounts())):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in documented
    assert not [reason for reason in REASONS if f"`{reason}`" not in documented]
