"""What a run costs is learned, and a machine that stalls does not fool it."""

import pytest

from gateway.inference.cost import Cost


def test_two_trial_runs_give_overhead_and_row() -> None:
    cost = Cost(one_s=11e-6, many_s=74e-6, rows=64)
    assert cost.overhead_s == pytest.approx(10e-6)
    assert cost.row_s == pytest.approx(1e-6)
    assert cost.predict(100) == pytest.approx(110e-6)


def test_follows_a_model_that_got_slower() -> None:
    cost = Cost(11e-6, 74e-6, 64)
    for _ in range(100):
        cost.observe(64, 10e-6 + 64 * 3e-6)
    assert cost.row_s == pytest.approx(3e-6, rel=0.01)


def test_one_stall_counts_as_a_bounded_outlier() -> None:
    cost = Cost(11e-6, 74e-6, 64)
    cost.observe(64, 10.0)
    assert cost.predict(64) < 2 * 74e-6


def test_trial_runs_in_the_wrong_order_of_speed_do_not_go_negative() -> None:
    cost = Cost(one_s=90e-6, many_s=74e-6, rows=64)
    assert cost.row_s == 0
    assert cost.predict(1) == pytest.approx(90e-6)
