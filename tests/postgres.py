"""A PostgreSQL of the tests' own: a temporary cluster on a Unix socket, that can be stopped and started again."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

START_S_MAX = 60


class PostgresMissing(Exception):
    """There are no server binaries on this machine."""


class Postgres:
    """A cluster in `folder`. PostgreSQL refuses to run as root, so then it runs as the user `postgres`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bin = _binaries()
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as = ["runuser", "-u", "postgres", "--"]
        self._run("initdb", "-D", f"{folder}/data", "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8")

    @property
    def dsn(self) -> str:
        return f"postgresql://tester@/postgres?host={self.folder}"

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """End it at once, as a crash would; sessions are cut."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def status(self) -> str:
        """What pg_ctl says: a server is running, or no server is."""
        return self._run("pg_ctl", "-D", f"{self.folder}/data", "status", ends=(0, 3))

    def sql(self, text: str) -> str:
        command = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-U", "tester", "postgres"]
        return self._run("psql", *command, "-c", text)

    def _run(self, program: str, *arguments: str, ends: tuple[int, ...] = (0,)) -> str:
        # A file and not a pipe: the server that pg_ctl leaves behind would hold a pipe open.
        with (self.folder / "output").open("w+") as output:
            done = subprocess.run(
                [*self._as, self._bin / program, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=START_S_MAX,
                check=False,
            )
            output.seek(0)
            said = output.read()
        if done.returncode not in ends:
            raise AssertionError(f"{program} ended with {done.returncode}:\n{said}")
        return said.strip()


def _binaries() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = versions[-1] if versions else shutil.which("initdb")
    if found is None:
        raise PostgresMissing("no initdb: apt-get install postgresql")
    return Path(found).resolve().parent
