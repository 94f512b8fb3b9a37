"""A Redis of one test."""

import os
import signal
import subprocess
from pathlib import Path

from tests.conftest import RedisServer, wait_until_ready


class OwnRedis:
    """A server of one test, to be killed, stopped and started again on the same socket."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._server = RedisServer(binary, str(folder / "s"))
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> None:
        command = [self._server.binary, "--port", "0", "--unixsocket", self._server.socket, "--save", ""]
        log = self._folder / "log"
        self._process = subprocess.Popen([*command, "--dir", str(self._folder), "--logfile", str(log)])
        wait_until_ready(self._process, self._server, log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
