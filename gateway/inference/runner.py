"""When and where a model runs: on the loop while it is short, in its worker thread while it is long; one run at a time.

A hop to a thread costs 30-60 microseconds, which is several times a small model's run; a long run on the loop would
stop every other caller. The choice follows the predicted time of the batch, with a gap between the two thresholds so
that a model near the limit does not flap.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

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


class Runner:
    """Runs one session. Ask `busy` first: a second run while one is in the thread is a mistake of the caller."""

    def __init__(self, session: Session, cost: Cost, inline_max_us: int) -> None:
        self.session = session
        self.cost = cost
        self.busy = False
        self._inline_max_s = inline_max_us * 1e-6
        self._threaded = False
        self._runs = 0
        self._executor: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<Runner {'busy' if self.busy else 'free'} {'threaded' if self._threaded else 'inline'} {self.cost}>"

    def run(self, inputs: Mapping[str, Array], rows: int, done: Callable[[Ran], None]) -> None:
        """Run, and call `done` once: before this returns when inline, later on the loop when threaded."""
        predicted_s = self.cost.predict(rows)
        limit_s = self._inline_max_s * 0.75 if self._threaded else self._inline_max_s
        self._threaded = predicted_s > limit_s
        self.busy = True
        if self._threaded:
            try:
                self._start(inputs, rows, done)
            except RuntimeError as error:  # no thread is to be had
                self.busy = False
                done(Ran((), error, threaded=False))
            return
        self._runs += 1
        measured = self._runs % _MEASURE_EVERY == 0
        ran = self._run(inputs, rows if measured else 0, threaded=False)
        self.busy = False
        done(ran)

    def close(self) -> None:
        """Give the worker thread back; a run in progress ends by itself."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    def _start(self, inputs: Mapping[str, Array], rows: int, done: Callable[[Ran], None]) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="headrace-model")
        loop = asyncio.get_running_loop()

        def finished(future: asyncio.Future[Ran]) -> None:
            self.busy = False
            done(future.result())

        loop.run_in_executor(self._executor, lambda: self._run(inputs, rows, threaded=True)).add_done_callback(finished)

    def _run(self, inputs: Mapping[str, Array], measured_rows: int, *, threaded: bool) -> Ran:
        """Run the session; learn its cost when `measured_rows` says how many rows there are."""
        # CPU time of this thread: the wall would count waiting for the GIL, and then a model that was sent to its
        # thread once would look slow there for ever.
        began = time.thread_time() if measured_rows else 0.0
        try:
            outputs = self.session.run(inputs)
        except Exception as error:  # noqa: BLE001 - a graph may raise anything; it is reported, not lost
            return Ran((), error, threaded)
        if measured_rows:
            self.cost.observe(measured_rows, time.thread_time() - began)
        return Ran(outputs, None, threaded)
