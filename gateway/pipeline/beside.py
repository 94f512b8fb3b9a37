"""Runs of a session beside those of its runner: what a shadow is run with, so that nobody waits for it.

    inline      on the loop, for runs that are short; the shadow says when
    threaded    in a thread of its own, one run at a time, for all others

Invariants
- Nothing here is shared with the primary's runner but the session, and runs of a session do not wait for each other.
- A thread that hangs is left behind, as a daemon: it keeps neither the server from stopping nor anybody waiting.
- The thread has the priority of all others. With a lower one it would be held up by other processes while it holds the
  interpreter's lock, and the loop with it, for seconds on a busy machine.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue

from gateway.inference.batching import Sizes
from gateway.inference.cost import Cost
from gateway.inference.runner import Ran, Runner
from gateway.records.request import Array

_TRIAL_ROWS = 64


class Thread:
    """A daemon thread that does one thing after the other. `submit` hands the result back on the loop."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[], Ran], done: Callable[[Ran], None]) -> None:
        """Call `run` in the thread, then `done` on the loop. `run` does not raise."""
        loop = asyncio.get_running_loop()

        def work() -> None:
            ran = run()
            with suppress(RuntimeError):  # the loop has ended, and nobody wants to know
                loop.call_soon_threadsafe(done, ran)

        self._work.put(work)

    def close(self) -> None:
        """End when what was submitted is done. Does not wait."""
        self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # what it holds is not kept until the next one comes


class Beside:
    """The session of a runner, run by somebody who is not in its queue."""

    __slots__ = ("_sizes", "_thread", "cost", "session")

    def __init__(self, runner: Runner) -> None:
        self.session = runner.session
        self.cost = Cost(runner.cost.predict(1), runner.cost.predict(_TRIAL_ROWS), _TRIAL_ROWS)
        """What a run takes, of CPU time; begins with what the runner has learned."""
        self._sizes: Sizes = runner.sizes
        self._thread: Thread | None = None

    def __repr__(self) -> str:
        return f"<Beside {self.cost}>"

    def inline(self, inputs: Mapping[str, Array], rows: int) -> Ran:
        """Run here and now."""
        ran = self._run(inputs, rows, threaded=False)
        self._learn(rows, ran)
        return ran

    def threaded(self, inputs: Mapping[str, Array], rows: int, done: Callable[[Ran], None]) -> None:
        """Run in the thread, and call `done` on the loop. One at a time."""
        if self._thread is None:
            self._thread = Thread("headrace-shadow")

        def finished(ran: Ran) -> None:
            self._learn(rows, ran)
            done(ran)

        self._thread.submit(lambda: self._run(inputs, rows, threaded=True), finished)

    def close(self) -> None:
        """Let the thread end when its run does."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None

    def _learn(self, rows: int, ran: Ran) -> None:
        if ran.error is None:
            self.cost.observe(rows, ran.cpu_s)

    def _run(self, inputs: Mapping[str, Array], rows: int, *, threaded: bool) -> Ran:
        began = time.thread_time()
        try:
            outputs = self._sizes.run(self.session.run_beside, inputs, rows)
        except Exception as error:  # noqa: BLE001 - a graph may raise anything; it is counted, not lost
            return Ran((), error, threaded, time.thread_time() - began)
        return Ran(outputs, None, threaded, time.thread_time() - began)
