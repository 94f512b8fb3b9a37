"""The worker process: reads tasks from a socket, runs them one at a time, writes answers. Started by `process`.

    Setup ──▶ a program per view, tried out ──▶ Ready ──▶ Task ──▶ Answer or Failure ──▶ Task ──▶ …

It ends when the socket ends, and with the server, however that ends. What a function prints goes to stderr: stdout is
the server's.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from inspect import isawaitable
from typing import Any

from featureclient.compute.answers import Answer, AnswerWrong, checked
from featureclient.compute.frames import Failure, Ready, Setup, Task, Trouble, Unpacker, packed
from featureclient.compute.programs import Program, RunFailed, Setting, Unavailable, Unfit
from featureclient.schema import DuckdbSource, Id, PostgresSource, PythonCompute, View

_READ_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


class Job:
    """A view with its program, or with why it has none."""

    def __init__(self, view: View, setup: Setup, loop: asyncio.AbstractEventLoop) -> None:
        assert view.compute is not None
        self._view = view
        self._timeout_s = view.compute.timeout_ms / 1000
        self._loop = loop
        self._program: Program | None = None
        self.trouble: Trouble | None = None
        try:
            self._program = _program(view, setup, Setting(setup.options, self._timeout_s), loop)
            self._program.check()
        except Unfit as error:
            self.trouble = Trouble(view.ref, str(error), fatal=True)
        except Unavailable as error:
            self.trouble = Trouble(view.ref, str(error), fatal=False)

    def run(self, ids: Sequence[Id]) -> Answer | Failure:
        """Run the program and check what it gives."""
        if self._program is None:
            return Failure("function", self.trouble.why if self.trouble else "")
        try:
            table: Any = self._program.run(ids)
            if isawaitable(table):
                table = self._loop.run_until_complete(asyncio.wait_for(table, self._timeout_s))
            return checked(self._view, ids, table)
        except RunFailed as error:
            return Failure(error.fault, error.why)
        except AnswerWrong as error:
            return Failure("answer", str(error))
        except TimeoutError:
            return Failure(None, "")
        except Exception as error:  # noqa: BLE001  # also a table that is no table; whoever asked is told
            return Failure("answer", f"{type(error).__name__}: {error}")


def _program(view: View, setup: Setup, setting: Setting, loop: asyncio.AbstractEventLoop) -> Program:
    # Imported here: a worker pays for what its views use.
    compute = view.compute
    if isinstance(compute, PythonCompute):
        from featureclient.compute.python_program import PythonProgram

        return PythonProgram(view, compute, setup.options.compute_modules)
    assert compute is not None
    source = setup.sources.get(compute.source)
    if isinstance(source, DuckdbSource):
        from featureclient.compute.duckdb_program import DuckdbProgram

        return DuckdbProgram(view, compute, source, setting)
    if isinstance(source, PostgresSource):
        from featureclient.compute.postgres_program import PostgresProgram

        return PostgresProgram(view, compute, source, setting, loop)
    raise Unfit(f"no source {compute.source!r}; there are: {', '.join(sorted(setup.sources)) or 'none'}")


def main(descriptor: int, parent: int) -> None:
    """Run until the socket ends."""
    # The kernel ends this process when the server is gone, whatever it is doing then. Interrupts of the terminal and of
    # a supervisor are for the server, which ends its workers when it needs them no more.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(2, 1)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    unpacker = Unpacker(sys.maxsize)
    jobs: dict[str, Job] = {}
    with socket.socket(fileno=descriptor) as channel:
        while data := channel.recv(_READ_BYTES):
            for message in unpacker.feed(data):
                if isinstance(message, Task):
                    channel.sendall(packed(jobs[message.view].run(message.ids)))
                elif isinstance(message, Setup):
                    sys.path[:0] = message.options.compute_path
                    jobs = {view.ref: Job(view, message, loop) for view in message.views}
                    channel.sendall(packed(Ready([job.trouble for job in jobs.values() if job.trouble])))
