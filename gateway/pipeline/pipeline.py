"""The story of a prediction.

    accept -> look up -> every row there ------------------> queue -> assemble -> run -> answer
                      `-> some row missing: park -> settle --^

Each step takes every request of a model that is there; nothing is done per request on the warm path but gathering its
ids. `accept` is synchronous, and an idle server with a short model has answered before it returns.

Invariants
- Each accepted request is answered or refused exactly once, whatever raises on its way, and until then its rows count
  as in flight.
- A request returns from parking when its own last row settles. The read belongs to the feature client.
- The rows that a request was looked up with travel with it: eviction or invalidation cannot pull them away.
- Who has left is skipped before the model. A run that fails, or gives another number of rows than it got, is repeated
  in halves, so that a bad input fails alone and nobody else with it. A model that keeps failing gets one request at a
  time, and one such run in each turn of the loop.
- No run of a model begins on the loop when its runs have had this turn of it for as long as one may take.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from featureclient.client import Ask, FeatureClient
from featureclient.schema import InvalidId, status
from gateway.inference import Model
from gateway.inference.batching import by_rows, shapes
from gateway.inference.runner import Ran, Runner
from gateway.pipeline.ahead import ReadAhead
from gateway.pipeline.batch import Batch
from gateway.pipeline.lane import Answers, Desk, Lane, Sink, cut, rows_of
from gateway.pipeline.run import NOT_KEPT, Keeping, Run, set_apart
from gateway.records.errors import (
    CallerError,
    CallerLeft,
    DeadlinePassed,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    RowRejected,
    Unavailable,
)
from gateway.records.prediction_ids import PredictionIds
from gateway.records.report import BatchReport
from gateway.records.request import Id, Request
from gateway.records.served import Moments
from gateway.records.violations import Violations
from gateway.validation.checks import Checked
from gateway.validation.fallback import Reroute

_log = logging.getLogger(__name__)

_RUNS_PER_PASS = 8
"""Runs of one model before the loop sees to others; batches are merged, so more than two are rare."""
_COMPUTE_SHARE = 0.9
"""How much of what is left of its deadline a request waits for rows that are computed; the rest is for the model."""
_PARKED_MAX_S = 3600.0
"""How long a request without an end may wait for its rows."""
_FAILURES_MAX = 100
"""Runs of a model that may fail, none succeeding in between, before its batches are no longer halved but run request by
request, one in each turn of the loop. So a model that is broken costs at most one run for each request, and others have
the loop between them; what finds no time waits, up to its deadline and the bound of the queue."""


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
        ids: PredictionIds | None = None,
        keeping: Keeping = NOT_KEPT,
        fallback: Callable[[Model], tuple[Model, Reroute] | None] = lambda model: None,
        violated: Callable[[Model, Violations], None] = lambda model, violations: None,
    ) -> None:
        """`ids` gives prediction ids, `keeping` is the journal.

        `fallback` finds who answers for a model whose checks say so, `violated` is told of violated checks in rows that
        the model does not answer.
        """
        self.client = client
        self.options = options
        self.sink = sink
        self.observe = observe
        self.monotonic = monotonic
        self.wall_s = wall_s
        self.ids = ids or PredictionIds(secrets.token_bytes(8))
        self.keeping = keeping
        self.fallback = fallback
        self.violated = violated
        self.rows_in_flight = 0
        self.rows_parked = 0
        self.pulse = 0
        """Grows whenever requests come, from outside or from the store."""
        self.copied: Callable[[Batch, Answers, Moments], None] | None = None
        """Told of each run when its answers have been sent: the batch, and the requests of it that were answered."""
        self._lanes: dict[Hashable, Lane] = {}
        self._desks: dict[Runner, Desk] = {}
        self._read_ahead = ReadAhead(client)
        self._backlog: deque[Desk] = deque()
        self._pass_is_due = False

    def __repr__(self) -> str:
        return (
            f"<Pipeline {self.rows_in_flight} rows in flight, {self.rows_parked} parked, {list(self._desks.values())}>"
        )

    def accept(self, model: Model, requests: list[Request], sink: Sink | None = None) -> None:
        """Take requests that were bound to the model's plan; `sink` gets the answers, or the pipeline's own.

        Runs on the loop; never raises because of a request.
        """
        lane = self._lanes.get(model if sink is None else (model, id(sink)))
        if lane is None:
            lane = self._open(model, sink)
        self.pulse += 1
        rows = sum(map(rows_of, requests))
        if self.rows_in_flight + rows > self.options.rows_in_flight_max:
            requests, rows = self._admit(lane, requests)
        self.rows_in_flight += rows
        desk = lane.desk
        desk.rows_in_flight += rows
        if rows <= desk.rows_max and not desk.backlog:
            self._look_up(lane, requests)
            self._pump(desk)
            self._look_ahead(lane, requests)
        elif requests:
            if not desk.backlog:
                self._backlog.append(desk)
            desk.backlog.extend((lane, chunk) for chunk in cut(requests, desk.rows_max))
            if not self._pass_is_due:
                self._pass()

    def drain(self, model: Model, done: Callable[[], None]) -> None:
        """Call `done` once, on the loop, when no request of the model's runner is in flight; then forget the model.

        For a model to which no new requests come; should one come all the same, it is answered first.
        """
        desk = self._desk(model)
        desk.drains.append(done)
        if not desk.rows_in_flight:
            asyncio.get_running_loop().call_soon(self._drained, desk)

    def forget(self, model: Model) -> None:
        """Let the lanes of a model go to which nothing new comes. What is on its way is answered, its runner stays."""
        desk = self._desks.get(model.runner)
        for key in [] if desk is None else list(desk.lanes):
            if (key[0] if isinstance(key, tuple) else key) is model:
                desk.lanes.remove(key)  # type: ignore[union-attr]  # there are lanes
                self._lanes.pop(key, None)

    @property
    def waits(self) -> bool:
        """Requests have all their rows and wait for a model, or have not been looked at yet."""
        return bool(self._backlog) or any(desk.queue.rows for desk in self._desks.values())

    def queued_rows(self) -> Mapping[str, int]:
        """Rows that wait for each model, of all its versions. May be called from any thread."""
        queued: dict[str, int] = {}
        for desk in list(self._desks.values()):
            queued[desk.model] = queued.get(desk.model, 0) + desk.queue.rows
        return queued

    def _desk(self, model: Model) -> Desk:
        desk = self._desks.get(model.runner)
        if desk is None:
            desk = self._desks[model.runner] = Desk(model, self.options.batch_rows_max)
        return desk

    def _open(self, model: Model, sink: Sink | None) -> Lane:
        desk = self._desk(model)
        ahead = self._read_ahead.of(model.plan, self.client.catalogue.views)
        # A lane holds its sink, so that no other can have the same id.
        key = model if sink is None else (model, id(sink))
        lane = self._lanes[key] = Lane(model, sink or self.sink, desk, ahead)
        desk.lanes.append(key)
        return lane

    def _drained(self, desk: Desk) -> None:
        if desk.rows_in_flight or not desk.drains:
            return
        drains, desk.drains = desk.drains, []
        self._desks.pop(desk.runner, None)
        for key in desk.lanes:
            self._lanes.pop(key, None)
        for done in drains:
            try:
                done()
            except Exception:  # noqa: BLE001 - whatever is wrong with one of them, the others are told
                _log.exception("draining model %s failed", desk.model)

    def _admit(self, lane: Lane, requests: list[Request]) -> tuple[list[Request], int]:
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
                self._tell(lane, request, Overloaded(message, limit="rows_in_flight_max"))
        return admitted, rows

    def _pass(self) -> None:
        """Take in at most `tick_rows_max` rows of the backlog, the models in turns, then let the loop see to others.

        The same when runs have had the loop for as long as one may.
        """
        room = self.options.tick_rows_max
        spent_s = 0.0
        while self._backlog and room > 0:
            desk = self._backlog.popleft()
            lane, chunk = desk.backlog.popleft()
            if desk.backlog:
                self._backlog.append(desk)
            room -= sum(request.rows for request in chunk)
            try:
                self._look_up(lane, chunk)
                spent_s += self._pump(desk)
            except Exception:  # noqa: BLE001 - a bug of ours; the rest of the backlog has its turn all the same
                _log.exception("taking in requests of model %s failed", lane.model.name)
            self._look_ahead(lane, chunk)
            if spent_s > desk.runner.inline_max_s:
                break
        self._pass_is_due = bool(self._backlog)
        if self._pass_is_due:
            asyncio.get_running_loop().call_soon(self._pass)

    def _look_ahead(self, lane: Lane, requests: Sequence[Request]) -> None:
        """Have the rows read that are likely to be asked for next. It is a hint: nobody is harmed where it fails."""
        if lane.ahead is not None:
            try:
                lane.ahead.look(requests)
            except Exception:  # noqa: BLE001 - a bug of ours is no reason to harm anybody
                _log.exception("reading ahead for model %s failed", lane.model.name)

    def _look_up(self, lane: Lane, requests: list[Request]) -> None:
        """Ask the cache for every id of every request; park those with a row missing, queue the others."""
        if not requests:
            return
        now = self.monotonic()
        stored: list[list[bytes | None]] = []
        parked: set[int] = set()
        try:
            for index, binding in enumerate(lane.model.plan.bindings):
                stored.append(self.client.lookup(binding.view, _ids(requests, index), now))
            rows = sum(map(rows_of, requests))
            batch = Batch(requests, stored, rows, 0, now)  # type: ignore[arg-type]  # may hold None until it is parked
            if not all(map(all, stored)):  # a row is never empty, so truth means presence and costs least
                for index, found in enumerate(stored):
                    callers = batch.callers(index)
                    parked.update([number for number, row in zip(callers, found, strict=True) if row is None])
        except Exception as error:  # noqa: BLE001 - a bug of ours; these requests end, the others go on
            self._refuse_all(lane, requests, error)
            return
        if not parked:
            self._enqueue(lane, batch)
        elif len(parked) == len(requests):
            self._park(lane, batch, now)
        else:
            self._enqueue(lane, batch.pick([number for number in range(len(requests)) if number not in parked]))
            self._park(lane, batch.pick(sorted(parked)), now)

    def _park(self, lane: Lane, batch: Batch, now: float) -> None:
        """Let requests wait for their missing rows, those with the same budgets together."""
        if _somebody_left(batch.requests, now):
            batch = batch.without(partial(self._has_left, lane, now=now))
        if self.rows_parked + batch.rows > self.options.parked_rows_max:
            batch = self._admit_parked(lane, batch)
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

    def _admit_parked(self, lane: Lane, batch: Batch) -> Batch:
        """Take what fits into `parked_rows_max`, in order, and refuse the rest."""
        room = self.options.parked_rows_max - self.rows_parked
        admitted: list[int] = []
        for number, request in enumerate(batch.requests):
            if request.rows <= room:
                admitted.append(number)
                room -= request.rows
            else:
                message = f"{self.rows_parked} rows wait for the store, the limit parked_rows_max is reached"
                self._refuse(lane, request, Overloaded(message, limit="parked_rows_max"))
        return batch.pick(admitted)

    def _fetch(self, lane: Lane, batch: Batch, give_up_at: float, compute_until: float) -> None:
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
                self._refuse(lane, batch.requests[0], InvalidRequest(str(error), field="entities"))
                return
            # Nothing has been queued: look for the request that is to blame.
            for half in (range(count // 2), range(count // 2, count)):
                self._fetch(lane, batch.pick(half), give_up_at, compute_until)
        except RuntimeError as error:  # the client has been closed
            for request in batch.requests:
                self._refuse(lane, request, Unavailable(f"the feature client does not take reads: {error}"))
        except Exception as error:  # noqa: BLE001 - a bug of ours; these requests end, the others go on
            self._refuse_all(lane, batch.requests, error)
        else:
            self.rows_parked += batch.rows

    def _settle(self, lane: Lane, batch: Batch, callers: Sequence[int]) -> None:
        """The last rows of these callers are there. Those that settle in one tick go on together."""
        settled = batch if len(callers) == len(batch.requests) else batch.pick(callers)
        self.rows_parked -= settled.rows
        self.pulse += 1
        if not lane.settled:
            asyncio.get_running_loop().call_soon(self._resume, lane)
        lane.settled.append(settled._replace(parked=len(callers), ready=self.monotonic()))

    def _resume(self, lane: Lane) -> None:
        settled, lane.settled = lane.settled, []
        for batch in settled:
            self._enqueue(lane, batch)
        self._pump(lane.desk)

    def _enqueue(self, lane: Lane, batch: Batch) -> None:
        """Let a batch wait for the model; what finds no room in the queue is refused."""
        queue = lane.desk.queue
        if lane.alike:
            if not queue.put(lane, batch):
                self._enqueue_some(lane, batch, ())
            return
        for part, kind in lane.kinds(batch):
            if not queue.put(lane, part, kind):
                self._enqueue_some(lane, part, kind)

    def _enqueue_some(self, lane: Lane, batch: Batch, kind: Hashable) -> None:
        """Take what fits into the queue, in order, and refuse the rest."""
        queue = lane.desk.queue
        room = queue.rows_max - queue.rows
        admitted: list[int] = []
        for number, request in enumerate(batch.requests):
            if request.rows <= room or (not queue and not admitted):
                admitted.append(number)
                room -= request.rows
            else:
                message = f"{queue.rows} rows wait for model {lane.model.name}, the limit queue_rows_max is reached"
                self._refuse(lane, request, Overloaded(message, limit="queue_rows_max"))
        if admitted:
            queue.put(lane, batch.pick(admitted), kind)

    def _pump(self, desk: Desk) -> float:
        """While the model is free, what waits for it is its next batch.

        When its runs have had the loop for as long as one may, the next begins in the next turn of the loop. Returns
        for how long they are expected to have had it, seconds.
        """
        spent_s = 0.0
        if desk.pump_is_due:
            return spent_s
        runner, queue = desk.runner, desk.queue
        for _ in range(_RUNS_PER_PASS):
            if not queue.rows or runner.busy:
                return spent_s
            if spent_s > runner.inline_max_s:
                break
            lane, batch = queue.take(desk.rows_max)
            now = self.monotonic()
            if _somebody_left(batch.requests, now):
                batch = batch.without(partial(self._has_left, lane, now=now))
            if batch.requests:
                self._run(lane, batch, now)
                spent_s += runner.loop_s
                if lane.failures > _FAILURES_MAX:
                    break
        if queue.rows:
            desk.pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump_again, desk)
        return spent_s

    def _pump_again(self, desk: Desk) -> None:
        desk.pump_is_due = False
        self._pump(desk)

    def _run(self, lane: Lane, batch: Batch, taken: float) -> None:
        checks, checked = lane.model.checks, None
        try:
            assembled = lane.model.plan.assemble(batch.requests, batch.stored, int(self.wall_s() * 1000))
            if checks is not None:
                checked = checks.apply(assembled)
        except Exception as error:  # noqa: BLE001 - a transform is user code and may raise anything
            self._failed(lane, batch, error)
            return
        if checked is not None:
            if checked.refused is not None or checked.elsewhere is not None:
                self._run_without(lane, batch, checked, taken)
                return
            assembled = checked.assembled
        inputs = assembled.inputs
        if checked is not None and checked.replaced:
            inputs = checks.shown(checked)  # type: ignore[union-attr]  # they made `checked`
        run = Run(lane, batch, assembled, checked, taken, self.monotonic())
        done = partial(self._computed, run)
        try:
            lane.desk.runner.run(inputs, batch.rows, done, whole=not lane.batched, steady=lane.steady)
        except Exception as error:  # noqa: BLE001 - a bug of ours; as `done` never raises, it has not been called
            self._failed(lane, batch, error)

    def _run_without(self, lane: Lane, batch: Batch, checked: Checked, taken: float) -> None:
        """Refuse the requests that the checks do not let through, send others to the fallback model, run the rest."""
        try:
            apart = set_apart(batch.requests, checked)
            refused = [
                (batch.requests[number], RowRejected(lane.model.checks.why(checked, span)))  # type: ignore[union-attr]  # they made `checked`
                for number, span in apart.refused
            ]
        except Exception as error:  # noqa: BLE001 - a bug of ours; nobody has been told anything yet
            self._failed(lane, batch, error)
            return
        self._violated(lane, checked, apart.gone)
        for request, why in refused:
            self._refuse(lane, request, why)
        if apart.moved:
            self._fall_back(lane, [batch.requests[number] for number in apart.moved])
        if apart.rest:
            self._run(lane, batch.pick(apart.rest), taken)

    def _violated(self, lane: Lane, checked: Checked, rows: npt.NDArray[np.bool_]) -> None:
        """Count what is wrong with rows that get no answer from this model; answers bring theirs with them."""
        if checked.violations is not None:
            try:
                self.violated(lane.model, checked.violations.only(rows))
            except Exception:  # noqa: BLE001 - a bug of ours is no reason to harm anybody
                _log.exception("counting violated checks of model %s failed", lane.model.name)

    def _fall_back(self, lane: Lane, requests: Sequence[Request]) -> None:
        """Send whole requests to the fallback model, as if they had been asked of it; their answers name it."""
        try:
            found = self.fallback(lane.model)
            if found is None:
                raise Unavailable(f"the fallback of model {lane.model.name} is not loaded")
            model, reroute = found
            sent = [reroute.request(request) for request in requests]
        except Unavailable as error:
            for request in requests:
                self._refuse(lane, request, error)
            return
        except Exception as error:  # noqa: BLE001 - a bug of ours; these requests end, the others go on
            self._refuse_all(lane, requests, error)
            return
        self._end(lane.desk, sum(map(rows_of, requests)))
        # In a turn of its own: this may be in the middle of a run's pass, and the other model may run at once.
        asyncio.get_running_loop().call_soon(self.accept, model, sent, None if lane.sink is self.sink else lane.sink)

    def _computed(self, run: Run, ran: Ran) -> None:
        """A run has ended. Never raises: whatever is wrong with what it gave, each of its requests is ended, once."""
        lane, batch = run.lane, run.batch
        if ran.error is not None:
            self._failed(lane, batch, ran.error)
        else:
            try:
                answers = self._answers(run, ran)
            except Exception as error:  # noqa: BLE001 - a graph's outputs and a check's values may be anything
                self._failed(lane, batch, error)
            else:
                lane.failures = 0
                if answers.requests:
                    self._commit(run, ran, answers)
        if ran.threaded:
            self._pump(lane.desk)

    def _answers(self, run: Run, ran: Ran) -> Answers:
        """What a run gave, for those whom it may be given to. Who may not have it is refused as the last thing."""
        lane, batch, checked = run.lane, run.batch, run.checked
        if lane.batched and not by_rows(ran.outputs, batch.rows):
            raise ValueError(f"the outputs have the shapes {shapes(ran.outputs)} for {batch.rows} rows")
        outputs, violations = ran.outputs, None
        if checked is not None:
            violations = checked.violations
            if checked.replaced:
                outputs = lane.model.checks.answers(checked, outputs)  # type: ignore[union-attr]  # they made `checked`
        numbers = self.ids.take(len(batch.requests))
        answers = Answers(lane.model, batch.requests, outputs, run.assembled, numbers, violations)
        rejected = run.assembled.rejected
        return answers if rejected is None else self._reject(lane, answers, rejected)

    def _commit(self, run: Run, ran: Ran, answers: Answers) -> None:
        """Answer, at once or when the journal has it."""
        computed = self.monotonic()
        if self.keeping.commit is None:
            self._answer(run, ran, answers, computed)
            return

        left = {*range(len(answers.requests))}

        def done(numbers: Sequence[int], error: HeadraceError | None) -> None:
            numbers = [number for number in numbers if number in left]
            left.difference_update(numbers)
            if error is not None:
                for number in numbers:
                    self._refuse(run.lane, answers.requests[number], error)
            elif numbers:
                some = answers if len(numbers) == len(answers.requests) else answers.pick(numbers)
                self._answer(run, ran, some, computed)

        try:
            self.keeping.commit(answers, _moments(run, answers, computed, computed), done)
        except Exception as error:  # noqa: BLE001 - a bug of ours; who has no answer yet is not to wait for ever
            self._refuse_all(run.lane, [answers.requests[number] for number in sorted(left)], error)
            left.clear()

    def _answer(self, run: Run, ran: Ran, answers: Answers, computed: float) -> None:
        try:
            run.lane.sink.answer(answers)
        except Exception as error:  # noqa: BLE001 - a bug of ours; a call that has its answer ignores this one
            self._refuse_all(run.lane, answers.requests, error)
            return
        rows = sum(map(rows_of, answers.requests))
        # What nobody waits for comes after the answers are sent, at the end of this turn of the loop; and before the
        # model is forgotten, if these were its last.
        asyncio.get_running_loop().call_soon(self._observe, run, ran, answers, rows, (computed, self.monotonic()))
        self._end(run.lane.desk, rows)

    def _observe(self, run: Run, ran: Ran, answers: Answers, rows: int, ends: tuple[float, float]) -> None:
        moments = _moments(run, answers, *ends)
        self.observe(_report(run, ran, answers, rows, moments))
        if self.keeping.offer is not None:
            self.keeping.offer(answers, moments)
        if self.copied is not None:
            self.copied(run.batch, answers, moments)

    def _reject(self, lane: Lane, answers: Answers, rejected: npt.NDArray[np.bool_]) -> Answers:
        """Refuse the requests that have a rejected row; the answers of the others remain."""
        kept: list[int] = []
        refused: list[tuple[Request, RowRejected]] = []
        start = 0
        for number, request in enumerate(answers.requests):
            span = slice(start, start + request.rows)
            start = span.stop
            if rejected[span].any():
                refused.append((request, RowRejected(_without_features(answers, span))))
            else:
                kept.append(number)
        rest = answers.pick(kept)
        for request, why in refused:
            self._refuse(lane, request, why)
        return rest

    def _failed(self, lane: Lane, batch: Batch, error: Exception) -> None:
        """Find the requests that make the run fail; who fails alone is refused."""
        if not isinstance(error, CallerError):
            lane.failures += 1
        if len(batch.requests) > 1:
            lane.desk.queue.put_halves(lane, batch, alone=lane.failures > _FAILURES_MAX)
        else:
            self._refuse_all(lane, batch.requests, error)

    def _refuse_all(self, lane: Lane, requests: Sequence[Request], error: Exception) -> None:
        failure = error
        if not isinstance(failure, CallerError):
            failure = ModelFailed(f"model {lane.model.name} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
        for request in requests:
            self._refuse(lane, request, failure)

    def _has_left(self, lane: Lane, request: Request, now: float) -> bool:
        """End a request whose caller does not wait any more; True if it has been ended."""
        if request.deadline <= now:
            self._refuse(lane, request, DeadlinePassed("the deadline passed before the model ran"))
        elif request.caller.cancelled:
            self._refuse(lane, request, CallerLeft("the caller left before the model ran"))
        else:
            return False
        return True

    def _refuse(self, lane: Lane, request: Request, error: HeadraceError) -> None:
        self._end(lane.desk, request.rows)
        self._tell(lane, request, error)

    def _tell(self, lane: Lane, request: Request, error: HeadraceError) -> None:
        try:
            lane.sink.refuse(request, error, lane.model)
        except Exception:  # noqa: BLE001 - a bug of ours; its neighbours are told all the same
            _log.exception("a request of model %s could not be refused", lane.model.name)

    def _end(self, desk: Desk, rows: int) -> None:
        """So many rows have their answer."""
        self.rows_in_flight -= rows
        desk.rows_in_flight -= rows
        if desk.drains and not desk.rows_in_flight:
            asyncio.get_running_loop().call_soon(self._drained, desk)


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


def _moments(run: Run, answers: Answers, computed: float, answered: float) -> Moments:
    arrived = list(map(_arrived_of, answers.requests))
    return Moments(arrived, run.batch.ready, run.assembled_at, computed, answered)


def _report(run: Run, ran: Ran, answers: Answers, rows: int, moments: Moments) -> BatchReport:
    statuses: dict[str, npt.NDArray[np.uint8]] = {}
    for binding, codes in zip(answers.model.plan.bindings, answers.assembled.statuses, strict=True):
        seen = statuses.get(binding.ref)  # the same view may stand under two aliases
        statuses[binding.ref] = codes if seen is None else np.concatenate((seen, codes))
    model = answers.model
    return BatchReport(
        model.name,
        model.version,
        model.variant,
        moments.arrived,
        rows,
        run.batch.parked,
        ran.threaded,
        moments.ready,
        moments.assembled,
        moments.computed,
        moments.answered,
        statuses,
        *_used(model.runner),
        run.taken,
        answers.violations,
    )


def _used(runner: Runner) -> tuple[float, int]:
    """CPU time and padded rows since the last report, those of runs that failed too."""
    used = runner.cpu_s, runner.padded_rows
    runner.cpu_s, runner.padded_rows = 0.0, 0
    return used


def _without_features(answers: Answers, span: slice) -> str:
    """Which views of a rejected request have no row, and for which row of the request first."""
    views = []
    for binding, codes in zip(answers.model.plan.bindings, answers.assembled.statuses, strict=True):
        missing = np.flatnonzero(codes[span] & status.OUTCOME_MASK == status.MISSING)
        if binding.view.on_missing == "reject" and missing.size:
            views.append(f"{binding.view.ref} has no features for row {missing[0]} ({missing.size} rows in all)")
    return "; ".join(views) + "; the view is declared with on_missing: reject"
