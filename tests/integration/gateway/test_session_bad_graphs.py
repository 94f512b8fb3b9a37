"""A graph that cannot be loaded or served is refused in words that say what to do."""

from pathlib import Path

import numpy as np
import pytest

from gateway.inference.session import InferenceOptions, Session, SessionError
from tests import graphs

_WHOLE = graphs.dense(width=64).SerializeToString()

_FILES = {
    "empty": (b"", "not an ONNX model, or it was cut short"),
    "text": (b"<html>404 Not Found</html>", "not an ONNX model, or it was cut short"),
    "truncated": (_WHOLE[: len(_WHOLE) // 2], "not an ONNX model, or it was cut short"),
    "opset": (graphs.relu(opsets=[("", 99)]).SerializeToString(), "till opset .*: export the model for an older opset"),
    "ir": (graphs.relu(ir_version=99).SerializeToString(), "IR version: 99, .* older IR version, or install a newer"),
    "custom": (graphs.custom_operator().SerializeToString(), "my.company:Secret.*custom operators are not loaded"),
    "kernel": (graphs.without_kernel().SerializeToString(), "Conv.*no kernel for an operator with this type"),
    "sequence": (graphs.sequence().SerializeToString(), r"y is a seq\(tensor\(float\)\).*ConcatFromSequence"),
    "zipmap": (graphs.zipmap().SerializeToString(), "y is a seq.map.*'zipmap': False"),
}


@pytest.mark.parametrize(("content", "said"), _FILES.values(), ids=_FILES.keys())
def test_refused_with_advice(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SessionError, match=said) as raised:
        Session(path, InferenceOptions())
    # Neither ONNX Runtime's numbers nor the places in its source are of use to anybody here.
    assert "ONNXRuntimeError" not in str(raised.value)
    assert ".cc:" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="File doesn't exist"):
        Session(tmp_path / "model.onnx", InferenceOptions())


def test_external_data_is_read_from_beside_the_graph(tmp_path: Path) -> None:
    session = Session(graphs.with_external_weights(tmp_path), InferenceOptions())
    (output,) = session.run({"x": np.ones((1, 4), np.float32)})
    np.testing.assert_allclose(output, [[1.0, 1.25, 1.5, 1.75]])


@pytest.mark.parametrize("harm", ["missing", "short"])
def test_external_data_that_is_not_whole(harm: str, tmp_path: Path) -> None:
    path = graphs.with_external_weights(tmp_path)
    if harm == "missing":
        (tmp_path / "weights.bin").unlink()
    else:
        (tmp_path / "weights.bin").write_bytes(b"123")
    with pytest.raises(SessionError, match=r"External .*must lie beside model\.onnx"):
        Session(path, InferenceOptions())


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_external_data_never_comes_from_elsewhere(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    folder = tmp_path / "1"
    folder.mkdir()
    with pytest.raises(SessionError, match="External data path validation failed"):
        Session(graphs.with_external_weights(folder, location), InferenceOptions())


def test_a_graph_that_fails_at_a_batch_size(tmp_path: Path) -> None:
    session = Session(graphs.saved(graphs.of_rows(1), tmp_path), InferenceOptions())
    session.try_out({"x": np.zeros((1, 4), np.float32)}, 1)
    with pytest.raises(SessionError, match=r"a trial run of 8 rows raises .*cannot be reshaped"):
        session.try_out({"x": np.zeros((8, 4), np.float32)}, 8)
