"""With an ONNX Runtime that has CUDA, and a GPU: where graphs run, how buffers are bound, what it falls back to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from gateway.inference.providers import Hardware
from gateway.inference.session import InferenceOptions, Session, SessionError
from tests import graphs

_AVAILABLE = onnxruntime.get_available_providers()

pytestmark = [
    pytest.mark.needs_cuda,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in _AVAILABLE,
        reason=f"this onnxruntime has no CUDA (it has {', '.join(_AVAILABLE)})",
    ),
]
needs_tensorrt = pytest.mark.skipif("TensorrtExecutionProvider" not in _AVAILABLE, reason="no TensorRT in this build")


def opened(folder: Path, options: InferenceOptions | None = None, **hardware: Any) -> Session:
    path = graphs.saved(graphs.dense(width=64), folder)
    return Session(path, options or InferenceOptions(), Hardware(**hardware))


def batches() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Sizes that come again, with other values each time: a buffer that was not filled anew would show."""
    random = np.random.default_rng(7)
    for rows in (1, 8, 64, 8, 1, 1, 64, 8):
        yield {"x": random.normal(size=(rows, 64)).astype(np.float32)}


def same_as_on_the_cpu(session: Session, folder: Path, tolerance: float = 1e-3) -> None:
    exact = opened(folder, providers=("cpu",))
    given = [(session.run(inputs), exact.run(inputs)) for inputs in batches()]
    for (output,), (expected,) in given:  # after all runs, as an answer must outlive the next run's
        np.testing.assert_allclose(output, expected, rtol=tolerance, atol=tolerance)


def test_cuda_takes_the_whole_graph(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("cuda",), require=True)
    assert session.providers == ("cuda", "cpu")
    assert set(session.nodes) == {"cuda"}
    same_as_on_the_cpu(session, tmp_path)


def test_auto_finds_it(tmp_path: Path) -> None:
    session = opened(tmp_path)
    assert session.providers[0] == "cuda"
    assert session.on_asked


def test_buffers_are_bound_and_pinned(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("cuda",))
    assert session._device is not None
    assert session._device._fixed
    same_as_on_the_cpu(session, tmp_path)
    assert len(session._device._slots) == 3


def test_more_shapes_than_slots(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("cuda",), cuda_graphs=True)
    exact = opened(tmp_path, providers=("cpu",))
    for rows in (*range(1, 40), *range(1, 4)):
        inputs = {"x": np.full((rows, 64), rows, np.float32)}
        np.testing.assert_allclose(session.run(inputs)[0], exact.run(inputs)[0], rtol=1e-3)
    assert session._device is not None
    assert len(session._device._slots) == 32


def test_cuda_graphs(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("cuda",), cuda_graphs=True, require=True)
    assert session._device is not None
    assert session._device._recorded
    same_as_on_the_cpu(session, tmp_path)


def test_cuda_graphs_where_a_node_runs_elsewhere(tmp_path: Path) -> None:
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", scale=[2.0] * 4, offset=[1.0] * 4)
    model = graphs.graph([node], [graphs.tensor("x")], [graphs.tensor("y")])
    hardware = Hardware(("cuda", "cpu"), cuda_graphs=True)
    session = Session(graphs.saved(model, tmp_path), InferenceOptions(), hardware)
    assert any("CUDA graphs are off" in warning for warning in session.warnings)
    np.testing.assert_array_equal(session.run({"x": np.zeros((2, 4), np.float32)})[0], np.full((2, 4), -2.0))


def test_an_output_whose_shape_is_in_the_data(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Transpose", ["i"], ["y"], perm=[1, 0])]
    model = graphs.graph(nodes, [graphs.tensor("x")], [graphs.tensor("y", ("found", 2), 7)])
    session = Session(graphs.saved(model, tmp_path), InferenceOptions(), Hardware(("cuda", "cpu")))
    for found in (3, 1, 4):
        x = np.zeros((2, 4), np.float32)
        x[0, :found] = 1
        assert session.run({"x": x})[0].shape == (found, 2)


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = graphs.saved(graphs.squares(5000), tmp_path)
    session = Session(path, InferenceOptions(), Hardware(("cuda",), device_memory_limit_mb=64))
    session.run({"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(Exception, match=r"Available memory|Failed to allocate"):
        session.run({"x": np.zeros((128, 4), np.float32)})
    session.run({"x": np.zeros((2, 4), np.float32)})


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("cuda", "cpu"), device_id=99)
    assert session.providers == ("cpu",)
    assert not session.on_asked
    with pytest.raises(SessionError, match="cuda"):
        opened(tmp_path, providers=("cuda", "cpu"), device_id=99, require=True)


def test_a_wrong_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"an option in hardware\.providers is not one of this provider's"):
        opened(tmp_path, providers=({"cuda": {"bogus": 1}}, "cpu"))


@needs_tensorrt
@pytest.mark.slow
def test_tensorrt_keeps_its_engines(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    options = InferenceOptions(engine_cache=engines)
    session = opened(tmp_path, options, providers=("tensorrt", "cuda"), require=True)
    assert session.nodes["tensorrt"] > 0
    same_as_on_the_cpu(session, tmp_path)
    assert list(engines.glob("*.engine"))


@needs_tensorrt
@pytest.mark.slow
def test_tensorrt_in_float16(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("tensorrt", "cuda"), fp16=True, require=True)
    same_as_on_the_cpu(session, tmp_path, tolerance=2e-2)
