"""The queue of a model as a state machine: nothing lost, nothing twice, order kept, bounds held."""

from collections import defaultdict, deque
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.pipeline.batch import Batch
from gateway.pipeline.queue import PASSED_OVER_MAX, RunQueue
from gateway.records.request import Request

ROWS_MAX = 40
LEVELS = 3


class Caller:
    cancelled = False


class Queue(RuleBasedStateMachine):
    """The model of it is a list of request numbers per level, lane and kind, and the halves that came back."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: RunQueue[str] = RunQueue(ROWS_MAX, LEVELS)
        self.waiting: dict[tuple[int, str, str], deque[int]] = defaultdict(deque)
        self.halves: dict[int, deque[list[int]]] = defaultdict(deque)
        self.kinds: dict[int, str] = {}
        self.rows: dict[int, int] = {}
        self.given: set[int] = set()
        self.latest: tuple[str, Batch] | None = None
        self.passed_over = [0] * (LEVELS + 1)
        self.came_back = 0

    @rule(
        lane=st.sampled_from("ab"),
        kind=st.sampled_from("xy"),
        level=st.integers(1, LEVELS),
        sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
        huge=st.booleans(),
    )
    def put(self, lane: str, kind: str, level: int, sizes: list[int], huge: bool) -> None:
        if huge:
            sizes = [ROWS_MAX * 2]
        numbers = range(len(self.rows), len(self.rows) + len(sizes))
        requests = [
            Request(Caller(), "m", "", float(number), 9.0, rows, (), (), (), (), False)
            for number, rows in zip(numbers, sizes, strict=True)
        ]
        before, empty = self.queue.rows, not self.queue
        put = self.queue.put(lane, Batch(requests, [], sum(sizes), 0, 0.0, level), kind)
        assert put == (before + sum(sizes) <= ROWS_MAX or (empty and len(sizes) == 1))
        if put:
            self.rows |= dict(zip(numbers, sizes, strict=True))
            self.kinds |= dict.fromkeys(numbers, kind)
            self.waiting[level, lane, kind] += numbers

    @precondition(lambda self: self.queue)
    @rule(rows_max=st.integers(1, 60))
    def take(self, rows_max: int) -> None:
        lane, batch = self.queue.take(rows_max)
        numbers = [int(request.arrived) for request in batch.requests]
        assert batch.rows == sum(self.rows[number] for number in numbers)
        levels = [level for level in range(1, LEVELS + 1) if self._waits(level)]
        halves = self.halves[batch.level]
        if halves:
            assert numbers == halves.popleft(), "what came back is first of its level, and alone"
        else:
            kind = self.kinds[numbers[0]]
            waiting = self.waiting[batch.level, lane, kind]
            assert numbers == [waiting.popleft() for _ in numbers], "in order, of one kind"
            assert not self.given & {*numbers}
        self._check_level(levels, batch.level)
        self.given |= {*numbers}
        self.latest = (lane, batch)

    def _check_level(self, levels: list[int], chosen: int) -> None:
        overdue = max(self.passed_over[level] for level in levels)
        assert chosen == levels[0] or self.passed_over[chosen] >= PASSED_OVER_MAX, "the most urgent, or who is overdue"
        assert overdue < PASSED_OVER_MAX + LEVELS
        for level in levels:
            self.passed_over[level] += 1
        self.passed_over[chosen] = 0

    @precondition(lambda self: self.latest is not None and len(self.latest[1].requests) > 1)
    @rule()
    def fail(self) -> None:
        assert self.latest is not None
        lane, batch = self.latest
        self.queue.put_halves(lane, batch)
        numbers = [int(request.arrived) for request in batch.requests]
        middle = len(numbers) // 2
        self.halves[batch.level].extendleft([numbers[middle:], numbers[:middle]])
        self.latest = None

    @precondition(lambda self: self.latest is not None and len(self.latest[1].requests) > 1)
    @rule()
    def fail_too_often(self) -> None:
        assert self.latest is not None
        lane, batch = self.latest
        self.queue.put_halves(lane, batch, alone=True)
        self.halves[batch.level].extendleft([[int(request.arrived)] for request in reversed(batch.requests)])
        self.latest = None

    @invariant()
    def rows_are_those_that_wait(self) -> None:
        waiting = [number for numbers in self.waiting.values() for number in numbers]
        halves = [number for level in self.halves.values() for half in level for number in half]
        rows = sum(self.rows[number] for number in waiting)
        assert self.queue.rows == rows + sum(self.rows[number] for number in halves)
        assert rows <= ROWS_MAX or len(waiting) == 1
        assert bool(self.queue) == bool(waiting or halves)

    def teardown(self) -> None:
        while self.queue:
            self.take(7)
        assert self.given == {*self.rows}

    def _waits(self, level: int) -> bool:
        return bool(self.halves[level]) or any(found for key, found in self.waiting.items() if key[0] == level)


TestQueue: Any = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


def test_a_level_that_is_passed_over_has_its_turn() -> None:
    queue: RunQueue[str] = RunQueue(10**6, 2)

    def put(level: int) -> None:
        request = Request(Caller(), "m", "", 0.0, 9.0, 1, (), (), (), (), False)
        queue.put("a", Batch([request], [], 1, 0, 0.0, level))

    put(2)
    taken = []
    for _ in range(3 * (PASSED_OVER_MAX + 1)):
        put(1)
        put(1)
        if 2 in taken[-1:]:
            put(2)
        taken.append(queue.take(1)[1].level)
    assert taken == ([1] * PASSED_OVER_MAX + [2]) * 3


def test_kinds_take_turns() -> None:
    queue: RunQueue[str] = RunQueue(100)
    for number, kind in enumerate("xxxxyyz"):
        request = Request(Caller(), "m", "", float(number), 9.0, 1, (), (), (), (), False)
        queue.put("a", Batch([request], [], 1, 0, 0.0), kind)
    taken = [[int(request.arrived) for request in queue.take(2)[1].requests] for _ in range(4)]
    assert taken == [[0, 1], [4, 5], [6], [2, 3]]
    assert not queue
