"""What every test may ask for: a real Redis of its own, and Hypothesis profiles.

`HYPOTHESIS_PROFILE=thorough` looks at twenty times as many examples as the default.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import redis

from examples.flights.redis_process import find_server
from tests.redisfleet import Cluster, SentinelFleet, running_cluster, running_sentinels

START_S_MAX = 10.0
STOP_S_MAX = 10.0

# No deadline per example: a shared machine stalls now and then, and a slow example is not a wrong one.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A redis-server on a Unix socket, shared by the tests of one worker."""

    binary: str
    socket: str

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Start a server, and end it whatever the tests did. Where there is none to start, the tests that ask fail."""
    binary = find_server()
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        server = RedisServer(binary, f"{folder}/s")
        log = Path(folder, "log")
        command = [binary, "--port", "0", "--unixsocket", server.socket, "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([*command, "--dir", folder, "--logfile", str(log)])
        try:
            wait_until_ready(process, server, log)
            yield server
        finally:
            process.terminate()
            process.wait(STOP_S_MAX)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The url of the worker's server, emptied."""
    with redis.Redis(unix_socket_path=redis_server.socket) as connection:
        connection.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def _worker_cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(_worker_cluster: Cluster) -> Cluster:
    """The worker's cluster of three nodes, emptied. A test that harms its nodes has to start one of its own."""
    _worker_cluster.flush()
    return _worker_cluster


@pytest.fixture(scope="session")
def _worker_sentinels() -> Iterator[SentinelFleet]:
    with running_sentinels() as fleet:
        yield fleet


@pytest.fixture
def redis_sentinels(_worker_sentinels: SentinelFleet) -> SentinelFleet:
    """The worker's primary, replica and two Sentinels, emptied. For tests that harm none of them."""
    _worker_sentinels.primary.call("FLUSHALL")
    return _worker_sentinels


def wait_until_ready(process: "subprocess.Popen[bytes]", server: RedisServer, log: Path) -> None:
    """PING until it answers, as long as the process lives."""
    give_up_at = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < give_up_at:
        try:
            with redis.Redis(unix_socket_path=server.socket) as connection:
                connection.ping()
        except redis.ConnectionError:
            time.sleep(0.01)
        else:
            return
    pytest.fail(f"{server.binary} did not start (exit {process.poll()}):\n{log.read_text() if log.exists() else ''}")
