"""The breaker: when a store that failed is asked again."""

from featureclient.breaker import Breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 1.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.failed(0.0)
        assert breaker.allows(0.0)
        breaker.succeeded()
    for _ in range(3):
        breaker.failed(0.0)
    assert not breaker.allows(0.5)


def test_one_probe_at_a_time_then_closed_or_open_again() -> None:
    breaker = Breaker(1, 1.0)
    breaker.started()
    breaker.failed(0.0)
    assert not breaker.allows(0.9)
    assert breaker.allows(1.0)
    breaker.started()
    assert not breaker.allows(1.1)
    breaker.failed(1.1)
    assert not breaker.allows(2.0)
    assert breaker.allows(2.1)
    breaker.started()
    breaker.succeeded()
    assert breaker.closed
    assert breaker.allows(2.1)
