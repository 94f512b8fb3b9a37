"""A gateway with models for the Open Inference Protocol: with features, without, of every dtype, and without rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from gateway.client import BlockingClient
from tests.running import WEIGHTS, Running, Site, linear, make_site, running, write_graph, write_items, write_users

DTYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def add_models(site: Site) -> None:
    """`plain` is linear; `echo` gives every input back; `turned` transposes a whole [2, 3]; `pair` takes two inputs."""
    linear(site.models / "plain" / "1" / "model.onnx", WEIGHTS)
    linear(site.models / "plain" / "2" / "model.onnx", 2 * WEIGHTS)
    (site.models / "plain" / "config.pbtxt").write_text("version_policy { all { } }")
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in DTYPES]
    inputs = [helper.make_tensor_value_info(f"in_{name}", kind, [None, 2]) for name, kind in DTYPES.items()]
    outputs = [helper.make_tensor_value_info(f"out_{name}", kind, [None, 2]) for name, kind in DTYPES.items()]
    write_graph(site.models / "echo" / "1" / "model.onnx", helper.make_graph(nodes, "echo", inputs, outputs))
    turned = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])],
        "turned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2])],
    )
    write_graph(site.models / "turned" / "1" / "model.onnx", turned)
    pair = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])],
        "pair",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, "n"]) for name in ("a", "b")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, "n"]) for name in ("sum", "product")],
    )
    write_graph(site.models / "pair" / "1" / "model.onnx", pair)


@contextmanager
def running_models(folder: Path, redis_url: str, overrides: dict[str, Any] | None = None) -> Iterator[Running]:
    """The gateway, with 20 users and 20 items in its store."""
    site = make_site(folder, redis_url)
    add_models(site)
    with running(site, overrides) as gateway:
        with BlockingClient(gateway.target) as client:
            write_users(client, 20)
            write_items(client, 20)
        yield gateway
