"""SIGTERM before the server is up: it ends at once, with nothing left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import CATALOGUE, Site, make_site

START_S_MAX = 30.0
STOP_S_MAX = 3.0
LAST_SAVE_S_MAX = 10.0
"""With the last save of the counts, which the store does not answer. The budget of the warming is longer."""
SLOW = """
import os, time
from pathlib import Path
note = Path(__file__).with_name("pid.new")
note.write_text(str(os.getpid()))
note.rename(Path(__file__).with_name("pid"))
time.sleep(60)
def rows(user): return {"user": user}
"""
COMPUTED = """\
  made@1:
    entity: user
    columns: {a: {dtype: int64, default: 0}}
    on_missing: compute
    compute: {python: "slow_to_import:rows"}
"""


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    return make_site(tmp_path, redis_url)


def started(site: Site, more: str) -> "subprocess.Popen[bytes]":
    site.config.write_text(site.config.read_text() + more)
    command = [sys.executable, "-m", "gateway.server.cli", "serve", "--config", str(site.config)]
    with (site.folder / "log").open("wb") as log:
        return subprocess.Popen(command, stderr=log, stdout=log)


def stopped(site: Site, server: "subprocess.Popen[bytes]", limit_s: float = STOP_S_MAX) -> str:
    """Ask it to stop; what it has said."""
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(limit_s)
    finally:
        server.kill()
        server.wait()
    said = (site.folder / "log").read_text()
    assert code == 0, said
    assert "Traceback" not in said
    return said


def test_while_a_compute_module_is_imported(site: Site) -> None:
    (site.folder / "features.yaml").write_text(CATALOGUE + COMPUTED)
    (site.folder / "slow_to_import.py").write_text(SLOW)
    server = started(
        site, f"compute: {{workers: 1, compute_modules: [slow_to_import], compute_path: ['{site.folder}']}}\n"
    )
    note = site.folder / "pid"
    give_up_at = time.monotonic() + START_S_MAX
    while not note.exists() and time.monotonic() < give_up_at and server.poll() is None:
        time.sleep(0.01)
    said = stopped(site, server)
    assert said.endswith("stopping\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_while_caches_are_warmed_from_a_store_that_hangs(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(START_S_MAX)
        text = site.config.read_text().splitlines()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        kept = [line for line in text if not line.startswith("store:")]
        site.config.write_text("\n".join([*kept, f"store: {{url: '{url}', timeout_s: 30}}", ""]))
        more = "start_without_store: true\nwarmup: {budget_s: 30}\nfeatures: {watch: false}\n"
        server = started(site, more)
        try:
            connection, _ = silent.accept()  # the first to connect is the warmer
        except BaseException:
            server.kill()
            raise
        with connection:
            stopped(site, server, LAST_SAVE_S_MAX)
