"""Graphs that crash, hang or take all memory do so in a process of their own, and it is told what they did."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from gateway.inference.probing import probe
from gateway.inference.session import InferenceOptions, SessionError
from gateway.records.request import Array
from gateway.records.signature import Signature
from tests import graphs

OPTIONS = InferenceOptions(check_timeout_s=60, check_memory_mb=1024)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no file outlives a probe, however it ends."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert not list(scratch.iterdir())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not [command for command in commands if b"gateway.inference.probing" in command]


def test_a_good_graph_passes(tmp_path: Path) -> None:
    probe(graphs.saved(graphs.dense(), tmp_path), OPTIONS)


def test_a_server_with_many_files_open_has_its_graphs_tried(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1_100):  # select() knows 1,024
            stack.enter_context(Path(os.devnull).open("rb"))
        probe(graphs.saved(graphs.dense(), tmp_path), OPTIONS)


def test_the_graph_that_is_tried_does_harm(tmp_path: Path) -> None:
    """What the other tests rest on: loaded in this process, this graph would end it."""
    path = graphs.saved(graphs.deep_tree(), tmp_path)
    program = f"import onnxruntime; onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])"
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert ended.returncode == -signal.SIGSEGV


def test_a_crash_at_load(tmp_path: Path) -> None:
    path = graphs.saved(graphs.deep_tree(), tmp_path)
    with pytest.raises(SessionError, match="crashes with SIGSEGV while it was loaded in a process of its own"):
        probe(path, OPTIONS)


@pytest.mark.parametrize("model", [graphs.endless_tree(), graphs.endless_loop()], ids=["tree", "loop"])
def test_a_run_without_end(model: ModelProto, tmp_path: Path) -> None:
    options = InferenceOptions(check_timeout_s=2.5)
    path = graphs.saved(model, tmp_path)
    # On a machine that is very busy the start alone may take as long.
    with pytest.raises(
        SessionError, match=r"did not end within check_timeout_s, 2.5 s, while it (ran on x|was loaded)"
    ):
        probe(path, options)


def test_memory_without_bound_at_a_batch_size(tmp_path: Path) -> None:
    path = graphs.saved(graphs.squares(5000), tmp_path)
    options = InferenceOptions(check_memory_mb=64)
    with pytest.raises(SessionError, match=r"more memory than check_memory_mb, 64 MiB, when it runs on x \[64, 4\]"):
        probe(path, options)
    probe(path, OPTIONS)


def test_trials_are_made_for_the_signature(tmp_path: Path) -> None:
    seen: list[Signature] = []

    def trials(signature: Signature) -> Iterator[Mapping[str, Array]]:
        seen.append(signature)
        yield {"x": np.zeros((256, 4), np.float32)}

    path = graphs.saved(graphs.squares(5000), tmp_path)
    with pytest.raises(SessionError, match=r"when it runs on x \[256, 4\]"):
        probe(path, OPTIONS, trials=trials)
    assert [str(spec) for spec in (*seen[0].inputs, *seen[0].outputs)] == ["x: float32[?, 4]", "y: float32[?, 4]"]


def test_what_only_raises_is_left_to_the_load(tmp_path: Path) -> None:
    probe(graphs.saved(graphs.of_rows(1), tmp_path), OPTIONS)


def test_a_graph_that_does_not_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="custom operators are not loaded"):
        probe(graphs.saved(graphs.custom_operator(), tmp_path), OPTIONS)


def test_trials_that_raise_end_the_process(tmp_path: Path) -> None:
    def trials(signature: Signature) -> Iterator[Mapping[str, Array]]:
        raise LookupError(signature.inputs[0].name)

    with pytest.raises(LookupError, match="x"):
        probe(graphs.saved(graphs.dense(), tmp_path), OPTIONS, trials=trials)
