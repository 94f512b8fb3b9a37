"""What the tests of faults stand on: a Redis to be harmed, and a proxy that harms what comes from a healthy one."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import RedisServer
from tests.faultproxy import FaultProxy
from tests.ownredis import OwnRedis


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder with a short path. (Not in tmp_path: the path of a socket has at most 107 bytes.)"""
    folder = Path(tempfile.mkdtemp(prefix="headrace-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stopped_redis(redis_server: RedisServer, socket_folder: Path) -> Iterator[OwnRedis]:
    """A server of this test that has not been started yet."""
    server = OwnRedis(redis_server.binary, socket_folder)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def own_redis(stopped_redis: OwnRedis) -> OwnRedis:
    """The same, started."""
    stopped_redis.start()
    return stopped_redis


@pytest.fixture
async def proxy(redis_url: str, socket_folder: Path) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the worker's server."""
    async with FaultProxy(redis_url, socket_folder) as made:
        yield made
