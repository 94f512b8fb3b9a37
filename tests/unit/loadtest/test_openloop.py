"""The plot of a histogram."""

import pytest

from loadtest.openloop import parse_arguments, percentile_curve


def test_a_curve_is_latency_over_the_number_of_nines() -> None:
    nines, latency_ms = percentile_curve([[1.0, 90], [5.0, 9], [70.0, 1]])

    assert nines == pytest.approx([1.0, 2.0])
    assert latency_ms == [1.0, 5.0]


@pytest.mark.parametrize("histogram", [[], [[3.0, 7]]])
def test_too_few_latencies_are_no_curve(histogram: list[list[float]]) -> None:
    assert percentile_curve(histogram) == ([], [])


def test_several_rates_are_several_runs() -> None:
    assert parse_arguments(["--rate", "100", "2000"]).rate == [100.0, 2000.0]
