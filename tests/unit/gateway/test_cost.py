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
    for _ in range(500):
        for rows in (1, 16, 64, 500):
            cost.observe(rows, 10e-6 + rows * 3e-6)
    assert cost.predict(64) == pytest.approx(202e-6, rel=0.02)
    assert cost.predict(1000) == pytest.approx(3.01e-3, rel=0.02)


def test_slow_runs_of_one_row_say_nothing_of_the_cost_of_a_row() -> None:
    cost = Cost(11e-6, 74e-6, 64)
    for _ in range(1000):
        cost.observe(1, 30e-6)
    assert cost.predict(1) == pytest.approx(30e-6, rel=0.05)
    assert cost.predict(64) < 200e-6


def test_one_stall_counts_as_a_bounded_outlier() -> None:
    cost = Cost(11e-6, 74e-6, 64)
    cost.observe(64, 10.0)
    assert cost.predict(64) < 2 * 74e-6


def test_an_overhead_measured_on_a_bad_moment_does_not_stay() -> None:
    cost = Cost(one_s=500e-6, many_s=560e-6, rows=64)
    for _ in range(60):
        cost.observe(1, 11e-6)
    assert cost.predict(1) < 15e-6


def test_trial_runs_in_the_wrong_order_of_speed_do_not_go_negative() -> None:
    cost = Cost(one_s=90e-6, many_s=74e-6, rows=64)
    assert cost.row_s == 0
    assert cost.predict(1) == pytest.approx(90e-6)
