"""The demo as a user runs it: a process, its output, its end, and nothing left behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.flights import redis_process
from examples.flights.demo import main
from examples.flights.redis_process import RedisMissing

KEYS = ["requests", "rows", "p50_ms", "p99_ms", "cache_hit_ratio", "auc", "auc_baseline", "errors"]
END_S_MAX = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo puts its Redis. Short, because a socket's path may not be long."""
    with tempfile.TemporaryDirectory(prefix="hr-") as path:
        yield Path(path)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "examples.flights.demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"the demo ended without {pattern!r}:\n{seen}")


def test_once_it_exits_with_the_summary_as_its_last_line(folder: Path) -> None:
    with start(folder, "--once", "--json", "--rows", "1000", "--port", "0", "--http-port", "0") as demo:
        output, errors = demo.communicate(timeout=END_S_MAX)
    assert demo.returncode == 0, errors
    summary = json.loads(output.splitlines()[-1])
    assert list(summary) == KEYS
    assert (summary["rows"], summary["requests"], summary["errors"]) == (1000, 412, 0)
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]
    assert 0 < summary["cache_hit_ratio"] < 1
    assert summary["auc"] > summary["auc_baseline"] > 0.8
    assert "all PRESENT" in errors
    assert "DEFAULTED (ABSENT)" in errors
    assert "plane_stats COMPUTED" in errors
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_it_stays_up_on_free_ports_until_it_is_interrupted(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start(folder, "--json", "--rows", "5", "--port", port) as demo:
            seen = read_until(demo, "Ctrl-C ends it")
            assert f"port {port} is taken" in seen
            metrics = re.search(r"http://\S+/metrics", seen)
            assert metrics is not None
            with urllib.request.urlopen(metrics[0], timeout=10) as page:
                assert b"headrace_cache_hits_total" in page.read()
            demo.send_signal(signal.SIGINT)
            output, errors = demo.communicate(timeout=END_S_MAX)
    assert demo.returncode == 0, errors
    assert json.loads(output)["rows"] == 5
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_ended_at_the_start_it_leaves_nothing(folder: Path) -> None:
    with start(folder, "--json") as demo:
        read_until(demo, "Redis on")
        demo.terminate()
        output, errors = demo.communicate(timeout=END_S_MAX)
    assert demo.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_what_it_cannot_do_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--rows", "0"])
    assert capsys.readouterr().err.splitlines()[-1] == "headrace demo: error: rows must be at least 1, not 0"


def test_without_a_redis_it_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none() -> str:
        raise RedisMissing("install one")

    monkeypatch.setattr(redis_process, "find_server", find_none)
    with pytest.raises(SystemExit, match=r"^headrace demo: install one$"):
        main(["--once"])
