"""Builds and runs `gload`, the C load client beside this file.

`build` compiles it into `loadtest/build/` unless the binary is newer than its source, so it costs nothing the second
time. `run` writes the bodies to a file, runs the client, and gives its one line of JSON as a dict.
"""

import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.processes import pinned

SOURCE = Path(__file__).with_name("gload.c")
BUILD_FOLDER = Path(__file__).with_name("build")

_LIBRARIES = {
    # header, as `cc` finds it: the Debian package it comes in
    "nghttp2/nghttp2.h": "libnghttp2-dev",
    "openssl/ssl.h": "libssl-dev",
}


class CannotBuild(Exception):
    """The compiler or a header is missing; the message names the Debian package."""


class RunFailed(Exception):
    """The client could not run, or a call has failed. `result` is its answer, when it gave one."""

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, slots=True)
class Load:
    """What one run sends. With `rate` the loop is open: that many calls a second are due whatever the server does."""

    method: str
    in_flight: int | None = None
    rate: float | None = None
    connections: int = 1
    seconds: float = 5.0
    warmup_s: float = 0.5
    timeout_ms: int | None = None
    all_equal: str | None = None
    """`5.3=1`: every byte of the answer's protobuf field at this path must have this value."""
    histogram: bool = False
    tls_ca: Path | None = None

    def arguments(self) -> list[str]:
        """The command line of the client, without the address and the bodies."""
        options = {
            "method": self.method,
            "in-flight": self.in_flight,
            "rate": self.rate,
            "connections": self.connections,
            "seconds": self.seconds,
            "warmup": self.warmup_s,
            "timeout-ms": self.timeout_ms,
            "all-equal": self.all_equal,
            "tls-ca": self.tls_ca,
        }
        arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return [*arguments, "--histogram"] if self.histogram else arguments


def build(*, tls: bool = False, folder: Path = BUILD_FOLDER) -> Path:
    """The path of the client, compiled if it is missing or older than its source."""
    binary = folder / ("gload-tls" if tls else "gload")
    if binary.exists() and binary.stat().st_mtime >= SOURCE.stat().st_mtime:
        return binary
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise CannotBuild("gload needs a C compiler and none was found: apt-get install gcc libc6-dev")
    for header in list(_LIBRARIES)[: 2 if tls else 1]:
        _require_header(compiler, header)
    folder.mkdir(parents=True, exist_ok=True)
    # Compiled beside its place and renamed, so that two builds at once never leave half a binary.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unfinished = Path(scratch) / binary.name
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra"] + (["-DGLOAD_TLS"] if tls else [])
        libraries = ["-lnghttp2"] + (["-lssl", "-lcrypto"] if tls else [])
        command = [compiler, *flags, "-o", str(unfinished), str(SOURCE), *libraries]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise CannotBuild(f"{' '.join(command)} failed:\n{finished.stderr}")
        unfinished.replace(binary)
    return binary


def _require_header(compiler: str, header: str) -> None:
    """Asks the preprocessor, which knows the search path."""
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"],
        input=f"#include <{header}>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        raise CannotBuild(f"gload needs <{header}>: apt-get install {_LIBRARIES[header]}")


def frame_bodies(bodies: Iterable[bytes]) -> bytes:
    """The file that the client reads: [u32 little-endian length][protobuf bytes] for each body."""
    return b"".join(struct.pack("<I", len(body)) + body for body in bodies)


def write_bodies(path: Path, bodies: Iterable[bytes]) -> Path:
    """Writes the client's file of bodies and returns its path."""
    path.write_bytes(frame_bodies(bodies))
    return path


def run(
    binary: Path,
    load: Load,
    bodies: Path,
    *,
    port: int,
    host: str = "127.0.0.1",
    core: int | None = None,
    allow_failures: bool = False,
) -> dict[str, Any]:
    """One run of the client, as the dict it prints, on `core` if that is given.

    Raises RunFailed when it could not run and, unless `allow_failures`, when any call of it has failed.
    """
    command: Sequence[str] = [
        str(binary),
        f"--host={host}",
        f"--port={port}",
        f"--bodies={bodies}",
        *load.arguments(),
    ]
    # The client sets its own pace and drains for 8 s at most; more than that and it hangs.
    timeout_s = load.warmup_s + load.seconds + 30
    finished = subprocess.run(
        pinned(command, core),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if finished.returncode not in {0, 1}:
        raise RunFailed(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stderr.strip()}")
    result: dict[str, Any] = json.loads(finished.stdout)
    if finished.returncode and not allow_failures:
        raise RunFailed(
            f"of {result['total']} calls to {load.method} {result['failed']} failed {result['failures'] or ''},"
            f" {result['unfinished']} have no answer, {result['ok']} were measured",
            result,
        )
    return result
