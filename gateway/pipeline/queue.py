"""What waits for one model: bounded in rows, in levels of priority, and taken out as the next batch. Pure.

A *kind* is requests that may share a run: of one lane, and of equal shapes where the caller sends the tensors.

Invariants
- Everything that is put is taken exactly once, and what is of one kind and level in the order in which it was put.
- A batch is of one level and one kind: who is less urgent never makes the run of others longer. Kinds of a level take
  turns.
- A level is passed over at most `PASSED_OVER_MAX` times in a row while something waits in it, and once more for each
  level that has been passed over as often.
- The rows that wait are at most `rows_max`, or those of one batch that came when nothing waited. (The halves of a batch
  that failed come back beside the bound: they waited before.)
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from gateway.pipeline.batch import Batch, merge

PASSED_OVER_MAX = 16
"""Batches of more urgent levels that are taken before one of a level that waits."""

Lane = TypeVar("Lane", bound=Hashable)


class _Level(Generic[Lane]):
    """What waits with one priority. `halves` goes first and is never merged; what is `alone` is run one by one."""

    __slots__ = ("halves", "kinds", "passed_over")

    def __init__(self) -> None:
        self.halves: deque[tuple[Lane, Batch, bool]] = deque()
        # Not a dict: to find its first key takes as many steps as keys were deleted in front of it.
        self.kinds: OrderedDict[Hashable, tuple[Lane, deque[Batch]]] = OrderedDict()
        self.passed_over = 0

    def __bool__(self) -> bool:
        return bool(self.kinds or self.halves)


class RunQueue(Generic[Lane]):
    """The queue in front of one model."""

    __slots__ = ("_levels", "_only", "rows", "rows_max")

    def __init__(self, rows_max: int, levels: int = 1) -> None:
        self.rows_max = rows_max
        self.rows = 0
        """Rows that wait."""
        # Most of the time one batch comes and goes at once, and needs no place.
        self._only: tuple[Lane, Batch, Hashable] | None = None
        self._levels: Sequence[_Level[Lane]] = tuple(_Level() for _ in range(levels))

    def __bool__(self) -> bool:
        return self.rows > 0

    def __repr__(self) -> str:
        return f"<RunQueue {self.rows} of {self.rows_max} rows>"

    def put(self, lane: Lane, batch: Batch, kind: Hashable = ()) -> bool:
        """Add at the end of its kind, in the batch's level. False when there is no room, and then nothing was added.

        One request finds room in an empty queue whatever its size: it would never be served else.
        """
        rows = self.rows + batch.rows
        if rows > self.rows_max and (self.rows or len(batch.requests) > 1):
            return False
        if self.rows:
            self._spill()
            self._add(lane, batch, kind)
        else:
            self._only = (lane, batch, kind)
        self.rows = rows
        return True

    def _spill(self) -> None:
        """Give the one that waited alone its place among the others."""
        if self._only is not None:
            self._add(*self._only)
            self._only = None

    def _add(self, lane: Lane, batch: Batch, kind: Hashable) -> None:
        level = self._levels[batch.level - 1]
        if not level:
            level.passed_over = 0
        kinds = level.kinds
        waiting = kinds.get((lane, kind))
        if waiting is None:
            kinds[lane, kind] = (lane, deque((batch,)))
        else:
            waiting[1].append(batch)

    def put_halves(self, lane: Lane, batch: Batch, *, alone: bool = False) -> None:
        """Add the two halves of a batch in front, to be run apart: some request in it makes the model fail.

        Halving finds one bad request among n in 2 log n runs, and n of them in 2 n. With `alone` nothing of it is run
        but single requests: n runs, whoever is bad.
        """
        self._spill()
        self.rows += batch.rows
        _halve(self._levels[batch.level - 1].halves, lane, batch._replace(parked=0), alone=alone)

    def take(self, rows_max: int) -> tuple[Lane, Batch]:
        """The next batch: what waits of one level and kind, up to `rows_max` rows but at least what was put at once."""
        only = self._only
        if only is not None:
            self._only = None
            self.rows = 0
            return only[0], only[1]
        level = self._levels[0] if len(self._levels) == 1 else self._next_level()
        if level.halves:
            lane, batch, alone = level.halves.popleft()
            while alone and len(batch.requests) > 1:
                _halve(level.halves, lane, batch, alone=True)
                lane, batch, alone = level.halves.popleft()
        else:
            kind, (lane, waiting) = next(iter(level.kinds.items()))
            batch = _first(waiting, rows_max)
            if not waiting:
                del level.kinds[kind]
            elif len(level.kinds) > 1:  # the others have their turn
                level.kinds.move_to_end(kind)
        self.rows -= batch.rows
        return lane, batch

    def _next_level(self) -> _Level[Lane]:
        waiting = [level for level in self._levels if level]
        chosen = next((level for level in waiting if level.passed_over >= PASSED_OVER_MAX), waiting[0])
        for level in waiting:
            level.passed_over += 1
        chosen.passed_over = 0
        return chosen


def _halve(halves: deque[tuple[Lane, Batch, bool]], lane: Lane, batch: Batch, *, alone: bool) -> None:
    end = len(batch.requests)
    for half in (range(end // 2, end), range(end // 2)):
        halves.appendleft((lane, batch.pick(half), alone))


def _first(waiting: deque[Batch], rows_max: int) -> Batch:
    """The first batches as one, up to `rows_max` rows."""
    taken = [waiting.popleft()]
    rows = taken[0].rows
    while waiting:
        rows += waiting[0].rows
        if rows > rows_max:
            break
        taken.append(waiting.popleft())
    if len(taken) == 1:
        return taken[0]
    return merge(taken, sum([batch.parked for batch in taken]), max([batch.ready for batch in taken]))
