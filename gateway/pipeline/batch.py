"""Requests of one model whose rows are all there, and the queue in which they wait for the model."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from gateway.records.request import Request


class Batch(NamedTuple):
    """Requests that go through a model together.

    `stored` has, per view of the plan, the cached rows of all requests, in order. `ready` is when the last row was
    there, in seconds of `time.monotonic()`.
    """

    requests: list[Request]
    stored: list[list[bytes]]
    rows: int
    parked: int
    ready: float

    def alone(self) -> "list[Batch]":
        """The same requests, one batch each."""
        singles: list[Batch] = []
        starts = [0] * len(self.stored)
        for request in self.requests:
            ends = [start + len(ids) for start, ids in zip(starts, request.ids, strict=True)]
            stored = [rows[a:b] for rows, a, b in zip(self.stored, starts, ends, strict=True)]
            singles.append(Batch([request], stored, request.rows, 0, self.ready))
            starts = ends
        return singles

    def without(self, left: Callable[[Request], bool]) -> "Batch":
        """The same batch without the requests for which `left` says so; it is called once for each."""
        return merge([single for single in self.alone() if not left(single.requests[0])], self.parked, self.ready)


def merge(batches: Sequence[Batch], parked: int, ready: float) -> Batch:
    """One batch of all the requests, in order."""
    return Batch(
        [*chain.from_iterable(batch.requests for batch in batches)],
        [[*chain.from_iterable(rows)] for rows in zip(*(batch.stored for batch in batches), strict=True)],
        sum(batch.rows for batch in batches),
        parked,
        ready,
    )


class BatchQueue:
    """What waits for one model. Its bound is the pipeline's `rows_in_flight_max`, held at the door."""

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def __repr__(self) -> str:
        return f"<BatchQueue {sum(batch.rows for batch in self._batches)} rows in {len(self._batches)} batches>"

    def put(self, batch: Batch) -> None:
        """Add at the end."""
        self._batches.append(batch)

    def put_alone(self, batch: Batch) -> None:
        """Add the requests of a batch in front, each alone: one of them has made the model fail."""
        self._batches.extendleft(reversed(batch.alone()))

    def take(self, rows_max: int) -> Batch:
        """Everything that waits, in order, up to `rows_max` rows but at least one batch."""
        first = self._batches.popleft()
        if not self._batches or first.rows + self._batches[0].rows > rows_max:
            return first
        taken, rows = [first], first.rows
        while self._batches and rows + self._batches[0].rows <= rows_max:
            taken.append(self._batches.popleft())
            rows += taken[-1].rows
        return merge(taken, sum(batch.parked for batch in taken), max(batch.ready for batch in taken))
