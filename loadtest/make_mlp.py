"""Makes `models/mlp/1/model.onnx`, the model of the benchmark: x [n, 50] float32 -> score [n, 1] float32.

The file is committed, because it is small and a benchmark should not need `onnx`; this script says where it is from.

    python -m loadtest.make_mlp
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtest.workload import FEATURES, MODEL_FILE

WEIGHTS_SEED = 7


def make_model() -> onnx.ModelProto:
    """A perceptron 50-64-32-1 with ReLU between and a sigmoid at the end, its weights drawn from a fixed seed."""
    rng = np.random.default_rng(WEIGHTS_SEED)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)

    parameters = [
        weights("W1", FEATURES, 64),
        weights("b1", 64),
        weights("W2", 64, 32),
        weights("b2", 32),
        weights("W3", 32, 1),
        weights("b3", 1),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "W1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Gemm", ["a1", "W2", "b2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("Gemm", ["a2", "W3", "b3"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        parameters,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    """Writes the file."""
    MODEL_FILE.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(make_model(), str(MODEL_FILE))
    print(MODEL_FILE)


if __name__ == "__main__":
    main()
