"""The second process itself. Started and heard by `supervisor`.

    every poll: Tail ─▶ Budget ─▶ StreamDrift ─▶ verdicts ─▶ frames to the gateway ─▶ checkpoint ─▶ chores

It ends when its socket ends, and with the gateway, however that ends. One journal is watched by one process: others
that are given the same folder stand by until its lock is free.

Invariants
- Positions and windows are saved together, so a restart counts no row twice and none is left out.
- What it holds is bounded: streams, panes and bins of each, one batch.
- A damaged file, a profile of something else or a stream too many is counted, said once in the log, and nothing else.
- A stream without rows for `FORGET_WINDOWS` windows is forgotten, and the gateway is told so.
"""

import ctypes
import fcntl
import json
import logging
import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gateway.journal.options import JournalOptions
from gateway.monitor.budget import Budget
from gateway.monitor.chores import Compaction, Deliveries
from gateway.monitor.frames import DRIFT, STATUS, Frame, Unpacker, packed
from gateway.monitor.options import MonitorOptions
from gateway.monitor.stream import StreamDrift
from gateway.monitor.tail import Read, Tail
from gateway.records.drift import StreamKey
from gateway.validation.drift import plain
from gateway.validation.profile import FILE, Profile, ProfileError
from gateway.validation.windows import Window, WindowKind

FOLDER = "monitor"
"""Where, inside the journal's folder, the process keeps its state."""
CHECKPOINT = "state.json"
FORGET_WINDOWS = 2
"""After so many windows without a row a stream is forgotten: its version serves no more."""
_FORMAT = 1
_KINDS: tuple[WindowKind, ...] = ("sliding", "tumbling")
_SILENCE_PARTS = 3
"""The rest between two rounds is at most this part of what the gateway takes for silence."""
_SAID_MAX = 1000
"""Different problems that are said; further ones are only counted."""
_REFUSED_MAX = 256
_STATUS_S = 1.0
_CLOSE_S = 1.0
"""What sinks have to end a delivery when the process is told to end."""
_READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """What the process is started with. It comes through the socket: there may be secrets in it."""

    journal: JournalOptions
    models: Path
    options: MonitorOptions
    sinks: tuple[str, ...] = ()
    """Further names that compacted segments are handed to, besides those of the journal's settings."""


@dataclass(slots=True)
class _Watched:
    """A stream, its profile's age, when it had rows, and what waits for a verdict."""

    stream: StreamDrift
    profile_ns: int
    seen_ms: int
    judged_s: float = float("-inf")
    pending: dict[WindowKind, Window] = field(default_factory=dict)


class Worker:
    """Watches one journal. `send` gets frames; clocks are arguments of `round`."""

    def __init__(
        self,
        setup: Setup,
        send: Callable[[bytes], None],
        random: np.random.Generator,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """`cpu_s` is of the thread that calls `round`: what sinks use is not drift's."""
        self._options = setup.options
        self._models = setup.models
        self._state = setup.journal.path / FOLDER / CHECKPOINT
        self._send = send
        self._random = random
        self._cpu_s = cpu_s
        self._tail = Tail(setup.journal.path, setup.options.bytes_behind_max)
        self._budget = Budget(setup.options.cpu_share)
        self._watched: dict[StreamKey, _Watched] = {}
        self._saved: dict[str, Any] = {}
        self._refused: dict[tuple[StreamKey, str], int] = {}
        self._said: set[str] = set()
        self._counts = dict.fromkeys(("rows_read", "rows_counted", "rows_skipped", "batches", "problems"), 0)
        names = tuple(dict.fromkeys((*setup.journal.sinks, *setup.sinks)))
        self._compaction = Compaction(setup.journal, names, setup.options.compact_s, self._tell_alive)
        self._deliveries = Deliveries(setup.journal)
        self._now_ms = self._rows_unpaid = 0
        self._lag_s = 0.0
        self._told_s = self._checkpoint_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Worker {len(self._watched)} streams, {self._tail}>"

    def restore(self, now_ms: int) -> None:
        """Go on from the checkpoint; without one, begin with what was written within the last window."""
        try:
            given = json.loads(self._state.read_text())
            if given["format"] != _FORMAT:
                raise ValueError(f"format {given['format']}")
            self._tail.restore(given["offsets"])
            self._saved = {
                key: {**state, "seen_ms": int(state.get("seen_ms", now_ms))} for key, state in given["streams"].items()
            }
            return
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._problem(f"{self._state} cannot be used, windows begin anew: {error!r}")
        self._tail.start_from(now_ms - int(self._options.windows.seconds * 1000))

    def round(self, wall_s: float, now_ms: int) -> None:
        """Read what is new, tell verdicts, and save now and then."""
        at = self._cpu_s()
        self._now_ms, self._lag_s = now_ms, 0.0
        self._forget_silent()
        for read in self._tail.read():
            try:
                self._read(read, wall_s)
            except Exception as error:  # whatever a segment holds, the others are read
                log.debug("%s", read.name, exc_info=True)
                self._tail.give_up(read.name)
                self._problem(f"{read.name} is not read any further: {error!r}")
            at = self._spend(at)
            self._compaction.alive()
        for watched in self._watched.values():
            self._keep(watched, watched.stream.settle())
            self._keep(watched, watched.stream.passed(now_ms))
            if watched.pending and wall_s - watched.judged_s >= self._options.verdict_s:
                self._judge(watched, wall_s)
        at = self._spend(at)
        if wall_s - self._told_s >= _STATUS_S:
            self._told_s = wall_s
            self._tell_alive()
        if wall_s - self._checkpoint_s >= self._options.checkpoint_s:
            self._checkpoint_s = wall_s
            self._drop_changed()
            self.save()
        self._spend(at)

    def chores(self, wall_s: float, now_ms: int) -> None:
        """Do what the journal needs, when it is time. Its CPU time is not drift's."""
        try:
            if self._compaction.run(wall_s, now_ms):
                self._deliveries.look()
        except (BrokenPipeError, ConnectionResetError):  # the gateway has ended, and so does this process
            return
        except Exception:  # whatever is wrong with the files, drift goes on, and the next pass tries again
            self._counts["problems"] += 1
            log.exception("the journal could not be compacted")

    def start(self) -> None:
        """Start to deliver to the sinks."""
        self._deliveries.start()

    def close(self) -> bool:
        """End the deliveries; returns False where one does not."""
        return self._deliveries.close(_CLOSE_S)

    def _tell_alive(self) -> None:
        sinks = {name: asdict(state) for name, state in self._deliveries.states().items()}
        told = self.status() | ({"sinks": sinks} if sinks else {})
        self._send(packed(Frame(STATUS, b"", json.dumps(told).encode())))

    @property
    def wait_s(self) -> float:
        """How long to rest before the next round."""
        return min(max(self._options.poll_s, self._budget.wait_s), self._options.silence_s / _SILENCE_PARTS)

    def status(self) -> dict[str, float]:
        """What is told of the process itself."""
        return {
            **self._counts,
            **self._compaction.counts,
            "problems": self._counts["problems"] + self._tail.problems,
            "bytes_skipped": self._tail.bytes_skipped,
            "bytes_behind": self._tail.bytes_behind,
            "streams": len(self._watched),
            "cpu_s": time.process_time(),
            "lag_s": self._lag_s,
        }

    def save(self) -> None:
        """Write the checkpoint: the old one stays until the new one is whole."""
        streams = self._saved | {
            json.dumps(list(key)): watched.stream.plain() | {"seen_ms": watched.seen_ms}
            for key, watched in self._watched.items()
        }
        text = json.dumps({"format": _FORMAT, "offsets": self._tail.offsets, "streams": streams})
        beside = self._state.with_suffix(".new")
        try:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text)
            beside.replace(self._state)
        except OSError as error:  # a full disk or a read-only folder: drift goes on, and a restart begins anew
            self._problem(f"{self._state} cannot be written: {error}")

    def _read(self, read: Read, wall_s: float) -> None:
        rows = len(read.batch)
        self._counts["batches"] += 1
        self._counts["rows_read"] += rows
        watched = self._stream(read)
        granted = self._budget.grant(rows, wall_s) if watched is not None and rows else 0
        self._counts["rows_counted"] += granted
        self._counts["rows_skipped"] += rows - granted
        if watched is None or not granted:
            return
        self._rows_unpaid += granted
        self._keep(watched, watched.stream.add(read.batch, self._chosen(rows, granted)))
        times = read.batch.column("time").cast(pa.int64())
        self._lag_s = max(0.0, (self._now_ms - times[len(times) - 1].as_py()) / 1000)

    def _chosen(self, rows: int, granted: int) -> npt.NDArray[np.int64] | None:
        """Rows at even distances from a random one on; None for all."""
        if granted >= rows:
            return None
        return ((np.arange(granted) + self._random.random()) * (rows / granted)).astype(np.int64)

    def _stream(self, read: Read) -> _Watched | None:
        """The stream of a batch; None where its rows are not counted."""
        key = StreamKey(read.schema.model, read.schema.version, read.schema.variant)
        watched = self._watched.get(key) or self._begun(key, read)
        if watched is None:
            return None
        try:
            if not watched.stream.takes(read.arrow):
                return None
        except ProfileError as error:
            self._problem(f"{key} with the schema {read.schema.hash} is not watched: {error}")
            return None
        watched.seen_ms = self._now_ms
        return watched

    def _begun(self, key: StreamKey, read: Read) -> _Watched | None:
        """A new stream, which goes on from what was saved of it."""
        path = self._models / key.model / str(key.version) / FILE
        changed_ns = _changed_ns(path)
        if self._refused.get((key, read.schema.hash)) == changed_ns:
            return None
        if len(self._watched) >= self._options.streams_max:
            if (key, "") not in self._refused:
                self._refuse(
                    (key, ""), 0, f"{key} is not watched: there are {self._options.streams_max} streams already"
                )
            return None
        try:
            profile = Profile.load(path) if changed_ns else None
            stream = StreamDrift(read.schema, read.arrow, profile, self._options, self._problem)
        except ProfileError as error:
            self._refuse((key, read.schema.hash), changed_ns, f"{key} is not watched: {error}")
            return None
        self._refused.pop((key, ""), None)
        saved = self._saved.pop(json.dumps(list(key)), None)
        if saved is not None:
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # of other windows or another profile
                stream.restore(saved)
        self._watched[key] = watched = _Watched(stream, changed_ns, self._now_ms)
        return watched

    def _refuse(self, what: tuple[StreamKey, str], changed_ns: int, why: str) -> None:
        if what not in self._refused and len(self._refused) >= _REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        self._refused[what] = changed_ns
        self._problem(why)

    def _drop_changed(self) -> None:
        """Let streams whose profile was written anew begin anew."""
        for key, watched in tuple(self._watched.items()):
            if _changed_ns(self._models / key.model / str(key.version) / FILE) != watched.profile_ns:
                self._forget(key)

    def _forget_silent(self) -> None:
        oldest_ms = self._now_ms - FORGET_WINDOWS * self._options.windows.seconds * 1000
        for key, watched in tuple(self._watched.items()):
            if watched.seen_ms < oldest_ms:
                self._forget(key)
        for text, state in tuple(self._saved.items()):
            if state["seen_ms"] < oldest_ms:
                self._forget(StreamKey(*json.loads(text)))

    def _forget(self, key: StreamKey) -> None:
        self._watched.pop(key, None)
        self._saved.pop(json.dumps(list(key)), None)
        for kind in _KINDS:
            self._send(packed(Frame(DRIFT, _name(key, kind), b"")))

    def _keep(self, watched: _Watched, done: list[Window]) -> None:
        for window in done:
            watched.pending[window.kind] = window

    def _judge(self, watched: _Watched, wall_s: float) -> None:
        pending, watched.pending, watched.judged_s = watched.pending, {}, wall_s
        for kind, window in pending.items():
            try:
                drift = watched.stream.judge(window)
            except Exception as error:  # whatever was counted, the other streams have their verdicts
                log.debug("%s", watched.stream.key, exc_info=True)
                self._problem(f"{watched.stream.key} cannot be judged: {error!r}")
                continue
            self._send(packed(Frame(DRIFT, _name(watched.stream.key, kind), json.dumps(plain(drift)).encode())))

    def _spend(self, at: float) -> float:
        """Tell the budget what was used since `at`, together with the rows that are counted by now."""
        now = self._cpu_s()
        waiting = sum(watched.stream.rows_waiting for watched in self._watched.values())
        self._budget.spent(self._rows_unpaid - waiting, now - at)
        self._rows_unpaid = waiting
        return now

    def _problem(self, what: str) -> None:
        self._counts["problems"] += 1
        if what not in self._said and len(self._said) < _SAID_MAX:
            self._said.add(what)
            log.warning("%s", what)


def _name(key: StreamKey, kind: WindowKind) -> bytes:
    """What the frames of a stream's windows are called."""
    return json.dumps([*key, kind]).encode()


def _changed_ns(path: Path) -> int:
    """When a file was written; 0 where there is none."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def run(channel: socket.socket, setup: Setup) -> None:
    """Watch until the socket ends."""
    worker = Worker(setup, channel.sendall, np.random.default_rng())
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    with _lock(setup.journal.path, channel, poller, setup.options.poll_s) as lock:
        if lock.closed:
            return
        worker.restore(_now_ms())
        worker.start()
        rest_s = 0.0
        while not poller.poll(rest_s * 1000):
            worker.round(time.monotonic(), _now_ms())
            worker.chores(time.monotonic(), _now_ms())
            rest_s = worker.wait_s
        worker.save()
        if not worker.close():
            # A sink is in the middle of a delivery that did not end in time. It comes again with the next process.
            os._exit(0)


def _lock(journal: Path, channel: socket.socket, poller: select.poll, poll_s: float) -> IO[str]:
    """Wait for the journal's lock; returns its file, closed where the gateway left before."""
    (journal / FOLDER).mkdir(parents=True, exist_ok=True)
    file = (journal / FOLDER / "lock").open("w")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            channel.sendall(packed(Frame(STATUS, b"", b'{"standby": 1}')))
            if poller.poll(max(poll_s, _STATUS_S) * 1000):
                file.close()
                return file


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _received(channel: socket.socket) -> Setup | None:
    """The first frame that the gateway sends; None when it left before."""
    unpacker = Unpacker()
    while data := channel.recv(_READ_BYTES):
        for frame in unpacker.feed(data):
            setup = pickle.loads(frame.text)  # noqa: S301  # from the gateway that started us, on a socket of its own
            assert isinstance(setup, Setup)
            return setup
    return None


def main(descriptor: int, parent: int) -> None:
    """Run until the socket ends. The kernel ends this process when the gateway is gone, whatever it is doing then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    # Interrupts of the terminal and of a supervisor are for the gateway, which closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s monitor: %(message)s")
    with socket.socket(fileno=descriptor) as channel, suppress(BrokenPipeError, ConnectionResetError):
        setup = _received(channel)
        if setup is None:
            return
        os.nice(setup.options.nice)
        # One thread: the share of CPU time is of one core, and the gateway has the others.
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        run(channel, setup)
