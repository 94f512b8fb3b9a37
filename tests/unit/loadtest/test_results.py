"""Medians, spread, ratios, and the JSON that others read."""

import json

import pytest

from loadtest.results import Comparison, Sample, summarize


def sample(rps: float, p50_ms: float = 1.0) -> Sample:
    return Sample(rps=rps, p50_ms=p50_ms, p99_ms=2 * p50_ms, cpu_us=1e6 / rps, client_cpu_us=10.0)


def test_cpu_counts_every_call_that_the_server_answered() -> None:
    answer = {"rps": 100.0, "p50_ms": 1.0, "p99_ms": 2.0, "client_cpu_us": 5.0, "total": 250, "ok": 200}

    assert Sample.of(answer, server_cpu_s=0.5).cpu_us == pytest.approx(2000.0)


def test_a_summary_is_the_median_of_each_number() -> None:
    summary = summarize([sample(100, 5), sample(300, 1), sample(200, 9)])

    assert (summary.rps, summary.p50_ms, summary.p99_ms) == (200, 5, 10)
    assert (summary.rps_min, summary.rps_max, summary.spread) == (100, 300, 1.0)


def test_a_client_without_time_left_is_noticed() -> None:
    assert not summarize([sample(50_000)]).is_client_bound
    assert summarize([sample(95_000)]).is_client_bound


def test_the_json_line_of_one_entity() -> None:
    line = Comparison("predict/1/warm/64", 1, summarize([sample(3000, 2)]), summarize([sample(1000, 8)])).as_json()

    assert json.loads(json.dumps(line)) == line
    assert line["work"] == "predict/1/warm/64"
    assert line["headrace"].items() >= {"rps": 3000, "p50_ms": 2, "p99_ms": 4, "cpu_us": 333.333}.items()
    assert line["baseline"].items() >= {"rps": 1000, "p50_ms": 8, "p99_ms": 16, "cpu_us": 1000}.items()
    assert (line["ratio_rps"], line["ratio_p50"]) == (3.0, 0.25)
    assert "rows" not in line


def test_the_json_line_of_a_ranking_says_rows_too() -> None:
    line = Comparison("predict/200/warm/16", 200, summarize([sample(10)]), summarize([sample(5)])).as_json()

    assert line["rows"] == 200
    assert (line["headrace"]["rows_per_s"], line["baseline"]["rows_per_s"]) == (2000, 1000)
