"""Requests of one model whose rows are all there, and the queue in which they wait for the model."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
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

    def callers(self, index: int) -> Sequence[int]:
        """The number of the request that each row of view `index` belongs to, from 0."""
        if len(self.stored[index]) == len(self.requests):  # a row each
            return range(len(self.requests))
        return [number for number, request in enumerate(self.requests) for _ in request.ids[index]]

    def pick(self, numbers: Sequence[int]) -> "Batch":
        """The requests with these numbers, from 0, in this order."""
        requests = [self.requests[number] for number in numbers]
        stored: list[list[bytes]] = []
        for index, rows in enumerate(self.stored):
            if len(rows) == len(self.requests):  # a row each
                stored.append([rows[number] for number in numbers])
            else:
                ends = list(accumulate(len(request.ids[index]) for request in self.requests))
                spans = [(ends[number] - len(self.requests[number].ids[index]), ends[number]) for number in numbers]
                stored.append([*chain.from_iterable(rows[start:end] for start, end in spans)])
        return self._replace(requests=requests, stored=stored, rows=sum([request.rows for request in requests]))

    def without(self, left: Callable[[Request], bool]) -> "Batch":
        """The same batch without the requests for which `left` says so; it is called once for each."""
        return self.pick([number for number, request in enumerate(self.requests) if not left(request)])


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
        end = len(batch.requests)
        for half in (range(end // 2, end), range(end // 2)):
            self._batches.appendleft(batch.pick(half)._replace(parked=0, apart=True))

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
