"""What belongs to one model and one sink (a lane), and to one runner (a desk): several lanes may share a desk.

lane: the model and its plan, who gets the answers, the batches that settled in this tick
desk: the queue in front of the runner, and how many rows came to it that have no answer yet
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gateway.inference import Model
from gateway.inference.runner import Runner
from gateway.pipeline.ahead import PlanAhead
from gateway.pipeline.batch import Batch
from gateway.pipeline.queue import RunQueue
from gateway.plan import Assembled
from gateway.records.errors import HeadraceError
from gateway.records.request import Array, Request
from gateway.records.violations import Violations


class Answers(NamedTuple):
    """One run of a model: outputs in the order of its signature, each with the rows of all requests in order.

    Where the model's plan is not `batched` there is one request, and the outputs are whole.
    """

    model: Model
    requests: Sequence[Request]
    outputs: Sequence[Array]
    assembled: Assembled
    numbers: npt.NDArray[np.uint64]
    """The counters of the prediction ids, one per request."""
    violations: Violations | None = None

    def pick(self, numbers: Sequence[int]) -> "Answers":
        """The answers to the requests with these numbers, from 0, in their order."""
        chosen = np.zeros(len(self.requests), np.bool_)
        chosen[list(numbers)] = True
        requests = [request for request, take in zip(self.requests, chosen.tolist(), strict=True) if take]
        if not self.model.plan.batched:
            return self._replace(requests=requests, numbers=self.numbers[chosen])
        kept = np.repeat(chosen, [request.rows for request in self.requests])
        return self._replace(
            requests=requests,
            outputs=[output[kept] for output in self.outputs],
            assembled=self.assembled.only(kept),
            numbers=self.numbers[chosen],
            violations=None if self.violations is None else self.violations.only(kept),
        )


class Sink(Protocol):
    """Who gets the answers."""

    def answer(self, answers: Answers) -> None:
        """Answer every request."""
        ...

    def refuse(self, request: Request, error: HeadraceError, model: Model) -> None:
        """End one request with an error. `model` is the one that it had come to, perhaps the fallback of another."""
        ...


class Desk:
    """What belongs to one runner."""

    __slots__ = ("backlog", "drains", "lanes", "model", "pump_is_due", "queue", "rows_in_flight", "rows_max", "runner")

    def __init__(self, model: Model, rows_max: int) -> None:
        """`rows_max` is the most that the pipeline makes a batch of; the runner may say less."""
        self.runner: Runner = model.runner
        self.model = model.name
        execution = self.runner.execution
        self.rows_max = min(rows_max, self.runner.batch_rows_max)
        self.queue: RunQueue[Lane] = RunQueue(execution.queue_rows_max, execution.priority_levels)
        self.backlog: deque[tuple[Lane, list[Request]]] = deque()
        """What has come and was not looked up yet, cut into batches."""
        self.rows_in_flight = 0
        self.pump_is_due = False
        self.drains: list[Callable[[], None]] = []
        """Who is told when there is nothing in flight."""
        self.lanes: list[Hashable] = []
        """The keys of the lanes that share it."""

    def __repr__(self) -> str:
        return f"<Desk {self.model} {self.queue!r} {self.rows_in_flight} in flight>"


class Lane:
    """What belongs to one model and one sink."""

    __slots__ = ("ahead", "alike", "apart", "batched", "computes", "desk", "failures", "model", "settled", "sink",
                 "steady")  # fmt: skip

    def __init__(self, model: Model, sink: Sink, desk: Desk, ahead: PlanAhead | None) -> None:
        self.model = model
        self.sink = sink
        self.desk = desk
        self.ahead = ahead
        self.computes = any(binding.view.compute is not None for binding in model.plan.bindings)
        self.batched = model.plan.batched
        self.steady = model.plan.steady
        execution = desk.runner.execution
        self.apart = not self.batched or not execution.merge
        """A request is a run of its own."""
        self.alike = not self.apart and self.steady and execution.priority_levels == 1
        """Any requests of the lane may share a run."""
        self.settled: list[Batch] = []
        self.failures = 0
        """Runs that failed since the last one that did not, and not by a caller's fault that the gateway found."""

    def __repr__(self) -> str:
        return f"<Lane {self.model!r}>"

    def kinds(self, batch: Batch) -> Iterator[tuple[Batch, Hashable]]:
        """The parts of a batch that may share a run, in the level of their priority."""
        if self.apart:
            for number, request in enumerate(batch.requests):
                yield batch.pick((number,))._replace(level=self._level(request)), object()
            return
        parts: dict[tuple[int, Hashable], list[int]] = {}
        for number, request in enumerate(batch.requests):
            parts.setdefault((self._level(request), request.shape), []).append(number)
        for (level, shape), numbers in parts.items():
            part = batch if len(parts) == 1 else batch.pick(numbers)
            yield part._replace(level=level), shape

    def _level(self, request: Request) -> int:
        """The level of a request: what is not one of the model's is the nearest one."""
        execution = self.desk.runner.execution
        return min(request.priority, execution.priority_levels) if request.priority > 0 else execution.default_priority


def cut(requests: Sequence[Request], rows_max: int) -> Iterator[list[Request]]:
    """The requests in order, in chunks of at most `rows_max` rows; a larger request is a chunk of its own."""
    chunk: list[Request] = []
    rows = 0
    for request in requests:
        if chunk and rows + request.rows > rows_max:
            yield chunk
            chunk, rows = [], 0
        chunk.append(request)
        rows += request.rows
    if chunk:
        yield chunk


rows_of = itemgetter(Request._fields.index("rows"))
