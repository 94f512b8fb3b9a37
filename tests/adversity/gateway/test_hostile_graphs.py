"""Graphs that load well and then mislead, and callers who know: nobody gets another's rows, or waits for ever."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from gateway.inference import InferenceOptions, Model, ModelsNotLoaded, layout
from gateway.inference.loading import Loader
from gateway.pipeline import Answers
from gateway.pipeline.batch import Batch
from gateway.pipeline.queue import RunQueue
from gateway.pipeline.run import Keeping
from gateway.plan.transform import resolver
from gateway.records.errors import HeadraceError, ModelFailed
from gateway.records.request import Request
from tests.executing import NO_VIEWS, Named, rig, session, tensor_model
from tests.running import write_graph
from tests.waiting import soon

HANG_S = 20
"""A bound for hangs, not a measurement."""
EMBEDDING = np.float32([[1], [2], [3], [4]])


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def value(name: str, dtype: str, shape: Sequence[Any]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def loaded(
    root: Path,
    nodes: Sequence[NodeProto],
    inputs: Named,
    outputs: Named,
    constants: dict[str, Any],
    **files: str,
) -> Model:
    """The only model of a repository, as a server loads it."""
    graph = helper.make_graph(
        nodes,
        "test",
        [value(name, *what) for name, what in inputs.items()],
        [value(name, *what) for name, what in outputs.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    write_graph(root / "m" / "1" / "model.onnx", graph)
    for name, text in files.items():
        (root / "m" / name.replace("_", ".")).write_text(text)
    loader = Loader(root, NO_VIEWS, resolver(()), InferenceOptions(check_in_process=False))
    entry = layout.look(root, "m")
    assert entry is not None
    return loader.load(loader.describe(entry), 1)


def states(free: bool) -> tuple[list[NodeProto], Named, dict[str, Any]]:
    """`y` of each row, and `hn` [2, rows, 1]: what two layers remember, which has two entries whatever the rows are."""
    nodes = [
        node("ReduceSum", "x axis", "y", keepdims=1),
        node("Unsqueeze", "y zero", "one"),
        node("Mul", "one ten", "two"),
        node("Concat", "one two", "both", axis=0),
        node("NonZero", "keep", "places"),
        node("Reshape", "places flat", "place"),
        node("Gather", "both place", "hn", axis=0),
    ]
    constants = {
        "axis": np.int64([1]),
        "zero": np.int64([0]),
        "ten": np.float32(10),
        "keep": np.array([True, True]),
        "flat": np.int64([-1]),
    }
    return nodes, {"x": ("float32", (None, "seq" if free else 2))}, constants


STATES: Named = {"y": ("float32", (None, 1)), "hn": ("float32", ("layers", "rows", 1))}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("files", [{}, {"config_pbtxt": "max_batch_size: 0"}])
async def test_states_that_are_as_many_as_the_rows_by_chance(tmp_path: Path, free: bool, files: dict[str, str]) -> None:
    nodes, inputs, constants = states(free)
    model = loaded(tmp_path, nodes, inputs, STATES, constants, **files)
    assert not model.plan.batched
    async with rig() as it:
        it.accept(model, it.ask(model, "a", x=np.float32([[1, 0]])), it.ask(model, "b", x=np.float32([[5, 0]])))
        it.accept(model, it.ask(model, "c", x=np.float32([[2, 0], [3, 0]])))
        await it.kept.ended(3, HANG_S)
        assert {name: hn.ravel().tolist() for name, (_, hn) in it.kept.outputs.items()} == {
            "a": [1, 10],
            "b": [5, 50],
            "c": [2, 3, 20, 30],
        }


@pytest.mark.parametrize("execution", ["", "execution: {buckets: [2]}", "execution: {max_batch_rows: 2}"])
def test_a_manifest_is_refused_for_them(tmp_path: Path, execution: str) -> None:
    nodes, inputs, constants = states(free=False)
    manifest = f"name: m\ncontext: {{a: float32, b: float32}}\ninputs: {{x: [a, b]}}\n{execution}"
    with pytest.raises(ModelsNotLoaded, match=r"output hn has the shape .* its first dimension must be the rows"):
        loaded(tmp_path, nodes, inputs, STATES, constants, model_yaml=manifest)


async def test_a_manifest_beside_max_batch_size_0_is_run_request_by_request(tmp_path: Path) -> None:
    """What is subtracted is the mean of all rows of a run."""
    nodes = [node("ReduceMean", "x", "mean", axes=[0], keepdims=1), node("Sub", "x mean", "y")]
    shape = {"x": ("float32", (None, 1))}, {"y": ("float32", (None, 1))}
    manifest = "name: m\ncontext: {a: float32}\ninputs: {x: [a]}"
    model = loaded(tmp_path, nodes, *shape, {}, model_yaml=manifest, config_pbtxt="max_batch_size: 0")
    async with rig() as it:
        it.accept(model, it.ask(model, "a", a=np.float32([1, 3])), it.ask(model, "b", a=np.float32([100, 300])))
        await it.kept.ended(2, HANG_S)
        assert {name: y.ravel().tolist() for name, (y,) in it.kept.outputs.items()} == {"a": [-1, 1], "b": [-100, 100]}


async def test_an_output_that_has_no_dimension_for_one_row(tmp_path: Path) -> None:
    """A mistake of exporters: all dimensions of size 1 are squeezed, the rows too."""
    nodes = [node("ReduceSum", "x axis", "sum", keepdims=1), node("Squeeze", "sum", "y")]
    shapes = {"x": ("float32", (None, 2))}, {"y": ("float32", (None,))}
    squeezed = session(tmp_path, nodes, *shapes, {"axis": np.int64([1])})
    model = tensor_model("m", squeezed)
    async with rig() as it:
        it.accept(model, it.ask(model, "one", x=np.float32([[1, 2]])))
        it.accept(model, it.ask(model, "two", x=np.float32([[1, 2], [3, 4]])))
        await it.kept.ended(2, HANG_S)
        assert isinstance(it.kept.errors["one"], ModelFailed)
        assert it.kept.outputs["two"][0].tolist() == [3, 7]
        drained = asyncio.Event()
        it.pipeline.drain(model, drained.set)
        await asyncio.wait_for(drained.wait(), HANG_S)


@pytest.mark.parametrize("bad", [3, 64, 300])
async def test_a_flood_of_bad_requests_harms_no_good_one(tmp_path: Path, bad: int) -> None:
    """An index beyond the table makes the whole run fail."""
    gather = session(tmp_path, [node("Gather", "table x", "y")], {"x": ("int64", (None,))},
                     {"y": ("float32", (None, 1))}, {"table": EMBEDDING})  # fmt: skip
    model = tensor_model("m", gather)
    async with rig() as it:
        for turn in range(10):
            wrong = [it.ask(model, f"bad{turn}-{i}", x=[99]) for i in range(bad)]
            it.accept(model, *wrong[: bad // 2], it.ask(model, f"good{turn}", x=[2]), *wrong[bad // 2 :])
            await asyncio.sleep(0)
        await it.kept.ended(10 * (bad + 1), HANG_S)
        assert {name: y.tolist() for name, (y,) in it.kept.outputs.items()} == {f"good{i}": [[3]] for i in range(10)}


async def test_a_loop_that_turns_as_often_as_an_input_says_is_not_run_on_the_loop(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Identity", "on", "goes_on"), node("Add", "sum one", "next")],
        "body",
        [value("turn", "int64", ()), value("on", "bool", ()), value("sum", "float32", (None,))],
        [value("goes_on", "bool", ()), value("next", "float32", (None,))],
        [numpy_helper.from_array(np.float32([1]), "one")],
    )
    nodes = [
        node("ReduceMax", "x", "turns", keepdims=0),
        node("Loop", "turns true none", "total", body=body),
        node("Cast", "x", "numbers", to=TensorProto.FLOAT),
        node("Mul", "numbers zero", "zeros"),
        node("Add", "zeros total", "y"),
    ]
    constants = {"true": np.array(True), "none": np.float32([0]), "zero": np.float32(0)}
    model = loaded(tmp_path, nodes, {"x": ("int64", (None,))}, {"y": ("float32", (None,))}, constants)
    async with rig() as it:
        it.accept(model, it.ask(model, "long", x=[500_000]))
        assert model.runner.busy, "accept has returned before the run has ended"
        await it.kept.ended(1, HANG_S)
        assert it.kept.outputs["long"][0].tolist() == [500_000]


async def test_whatever_raises_after_a_run_each_request_is_ended_once(tmp_path: Path) -> None:
    doubling = session(
        tmp_path, [node("Add", "x x", "y")], {"x": ("float32", (None, 1))}, {"y": ("float32", (None, 1))}
    )
    model = tensor_model("m", doubling)
    async with rig() as it:

        def commit(answers: Answers, moments: Any, done: Any) -> None:
            done([0], None)
            raise RuntimeError("the journal has a bug")

        it.pipeline.keeping = Keeping(commit=commit)
        it.accept(model, *[it.ask(model, name, x=np.float32([[1]])) for name in "abc"])
        assert [*it.kept.outputs] == ["a"]
        assert [*it.kept.errors] == ["b", "c"]

        told: list[str] = []

        def refuse(request: Request, error: HeadraceError, model: Model) -> None:
            told.append(request.request_id)
            raise RuntimeError("the edge has a bug")

        it.kept.refuse = refuse  # type: ignore[method-assign]  # a sink with a bug
        it.accept(model, *[it.ask(model, name, x=np.float32([[1]])) for name in "def"])
        assert told == ["e", "f"]
        assert it.pipeline.rows_in_flight == 0


async def test_a_bug_in_taking_in_ends_its_requests_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubling = session(
        tmp_path, [node("Add", "x x", "y")], {"x": ("float32", (None, 1))}, {"y": ("float32", (None, 1))}
    )
    broken, sound = tensor_model("broken", doubling), tensor_model("sound", doubling)
    async with rig(tick_rows_max=1, batch_rows_max=1) as it:
        monkeypatch.setattr(broken.runner, "cost", None)
        it.accept(broken, *[it.ask(broken, f"b{i}", x=np.float32([[1]])) for i in range(3)])
        it.accept(sound, *[it.ask(sound, f"s{i}", x=np.float32([[1]])) for i in range(3)])
        await it.kept.ended(6, HANG_S)
        assert sorted(it.kept.errors) == ["b0", "b1", "b2"]
        assert sorted(it.kept.outputs) == ["s0", "s1", "s2"]
        await soon(lambda: it.pipeline.rows_in_flight == 0, HANG_S)


def test_a_long_queue_of_single_runs_is_emptied_in_time() -> None:
    """Where each take passes over the places of those before it, this takes minutes."""
    queue: RunQueue[str] = RunQueue(10**9)
    request = Request(None, "m", "", 0.0, 9.0, 1, (), (), (), (), False)  # type: ignore[arg-type]  # nobody waits
    for _ in range(200_000):
        queue.put("lane", Batch([request], [], 1, 0, 0.0), object())
    began = time.monotonic()
    while queue:
        queue.take(4096)
        assert time.monotonic() - began < HANG_S
