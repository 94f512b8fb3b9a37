from gateway.transport.fast.admission import Admission


def saturate(admission: Admission, *, rate: float, waiting: int, until: float) -> None:
    """Passes every 10 ms in which `rate` calls a second are completed while `waiting` wait."""
    now = 0.0
    admission.waiting = waiting
    while now < until:
        for _ in range(round(rate / 100)):
            admission.completed()
        admission.observe(now)
        now += 0.01


def test_nobody_is_refused_for_a_deadline_before_one_is_missed() -> None:
    admission = Admission(100)
    saturate(admission, rate=1_000, waiting=1_000, until=0.5)
    assert not admission.hopeless(0.6, 0.5)


def test_under_strain_a_call_is_refused_that_would_wait_too_long() -> None:
    admission = Admission(100)
    saturate(admission, rate=1_000, waiting=500, until=0.5)
    admission.missed(0.5)
    assert admission.hopeless(0.5 + 0.4, 0.5), "half a second of work waits"
    assert not admission.hopeless(0.5 + 2.0, 0.5)


def test_the_strain_is_over_after_a_second_without_misses_and_refusals() -> None:
    admission = Admission(100)
    saturate(admission, rate=1_000, waiting=500, until=0.5)
    admission.missed(0.5)
    assert admission.hopeless(1.4 + 0.1, 1.4)
    assert admission.hopeless(2.3 + 0.1, 2.3), "refusals keep it up"
    assert not admission.hopeless(3.4 + 0.1, 3.4)


def test_an_idle_moment_forgets_the_rate_unless_there_is_strain() -> None:
    admission = Admission(100)
    saturate(admission, rate=1_000, waiting=500, until=0.5)
    admission.missed(0.5)
    for now, hopeless in ((0.51, True), (3.0, False)):
        admission.waiting = 0
        admission.observe(now)
        admission.missed(now)
        admission.waiting = 500
        assert admission.hopeless(now + 0.1, now) is hopeless
