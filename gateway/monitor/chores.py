"""What the second process does for the journal beside drift: compaction, with retention and the disk's quota; and the
delivery of closed segments to sinks.

    compaction (in the process's own thread) -> spill/<sink>/ -> Deliveries: a thread for each sink -> the sink

Compaction runs between two rounds of reading, so that what is deleted has been read; while it does, no verdict is made.
A sink that is down, slow or stuck holds up its own thread, and nothing else: what waits for it has a bound, which is
kept from outside that thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.journal.compaction import compact
from gateway.journal.options import JournalOptions
from gateway.journal.sink import Delivered, Sink, Spill, SpillQueue
from gateway.journal.sinks import SinkOptions, open_sink
from gateway.records.sinks import SinkState

log = logging.getLogger(__name__)

ALIVE_S = 1.0
"""How often a long compaction says that it lives."""
LOOK_S = 10.0
"""How often a sink's folder is looked at when nobody says that there is something."""
RETRY_WAIT_S = 1.0
"""The wait after the first failure of a sink."""
_ERROR_CHARS_MAX = 500


class Compaction:
    """Compacts every `every_s` seconds. `progress` is called about every second while it does."""

    def __init__(
        self, options: JournalOptions, sinks: Sequence[str], every_s: float, progress: Callable[[], None]
    ) -> None:
        self._options = options
        self._sinks = sinks
        self._every_s = every_s
        self._progress = progress
        self._ran_s = self._told_s = float("-inf")
        self.counts = dict.fromkeys(
            ("compacted_rows", "compacted_segments", "compacted_bad", "compacted_lost_bytes", "deleted_files"), 0
        )
        self.counts["compaction_stopped"] = 0

    def __repr__(self) -> str:
        return f"<Compaction {self.counts}>"

    def run(self, wall_s: float, now_ms: int) -> bool:
        """Compact when it is time; returns whether it was. Raises OSError where the folder cannot be used, and tries
        again in `every_s`."""
        if wall_s - self._ran_s < self._every_s:
            return False
        self._ran_s = wall_s
        self.counts["compaction_stopped"] = 1
        done = compact(self._options, now_s=now_ms / 1000, sinks=self._sinks, alive=self.alive)
        self.counts["compacted_rows"] += done.rows
        self.counts["compacted_segments"] += done.segments
        self.counts["compacted_bad"] += len(done.bad)
        self.counts["compacted_lost_bytes"] += done.lost_bytes
        self.counts["deleted_files"] += done.deleted_files
        # Where another process compacts the same journal, all is well.
        self.counts["compaction_stopped"] = int(done.stopped not in ("", "busy"))
        if done.stopped not in ("", "busy"):
            log.warning("compaction stopped: %s", done.stopped)
        return True

    def alive(self) -> None:
        """Say that the process lives, about every second."""
        now = time.monotonic()
        if now - self._told_s >= ALIVE_S:
            self._told_s = now
            self._progress()


class Deliveries:
    """The sinks of a journal. Threads are started by `start`, and end with the process."""

    def __init__(self, options: JournalOptions, opened: Callable[[str, SinkOptions], Sink] = open_sink) -> None:
        self._root = options.path
        self._threads = {name: _Delivery(options, name, opened) for name in options.sinks}

    def __repr__(self) -> str:
        return f"<Deliveries {[*self._threads.values()]}>"

    def start(self) -> None:
        """Start the threads. A folder of a sink that is not configured any more is named in the log."""
        with suppress(OSError):
            for folder in sorted((self._root / "spill").iterdir()):
                if folder.name not in self._threads:
                    log.warning("%s belongs to no sink: delete it, or what it has is kept for ever", folder)
        for thread in self._threads.values():
            thread.start()

    def look(self) -> None:
        """Something may have come. Keeps every sink's bound, whatever its thread is doing."""
        for thread in self._threads.values():
            thread.look()

    def states(self) -> dict[str, SinkState]:
        """How each sink is, by its name."""
        return {name: thread.state() for name, thread in self._threads.items()}

    def close(self, wait_s: float) -> bool:
        """End the threads; returns False where one is still in the middle of something after `wait_s`."""
        give_up_at = time.monotonic() + wait_s
        for thread in self._threads.values():
            thread.stop()
        for thread in self._threads.values():
            if thread.is_alive():
                thread.join(max(give_up_at - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads.values())


class _Delivery(threading.Thread):
    """Delivers to one sink: when something has come, and again after each failure, with waits that grow."""

    def __init__(self, options: JournalOptions, name: str, opened: Callable[[str, SinkOptions], Sink]) -> None:
        super().__init__(name=f"headrace-sink-{name}", daemon=True)
        self._options = options.sinks[name]
        self._root = options.path
        self._opened = opened
        self._sink: Sink | None = None
        self._spill: Spill | None = None
        self._queue = SpillQueue(options.path, name, self._options.spill_bytes_max)
        self._done = Delivered()
        self._error = ""
        self._down = False
        self._wake = threading.Event()
        self._stopping = threading.Event()

    def run(self) -> None:
        """The thread."""
        wait_s = RETRY_WAIT_S
        while not self._stopping.is_set():
            self._wake.clear()
            why = self._try()
            self._down = bool(why)
            if why:
                if why != self._error:
                    log.warning("sink %s: %s", self._queue.folder.name, why)
                self._error = why[:_ERROR_CHARS_MAX]
                self._stopping.wait(wait_s)
                wait_s = min(wait_s * 2, self._options.retry_wait_max_s)
            else:
                wait_s = RETRY_WAIT_S
                self._wake.wait(LOOK_S)
        if self._sink is not None:
            self._sink.close()

    def _try(self) -> str:
        """Deliver what there is; returns what went wrong."""
        try:
            if self._spill is None:
                self._sink = self._opened(self._queue.folder.name, self._options)
                self._spill = Spill(self._root, self._sink, self._options.spill_bytes_max, queue=self._queue)
            return self._spill.deliver(self._done, self._stopping.is_set).down
        except Exception as error:  # whatever is wrong with one sink, it is tried again, and the others go on
            if not isinstance(error, (OSError, ImportError, ValueError)):
                log.exception("sink %s", self._queue.folder.name)
            return f"{type(error).__name__}: {error}"

    def look(self) -> None:
        """Keep the bound, and wake the thread."""
        try:
            self._queue.shorten(self._done)
        except OSError as error:
            log.warning("sink %s: %s", self._queue.folder.name, error)
        self._wake.set()

    def state(self) -> SinkState:
        """What is told of it."""
        done = self._done
        return SinkState(done.rows, done.refused_rows, done.dropped_rows, done.waiting_bytes, self._down, self._error)

    def stop(self) -> None:
        """End after the delivery that is going on."""
        self._stopping.set()
        self._wake.set()
