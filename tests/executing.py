"""Models of a few nodes for tests of plans, runs and the pipeline: real graphs, no repository and no store."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.inference import InferenceOptions, Model, Runner
from gateway.inference.batching import Execution
from gateway.inference.cost import Cost
from gateway.inference.session import Session
from gateway.pipeline import Answers, Pipeline, PipelineOptions
from gateway.plan import Manifest, Plan, TensorPlan, compile_plan
from gateway.plan.tensors import fixed_rows
from gateway.plan.transform import resolver
from gateway.records.errors import HeadraceError
from gateway.records.report import BatchReport
from gateway.records.request import Array, Asked, Request
from tests.running import write_graph

NO_VIEWS = Catalogue.parse("entities: {e: {k: string}}\nviews: {v@1: {entity: e, columns: {a: float32}}}")
SHORT = Cost(1e-6, 2e-6, 64)
"""Runs on the loop whatever its batch."""
SLOW_NODES = 30
Named = Mapping[str, tuple[str, Sequence[Any]]]
"""Inputs or outputs of a graph: name -> (dtype, shape)."""


def session(
    folder: Path, nodes: Sequence[NodeProto], inputs: Named, outputs: Named, constants: Mapping[str, Any] = {}
) -> Session:
    """A graph, written and loaded."""
    path = folder / f"{len([*folder.iterdir()])}.onnx"
    graph = helper.make_graph(
        nodes,
        "test",
        [_value(name, *what) for name, what in inputs.items()],
        [_value(name, *what) for name, what in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    write_graph(path, graph)
    return Session(path, InferenceOptions())


def _value(name: str, dtype: str, shape: Sequence[Any]) -> Any:
    kind = TensorProto.STRING if dtype == "string" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


def doubling(folder: Path, rows: int | None = None) -> Session:
    """`y = x + x` on [rows, 1], by default of any number of rows."""
    shape = (rows, 1)
    return session(folder, [helper.make_node("Add", ["x", "x"], ["y"])], {"x": ("float32", shape)},
                   {"y": ("float32", shape)})  # fmt: skip


def slow(folder: Path) -> Session:
    """`y = x` on [rows, 1], by way of so many multiplications that it takes some ten milliseconds."""
    nodes = [helper.make_node("MatMul", ["x", "spread"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{i}", "identity"], [f"h{i + 1}"]) for i in range(SLOW_NODES)]
    nodes += [helper.make_node("ReduceMean", [f"h{SLOW_NODES}"], ["y"], axes=[1], keepdims=1)]
    constants = {"spread": np.ones((1, 1024), np.float32), "identity": np.eye(1024, dtype=np.float32)}
    return session(folder, nodes, {"x": ("float32", (None, 1))}, {"y": ("float32", (None, 1))}, constants)


def up_to(folder: Path, rows_max: int) -> Session:
    """`y = x` on [rows], that raises for more than `rows_max` rows."""
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"]),
        helper.make_node("Gather", ["zeros", "rows"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    constants = {"zeros": np.zeros(rows_max + 1, np.float32)}
    return session(folder, nodes, {"x": ("float32", (None,))}, {"y": ("float32", (None,))}, constants)


def tensor_model(
    name: str, loaded: Session, execution: Execution | None = None, *, batched: bool = True, cost: Cost = SHORT
) -> Model:
    """The model of callers who send the graph's inputs."""
    return _model(name, loaded, TensorPlan(name, loaded.signature, batched), execution, cost)


def context_model(
    name: str, loaded: Session, columns: Mapping[str, str], execution: Execution | None = None, cost: Cost = SHORT
) -> Model:
    """A model whose only input `x` is filled from context columns, `{name: dtype}`."""
    manifest = Manifest.model_validate({"name": name, "context": columns, "inputs": {"x": [*columns]}})
    return _model(name, loaded, compile_plan(manifest, NO_VIEWS, loaded.signature, resolver(())), execution, cost)


def _model(name: str, loaded: Session, plan: Plan, execution: Execution | None, cost: Cost) -> Model:
    start = Cost(cost.overhead_s + cost.row_s, cost.overhead_s + 64 * cost.row_s, 64)  # each learns by itself
    fixed = fixed_rows(loaded.signature) if plan.batched else None
    runner = Runner(loaded, start, 200, execution, fixed_rows=fixed)
    return Model(name, 1, (), plan, runner, loaded.signature)


@dataclass
class Waiting:
    """Who waits in a test."""

    name: str
    cancelled: bool = False


@dataclass(eq=False)
class Kept:
    """A sink that keeps the outputs of each request, in the order in which they came."""

    outputs: dict[str, list[Array]] = field(default_factory=dict)
    errors: dict[str, HeadraceError] = field(default_factory=dict)
    runs: list[list[str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self, answers: Answers) -> None:
        start = 0
        self.runs.append([request.caller.name for request in answers.requests])  # type: ignore[attr-defined]
        for request in answers.requests:
            span = slice(start, start + request.rows) if answers.model.plan.batched else ...
            start += request.rows
            self._end(request, self.outputs, [output[span] for output in answers.outputs])

    def refuse(self, request: Request, error: HeadraceError, model: Model) -> None:
        self._end(request, self.errors, error)

    def _end(self, request: Request, where: dict[str, Any], what: Any) -> None:
        assert isinstance(request.caller, Waiting)
        name = request.caller.name
        assert name not in self.outputs, f"{name} was ended twice"
        assert name not in self.errors, f"{name} was ended twice"
        where[name] = what
        self.changed.set()

    async def ended(self, count: int, wait_s: float = 20) -> None:
        """Return when so many requests have ended."""
        async with asyncio.timeout(wait_s):
            while len(self.outputs) + len(self.errors) < count:
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Rig:
    """A pipeline, its sink and its reports."""

    pipeline: Pipeline
    kept: Kept
    reports: list[BatchReport]

    def ask(self, model: Model, name: str, *, priority: int = 0, stay_s: float = 30, **tensors: Any) -> Request:
        """A request with these context columns or inputs, bound."""
        bound = model.plan.bind(
            Asked({}, {key: np.asarray(value) for key, value in tensors.items()}, {}, (), False), 99_999
        )
        now = time.monotonic()
        return Request(Waiting(name), model.name, name, now, now + stay_s, bound.rows, bound.ids, bound.context, (),
                       bound.outputs, False, bound.shape, priority)  # fmt: skip

    def accept(self, model: Model, *requests: Request) -> None:
        """Hand them over."""
        self.pipeline.accept(model, [*requests])


@asynccontextmanager
async def rig(**options: int) -> AsyncIterator[Rig]:
    """A pipeline without a store: its models look nothing up."""
    kept, reports = Kept(), []
    async with FeatureClient(NO_VIEWS, RedisStore(RedisOptions(url="unix:///nowhere"))) as client:
        yield Rig(Pipeline(client, PipelineOptions(**options), kept, reports.append), kept, reports)
