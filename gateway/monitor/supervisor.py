"""The gateway's end of the second process: start it, keep what it says, start it again.

    start ──▶ running ──its end, or silence──▶ waiting (twice as long each time) ──▶ running
                                          └── restarts_max in a row ──▶ given up, and health says so

The loop pays for cutting frames and keeping their bytes. JSON is parsed in `snapshot`, which is called in the thread of
a scrape. The process is started with `subprocess`, as those of `featureclient.compute` are: a fresh interpreter that
shares nothing, whose end a pidfd tells to the loop.
"""

import asyncio
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, get_args

from gateway.journal.options import JournalOptions
from gateway.monitor.frames import DRIFT, SETUP, STATUS, Frame, TooLong, Unpacker, packed
from gateway.monitor.options import MonitorOptions
from gateway.monitor.worker import Setup
from gateway.records.drift import ColumnDrift, MonitorSnapshot, StreamKey, WindowDrift
from gateway.records.sinks import SinkState
from gateway.validation.windows import WindowKind

STOP_WAIT_S = 3.0
"""What the process has to save its state when it is told to end; then it is killed."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from gateway.monitor.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)

log = logging.getLogger(__name__)


class Supervisor:
    """`async with Supervisor(journal, models, options):` runs the second process until the block ends."""

    def __init__(
        self, journal: JournalOptions, models: Path, options: MonitorOptions, sinks: Sequence[str] = ()
    ) -> None:
        """`models` is the folder of the model repository, where the profiles are."""
        self._setup = packed(Frame(SETUP, b"", pickle.dumps(Setup(journal, models, options, tuple(sinks)))))
        self._options = options
        self._frames_max = options.streams_max * len(get_args(WindowKind))
        self._drift: dict[bytes, bytes] = {}
        self._status = b"{}"
        self._link: _Link | None = None
        self._heard_s = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.restarts = 0
        self.given_up = False

    def __repr__(self) -> str:
        return f"<Supervisor pid={self.pid} restarts={self.restarts} {self.trouble or 'well'}>"

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_running(), name="headrace-monitor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._link is not None:
            await self._link.stop()
        if self._task is not None:
            await self._task

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return self._link.pid if self._link is not None else None

    @property
    def trouble(self) -> str:
        """Why drift is not watched now; empty when it is."""
        if self.given_up:
            return f"the second process ended {self.restarts} times and is not started any more; its log says why"
        if self._link is None:
            return "the second process is about to be started again"
        if time.monotonic() - self._heard_s > self._options.silence_s:
            return "the second process has not been heard of yet"
        return ""

    def snapshot(self) -> MonitorSnapshot:
        """Return what was last told. Called in any thread; it parses, so not on the loop."""
        streams: dict[str, dict[StreamKey, WindowDrift]] = {kind: {} for kind in get_args(WindowKind)}
        for key, text in self._drift.copy().items():
            *stream, kind = json.loads(key)
            given = json.loads(text)
            columns = tuple(map(_column, given.pop("columns")))
            streams[kind][StreamKey(*stream)] = WindowDrift(**given, columns=columns)
        status = json.loads(self._status)
        sinks = {name: SinkState(**state) for name, state in status.pop("sinks", {}).items()}
        return MonitorSnapshot(
            not self.trouble, self.restarts, status, streams["sliding"], sinks, tumbling=streams["tumbling"]
        )

    def heard(self, frames: list[Frame]) -> None:
        """Keep what the process says; called by its link."""
        self._heard_s = time.monotonic()
        for kind, key, text in frames:
            if kind == STATUS:
                self._status = text
            elif kind == DRIFT and not text:
                self._drift.pop(key, None)
            elif kind == DRIFT and (key in self._drift or len(self._drift) < self._frames_max):
                self._drift[key] = text

    async def _keep_running(self) -> None:
        in_a_row = 0
        while True:
            started_s = time.monotonic()
            why = await self._run_once()
            if self._stopping.is_set():
                return
            steady = time.monotonic() - started_s >= self._options.restart_wait_max_s
            in_a_row = 1 if steady else in_a_row + 1
            if in_a_row > self._options.restarts_max:
                self.given_up = True
                log.error("the second process %s, and is not started any more", why)
                return
            wait_s = min(self._options.restart_wait_s * 2 ** (in_a_row - 1), self._options.restart_wait_max_s)
            log.warning("the second process %s; it is started again in %.1f s", why, wait_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
                return
            self.restarts += 1

    async def _run_once(self) -> str:
        """Run the process until it ends; returns why."""
        link = _Link(self)
        try:
            await link.start(self._setup)
        except OSError as error:
            return f"could not be started: {error}"
        self._link, self._heard_s = link, time.monotonic()
        if self._stopping.is_set():
            await link.stop()
        while not link.ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(link.ended.wait(), self._options.silence_s / 2)
            if not link.ended.is_set() and time.monotonic() - self._heard_s > self._options.silence_s:
                link.kill(f"said nothing for {self._options.silence_s:g} s")
                await link.ended.wait()
        self._link = None
        return link.why


def _column(given: Mapping[str, Any]) -> ColumnDrift:
    """JSON has no NaN: null stands for it."""
    values: dict[str, Any] = {name: float("nan") if value is None else value for name, value in given.items()}
    return ColumnDrift(**values)


class _Link(asyncio.Protocol):
    """One process and the socket to it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._unpacker = Unpacker()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self.why = ""
        self.ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self, setup: bytes) -> None:
        """Start the process. Raises OSError."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                command = [sys.executable, "-c", _START, str(theirs.fileno()), str(os.getpid())]
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603  # vfork: a millisecond; our own command
                    [*command, json.dumps(sys.path)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._pidfd = os.pidfd_open(self._process.pid)
            loop.add_reader(self._pidfd, self._reap)
        except OSError:
            ours.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            raise
        ours.setblocking(False)
        transport, _ = await loop.create_unix_connection(lambda: self, sock=ours)
        transport.write(setup)

    def kill(self, why: str) -> None:
        """End the process now."""
        self.why = self.why or why
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Let the process save its state and end, or kill it, and wait until it has ended."""
        self.why = self.why or "was stopped"
        if self._transport is not None:
            self._transport.close()
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                await self.ended.wait()
        except TimeoutError:
            self.kill("was stopped")
            await self.ended.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            self._supervisor.heard(self._unpacker.feed(data))
        except TooLong as error:
            self.kill(f"sent {error}")

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the loop. The process ends by itself then, as soon as it notices."""
        self._transport = None

    def _reap(self) -> None:
        process = self._process
        assert process is not None
        code = process.poll()
        if code is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._transport is not None:
            self._transport.close()
        self.why = self.why or (f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}")
        self.ended.set()
