"""How flights become requests, and answers a summary."""

import numpy as np
import pytest

from examples.flights.data import Flights
from examples.flights.traffic import BATCH_ROWS, Answer, questions, summarise


@pytest.mark.parametrize("rows", [1, 7, 99, 300, 400, 1000])
def test_every_drawn_flight_is_asked_for_once_in_the_order_of_the_departures(flights: Flights, rows: int) -> None:
    asked = questions(flights, rows)
    numbers = [number for question in asked for number in question.number.tolist()]
    assert len(numbers) == len(set(numbers)) == min(rows, len(flights))
    assert numbers == sorted(numbers)
    assert {len(question) for question in asked} <= {1, BATCH_ROWS}
    assert [question.number.tolist() for question in questions(flights, rows)] == [q.number.tolist() for q in asked]


def test_some_requests_are_about_many_flights_and_most_about_one(flights: Flights) -> None:
    sizes = np.array([len(question) for question in questions(flights, 400)])
    assert (sizes == BATCH_ROWS).sum() == 4
    assert (sizes == 1).sum() == 200


def test_a_summary_counts_failures_apart(flights: Flights) -> None:
    some = flights.take(np.arange(10))
    perfect = np.where(some.late, np.float32(0.9), np.float32(0.1))
    answers = [Answer(some, 0.002, perfect, {}), Answer(some, 9.0, None, {}, "UNAVAILABLE: gone")]
    summary = summarise(answers, 0.75)
    assert (summary.requests, summary.rows, summary.errors) == (2, 20, 1)
    assert summary.p50_ms == summary.p99_ms == 2.0
    assert (summary.auc, summary.cache_hit_ratio) == (1.0, 0.75)


def test_a_summary_of_nothing_has_no_numbers(flights: Flights) -> None:
    summary = summarise([Answer(flights, 1.0, None, {}, "UNAVAILABLE: gone")], None)
    assert (summary.p50_ms, summary.p99_ms, summary.cache_hit_ratio) == (None, None, None)
    assert (summary.auc, summary.auc_baseline, summary.errors) == (None, None, 1)
