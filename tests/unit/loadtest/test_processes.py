"""What is started is on its core, is measured, and is ended."""

import os
import sys
import time
from pathlib import Path

import pytest

from loadtest.processes import Cores, DidNotStart, free_port, running

LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "


def python(code: str, port: int) -> list[str]:
    return [sys.executable, "-c", LISTEN + code, str(port)]


def is_anyone_left(session: int) -> bool:
    """A process of the session has not ended; one that only waits to be collected by init has."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session_of = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session_of) == session and state not in {"X", "Z"}:
            return True
    return False


def test_a_process_runs_on_its_core_and_ends_with_the_block(tmp_path: Path) -> None:
    core, port = Cores.available().client, free_port()

    with running("sleeper", python("time.sleep(60)", port), port=port, core=core, folder=tmp_path) as started:
        assert os.sched_getaffinity(started.process.pid) == {core}
        assert started.is_alive()

    assert not started.is_alive()


def test_the_time_of_children_counts(tmp_path: Path) -> None:
    port = free_port()
    busy_child = (
        "import subprocess; child = subprocess.Popen([sys.executable, '-c', 'while True: pass']); time.sleep(60)"
    )

    with running("parent", python(busy_child, port), port=port, folder=tmp_path) as started:
        deadline = time.monotonic() + 20
        before_s = started.cpu_s()
        while started.cpu_s() < before_s + 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        grown_s = started.cpu_s() - before_s

    assert grown_s >= 0.3
    while is_anyone_left(started.process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_anyone_left(started.process.pid)


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    port = free_port()

    with (
        pytest.raises(DidNotStart, match="no such setting"),
        running("broken", [sys.executable, "-c", "raise SystemExit('no such setting')"], port=port, folder=tmp_path),
    ):
        pytest.fail("it did not start")
