import json

import numpy as np
import pytest

from gateway.experiments.health import BOUNDS_S, ArmCounts, Durations
from gateway.experiments.progress import REPLICAS_MAX, Progress, Shared


def counts(requests: int = 3) -> ArmCounts:
    made = ArmCounts()
    made.answered([1] * requests, [0.002] * requests, np.linspace(0, 1, requests), np.zeros(requests, np.bool_))
    return made


def test_the_score_of_a_request_is_the_mean_of_its_rows_and_no_number_is_a_violation() -> None:
    made = ArmCounts()
    made.answered([2, 1, 3], [0.1, 0.2, 0.3], np.float64([1, 3, 5, 1, np.nan, 2]), None)
    assert (made.requests, made.rows, made.violations) == (3, 6, 1)
    assert made.scores.count == 2
    assert made.scores.mean == pytest.approx(3.5)
    made.answered([1], [0.1], np.float64([np.inf]), np.array([True]))
    assert made.violations == 2
    made.failed()
    assert (made.requests, made.errors) == (5, 1)


def test_quantiles_and_what_is_above() -> None:
    made = Durations()
    made.add([0.001] * 98 + [0.1, 100.0])
    assert 0.001 <= made.quantile_s(0.5) <= 0.00121
    assert 0.1 <= made.quantile_s(0.99) <= 0.121
    assert made.quantile_s(1.0) == BOUNDS_S[-1]
    assert (made.above(0.0005), made.above(0.05), made.above(0.2)) == (100, 2, 1)
    assert Durations().quantile_s(0.99) == 0


def test_counts_go_through_json_and_add_up() -> None:
    one, other = counts(3), counts(5)
    assert ArmCounts.from_json(json.loads(json.dumps(one.to_json()))) == one
    one += other
    assert (one.requests, one.durations.total, one.scores.count) == (8, 8, 8)


STEPS = [
    Progress(0, 10.0),
    Progress(0, 12.0),
    Progress(1, 20.0),
    Progress(1, 20.0, "finished", "held"),
    Progress(1, 20.0, "promoted", "held"),
    Progress(0, 10.0, "rolled_back", "bad"),
]


def test_whoever_joins_whom_the_further_one_wins() -> None:
    for one in STEPS:
        for other in STEPS:
            assert one.joined(other) == other.joined(one)
            assert one.joined(other).joined(one) == one.joined(other)
    joined = STEPS[0]
    for other in STEPS[1:-1]:
        joined = joined.joined(other)
    assert joined == STEPS[4]
    assert joined.joined(STEPS[5]) == STEPS[5]
    assert STEPS[1].joined(STEPS[0]) == STEPS[0]  # who began it earlier


def test_the_blob() -> None:
    shared = Shared(Progress(1, 5.0, "rolled_back", "bad"), {"r": (7.0, {"new": counts(2), "old": counts(4)})})
    again = Shared.decode(shared.encode(), steps=2)
    assert again == shared
    assert again is not None
    assert again.of_others("r") == {}
    assert again.of_others("other")["old"].requests == 4


@pytest.mark.parametrize(
    "data", [None, b"", b"{", b"[]", b"{}", b'{"step":0,"since_s":1,"phase":"gone","why":"","counts":{}}',
             b'{"step":9,"since_s":1,"phase":"advancing","why":"","counts":{}}',
             b'{"step":0,"since_s":1,"phase":"advancing","why":"","counts":{"r":{"at_s":1,"arms":{"a":{}}}}}'],
)  # fmt: skip
def test_a_blob_that_is_none_is_a_beginning(data: bytes | None) -> None:
    assert Shared.decode(data, steps=2) is None


def test_the_oldest_processes_are_left_out() -> None:
    many = {f"r{number}": (float(number), {"new": counts(1)}) for number in range(REPLICAS_MAX + 10)}
    again = Shared.decode(Shared(Progress(), many).encode(), steps=1)
    assert again is not None
    assert len(again.counts) == REPLICAS_MAX
    assert "r9" not in again.counts
