"""The server's end of one worker process: start it, write tasks, read answers, notice its end.

    start ──▶ starting ──Ready──▶ idle ──task──▶ busy ──answer──▶ idle
                 └──────────── its end, in any state ────────────▶ lost

Why this and no library: docs/decisions/0007-compute-in-processes-of-its-own.md.

The process is started with `subprocess` (vfork: a server of many gigabytes forks as fast as a small one) and not with
multiprocessing, for the same result as its `spawn`: a fresh interpreter that shares nothing. A pidfd tells its end to
the loop, and the loop reaps it.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

from featureclient.compute.frames import Message, Ready, TooLarge, Unpacker, packed

STOP_WAIT_S = 1.0
"""What a worker has to end by itself when it is told to; then it is killed."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from featureclient.compute.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


class WorkerProcess(asyncio.Protocol):
    """One worker. `on_message` gets what it sends, `on_lost` is called once, with why, when it has ended."""

    def __init__(
        self,
        answer_bytes_max: int,
        on_message: Callable[["WorkerProcess", Any], None],
        on_lost: Callable[["WorkerProcess", str], None],
    ) -> None:
        self._unpacker = Unpacker(answer_bytes_max)
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._why = ""
        self._ended = asyncio.Event()
        self._is_ready = asyncio.Event()
        self._kill_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else None
        return f"<WorkerProcess pid={pid} ready={self.ready} lost={self._ended.is_set()}>"

    @property
    def ready(self) -> bool:
        """It has been ready, whether or not it lives now."""
        return self._is_ready.is_set()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    async def start(self, setup: bytes) -> None:
        """Start the process and send it its first message. Raises OSError."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                command = [sys.executable, "-c", _START, str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603  # vfork: a millisecond; our own command
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
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
        await loop.create_unix_connection(lambda: self, sock=ours)
        self.write(setup)

    def send(self, message: Message) -> None:
        """Write a message."""
        self.write(packed(message))

    def write(self, frame: bytes) -> None:
        """Write a frame. Nothing happens when the process has ended."""
        if self._transport is not None:
            self._transport.write(frame)

    def kill(self, why: str) -> None:
        """End the process now. `on_lost` follows, with this reason."""
        self._why = self._why or why
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Let the process end by itself, or kill it, and wait until it has ended."""
        self._why = self._why or "stopped"
        if self._process is None:
            return
        if self._transport is not None:
            self._transport.close()
        try:
            async with asyncio.timeout(STOP_WAIT_S if self.ready else 0):
                await self._ended.wait()
        except TimeoutError:
            self.kill("stopped")
            await self._ended.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            messages = self._unpacker.feed(data)
        except TooLarge as error:
            self.kill(str(error))
            return
        for message in messages:
            if isinstance(message, Ready):
                self._is_ready.set()
            self._on_message(self, message)

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the loop. The process ends as well, or has ended."""
        self._transport = None
        if not self._why:
            # Its end is told by the pidfd; but a worker that closed its socket and goes on is of no use.
            self._kill_timer = asyncio.get_running_loop().call_later(STOP_WAIT_S, self.kill, "closed its socket")

    async def wait_ready(self) -> None:
        """Wait until the process is ready, or has ended."""
        ready, ended = asyncio.ensure_future(self._is_ready.wait()), asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()

    async def wait_ended(self) -> str:
        """Wait for the end of the process; returns why it ended."""
        await self._ended.wait()
        return self._why

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
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._why = self._why or (f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}")
        self._ended.set()
        self._on_lost(self, self._why)
