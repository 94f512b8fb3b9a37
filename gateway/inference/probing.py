"""A graph is loaded and tried out in a process of its own first: what it does to it, it does not do to the server.

    probe ──spawn──▶ child: memory limit ─▶ load ─▶ signature ─▶ trial runs ─▶ end
      ◀── a line of JSON for each step, or no line any more: a crash, a hang, or a kill for memory ──

A graph is data, but ONNX Runtime is native code that believes it: a tree that is deep enough overflows the stack while
it is loaded, a loop need not end, and an output may be as large as an input says. No exception comes of the first two.

Invariants
- The parent unpickles nothing: what the child says is JSON, as the child may be in the hands of the graph.
- The child is ended whatever happens; it ends by itself when its time of CPU is over.
- Only what the child can show is shown: a graph that behaves on these inputs may misbehave on others.
"""

import contextlib
import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gateway.inference.background import ASIDE_NICENESS, step_back
from gateway.inference.faults import explained, is_for_memory, shortened
from gateway.inference.providers import Hardware, resolve
from gateway.inference.session import InferenceOptions, Session, SessionError
from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec

Trials = Callable[[Signature], Iterable[Mapping[str, Array]]]


class Harmful(SessionError):
    """A graph that crashes, does not end, or takes too much memory."""


_TOLD_MAX = 1 << 20
"""Bytes that are read from the child for one step."""
_SAID_MAX = 300
"""Characters of its stderr in a message."""
_COMMAND = "from gateway.inference.probing import serve; serve()"


def probe(
    path: Path, options: InferenceOptions, hardware: Hardware | None = None, trials: Trials | None = None
) -> None:
    """Load the graph at `path` in a process of its own and run it on what `trials` gives for its signature.

    Takes as long as the load does, and half a second: call it in a thread. The default trials are one blank row and
    `trial_rows` of them. Raises `SessionError` for a graph that cannot be loaded, crashes, hangs or takes more than
    `check_memory_mb` (the last three: `Harmful`). A trial run that raises for another reason is no finding: it harms
    nobody, and the server's own trial finds it too.
    """
    with _Child(path, options) as child:
        told = child.ask("it was loaded", (path, options, hardware))
        signature = _signature(told)
        for inputs in (trials or _blanks(options))(signature):
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raised = child.ask(f"it ran on {shapes}", dict(inputs)).get("raised")
            if raised is not None and is_for_memory(str(raised)):
                limit = f"check_memory_mb, {options.check_memory_mb} MiB"
                raise Harmful(f"takes more memory than {limit}, when it runs on {shapes}: {explained(str(raised))}")


def serve() -> None:
    """Be the child: read names of files with commands from stdin, write what comes of them to what stdout was."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints to stdout is no answer
    session: Session | None = None
    for line in sys.stdin:
        command = pickle.loads(Path(line.rstrip("\n")).read_bytes())  # noqa: S301 - the parent wrote it
        answer: dict[str, Any] = {}
        try:
            if session is None:
                path, options, hardware = command
                _limit(options, hardware or options.hardware)
                session = Session(path, options, hardware)
                answer = {"inputs": _told(session.signature.inputs), "outputs": _told(session.signature.outputs)}
            else:
                session.run(command)
        except SessionError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - a graph may raise anything; the parent judges it
            kind = "error" if session is None else "raised"
            answer = {kind: str(error)[: _TOLD_MAX // 2]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Child:
    """The process, and one command after the other to it."""

    def __init__(self, path: Path, options: InferenceOptions) -> None:
        self._path = path
        self._deadline_s = time.monotonic() + options.check_timeout_s
        self._timeout_s = options.check_timeout_s
        self._memory_mb = options.check_memory_mb
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "_Child":
        with self._closing as closing:
            self._folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="headrace-check-")))
            self._said = closing.enter_context((self._folder / "stderr").open("w+b"))
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with a fixed program
                [sys.executable, "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            closing.callback(self._end)
            # From here and at once: importing is most of what the child computes for a small graph.
            step_back(ASIDE_NICENESS, self._process.pid)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def ask(self, doing: str, command: Any) -> dict[str, Any]:
        """Give one command and wait for its answer; `doing` says in a message what the child was at."""
        file = self._folder / "command"
        file.write_bytes(pickle.dumps(command))
        assert self._process.stdin is not None
        # A child that is gone is found by the answer that does not come.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{file}\n".encode())
            self._process.stdin.flush()
        line = self._line(doing)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Harmful(f"{self._fate()} while {doing} in a process of its own")
        if "error" in answer:
            raise SessionError(str(answer["error"]))
        return answer

    def _line(self, doing: str) -> bytes:
        """The next line of the child; empty when it ended, or said more than it may."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()  # select() knows no descriptor above 1023, and a server has more
        poll.register(pipe, select.POLLIN)
        line = bytearray()
        while not line.endswith(b"\n"):
            if not poll.poll(max(self._deadline_s - time.monotonic(), 0.0) * 1_000):
                raise Harmful(f"did not end within check_timeout_s, {self._timeout_s:g} s, while {doing}")
            part = os.read(pipe, 1 << 16)
            line += part
            if not part or len(line) > _TOLD_MAX:
                return b""
        return bytes(line)

    def _fate(self) -> str:
        """How the child ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        self._said.seek(0)
        said = shortened(self._said.read().decode(errors="replace")[-_SAID_MAX:])
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            if -code in {signal.SIGKILL, signal.SIGABRT}:
                return f"ended with {name} (often for memory; check_memory_mb is {self._memory_mb}){_after(said)}"
            return f"crashes with {name}{_after(said)}"
        return f"ended with status {code}{_after(said)}"

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _limit(options: InferenceOptions, hardware: Hardware) -> None:
    """Bound what this process may take, beyond what it has taken by now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(options.check_timeout_s) + 1
    threads = hardware.intra_op_threads or options.intra_op_threads
    resource.setrlimit(resource.RLIMIT_CPU, (seconds * threads, seconds * threads))
    # CUDA maps more memory than there is, so its processes have no bound.
    if resolve(replace(hardware, require=False), onnxruntime.get_available_providers()).accelerated:
        return
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        (taken_kb,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
        limit = (taken_kb << 10) + (options.check_memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _blanks(options: InferenceOptions) -> Trials:
    def trials(signature: Signature) -> Iterator[Mapping[str, Array]]:
        for rows in (1, options.trial_rows):
            yield {spec.name: _blank(spec, rows) for spec in signature.inputs}

    return trials


def _blank(spec: TensorSpec, rows: int) -> Array:
    """Zeros, or empty strings: free dimensions are 1, a free first one is the rows."""
    shape = [1 if size is None else size for size in spec.shape]
    if spec.shape and spec.shape[0] is None:
        shape[0] = rows
    if spec.dtype == "string":
        return np.full(shape, "", object)
    return np.zeros(shape, spec.dtype)


def _told(specs: Iterable[TensorSpec]) -> list[Any]:
    return [[spec.name, spec.dtype, spec.shape] for spec in specs]


def _signature(told: Mapping[str, Any]) -> Signature:
    inputs, outputs = (
        tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in told[side])
        for side in ("inputs", "outputs")
    )
    return Signature(inputs, outputs)


def _after(said: str) -> str:
    return f" ({said})" if said else ""
