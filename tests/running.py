"""A whole gateway for tests: a model repository on disk, a real Redis, and the server in a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import uvloop
from onnx import TensorProto, helper, numpy_helper

from gateway.client import BlockingClient
from gateway.server import settings
from gateway.server.app import Gateway

START_S_MAX = 30.0

CATALOGUE = """
entities:
  user: {user: string}
  item: {item: int64}
  pair: {user: string, item: int64}
views:
  user_stats@1:
    entity: user
    columns:
      age: {dtype: float32, default: -1.0}
      visits: {dtype: int32, default: 0}
      taste: {dtype: "float32[2]", default: 0.0}
  item_stats@1: {entity: item, columns: {price: {dtype: float32, default: 9.0}}}
  pair_stats@1: {entity: pair, columns: {clicks: {dtype: int16, default: 0}}}
  strict@1: {entity: user, on_missing: reject, columns: {level: float32}}
"""
MANIFEST = """
name: ranker
views:
  user: {view: user_stats@1}
  item: {view: item_stats@1}
  pair: {view: pair_stats@1}
context: {hour: float32}
inputs:
  x: [item.price, user.age, user.visits, user.taste, pair.clicks, hour]
labels: {stable: 1}
"""
COLUMNS = ("item.price", "user.age", "user.visits", "user.taste", "pair.clicks", "hour")
WEIGHTS = np.float32([[0.5], [1.25], [-2], [3], [0.75], [-1.5], [0.1]])


def linear(path: Path, weights: np.ndarray[Any, Any]) -> None:
    """Write a graph `score = x @ weights` to `path`."""
    node = helper.make_node("MatMul", ["x", "w"], ["score"])
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(weights)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    write_graph(path, graph)


def write_graph(path: Path, graph: onnx.GraphProto) -> None:
    """Write a graph as a model that old versions of ONNX Runtime read too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@dataclass(frozen=True)
class Site:
    """The files of a gateway."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "headrace.yaml"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def add_model(self, name: str, manifest: str, weights: np.ndarray[Any, Any], version: int = 1) -> None:
        """Add a linear model."""
        linear(self.models / name / str(version) / "model.onnx", weights)
        (self.models / name / "model.yaml").write_text(manifest)


def make_site(folder: Path, redis_url: str) -> Site:
    """Write the ranker, its catalogue, and settings that take free ports."""
    site = Site(folder)
    (folder / "features.yaml").write_text(CATALOGUE)
    site.add_model("ranker", MANIFEST, WEIGHTS)
    site.config.write_text(
        f"""
catalogue: features.yaml
models: models
grpc: {{listen: ["127.0.0.1:0"]}}
http: {{listen: "127.0.0.1:0"}}
store: {{url: "{redis_url}"}}
pipeline: {{store_timeout_ms: 1000}}
"""
    )
    return site


@dataclass(frozen=True)
class Running:
    """A gateway that serves."""

    gateway: Gateway
    target: str
    loop: asyncio.AbstractEventLoop

    @property
    def http(self) -> str:
        return f"http://{self.gateway.http_address}"


@contextmanager
def running(site: Site, overrides: Mapping[str, Any] | None = None, *, wait_ready: bool = True) -> Iterator[Running]:
    """Run the gateway of a site in a thread with a loop of its own."""
    loaded = settings.load(site.config, overrides)
    started: list[Running] = []
    failed: list[BaseException] = []
    up, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with Gateway(loaded) as gateway:
            if wait_ready:
                await asyncio.wait_for(gateway.wait_ready(), START_S_MAX)
            started.append(Running(gateway, gateway.addresses[0], asyncio.get_running_loop()))
            up.set()
            await stop.wait()

    def run() -> None:
        try:
            uvloop.run(serve())
        except BaseException as error:  # noqa: BLE001  # raised again in the test's thread
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, name="gateway-under-test")
    thread.start()
    up.wait(START_S_MAX + 5)
    try:
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        if started:
            started[0].loop.call_soon_threadsafe(stop.set)
        thread.join(START_S_MAX)
    if failed:
        raise failed[0]


def write_users(client: BlockingClient, users: int) -> None:
    """Users u0, u1, …: every value says whose it is."""
    ids = np.arange(users)
    client.write_features(
        "user_stats@1",
        {"user": [f"u{i}" for i in ids]},
        {
            "age": (ids + 0.5).astype(np.float32),
            "visits": (ids * 10).astype(np.int32),
            "taste": np.stack([ids, -ids], axis=1).astype(np.float32),
        },
    )


def write_items(client: BlockingClient, items: int) -> None:
    """Items 0, 1, …"""
    ids = np.arange(items)
    client.write_features("item_stats@1", {"item": ids}, {"price": (ids * 0.25).astype(np.float32)})
