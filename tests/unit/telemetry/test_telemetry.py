import logging
from collections.abc import Mapping

import numpy as np
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from featureclient.cache import CacheSnapshot
from featureclient.events import ComputeDropped, ReadShed, RowInvalid, StoreRead, StoreWrite
from featureclient.schema import status
from featureclient.warmup import CountsSaved, ScheduleSkipped, WarmingAdvanced, WarmingEnded
from gateway.records.report import BatchReport, FailureReport
from gateway.telemetry import Telemetry
from gateway.telemetry.tally import CODES, MODELS_MAX

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


def report(
    *,
    arrived: tuple[float, ...] = (99.0,),
    parked: int = 0,
    threaded: bool = False,
    statuses: Mapping[str, list[int]] | None = None,
) -> BatchReport:
    return BatchReport(
        model="flight_delay",
        version=1,
        variant="",
        arrived=arrived,
        rows=3 * len(arrived),
        parked=parked,
        threaded=threaded,
        ready=99.5,
        assembled=99.6,
        computed=99.9,
        answered=100.0,
        statuses={view: np.array(row, np.uint8) for view, row in (statuses or {}).items()},
    )


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


@pytest.mark.parametrize("requests", [1, 64])
def test_a_batch_is_counted_per_request_and_per_stage(requests: int) -> None:
    telemetry = Telemetry()
    telemetry.observe(report(arrived=(99.0,) * requests, parked=requests - 1, threaded=requests > 1))
    model = {"model": "flight_delay"}
    assert value(telemetry, "headrace_requests_total", code="OK", **model) == requests
    assert value(telemetry, "headrace_parked_requests_total", **model) == requests - 1
    assert value(telemetry, "headrace_batches_total", where="thread", **model) == (requests > 1)
    assert value(telemetry, "headrace_batches_total", where="loop", **model) == (requests == 1)
    assert value(telemetry, "headrace_request_duration_seconds_count", **model) == requests
    assert value(telemetry, "headrace_request_duration_seconds_sum", **model) == pytest.approx(requests)
    assert value(telemetry, "headrace_batch_rows_sum", **model) == 3 * requests
    for stage, count, seconds in (
        ("wait", requests, 0.5 * requests),
        ("assemble", 1, 0.1),
        ("run", 1, 0.3),
        ("reply", 1, 0.1),
    ):
        assert value(telemetry, "headrace_stage_duration_seconds_count", stage=stage, **model) == count
        assert value(telemetry, "headrace_stage_duration_seconds_sum", stage=stage, **model) == pytest.approx(seconds)


def test_rows_are_counted_by_outcome_and_cause() -> None:
    telemetry = Telemetry()
    absent = status.DEFAULTED | status.ABSENT
    telemetry.observe(report(statuses={"plane@1": [status.PRESENT] * 3, "route@2": [status.PRESENT, absent, absent]}))
    telemetry.observe(report(statuses={"plane@1": [status.STALE | status.UNREACHED] * 2, "route@2": []}))

    def rows(view: str, outcome: str, cause: str) -> float | None:
        return value(telemetry, "headrace_rows_total", view=view, status=outcome, cause=cause)

    assert rows("plane@1", "PRESENT", "none") == 3
    assert rows("plane@1", "STALE", "UNREACHED") == 2
    assert rows("route@2", "PRESENT", "none") == 1
    assert rows("route@2", "DEFAULTED", "ABSENT") == 2
    assert rows("plane@1", "DEFAULTED", "ABSENT") is None, "a status that never happened has no series"


def test_failures_are_counted_by_code_and_a_model_that_is_not_there_is_none() -> None:
    telemetry = Telemetry()
    telemetry.failed(FailureReport("flight_delay", "DEADLINE_EXCEEDED", (98.0, 99.0), 100.0))
    telemetry.failed(FailureReport("", "NOT_FOUND", (99.0,), 100.0))
    telemetry.failed(FailureReport("flight_delay", "a code from the future", (99.0,), 100.0))
    assert value(telemetry, "headrace_requests_total", model="flight_delay", code="DEADLINE_EXCEEDED") == 2
    assert value(telemetry, "headrace_requests_total", model="none", code="NOT_FOUND") == 1
    assert value(telemetry, "headrace_requests_total", model="flight_delay", code="UNKNOWN") == 1
    assert value(telemetry, "headrace_request_duration_seconds_sum", model="flight_delay") == pytest.approx(4.0)


def test_an_expected_model_is_shown_at_zero() -> None:
    telemetry = Telemetry()
    telemetry.expect("flight_delay", ["plane@1"])
    for code in CODES:
        assert value(telemetry, "headrace_requests_total", model="flight_delay", code=code) == 0
    assert value(telemetry, "headrace_rows_total", view="plane@1", status="PRESENT", cause="none") == 0


def test_the_number_of_series_is_bounded_whatever_is_reported() -> None:
    telemetry = Telemetry()
    for number in range(MODELS_MAX + 50):
        telemetry.failed(FailureReport(f"model{number}", "INTERNAL", (99.0,), 100.0))
    assert value(telemetry, "headrace_requests_total", model="other", code="INTERNAL") == 50


def test_events_of_the_store() -> None:
    telemetry = Telemetry()
    for event in (
        StoreRead(keys=10, found=7, seconds=0.001, error=None),
        StoreRead(keys=5, found=0, seconds=0.05, error="timeout"),
        StoreWrite(rows=20, seconds=0.002, error=None),
        StoreWrite(rows=20, seconds=0.002, error="refused"),
        RowInvalid(view="plane@1", reason="crc"),
        RowInvalid(view="plane@1", reason="crc"),
        RowInvalid(view="plane@1", reason="a reason from the future"),
        ReadShed(keys=3),
    ):
        telemetry.feature_event(event)
    assert value(telemetry, "headrace_store_duration_seconds_count", operation="read") == 1
    assert value(telemetry, "headrace_store_duration_seconds_sum", operation="read") == 0.001
    assert value(telemetry, "headrace_store_duration_seconds_count", operation="write") == 1
    assert value(telemetry, "headrace_store_errors_total", operation="read") == 1
    assert value(telemetry, "headrace_store_errors_total", operation="write") == 1
    assert value(telemetry, "headrace_store_read_keys_sum") == 10
    assert value(telemetry, "headrace_store_keys_found_total") == 7
    assert value(telemetry, "headrace_store_written_rows_total") == 20
    assert value(telemetry, "headrace_store_shed_keys_total") == 3
    assert value(telemetry, "headrace_invalid_rows_total", view="plane@1", reason="crc") == 2
    assert value(telemetry, "headrace_invalid_rows_total", view="plane@1", reason="other") == 1
    assert value(telemetry, "headrace_invalid_rows_total", view="plane@1", reason="length") == 0


def test_events_of_the_warmer() -> None:
    telemetry = Telemetry()
    for source in ("hot", "file"):
        assert value(telemetry, "headrace_warmed_rows_total", source=source) == 0
    assert value(telemetry, "headrace_hot_counts_saves_total", result="OK") == 0
    ended = WarmingEnded("hot", "done", ids=10, cached=7, failures=0, bad_lines=0, seconds=0.1)
    for event in (
        WarmingAdvanced("hot", "plane@1", ids=10, cached=7),
        ended,
        WarmingEnded("/data/a.csv", "budget", ids=5, cached=5, failures=0, bad_lines=1, seconds=0.1),
        WarmingEnded("/data/b.csv", "failed", ids=0, cached=1, failures=3, bad_lines=0, seconds=0.1),
        CountsSaved(bytes=100, seconds=0.01, error=None),
        CountsSaved(bytes=100, seconds=0.01, error=None),
        CountsSaved(bytes=0, seconds=0.01, error="StoreUnavailable"),
        ScheduleSkipped("0 6 * * *", 1),
    ):
        telemetry.warmup_event(event)
    assert value(telemetry, "headrace_warmed_rows_total", source="hot") == 7
    assert value(telemetry, "headrace_warmed_rows_total", source="file") == 6
    assert value(telemetry, "headrace_hot_counts_saves_total", result="OK") == 2
    assert value(telemetry, "headrace_hot_counts_saves_total", result="failed") == 1


def test_a_computed_row_that_does_not_fit_is_counted() -> None:
    telemetry = Telemetry()
    telemetry.feature_event(ComputeDropped("plane@1", "invalid", 3))
    assert value(telemetry, "headrace_compute_dropped_rows_total", view="plane@1", what="invalid") == 3


def test_caches_are_read_when_scraped() -> None:
    telemetry = Telemetry()
    caches: dict[str, CacheSnapshot] = {}
    telemetry.watch_caches(lambda: caches)
    caches["plane@1"] = CacheSnapshot(entries=5, bytes=500, bytes_max=1000, hits=40, misses=6, evictions=1, negatives=2)
    for name, expected in (
        ("entries", 5),
        ("negative_entries", 2),
        ("size_bytes", 500),
        ("limit_bytes", 1000),
        ("hits_total", 40),
        ("misses_total", 6),
        ("evictions_total", 1),
    ):
        assert value(telemetry, f"headrace_cache_{name}", view="plane@1") == expected


def test_a_watched_gauge_that_raises_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry()
    telemetry.watch("parked_rows", "Rows that wait for the store.", lambda: 7)
    telemetry.watch("broken", "Raises.", lambda: 1 / 0)
    with caplog.at_level(logging.WARNING):
        body, _ = telemetry.render()
    assert b"headrace_parked_rows 7.0" in body
    assert b"headrace_broken" not in body
    assert b"headrace_unreadable_metrics_total 1.0" in body
    assert "headrace_broken" in caplog.text


def test_a_gauge_is_watched_once() -> None:
    telemetry = Telemetry()
    telemetry.watch("parked_rows", "Rows that wait for the store.", lambda: 7)
    with pytest.raises(ValueError, match="parked_rows"):
        telemetry.watch("parked_rows", "Again.", lambda: 8)


def test_both_formats_parse_and_hold_the_same() -> None:
    telemetry = Telemetry(version="1.2.3")
    telemetry.observe(report(statuses={"plane@1": [1, 1]}))
    plain, plain_type = telemetry.render("")
    opened, opened_type = telemetry.render(OPENMETRICS)
    assert plain_type.startswith("text/plain; version=0.0.4")
    assert opened_type.startswith("application/openmetrics-text; version=1.0.0")
    in_plain = {sample.name for family in text_string_to_metric_families(plain.decode()) for sample in family.samples}
    in_open = {
        sample.name
        for family in openmetrics.text_string_to_metric_families(opened.decode())
        for sample in family.samples
    }
    assert {name for name in in_plain if name.startswith("headrace_")} == {
        name for name in in_open if name.startswith("headrace_")
    }
    assert value(telemetry, "headrace_build_info", version="1.2.3") == 1
    assert {"process_resident_memory_bytes", "python_info", "python_gc_collections_total"} <= in_plain


def test_every_metric_has_its_unit_last_and_its_place_in_the_documentation(pytestconfig: pytest.Config) -> None:
    telemetry = Telemetry()
    documented = (pytestconfig.rootpath / "docs" / "metrics.md").read_text()
    for family in telemetry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}" in documented, f"{name} is not in docs/metrics.md"
        assert not any(word in name for word in ("_ms", "_us", "_milliseconds", "_mb", "_percent"))
