"""Computes rows that no store has, for all views of a catalogue that name a `compute`, in worker processes.

    attempt ──ids──▶ Waiting (a queue per view) ──▶ a run ──▶ a worker that is idle ──▶ Answer ──▶ each caller's rows

Whoever asks during one turn of the event loop joins one run, and so does whoever asks while the view's runs are under
way: nobody waits for a timer, and a busy view is computed `batch_rows_max` ids at a time. Views take turns.

Invariants
- Nobody's code and no query runs in this process. A worker that does not answer is killed, with its own run alone.
- A call ends at its `give_up_at` at the latest. Its run goes on for others, and is skipped when there are none.
- At most `waiting_ids_max` ids of a view wait, and at most `concurrency_max` of its runs are under way; where several
  views share two workers or more, never one in each of them: a view that hangs leaves a worker to the others.
- A run counts against the breaker of its view alone. Runs with halves of a failed run's ids do not: they only ask which
  id is to blame.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from featureclient.breaker import Breaker
from featureclient.compute.answers import Answer
from featureclient.compute.errors import ComputeError, ComputeFailed, ComputeShed, ComputeTimedOut
from featureclient.compute.frames import Failure, Ready, Setup, Task, Trouble, packed
from featureclient.compute.options import ComputeOptions
from featureclient.compute.process import WorkerProcess
from featureclient.compute.runs import Ask, Computed, Run, Waiting
from featureclient.events import ComputeRefused, ComputeRun, ComputeUnavailable, ComputeWorkerLost, Event
from featureclient.schema import Catalogue, ConfigError, Id, View
from featureclient.schema.errors import Problem
from featureclient.wire import KeyCodec

RESTART_WAIT_S = 0.1
"""What a worker that ended before it was ready is first given until it is started again."""

_HALVED = ("function", "query", "answer")
"""The faults that one id may have caused."""


@dataclass(slots=True, eq=False)
class _Line:
    """A view, what waits for it, and how it has done."""

    view: View
    keys: KeyCodec
    waiting: Waiting
    breaker: Breaker
    timeout_s: float
    runs_max: int
    batch_rows_max: int
    runs: int = 0


@dataclass(slots=True, eq=False)
class _Running:
    """A run that a worker has."""

    line: _Line
    run: Run
    started: float
    timer: asyncio.TimerHandle | None = None


class Computer:
    """Computes rows. `async with` starts the workers and tries every view out; leaving it ends them."""

    def __init__(
        self,
        catalogue: Catalogue,
        options: ComputeOptions | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options if options is not None else ComputeOptions()
        self._on_event = on_event
        self._monotonic = monotonic
        self._sources = dict(catalogue.sources)
        views = [view for view in catalogue.views.values() if view.compute is not None]
        self._lines = {view.ref: self._line_of(view, alone=len(views) == 1) for view in views}
        self._turns = deque(self._lines.values())
        self._idle: list[WorkerProcess] = []
        self._busy: dict[WorkerProcess, _Running] = {}
        self._alive: set[WorkerProcess] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._started: asyncio.Future[Sequence[Trouble]] | None = None
        self._all_ready = asyncio.Event()
        self._troubles: Sequence[Trouble] = ()
        self._last_loss = ""
        self._can_start = True
        self._pump_is_due = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.restarts = 0
        """Workers that were replaced."""

    def __repr__(self) -> str:
        waiting = {ref: len(line.waiting) for ref, line in self._lines.items()}
        return f"<Computer idle={len(self._idle)} busy={len(self._busy)} restarts={self.restarts} waiting={waiting}>"

    async def __aenter__(self) -> Self:
        self._loop = loop = asyncio.get_running_loop()
        if not self._lines:
            return self
        views = [line.view for line in self._lines.values()]
        setup = packed(Setup(views, self._sources, self._options))
        self._started = loop.create_future()
        self._keepers = [loop.create_task(self._keep(setup)) for _ in range(self._options.workers)]
        try:
            await self._wait_for_workers()
        except BaseException:
            await self.close()
            raise
        for trouble in self._troubles:
            self._lines[trouble.view].breaker.open(self._monotonic())
            self._emit(ComputeUnavailable(trouble.view, trouble.why))
        return self

    async def _wait_for_workers(self) -> None:
        """Wait until all workers are ready, or some are and the rest takes too long. Raises ConfigError."""
        limit_s = self._options.start_timeout_s
        assert self._started is not None
        try:
            async with asyncio.timeout(limit_s):
                self._troubles = await self._started
        except TimeoutError:
            why = self._last_loss or "it is still starting"
            message = f"no worker process was ready within start_timeout_s={limit_s:g}: {why}"
            raise ConfigError([_problem("", message)]) from None
        fatal = [trouble for trouble in self._troubles if trouble.fatal]
        if fatal:
            raise ConfigError([_problem(f"views.{trouble.view}.compute", trouble.why) for trouble in fatal])
        # The others import the same, at the same time. Calls that came before them would share one worker.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._all_ready.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Fail what waits, end the workers."""
        if self._loop is None:
            return
        self._loop = None
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for line in self._lines.values():
            line.waiting.fail_all(ComputeShed(line.view.ref, "the server is closing"))

    def names(self, view: View) -> bool:
        """Whether the view names a `compute`."""
        return view.ref in self._lines

    def check(self) -> Sequence[Trouble]:
        """What was found when the first worker tried out every view, and is no reason not to start."""
        return self._troubles

    @property
    def pids(self) -> Sequence[int]:
        """The worker processes that are ready."""
        return [worker.pid for worker in (*self._idle, *self._busy)]

    # ── Asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def compute(self, view: View, ids: Sequence[Id], give_up_at: float) -> Mapping[str, Any]:
        """The rows of `ids` as a table: the join keys, the columns that were computed, perhaps `event_time_ms`.

        `FeatureClient.write` and `encode` take it. Its rows are in no order, and an id that has no row is not in it.
        Raises what `attempt` tells of the first id that failed: ComputeFailed, ComputeTimedOut, ComputeShed; and
        InvalidId before anything is computed.
        """
        computed = await self.attempt(view, ids, give_up_at)
        for error in computed.failed.values():
            raise error
        return computed.table

    async def attempt(self, view: View, ids: Sequence[Id], give_up_at: float) -> Computed:
        """`compute`, where one id's failure is told beside the rows of the others.

        `give_up_at` is monotonic; `math.inf` waits as long as it takes, for any number of ids, a few batches at a time.
        """
        line = self._lines[view.ref]
        wanted = list(dict.fromkeys(line.keys.canonical(ids)))
        ask = Ask(line.view)
        piece = len(wanted)
        if give_up_at == math.inf:
            piece = min(line.batch_rows_max * line.runs_max, self._options.waiting_ids_max)
        for start in range(0, len(wanted), max(1, piece)):
            await self._ask(line, ask, wanted[start : start + piece], give_up_at)
        return ask.computed()

    async def _ask(self, line: _Line, ask: Ask, ids: Sequence[Id], give_up_at: float) -> None:
        """Have some ids settled."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the computer is not open: use `async with`")
        settled = loop.create_future()
        ask.expect(ids, lambda: None if settled.done() else settled.set_result(None))
        now = self._monotonic()
        refused = self._refusal(line, len(ids), now)
        if refused is not None:
            self._emit(ComputeRefused(line.view.ref, len(ids)))
            ask.give_up(refused)
            return
        line.waiting.add(ask)
        self._pump_soon()
        try:
            async with asyncio.timeout(None if give_up_at == math.inf else max(0.0, give_up_at - now)):
                await settled
        except TimeoutError:
            ask.give_up(ComputeTimedOut(line.view.ref, "was not computed in the time that the caller had"))
        finally:
            if not settled.done() or settled.cancelled():
                line.waiting.leave(ask)

    def _refusal(self, line: _Line, count: int, now: float) -> ComputeError | None:
        ref, bound = line.view.ref, self._options.waiting_ids_max
        if not line.breaker.allows(now):
            return ComputeShed(ref, "its last runs failed, so it is left alone for a while (breaker_open_s)")
        if not self._can_start:
            return ComputeShed(ref, f"no worker process can be started ({self._last_loss})")
        if len(line.waiting) + count > bound:
            return ComputeShed(ref, f"{len(line.waiting)} ids wait already, the limit waiting_ids_max is {bound}")
        return None

    # ── Running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _pump_soon(self) -> None:
        if not self._pump_is_due and self._loop is not None:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give every idle worker a run, as long as there are some that may go."""
        self._pump_is_due = False
        if self._loop is None:
            return
        views_that_wait_in_vain = 0
        while self._idle and views_that_wait_in_vain < len(self._turns):
            line = self._turns[0]
            self._turns.rotate(-1)
            run = self._next_run(line)
            if run is None:
                views_that_wait_in_vain += 1
                continue
            views_that_wait_in_vain = 0
            self._run(line, run, self._idle.pop())

    def _next_run(self, line: _Line) -> Run | None:
        if not len(line.waiting) or line.runs >= line.runs_max:
            return None
        if not line.breaker.allows(self._monotonic()):
            why = "its last runs failed, so it is left alone for a while (breaker_open_s)"
            self._emit(ComputeRefused(line.view.ref, line.waiting.fail_all(ComputeShed(line.view.ref, why))))
            return None
        return line.waiting.take()

    def _run(self, line: _Line, run: Run, worker: WorkerProcess) -> None:
        loop = self._loop
        if loop is None:
            return
        if not run.isolating:
            line.breaker.started()
        line.runs += 1
        running = self._busy[worker] = _Running(line, run, self._monotonic())
        worker.send(Task(line.view.ref, list(run.wants)))
        running.timer = loop.call_later(line.timeout_s, self._timed_out, worker, running)

    def _timed_out(self, worker: WorkerProcess, running: _Running) -> None:
        """Tell those who wait; the worker has a moment to stop by itself."""
        limit = f"a run took longer than timeout_ms={round(running.line.timeout_s * 1000)}"
        self._fail(running, ComputeTimedOut(running.line.view.ref, limit))
        loop = self._loop
        if loop is not None:
            kill = f"killed: {running.line.view.ref} {limit}"
            running.timer = loop.call_later(self._options.kill_grace_s, worker.kill, kill)

    def _heard(self, worker: WorkerProcess, message: Any) -> None:
        """A worker has sent something."""
        if isinstance(message, Ready):
            self._can_start = True
            if self._started is not None and not self._started.done():
                self._started.set_result(message.troubles)
        else:
            self._answered(self._free(worker), message)
        self._idle.append(worker)
        if len(self._idle) + len(self._busy) == self._options.workers:
            self._all_ready.set()
        self._pump_soon()

    def _free(self, worker: WorkerProcess) -> _Running:
        running = self._busy.pop(worker)
        running.line.runs -= 1
        if running.timer is not None:
            running.timer.cancel()
        return running

    def _answered(self, running: _Running, message: Answer | Failure) -> None:
        line, run = running.line, running.run
        if run.settled:
            return
        if isinstance(message, Answer):
            line.breaker.succeeded()
            run.settle(message)
            self._report(running, len(message.positions), None, message.unasked)
        elif message.fault is None:
            self._fail(running, ComputeTimedOut(line.view.ref, f"a run took longer than {line.timeout_s * 1000:g} ms"))
        else:
            self._fail(running, ComputeFailed(line.view.ref, message.fault, message.why))

    def _fail(self, running: _Running, error: ComputeError) -> None:
        line, run = running.line, running.run
        if not run.isolating:
            line.breaker.failed(self._monotonic())
        may_be_one_id = isinstance(error, ComputeFailed) and error.fault in _HALVED
        if not (may_be_one_id and line.waiting.halve(run)):
            run.fail(error)
        self._report(running, 0, type(error).__name__)

    def _report(self, running: _Running, found: int, error: str | None, unasked: int = 0) -> None:
        seconds = self._monotonic() - running.started
        self._emit(ComputeRun(running.line.view.ref, len(running.run), found, seconds, error, unasked))

    # ── Workers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self, setup: bytes) -> None:
        """Keep one worker alive. Cancelled when the computer closes."""
        wait_s = RESTART_WAIT_S
        while True:
            worker = WorkerProcess(self._options.answer_bytes_max, self._heard, self._lost)
            self._alive.add(worker)
            try:
                await worker.start(setup)
                async with asyncio.timeout(self._options.start_timeout_s):
                    await worker.wait_ready()
                wait_s = RESTART_WAIT_S
                why = await worker.wait_ended()
            except TimeoutError:
                why = f"killed: not ready within start_timeout_s={self._options.start_timeout_s:g}"
                worker.kill(why)
                await worker.wait_ended()
            except OSError as error:
                why = f"could not be started: {error}"
                self._lost(worker, why)
            except asyncio.CancelledError:
                if worker in self._busy:
                    worker.kill("the computer is closed")
                await worker.stop()
                raise
            self.restarts += 1
            self._emit(ComputeWorkerLost(why))
            if not worker.ready:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._options.restart_wait_max_s)

    def _lost(self, worker: WorkerProcess, why: str) -> None:
        """A worker has ended."""
        self._alive.discard(worker)
        self._last_loss = why
        if worker in self._idle:
            self._idle.remove(worker)
        if worker in self._busy:
            running = self._free(worker)
            if not running.run.settled:
                self._fail(running, ComputeFailed(running.line.view.ref, "worker", why))
        if not self._alive and not worker.ready:
            # It cannot be said when there will be one again. One that was ready is simply replaced.
            self._can_start = False
            for line in self._lines.values():
                error = ComputeShed(line.view.ref, f"no worker process can be started ({why})")
                line.waiting.fail_all(error)
        self._pump_soon()

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _line_of(self, view: View, *, alone: bool) -> _Line:
        compute, options = view.compute, self._options
        assert compute is not None
        return _Line(
            view,
            KeyCodec(view),
            Waiting(view, compute.batch_rows_max, options.isolating_runs_max),
            Breaker(options.breaker_failures, options.breaker_open_s),
            compute.timeout_ms / 1000,
            min(compute.concurrency_max, options.workers if alone else max(1, options.workers - 1)),
            compute.batch_rows_max,
        )


def _problem(field: str, message: str) -> Problem:
    return Problem("features", 0, field, message)
