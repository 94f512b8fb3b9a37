"""Requests for running gateways are whole, repeat with their seed, and are of the kinds they claim to be."""

import collections
import random

import pytest

from headrace.v1 import prediction_pb2
from loadtest import traffic
from loadtest.openloop import make_bodies

SOURCES = sorted(traffic.SOURCES)


def rows_of(request: prediction_pb2.PredictRequest) -> int:
    return max(len(column.strings.values) + len(column.int64s.values) for column in request.entities)


@pytest.mark.parametrize("source", SOURCES)
def test_kinds_have_the_rows_they_claim(source: str) -> None:
    requests = traffic.make_traffic(source, random.Random(1))

    assert rows_of(requests.single()) == 1
    assert rows_of(requests.cold()) == 1
    assert rows_of(requests.ranking()) == 200


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_seed_gives_the_same_bodies(source: str) -> None:
    first, again = (make_bodies(source, 40, cold_share=0.2, ranking_share=0.1) for _ in range(2))

    assert first == again
    assert len(set(first)) > 20
    for body in first:
        assert prediction_pb2.PredictRequest.FromString(body).model in {"mlp", "flight_delay"}


@pytest.mark.parametrize("source", SOURCES)
def test_cold_requests_never_repeat(source: str) -> None:
    requests = traffic.make_traffic(source, random.Random(2))

    assert len({requests.cold().SerializeToString() for _ in range(200)}) == 200


def test_a_flight_brings_every_column_the_model_asks_for() -> None:
    request = traffic.make_traffic("flights", random.Random(3)).ranking()

    assert [column.name for column in request.entities] == ["tailnum", "origin", "dest", "carrier", "hour"]
    assert [tensor.name for tensor in request.context] == ["sched_hour", "weekday", "distance", "dep_delay"]
    assert all(len(tensor.contents.floats) == 200 for tensor in request.context)


def test_kinds_are_drawn_by_their_shares() -> None:
    rng = random.Random(4)

    counts = collections.Counter(traffic.draw_kind(rng, cold_share=0.1, ranking_share=0.3) for _ in range(10_000))

    assert counts["cold"] == pytest.approx(1000, rel=0.15)
    assert counts["ranking"] == pytest.approx(3000, rel=0.1)
    assert counts["single"] == pytest.approx(6000, rel=0.1)


def test_zipf_prefers_the_first() -> None:
    rng, zipf = random.Random(5), traffic.Zipf(100, exponent=1.0)

    counts = collections.Counter(zipf.draw(rng) for _ in range(20_000))

    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.15)
    assert set(counts) <= set(range(100))
