"""Small ONNX graphs, built node by node: good ones, broken ones, and some that harm who runs them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSETS = (("", 17), ("ai.onnx.ml", 3))


def tensor(
    name: str, shape: Sequence[int | str | None] | None = ("n", 4), dtype: int = TensorProto.FLOAT
) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def graph(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: dict[str, NDArray[np.generic]] | None = None,
    opsets: Sequence[tuple[str, int]] = OPSETS,
    ir_version: int = 8,
) -> ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
        ir_version=ir_version,
    )


def relu(opsets: Sequence[tuple[str, int]] = OPSETS, ir_version: int = 8) -> ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    return graph([node], [tensor("x")], [tensor("y")], opsets=opsets, ir_version=ir_version)


def dense(dtype: type[np.floating] = np.float32, width: int = 4) -> ModelProto:
    """y = relu(x @ w + b): ONNX Runtime fuses it to fewer nodes."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    weights = np.arange(width * width, dtype=dtype).reshape(width, width) / (width * width)
    constants = {"w": weights.astype(dtype), "b": np.full(width, -0.5, dtype)}
    return graph(nodes, [tensor("x", ("n", width), kind)], [tensor("y", ("n", width), kind)], constants)


def with_external_weights(folder: Path, location: str = "weights.bin") -> Path:
    """`dense` as model.onnx in the folder, its weights said to be in another file, which is written where it may be."""
    model = dense()
    weights = model.graph.initializer[0]
    data = bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", location
    if "/" not in location:
        (folder / location).write_bytes(data)
    return saved(model, folder)


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def sequence() -> ModelProto:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    node = helper.make_node("SplitToSequence", ["x"], ["y"])
    return graph([node], [tensor("x")], [helper.make_value_info("y", kind)])


def zipmap() -> ModelProto:
    """What converters of scikit-learn make when nobody says otherwise."""
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    return graph([node], [tensor("x")], [helper.make_value_info("y", kind)])


def custom_operator() -> ModelProto:
    node = helper.make_node("Secret", ["x"], ["y"], domain="my.company")
    return graph([node], [tensor("x")], [tensor("y")], opsets=(*OPSETS, ("my.company", 1)))


def without_kernel() -> ModelProto:
    """Valid ONNX that the CPU provider has no kernel for: a convolution of doubles."""
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    inputs = [tensor("x", ("n", 1, 4, 4), TensorProto.DOUBLE)]
    outputs = [tensor("y", None, TensorProto.DOUBLE)]
    return graph([node], inputs, outputs, {"w": np.ones((1, 1, 2, 2))})


def of_rows(rows: int) -> ModelProto:
    """A graph that runs on so many rows only, whatever its signature says."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    return graph([node], [tensor("x")], [tensor("y")], {"shape": np.array([rows, 4])})


def deep_tree(depth: int = 100_000) -> ModelProto:
    """A decision tree that is one long branch. ONNX Runtime 1.32 overflows the stack while it loads it."""
    return _tree(depth, last=2 * depth)


def endless_tree() -> ModelProto:
    """A decision tree whose last branch leads back to its second node. ONNX Runtime 1.32 never comes out of it."""
    return _tree(5, last=1)


def endless_loop() -> ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [tensor("i", (), TensorProto.INT64), tensor("go", (), TensorProto.BOOL), tensor("v", None)],
        [tensor("go_on", (), TensorProto.BOOL), tensor("w", None)],
    )
    node = helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)
    return graph([node], [tensor("x")], [tensor("y", None)], {"true": np.array(True)})


def squares(more: int) -> ModelProto:
    """Memory that grows with the square of the rows: each row against each, `more` times wide."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["c"], axes=[1], keepdims=1),
        helper.make_node("Transpose", ["c"], ["r"], perm=[1, 0]),
        helper.make_node("Add", ["c", "r"], ["s"]),
        helper.make_node("Tile", ["s", "times"], ["t"]),
        helper.make_node("ReduceMax", ["t"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    return graph(nodes, [tensor("x")], [tensor("y")], {"times": np.array([1, more])})


def _tree(depth: int, last: int) -> ModelProto:
    """`depth` branches, each leading to the next or to a leaf; the last one's true side leads to the node `last`."""
    leaves = depth + 1
    nodes = depth + leaves
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * nodes,
        nodes_nodeids=list(range(nodes)),
        nodes_featureids=[0] * nodes,
        nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"] * leaves,
        nodes_values=[1.0] * nodes,
        nodes_truenodeids=[*range(1, depth), last, *[0] * leaves],
        nodes_falsenodeids=[*range(depth, 2 * depth), *[0] * leaves],
        nodes_hitrates=[1.0] * nodes,
        nodes_missing_value_tracks_true=[0] * nodes,
        target_treeids=[0] * leaves,
        target_nodeids=list(range(depth, nodes)),
        target_ids=[0] * leaves,
        target_weights=[1.0] * leaves,
    )
    return graph([node], [tensor("x")], [tensor("y", ("n", 1))])
