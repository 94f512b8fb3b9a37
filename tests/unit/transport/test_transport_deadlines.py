import math

from gateway.transport.fast.deadlines import Deadlines


def test_what_is_due_comes_out_never_early_and_at_most_a_slot_late() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.add("a", 1.0)
    deadlines.add("b", 1.001)
    deadlines.add("c", 2.0)
    assert deadlines.pop_due(0.999) == []
    assert 1.0 < deadlines.next_due() <= 1.0041
    assert set(deadlines.pop_due(1.01)) == {"a", "b"}
    assert deadlines.pop_due(3.0) == ["c"]
    assert deadlines.next_due() == math.inf


def test_what_has_ended_leaves_nothing_behind() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for number in range(10_000):
        deadlines.add(number, 3_600.0 + number)
        deadlines.discard(number, 3_600.0 + number)
    assert len(deadlines) == 0
    assert len(deadlines._heap) < 1_000
    deadlines.discard(1, 5.0)
