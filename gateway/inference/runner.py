"""When and where a model runs: on the loop while it is short, in its worker threads while it is long.

A hop to a thread costs 30-60 microseconds, which is several times a small model's run; a long run on the loop would
stop every other caller. The choice follows the predicted time of the batch, with a gap between the two thresholds so
that a model near the limit does not flap.

Invariants
- At most `instances` runs are on at one time, and never one on the loop while another is in a thread.
- What is counted is counted on the loop.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gateway.inference.batching import Execution, Sizes
from gateway.inference.cost import Cost
from gateway.inference.session import Session
from gateway.records.request import Array

_MEASURE_EVERY = 8
"""Inline runs for each one that is measured: asking for the CPU time takes as long as a small model's rows."""


class Ran(NamedTuple):
    """The end of a run: its outputs, or what it raised."""

    outputs: Sequence[Array]
    error: Exception | None
    threaded: bool
    cpu_s: float = 0.0
    """What the run took, where it was measured; 0.0 elsewhere."""


class Runner:
    """Runs one session. Ask `busy` first: a run beyond `instances` is a mistake of the caller.

    Whoever counts takes `cpu_s` and `padded_rows`, and puts them back to zero.
    """

    __slots__ = (
        "_executor",
        "_instances",
        "_running",
        "_runs",
        "_sizes",
        "_steady",
        "_threaded",
        "_whole_rows_max",
        "batch_rows_max",
        "busy",
        "cost",
        "cpu_s",
        "execution",
        "inline_max_s",
        "loop_s",
        "padded_rows",
        "session",
    )

    def __init__(
        self,
        session: Session,
        cost: Cost,
        inline_max_us: int,
        execution: Execution | None = None,
        *,
        fixed_rows: int | None = None,
        steady: bool = True,
    ) -> None:
        """`cost` is what a trial found, `fixed_rows` the graph's first dimension where it is a number.

        The runs of a graph that is not `steady` may take any time, so they all go to a thread.
        """
        self.session = session
        self.cost = cost
        self.execution = execution or Execution()
        self.busy = False
        self.loop_s = 0.0
        """What the latest run was expected to take of the loop's time; nothing when it went to a thread."""
        self.cpu_s = 0.0
        """CPU time of runs, seconds, of the threads that ran them. A run on the loop that was not measured counts as
        what was expected of it."""
        self.padded_rows = 0
        """Rows that were added to fill buckets."""
        self._sizes = Sizes(self.execution, fixed_rows)
        self._instances = self.execution.instances
        self.inline_max_s = inline_max_us * 1e-6
        """Runs that are expected to take longer go to a thread, seconds."""
        self.batch_rows_max = self._sizes.rows_max
        """Rows of which a batch is made. Of a graph of fixed rows these are more than one run of the graph has, as
        many as are done in the time of one run on the loop."""
        if fixed_rows is not None:
            runs = self.inline_max_s / max(cost.predict(fixed_rows), 1e-9)
            rows = fixed_rows * max(1, min(int(runs), self.execution.max_batch_rows // fixed_rows))
            self.batch_rows_max = rows
        self._whole_rows_max = 0 if self._sizes.warm_ups else self._sizes.rows_max
        self._steady = steady
        self._threaded = False
        self._running = 0
        self._runs = 0
        self._executor: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        where = "threaded" if self._threaded or not self._steady else "inline"
        return f"<Runner {self._running} of {self._instances} running, {where}, {self._sizes} {self.cost}>"

    def run(
        self,
        inputs: Mapping[str, Array],
        rows: int,
        done: Callable[[Ran], None],
        *,
        whole: bool = False,
        steady: bool = True,
    ) -> None:
        """Run, and call `done` once: before this returns when inline, later on the loop when threaded.

        Inputs that are `whole` have no rows to be cut or padded, and count as one. Where the size of a row is not
        `steady`, nothing is known of what the run will take: it goes to a thread.
        """
        steady = steady and self._steady
        predicted_s = self.cost.predict(rows)
        limit_s = self.inline_max_s * 0.75 if self._threaded else self.inline_max_s
        self._threaded = predicted_s > limit_s or not steady
        whole = whole or rows <= self._whole_rows_max
        if not whole:
            self.padded_rows += self._sizes.padding(rows)
        if self._threaded or self._running:
            self.loop_s = 0.0
            self._start(inputs, rows, done, whole=whole, steady=steady)
            return
        self.loop_s = predicted_s
        self._runs += 1
        measured = self._runs % _MEASURE_EVERY == 0
        self.busy = True
        ran = self._run(inputs, rows, whole=whole, measured=measured, threaded=False)
        self.busy = False
        if measured:
            if ran.error is None:
                self.cost.observe(rows, ran.cpu_s)
            self.cpu_s += ran.cpu_s
        else:
            self.cpu_s += predicted_s
        done(ran)

    @property
    def sizes(self) -> Sizes:
        """The sizes in which the graph gets its rows."""
        return self._sizes

    def close(self) -> None:
        """Give the worker threads back; runs in progress end by themselves."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    def _start(
        self, inputs: Mapping[str, Array], rows: int, done: Callable[[Ran], None], *, whole: bool, steady: bool
    ) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._instances, thread_name_prefix="headrace-model")
        loop = asyncio.get_running_loop()

        def finished(future: asyncio.Future[Ran]) -> None:
            self._running -= 1
            self.busy = False
            ran = future.result()
            if steady and ran.error is None:
                self.cost.observe(rows, ran.cpu_s)
            self.cpu_s += ran.cpu_s
            done(ran)

        try:
            future = loop.run_in_executor(
                self._executor, lambda: self._run(inputs, rows, whole=whole, measured=True, threaded=True)
            )
        except RuntimeError as error:  # no thread is to be had
            done(Ran((), error, threaded=False))
            return
        self._running += 1
        self.busy = self._running >= self._instances
        future.add_done_callback(finished)

    def _run(self, inputs: Mapping[str, Array], rows: int, *, whole: bool, measured: bool, threaded: bool) -> Ran:
        # CPU time of this thread: the wall would count waiting for the GIL, and then a model that was sent to its
        # thread once would look slow there for ever.
        began = time.thread_time() if measured else 0.0
        try:
            outputs = self.session.run(inputs) if whole else self._sizes.run(self.session.run, inputs, rows)
        except Exception as error:  # noqa: BLE001 - a graph may raise anything; it is reported, not lost
            return Ran((), error, threaded, time.thread_time() - began if measured else 0.0)
        return Ran(outputs, None, threaded, time.thread_time() - began if measured else 0.0)
