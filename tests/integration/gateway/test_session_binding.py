"""Runs through buffers that stay: the mechanics, with the CPU as the device; a GPU's are in test_session_cuda."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from gateway.inference.binding import DeviceRuns
from gateway.inference.session import InferenceOptions, Session
from tests import graphs


def bound(model: ModelProto, folder: Path, **more: Any) -> tuple[Session, DeviceRuns]:
    session = Session(graphs.saved(model, folder), InferenceOptions())
    return session, DeviceRuns(session._session, session.signature, "cpu", 0, **more)


def batches(width: int = 64) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Sizes that come again, with other values each time: a buffer that was not filled anew would show."""
    random = np.random.default_rng(7)
    for rows in (1, 8, 64, 8, 1, 1, 64, 8):
        yield {"x": random.normal(size=(rows, width)).astype(np.float32)}


@pytest.mark.parametrize("recorded", [False, True])
def test_the_same_as_without(recorded: bool, tmp_path: Path) -> None:
    session, runs = bound(graphs.dense(width=64), tmp_path, recorded=recorded)
    given = [(runs.run(inputs), session.run(inputs)) for inputs in batches()]
    for (output,), (expected,) in given:  # after all runs, as an answer must outlive the next run's
        np.testing.assert_array_equal(output, expected)
    assert len(runs._slots) == 3


@pytest.mark.parametrize("recorded", [False, True])
def test_slots_are_bounded(recorded: bool, tmp_path: Path) -> None:
    session, runs = bound(graphs.dense(), tmp_path, recorded=recorded)
    for rows in (*range(1, 40), *range(1, 4)):
        inputs = {"x": np.full((rows, 4), rows, np.float32)}
        np.testing.assert_array_equal(runs.run(inputs)[0], session.run(inputs)[0])
    assert len(runs._slots) == 32
    assert runs._made == (32 if recorded else 0)


def test_an_output_whose_shape_is_in_the_data(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Transpose", ["i"], ["y"], perm=[1, 0])]
    model = graphs.graph(nodes, [graphs.tensor("x")], [graphs.tensor("y", ("found", 2), TensorProto.INT64)])
    _, runs = bound(model, tmp_path, recorded=True)
    for found in (3, 1, 4):
        x = np.zeros((2, 4), np.float32)
        x[0, :found] = 1
        assert runs.run({"x": x})[0].tolist() == [[0, column] for column in range(found)]
    assert not runs._recorded


def test_inputs_in_another_order_and_layout(tmp_path: Path) -> None:
    inputs = [graphs.tensor("x"), graphs.tensor("z")]
    model = graphs.graph([helper.make_node("Sub", ["x", "z"], ["y"])], inputs, [graphs.tensor("y")])
    _, runs = bound(model, tmp_path)
    x = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    for _ in range(2):
        (y,) = runs.run({"z": np.ones((3, 4), np.float32), "x": x})
        np.testing.assert_array_equal(y, x - 1)


def test_a_wrong_dtype_is_refused_and_never_cast(tmp_path: Path) -> None:
    _, runs = bound(graphs.dense(), tmp_path)
    runs.run({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(TypeError, match="Cannot cast"):
        runs.run({"x": np.zeros((1, 4), np.float64)})
