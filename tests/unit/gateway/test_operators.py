"""Graphs whose work follows a value that is sent are found in their files, and those whose sizes are shapes are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from gateway.inference.operators import follows_values
from tests.running import write_graph

node = helper.make_node
X = helper.make_tensor_value_info("x", TensorProto.INT64, [None])
Y = helper.make_tensor_value_info("y", TensorProto.INT64, None)
WEIGHTS = [numpy_helper.from_array(np.int64([1, 2]), "w"), numpy_helper.from_array(np.float32([1, 2]), "large" * 9)]


def graph(nodes: list[NodeProto], inputs: Any = (X,)) -> GraphProto:
    return helper.make_graph(nodes, "g", inputs, [Y], WEIGHTS)


def inner(*nodes: NodeProto) -> GraphProto:
    return helper.make_graph([*nodes], "inner", [], [Y])


SHAPED = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["rows"], to=TensorProto.INT64)]


@pytest.mark.parametrize(
    ("nodes", "operator"),
    [
        ([node("Range", ["zero", "x", "one"], ["y"])], "Range"),
        (
            [node("Add", ["x", "w"], ["n"]), node("Cast", ["n"], ["m"], to=7), node("Expand", ["w", "m"], ["y"])],
            "Expand",
        ),
        ([node("ConstantOfShape", ["x"], ["y"])], "ConstantOfShape"),
        ([node("Tile", ["w", "x"], ["y"])], "Tile"),
        ([node("OneHot", ["w", "x", "w"], ["y"])], "OneHot"),
        ([node("Resize", ["w", "", "", "x"], ["y"])], "Resize"),
        ([node("Loop", ["w", "", "w"], ["y"], body=inner(node("Identity", ["w"], ["y"])))], "Loop"),
        ([node("If", ["w"], ["y"], then_branch=inner(node("Tile", ["w", "x"], ["y"])), else_branch=inner())], "Tile"),
        (
            [
                node("If", ["w"], ["n"], then_branch=inner(node("Identity", ["x"], ["y"])), else_branch=inner()),
                node("Tile", ["w", "n"], ["y"]),
            ],
            "Tile",
        ),
        ([*SHAPED, node("Expand", ["x", "rows"], ["y"])], ""),
        ([*SHAPED, node("Range", ["zero", "rows", "one"], ["r"]), node("Tile", ["x", "w"], ["y"])], ""),
        ([node("Resize", ["x", "", "w"], ["y"])], ""),
        ([node("Size", ["x"], ["n"]), node("ConstantOfShape", ["n"], ["y"])], ""),
        ([node("If", ["w"], ["y"], then_branch=inner(node("Tile", ["x", "w"], ["y"])), else_branch=inner())], ""),
    ],
)
def test_the_operator_is_found(tmp_path: Path, nodes: list[NodeProto], operator: str) -> None:
    write_graph(tmp_path / "model.onnx", graph(nodes))
    assert follows_values(tmp_path / "model.onnx") == operator


def test_a_weight_that_is_listed_as_an_input_is_no_value(tmp_path: Path) -> None:
    w = helper.make_tensor_value_info("w", TensorProto.INT64, [2])
    write_graph(tmp_path / "model.onnx", graph([node("Expand", ["x", "w"], ["y"])], (X, w)))
    assert follows_values(tmp_path / "model.onnx") == ""


def test_functions_of_the_model_are_looked_into(tmp_path: Path) -> None:
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    grow = helper.make_function("own", "Grow", ["a"], ["b"], [node("ConstantOfShape", ["a"], ["b"])], versions[:1])
    made = helper.make_model(
        graph([node("Grow", ["x"], ["y"], domain="own")]), functions=[grow], opset_imports=versions
    )
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert follows_values(tmp_path / "model.onnx") == "ConstantOfShape"


@pytest.mark.parametrize("content", [b"\x3a\xff\x01", b"\xff" * 40, b"\x3b\x00"])
def test_what_cannot_be_read_counts_as_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert follows_values(tmp_path / "model.onnx")
