"""Requests of one model that go through it together."""

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from gateway.records.request import Request


class Batch(NamedTuple):
    """Requests that go through a model together.

    `stored` has, per view of the plan, the cached rows of all requests, in order. `ready` is when the last row was
    there, in seconds of `time.monotonic()`. `level` is where it waits for the model, from 1.
    """

    requests: list[Request]
    stored: list[list[bytes]]
    rows: int
    parked: int
    ready: float
    level: int = 1

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
        batches[0].level,
    )
