"""With an ONNX Runtime that has OpenVINO: a second provider, on any CPU, that takes some graphs and not others."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, helper

from gateway.inference.providers import Hardware
from gateway.inference.session import InferenceOptions, Session, SessionError
from tests import graphs

pytestmark = [
    pytest.mark.needs_openvino,
    pytest.mark.skipif(
        "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="this onnxruntime has no OpenVINO; pip install onnxruntime-openvino in an environment of its own",
    ),
]


def opened(model: ModelProto, folder: Path, **hardware: Any) -> Session:
    return Session(graphs.saved(model, folder), InferenceOptions(), Hardware(**hardware))


def in_part() -> ModelProto:
    """A product, which OpenVINO takes, and a scaler of ai.onnx.ml, which it does not."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Scaler", ["m"], ["y"], domain="ai.onnx.ml", scale=[2.0] * 4, offset=[1.0] * 4),
    ]
    return graphs.graph(nodes, [graphs.tensor("x")], [graphs.tensor("y")], {"w": np.eye(4, dtype=np.float32)})


def test_a_whole_graph(tmp_path: Path) -> None:
    session = opened(graphs.dense(), tmp_path, providers=("openvino",), require=True)
    assert session.providers == ("openvino", "cpu")
    assert set(session.nodes) == {"openvino"}
    assert session.on_asked


def test_nodes_that_go_elsewhere(tmp_path: Path) -> None:
    allowed = opened(in_part(), tmp_path, providers=("openvino", "cpu"), require=True)
    assert dict(allowed.nodes) == {"openvino": 1, "cpu": 1}
    warned = opened(in_part(), tmp_path, providers=("openvino",))
    assert warned.warnings == ("1 of 2 nodes run on cpu (Scaler); name cpu in providers to allow that",)
    with pytest.raises(SessionError, match=r"less than asked \(require: true\): 1 of 2 nodes run on cpu \(Scaler\)"):
        opened(in_part(), tmp_path, providers=("openvino",), require=True)


def test_a_graph_that_it_takes_nothing_of(tmp_path: Path) -> None:
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", scale=[2.0] * 4, offset=[1.0] * 4)
    model = graphs.graph([node], [graphs.tensor("x")], [graphs.tensor("y")])
    session = opened(model, tmp_path, providers=("openvino", "cpu"))
    assert session.warnings == ("openvino took none of its 1 nodes",)


def test_a_graph_that_it_fails_on_runs_elsewhere() -> None:
    """It takes the node and cannot compile it; ONNX Runtime raises then, and its own fallback would print and go on."""
    path = Path(__file__).parents[3] / "models" / "flight_delay" / "1" / "model.onnx"
    session = Session(path, InferenceOptions(), Hardware(("openvino", "cpu")))
    assert session.providers == ("cpu",)
    assert session.warnings[0].startswith("openvino cannot load it: ")
    with pytest.raises(SessionError, match=r"openvino cannot load it, and it is required \(require: true\)"):
        Session(path, InferenceOptions(), Hardware(("openvino", "cpu"), require=True))


def test_a_wrong_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"bogus: an option in hardware\.providers is not one of this provider's"):
        opened(graphs.dense(), tmp_path, providers=({"openvino": {"bogus": 1}}, "cpu"))


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    session = opened(graphs.dense(), tmp_path, providers=({"openvino": {"device_type": "NPU"}}, "cpu"))
    assert session.providers == ("cpu",)
    assert session.warnings[0].startswith("openvino did not start")
    with pytest.raises(SessionError, match=r"less than asked \(require: true\): openvino did not start"):
        opened(graphs.dense(), tmp_path, providers=({"openvino": {"device_type": "NPU"}}, "cpu"), require=True)
