"""Which calls are out of time. Pure: the clock is an argument.

Calls are kept in slots of 4 ms, so that starting and ending a call costs two dictionary operations and no timer. One
timer of the loop waits for the first slot. A call may expire up to one slot late, never early.

Invariants: a call is in at most one slot and leaves it when it ends; an empty slot is dropped at once, so memory
follows the calls that are open, not the deadlines that clients ask for.
"""

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_SLOTS_PER_S = 250


class Deadlines(Generic[T]):
    """A set of things with a moment each, taken out when that moment has passed."""

    __slots__ = ("_heap", "_slots")

    def __init__(self) -> None:
        self._slots: dict[int, dict[T, None]] = {}
        self._heap: list[int] = []

    def add(self, item: T, deadline: float) -> None:
        """Watch `item` until this moment."""
        number = int(deadline * _SLOTS_PER_S) + 1
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            heapq.heappush(self._heap, number)
        slot[item] = None

    def discard(self, item: T, deadline: float) -> None:
        """Watch `item`, which was added with this deadline, no more."""
        number = int(deadline * _SLOTS_PER_S) + 1
        slot = self._slots.get(number)
        if slot is not None:
            slot.pop(item, None)
            if not slot:
                del self._slots[number]
                # The number stays in the heap; `next_due` and `pop_due` drop it, and so does a heap of nothing else.
                if len(self._heap) > 64 + 2 * len(self._slots):
                    self._heap = list(self._slots)
                    heapq.heapify(self._heap)

    def next_due(self) -> float:
        """When the first one is due; infinity when there is none."""
        while self._heap and self._heap[0] not in self._slots:
            heapq.heappop(self._heap)
        return self._heap[0] / _SLOTS_PER_S if self._heap else math.inf

    def pop_due(self, now: float) -> list[T]:
        """Take out what is due."""
        due: list[T] = []
        while self.next_due() <= now:
            due.extend(self._slots.pop(heapq.heappop(self._heap)))
        return due

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def __repr__(self) -> str:
        return f"<Deadlines {len(self)} in {len(self._slots)} slots>"
