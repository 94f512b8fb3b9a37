"""The story of a prediction.

    accept -> look up -> every row there ------------------> queue -> assemble -> run -> answer
                      `-> some row missing: park -> settle --^

Each step takes every request of a model that is there; nothing is done per request on the warm path but gathering its
ids. `accept` is synchronous, and an idle server with a short model has answered before it returns.

Invariants
- Each accepted request is answered or refused exactly once, and until then its rows count as in flight.
- A request returns from parking when its own last row settles. The read belongs to the feature client.
- The rows that a request was looked up with travel with it: eviction or invalidation cannot pull them away.
- Who has left is skipped before the model. A run that fails, or gives another number of rows than it got, is repeated
  in halves, so that one bad input fails alone; a model that keeps failing fails whole batches.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from featureclient.client import Ask, FeatureClient
from featureclient.schema import InvalidId, status
from gateway.inference import Model
from gateway.inference.runner import Ran
from gateway.pipeline.ahead import PlanAhead, ReadAhead
from gateway.pipeline.batch import Batch, BatchQueue
from gateway.plan import Assembled
from gateway.records.errors import (
    CallerLeft,
    DeadlinePassed,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    RowRejected,
    Unavailable,
)
from gateway.records.report import BatchReport
from gateway.records.request import Array, Id, Request

_log = logging.getLogger(__name__)

_RUNS_PER_PASS = 8
"""Runs of one model before the loop sees to others; batches are merged, so more than two are rare."""
_COMPUTE_SHARE = 0.9
"""How much of what is left of its deadline a request waits for rows that are computed; the rest is for the model."""
_PARKED_MAX_S = 3600.0
"""How long a request without an end may wait for its rows."""
_FAILURES_MAX = 100
"""Runs of a model that may fail, none succeeding in between, while the bad requests are looked for by halving. So many
bad requests in one batch harm no good one; a model that is broken costs no more than this before it fails at once."""


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The bounds of the path."""

    store_timeout_ms: int = 50
    """How long a request waits for the store before it goes on with defaults, milliseconds; at most half of what is
    left of its deadline."""
    batch_rows_max: int = 4096
    """Rows of one run of a model. A single request may be larger, and then runs alone."""
    tick_rows_max: int = 16384
    """Rows that one pass of the event loop takes in; the rest waits for the next pass."""
    parked_rows_max: int = 65536
    """Rows of requests that wait for the store. Beyond it a request with a missing row is refused."""
    rows_in_flight_max: int = 262144
    """Rows of all requests that have no answer yet. Beyond it requests are refused at the door."""

    def __post_init__(self) -> None:
        for name in ("store_timeout_ms", "batch_rows_max", "tick_rows_max", "parked_rows_max", "rows_in_flight_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


class Answers(NamedTuple):
    """One run of a model: outputs in the order of its signature, each with the rows of all requests in order."""

    model: Model
    requests: Sequence[Request]
    outputs: Sequence[Array]
    assembled: Assembled


class Sink(Protocol):
    """Who gets the answers."""

    def answer(self, answers: Answers) -> None:
        """Answer every request."""
        ...

    def refuse(self, request: Request, error: HeadraceError) -> None:
        """End one request with an error."""
        ...


class _Lane:
    """What belongs to one model: the queue in front of it and the requests that settled in this tick."""

    __slots__ = ("ahead", "computes", "failures", "model", "pump_is_due", "queue", "settled")

    def __init__(self, model: Model, ahead: PlanAhead | None) -> None:
        self.model = model
        self.ahead = ahead
        self.computes = any(binding.view.compute is not None for binding in model.plan.bindings)
        self.queue = BatchQueue()
        self.settled: list[Batch] = []
        self.failures = 0
        self.pump_is_due = False

    def __repr__(self) -> str:
        return f"<Lane {self.model!r} {self.queue!r}>"


class Pipeline:
    """Takes bound requests, gives answers to the sink and a report of each run to `observe`."""

    def __init__(
        self,
        client: FeatureClient,
        options: PipelineOptions,
        sink: Sink,
        observe: Callable[[BatchReport], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.client = client
        self.options = options
        self.sink = sink
        self.observe = observe
        self.monotonic = monotonic
        self.wall_s = wall_s
        self.rows_in_flight = 0
        self.rows_parked = 0
        self._lanes: dict[Model, _Lane] = {}
        self._read_ahead = ReadAhead(client)
        self._backlog: deque[tuple[_Lane, list[Request]]] = deque()
        self._pass_is_due = False

    def __repr__(self) -> str:
        return (
            f"<Pipeline {self.rows_in_flight} rows in flight, {self.rows_parked} parked, {list(self._lanes.values())}>"
        )

    def accept(self, model: Model, requests: list[Request]) -> None:
        """Take requests that were bound to the model's plan. Runs on the loop; never raises because of a request."""
        lane = self._lanes.get(model)
        if lane is None:
            ahead = self._read_ahead.of(model.plan, self.client.catalogue.views)
            lane = self._lanes[model] = _Lane(model, ahead)
        rows = sum(map(_rows_of, requests))
        if self.rows_in_flight + rows > self.options.rows_in_flight_max:
            requests, rows = self._admit(requests)
        self.rows_in_flight += rows
        if rows <= self.options.batch_rows_max and not self._backlog:
            self._look_up(lane, requests)
            self._pump(lane)
            self._look_ahead(lane, requests)
        elif requests:
            self._backlog.extend((lane, chunk) for chunk in _cut(requests, self.options.batch_rows_max))
            if not self._pass_is_due:
                self._pass()

    def _admit(self, requests: list[Request]) -> tuple[list[Request], int]:
        """Take what fits, in order, and refuse the rest."""
        room = self.options.rows_in_flight_max - self.rows_in_flight
        admitted: list[Request] = []
        rows = 0
        for request in requests:
            if rows + request.rows <= room:
                admitted.append(request)
                rows += request.rows
            else:
                message = f"{self.rows_in_flight} rows are in flight, the limit rows_in_flight_max is reached"
                self.sink.refuse(request, Overloaded(message, limit="rows_in_flight_max"))
        return admitted, rows

    def _pass(self) -> None:
        """Take in at most `tick_rows_max` rows of the backlog, then let the loop see to others."""
        room = self.options.tick_rows_max
        while self._backlog and room > 0:
            lane, chunk = self._backlog.popleft()
            room -= sum(request.rows for request in chunk)
            self._look_up(lane, chunk)
            self._pump(lane)
            self._look_ahead(lane, chunk)
        self._pass_is_due = bool(self._backlog)
        if self._pass_is_due:
            asyncio.get_running_loop().call_soon(self._pass)

    def _look_ahead(self, lane: _Lane, requests: Sequence[Request]) -> None:
        """Have the rows read that are likely to be asked for next. It is a hint: nobody is harmed where it fails."""
        if lane.ahead is not None:
            try:
                lane.ahead.look(requests)
            except Exception:  # noqa: BLE001 - a bug of ours is no reason to harm anybody
                _log.exception("reading ahead for model %s failed", lane.model.name)

    def _look_up(self, lane: _Lane, requests: list[Request]) -> None:
        """Ask the cache for every id of every request; park those with a row missing, queue the others."""
        if not requests:
            return
        now = self.monotonic()
        stored: list[list[bytes | None]] = []
        for index, binding in enumerate(lane.model.plan.bindings):
            try:
                stored.append(self.client.lookup(binding.view, _ids(requests, index), now))
            except Exception as error:  # noqa: BLE001 - a bug of ours; these requests end, the others go on
                self._refuse_all(requests, error)
                return
        rows = sum(map(_rows_of, requests))
        batch = Batch(requests, stored, rows, 0, now)  # type: ignore[arg-type]  # may hold None until it is parked
        if all(map(all, stored)):  # a row is never empty, so truth means presence and costs least
            lane.queue.put(batch)
            return
        parked: set[int] = set()
        for index, found in enumerate(stored):
            parked.update([number for number, row in zip(batch.callers(index), found, strict=True) if row is None])
        if len(parked) == len(requests):
            self._park(lane, batch, now)
        else:
            lane.queue.put(batch.pick([number for number in range(len(requests)) if number not in parked]))
            self._park(lane, batch.pick(sorted(parked)), now)

    def _park(self, lane: _Lane, batch: Batch, now: float) -> None:
        """Let requests wait for their missing rows, those with the same budgets together."""
        if _somebody_left(batch.requests, now):
            batch = batch.without(partial(self._has_left, now=now))
        if self.rows_parked + batch.rows > self.options.parked_rows_max:
            batch = self._admit_parked(batch)
        store_timeout_s = self.options.store_timeout_ms / 1000
        if not batch.requests:
            return
        if not lane.computes and min(map(_deadline_of, batch.requests)) - now >= 2 * store_timeout_s:
            self._fetch(lane, batch, now + store_timeout_s, now)
            return
        by_budget: dict[tuple[int, int], list[int]] = {}
        for number, request in enumerate(batch.requests):
            # In milliseconds, which is what a timer can tell apart.
            left_ms = int(min(request.deadline - now, _PARKED_MAX_S) * 1000)
            compute_ms = int(left_ms * _COMPUTE_SHARE) if lane.computes else 0
            by_budget.setdefault((min(self.options.store_timeout_ms, left_ms // 2), compute_ms), []).append(number)
        for (store_ms, compute_ms), numbers in by_budget.items():
            together = batch if len(by_budget) == 1 else batch.pick(numbers)
            self._fetch(lane, together, now + store_ms / 1000, now + compute_ms / 1000)

    def _admit_parked(self, batch: Batch) -> Batch:
        """Take what fits into `parked_rows_max`, in order, and refuse the rest."""
        room = self.options.parked_rows_max - self.rows_parked
        admitted: list[int] = []
        for number, request in enumerate(batch.requests):
            if request.rows <= room:
                admitted.append(number)
                room -= request.rows
            else:
                message = f"{self.rows_parked} rows wait for the store, the limit parked_rows_max is reached"
                self._refuse(request, Overloaded(message, limit="parked_rows_max"))
        return batch.pick(admitted)

    def _fetch(self, lane: _Lane, batch: Batch, give_up_at: float, compute_until: float) -> None:
        """Have the keys of a batch join the next read."""
        asks = [
            Ask(binding.view, _ids(batch.requests, index), batch.stored[index], batch.callers(index))  # type: ignore[arg-type]  # fills None
            for index, binding in enumerate(lane.model.plan.bindings)
            if not all(batch.stored[index])
        ]
        count = len(batch.requests)
        done = partial(self._settle, lane, batch)
        try:
            self.client.fetch(asks, give_up_at, done, callers=count, compute_until=compute_until)
        except InvalidId as error:
            if count == 1:
                self._refuse(batch.requests[0], InvalidRequest(str(error), field="entities"))
                return
            # Nothing has been queued: look for the request that is to blame.
            for half in (range(count // 2), range(count // 2, count)):
                self._fetch(lane, batch.pick(half), give_up_at, compute_until)
        except RuntimeError as error:  # the client has been closed
            for request in batch.requests:
                self._refuse(request, Unavailable(f"the feature client does not take reads: {error}"))
        else:
            self.rows_parked += batch.rows

    def _settle(self, lane: _Lane, batch: Batch, callers: Sequence[int]) -> None:
        """The last rows of these callers are there. Those that settle in one tick go on together."""
        settled = batch if len(callers) == len(batch.requests) else batch.pick(callers)
        self.rows_parked -= settled.rows
        if not lane.settled:
            asyncio.get_running_loop().call_soon(self._resume, lane)
        lane.settled.append(settled._replace(parked=len(callers), ready=self.monotonic()))

    def _resume(self, lane: _Lane) -> None:
        settled, lane.settled = lane.settled, []
        for batch in settled:
            lane.queue.put(batch)
        self._pump(lane)

    def _pump(self, lane: _Lane) -> None:
        """While the model is free, what waits for it is its next batch."""
        runner = lane.model.runner
        for _ in range(_RUNS_PER_PASS):
            if not lane.queue or runner.busy:
                return
            batch = lane.queue.take(self.options.batch_rows_max)
            now = self.monotonic()
            if _somebody_left(batch.requests, now):
                batch = batch.without(partial(self._has_left, now=now))
            if batch.requests:
                self._run(lane, batch)
        if lane.queue and not lane.pump_is_due:
            lane.pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump_again, lane)

    def _pump_again(self, lane: _Lane) -> None:
        lane.pump_is_due = False
        self._pump(lane)

    def _run(self, lane: _Lane, batch: Batch) -> None:
        try:
            assembled = lane.model.plan.assemble(batch.requests, batch.stored, int(self.wall_s() * 1000))
        except Exception as error:  # noqa: BLE001 - a transform is user code and may raise anything
            self._failed(lane, batch, error)
            return
        done = partial(self._computed, lane, batch, assembled, self.monotonic())
        lane.model.runner.run(assembled.inputs, batch.rows, done)

    def _computed(self, lane: _Lane, batch: Batch, assembled: Assembled, assembled_at: float, ran: Ran) -> None:
        error = ran.error or _wrong_rows(ran, batch.rows)
        if error is not None:
            self._failed(lane, batch, error)
        else:
            lane.failures = 0
            answers = Answers(lane.model, batch.requests, ran.outputs, assembled)
            computed_at = self.monotonic()
            if assembled.rejected is not None:
                answers = self._reject(answers, assembled.rejected)
            if answers.requests:
                self._answer(answers, batch, ran, (assembled_at, computed_at))
        if ran.threaded:
            self._pump(lane)

    def _answer(self, answers: Answers, batch: Batch, ran: Ran, computed: tuple[float, float]) -> None:
        try:
            self.sink.answer(answers)
        except Exception as error:  # noqa: BLE001 - a bug of ours; a call that has its answer ignores this one
            self._refuse_all(answers.requests, error)
            return
        rows = sum(map(_rows_of, answers.requests))
        self.rows_in_flight -= rows
        # What nobody waits for comes after the answers are sent, at the end of this turn of the loop.
        moments = (*computed, self.monotonic())
        asyncio.get_running_loop().call_soon(self._observe, answers, rows, batch, ran, moments)

    def _observe(
        self, answers: Answers, rows: int, batch: Batch, ran: Ran, moments: tuple[float, float, float]
    ) -> None:
        self.observe(_report(answers, rows, batch, ran, moments))

    def _reject(self, answers: Answers, rejected: npt.NDArray[np.bool_]) -> Answers:
        """Refuse the requests that have a rejected row; the answers of the others remain."""
        kept = np.ones(len(rejected), np.bool_)
        requests: list[Request] = []
        start = 0
        for request in answers.requests:
            span = slice(start, start + request.rows)
            start = span.stop
            if rejected[span].any():
                kept[span] = False
                self._refuse(request, RowRejected(_without_features(answers, span)))
            else:
                requests.append(request)
        outputs = [output[kept] for output in answers.outputs]
        return Answers(answers.model, requests, outputs, answers.assembled.only(kept))

    def _failed(self, lane: _Lane, batch: Batch, error: Exception) -> None:
        """Find the request that made the run fail, unless the model fails whatever it gets."""
        lane.failures += 1
        if len(batch.requests) > 1 and lane.failures <= _FAILURES_MAX:
            lane.queue.put_halves(batch)
        else:
            self._refuse_all(batch.requests, error)

    def _refuse_all(self, requests: Sequence[Request], error: Exception) -> None:
        failure = ModelFailed(f"model {requests[0].model} failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        for request in requests:
            self._refuse(request, failure)

    def _has_left(self, request: Request, now: float) -> bool:
        """End a request whose caller does not wait any more; True if it has been ended."""
        if request.deadline <= now:
            self._refuse(request, DeadlinePassed("the deadline passed before the model ran"))
        elif request.caller.cancelled:
            self._refuse(request, CallerLeft("the caller left before the model ran"))
        else:
            return False
        return True

    def _refuse(self, request: Request, error: HeadraceError) -> None:
        self.rows_in_flight -= request.rows
        self.sink.refuse(request, error)


_rows_of = itemgetter(Request._fields.index("rows"))
_deadline_of = itemgetter(Request._fields.index("deadline"))
_arrived_of = itemgetter(Request._fields.index("arrived"))


def _somebody_left(requests: Sequence[Request], now: float) -> bool:
    # A list costs less than a generator, and nobody has left but now and then.
    left = [request for request in requests if request.caller.cancelled]
    return bool(left) or min(map(_deadline_of, requests)) <= now


def _ids(requests: Sequence[Request], index: int) -> Sequence[Id]:
    """The ids of all requests for one view of the plan, in order."""
    if len(requests) == 1:
        return requests[0].ids[index]
    ids: list[Id] = []
    for request in requests:
        ids += request.ids[index]
    return ids


def _cut(requests: list[Request], rows_max: int) -> Iterator[list[Request]]:
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


def _wrong_rows(ran: Ran, rows: int) -> Exception | None:
    """The rows of an output are dealt out by position, so there must be as many as there were rows of input."""
    if all(len(output) == rows for output in ran.outputs):
        return None
    shapes = ", ".join(str(np.shape(output)) for output in ran.outputs)
    return ValueError(f"the outputs have the shapes {shapes} for {rows} rows")


def _report(answers: Answers, rows: int, batch: Batch, ran: Ran, moments: tuple[float, float, float]) -> BatchReport:
    statuses: dict[str, npt.NDArray[np.uint8]] = {}
    for binding, codes in zip(answers.model.plan.bindings, answers.assembled.statuses, strict=True):
        seen = statuses.get(binding.ref)  # the same view may stand under two aliases
        statuses[binding.ref] = codes if seen is None else np.concatenate((seen, codes))
    model = answers.model
    arrived = list(map(_arrived_of, answers.requests))
    return BatchReport(
        model.name,
        model.version,
        model.variant,
        arrived,
        rows,
        batch.parked,
        ran.threaded,
        batch.ready,
        *moments,
        statuses,
    )


def _without_features(answers: Answers, span: slice) -> str:
    """Which views of a rejected request have no row, and for which row of the request first."""
    views = []
    for binding, codes in zip(answers.model.plan.bindings, answers.assembled.statuses, strict=True):
        missing = np.flatnonzero(codes[span] & status.OUTCOME_MASK == status.MISSING)
        if binding.view.on_missing == "reject" and missing.size:
            views.append(f"{binding.view.ref} has no features for row {missing[0]} ({missing.size} rows in all)")
    return "; ".join(views) + "; the view is declared with on_missing: reject"
