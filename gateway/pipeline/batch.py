"""Requests of one model whose rows are all there, and the queue in which they wait for the model."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from gateway.records.request import Request


class Batch(NamedTuple):
    """Requests that go through a model together.

    `stored` has, per view of the plan, the cached rows of all requests, in order. `ready` is when the last row was
    there, in seconds of `time.monotonic()`. A batch that is `apart` is never merged with others.
    """

    requests: list[Request]
    stored: list[list[bytes]]
    rows: int
    parked: int
    ready: float
    apart: bool = False

    def singles(self) -> "list[Batch]":
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
        return merge([single for single in self.singles() if not left(single.requests[0])], self.parked, self.ready)


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

    def put_halves(self, batch: Batch) -> None:
        """Add the two halves of a batch in front, to be run apart: some request in it makes the model fail.

        Halving finds one bad request among n in 2 log n runs.
        """
        singles = batch.singles()
        middle = len(singles) // 2
        for half in (singles[middle:], singles[:middle]):
            self._batches.appendleft(merge(half, 0, batch.ready)._replace(apart=True))

    def take(self, rows_max: int) -> Batch:
        """Everything that waits, in order, up to `rows_max` rows but at least one batch."""
        taken = [self._batches.popleft()]
        rows = taken[0].rows
        while self._batches and not taken[0].apart and not self._batches[0].apart:
            rows += self._batches[0].rows
            if rows > rows_max:
                break
            taken.append(self._batches.popleft())
        if len(taken) == 1:
            return taken[0]
        return merge(taken, sum(batch.parked for batch in taken), max(batch.ready for batch in taken))
