"""Graphs of every shape and dtype through plans, batches and the pipeline: each caller gets its own rows."""

import asyncio
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from featureclient.schema import Catalogue, View
from gateway.inference.batching import Execution
from gateway.inference.cost import Cost
from gateway.pipeline import Answers
from gateway.plan import Manifest, PlanError, compile_plan
from gateway.plan.transform import resolver
from gateway.records.errors import DeadlinePassed, ModelFailed, Overloaded, RowRejected
from gateway.records.request import Asked, Request
from gateway.server import codec
from headrace.v1 import prediction_pb2 as pb
from tests.executing import Kept, Waiting, context_model, doubling, rig, session, slow, tensor_model, up_to
from tests.waiting import soon

LONG = Cost(1.0, 2.0, 64)
"""Never on the loop."""
NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
CATALOGUE = Catalogue.parse(
    """
entities: {e: {k: string}}
views:
  all@1:
    entity: e
    columns:
      float16: float16
      float32: float32
      float64: float64
      int8: int8
      int16: int16
      int32: int32
      int64: int64
      bool: bool
      timestamp: timestamp
      string: "string[8]"
      embedding: "float32[6]"
      small: "int8[6]"
"""
)
VIEW: View = CATALOGUE.view("all@1")


def identity(folder: Path, dtype: str, shape: tuple[int | None, ...]) -> Any:
    return session(folder, [helper.make_node("Identity", ["x"], ["y"])], {"x": (dtype, shape)}, {"y": (dtype, shape)})


def compiled(loaded: Any, columns: list[str], context: dict[str, str] | None = None) -> Any:
    manifest = {"name": "m", "views": {"v": {"view": "all@1"}}, "context": context or {}, "inputs": {"x": columns}}
    return compile_plan(Manifest.model_validate(manifest), CATALOGUE, loaded.signature, resolver(()))


def run(loaded: Any, plan: Any, context: Any = MappingProxyType({}), **values: Any) -> Any:
    """The graph's output for one request whose stored columns have these values, a row each."""
    rows = len(next(iter(values.values())))
    block = np.zeros(rows, VIEW.layout.block_dtype)
    for name, value in values.items():
        place = VIEW.layout.places[name]
        block[place.run][:, place.start : place.start + place.width] = np.reshape(value, (rows, -1))
    bound = plan.bind(Asked({"k": [f"{i}" for i in range(rows)]}, context, {}, (), False), 100)
    request = Request(Waiting("r"), "m", "", 0.0, 9.0, rows, bound.ids, bound.context, (), (), False)
    stored = [[block[i : i + 1].tobytes() for i in range(rows)]]
    return loaded.run(plan.assemble([request], stored, 0).inputs)[0]


class TestFilling:
    """Columns of every dtype into inputs of every dtype and rank."""

    @pytest.mark.parametrize("column", NUMBERS)
    @pytest.mark.parametrize("target", [*NUMBERS, *UNSIGNED, "bool"])
    def test_a_number_fills_an_input_with_its_value_or_is_refused_with_both_dtypes(
        self, tmp_path: Path, column: str, target: str
    ) -> None:
        loaded = identity(tmp_path, target, (None, 1))
        values = np.array([0, 1, 23], column)
        try:
            plan = compiled(loaded, [f"v.{column}"])
        except PlanError as error:
            (said,) = [message for _, message in error.problems]
            assert f"column v.{column} is {column}, the graph's input is x: {target}[?, 1]; " in said
            assert not np.can_cast(column, target, "safe")
            return
        output = run(loaded, plan, **{column: values})
        assert output.dtype == target
        np.testing.assert_array_equal(output[:, 0], values)

    @pytest.mark.parametrize("target", UNSIGNED)
    def test_what_an_unsigned_input_cannot_hold_is_refused_when_it_comes(self, tmp_path: Path, target: str) -> None:
        loaded = identity(tmp_path, target, (None, 1))
        plan = compiled(loaded, ["v.int64"])
        with pytest.raises(RowRejected, match=r"column v\.int64 \(int64\) has the value -1"):
            run(loaded, plan, int64=np.int64([4, -1]))
        top = int(np.iinfo(target).max)
        if top < np.iinfo(np.int64).max:
            assert run(loaded, plan, int64=np.int64([top])) == top
            with pytest.raises(RowRejected, match=f"has the value {top + 1}"):
                run(loaded, plan, int64=np.int64([top + 1]))

    def test_a_float_that_is_too_large_for_the_input_is_infinite_without_a_warning(self, tmp_path: Path) -> None:
        loaded = identity(tmp_path, "float16", (None, 2))
        output = run(loaded, compiled(loaded, ["v.float64", "v.int32"]), float64=[1e300, 0.5], int32=[70_000, 2])
        np.testing.assert_array_equal(output, np.float16([[np.inf, np.inf], [0.5, 2]]))

    def test_bools_strings_and_times(self, tmp_path: Path) -> None:
        for name, dtype, values in (
            ("bool", "bool", [True, False]),
            ("bool", "uint8", [True, False]),
            ("timestamp", "int64", [1 << 40, 5]),
            ("string", "string", [b"\xc3\xa9t\xc3\xa9", b""]),
        ):
            loaded = identity(tmp_path, dtype, (None,))
            output = run(loaded, compiled(loaded, [f"v.{name}"]), **{name: np.array(values)})
            assert output.tolist() == (["été", ""] if name == "string" else values)

    @pytest.mark.parametrize(
        "shape", [(None, 6), (None, None), (None, 2, 3), (None, 2, None), (None, None, 3), (None, 1, 6, 1), (3, 6)]
    )
    def test_a_vector_fills_an_input_of_its_own_of_any_rank(
        self, tmp_path: Path, shape: tuple[int | None, ...]
    ) -> None:
        loaded = identity(tmp_path, "float32", shape)
        values = np.arange(18, dtype=np.float32).reshape(3, 6)
        output = run(loaded, compiled(loaded, ["v.embedding"]), embedding=values)
        np.testing.assert_array_equal(output.reshape(3, 6), values)

    def test_vectors_next_to_scalars_and_context(self, tmp_path: Path) -> None:
        loaded = identity(tmp_path, "float64", (None, 14))
        plan = compiled(loaded, ["v.int16", "v.small", "c", "v.embedding"], {"c": "float32"})
        embedding, small = np.arange(12.0).reshape(2, 6), -np.arange(12).reshape(2, 6)
        output = run(loaded, plan, {"c": np.float32([7])}, int16=[3, 4], small=small, embedding=embedding)
        np.testing.assert_array_equal(output, np.column_stack([[3, 4], small, [7, 7], embedding]))

    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ((None, 5), "(v.embedding float32[6]), the graph's input x: float32[?, 5] takes 5"),
            ((None, 4, None), "takes a multiple of 4"),
            ((None, None, None, 2), "takes 2"),
            ((None, 0), "takes none: a dimension is 0, so export the model without it"),
            ((None,), "takes 1"),
            ((), "is a scalar, or its shape is not told"),
        ],
    )
    def test_widths_that_cannot_be(self, tmp_path: Path, shape: tuple[int | None, ...], said: str) -> None:
        loaded = identity(tmp_path, "float32", shape)
        with pytest.raises(PlanError) as caught:
            compiled(loaded, ["v.embedding"])
        assert said in str(caught.value)

    def test_every_problem_of_every_input_is_told_at_once(self, tmp_path: Path) -> None:
        loaded = session(
            tmp_path,
            [helper.make_node("Identity", ["a"], ["y"])],
            {"a": ("float32", (None, 2)), "b": ("int64", (None,)), "c": ("string", (2,))},
            {"y": ("float32", (None, 2))},
        )
        inputs = {"a": ["v.string", "v.float32"], "b": ["v.float32"], "d": ["v.bool"]}
        manifest = Manifest.model_validate({"name": "m", "views": {"v": {"view": "all@1"}}, "inputs": inputs})
        with pytest.raises(PlanError) as caught:
            compile_plan(manifest, CATALOGUE, loaded.signature, resolver(()))
        where = [place for place, _ in caught.value.problems]
        assert sorted(where, key=str) == [
            ("inputs", "a", 0),
            ("inputs", "b", 0),
            ("inputs", "d"),
            ("inputs",),
            ("inputs",),
        ]


@pytest.mark.parametrize("cost", [None, LONG])
@pytest.mark.parametrize("rows", [1, 4])
async def test_a_graph_of_fixed_rows_serves_requests_of_any_number_of_rows(
    tmp_path: Path, rows: int, cost: Cost | None
) -> None:
    loaded = doubling(tmp_path, rows)
    model = context_model("fixed", loaded, {"x": "float32"}, **({"cost": cost} if cost else {}))
    async with rig() as it:
        requests = [it.ask(model, f"r{count}", x=np.arange(count, dtype=np.float32)) for count in (1, 3, 4, 9)]
        it.accept(model, *requests)
        await it.kept.ended(4)
        for count in (1, 3, 4, 9):
            assert it.kept.outputs[f"r{count}"][0].ravel().tolist() == [2.0 * i for i in range(count)]
        await asyncio.sleep(0)
        assert (sum(report.padded_rows for report in it.reports) > 0) == (rows == 4)


@pytest.mark.parametrize("cost", [None, LONG])
async def test_buckets_are_the_only_sizes_that_the_graph_sees(
    tmp_path: Path, cost: Cost | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = doubling(tmp_path)
    model = context_model(
        "buckets", loaded, {"x": "float32"}, Execution(buckets=(2, 8)), **({"cost": cost} if cost else {})
    )
    seen = []
    session_run = loaded.run
    monkeypatch.setattr(loaded, "run", lambda inputs: seen.append(len(inputs["x"])) or session_run(inputs))
    async with rig() as it:
        for number, count in enumerate((1, 2, 3, 8, 21)):
            it.accept(model, it.ask(model, f"r{number}", x=np.arange(count, dtype=np.float32)))
            await it.kept.ended(number + 1)
            assert it.kept.outputs[f"r{number}"][0].ravel().tolist() == [2.0 * i for i in range(count)]
        await asyncio.sleep(0)
        assert seen == [2, 2, 8, 8, 8, 8, 8]
        assert sum(report.padded_rows for report in it.reports) == 1 + 5 + 3
        assert sum(report.rows for report in it.reports) == 35


async def test_no_run_has_more_rows_than_max_batch_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = doubling(tmp_path)
    model = context_model("small", loaded, {"x": "float32"}, Execution(max_batch_rows=5))
    seen = []
    session_run = loaded.run
    monkeypatch.setattr(loaded, "run", lambda inputs: seen.append(len(inputs["x"])) or session_run(inputs))
    async with rig() as it:
        it.accept(model, *[it.ask(model, f"r{i}", x=np.full(i, i, np.float32)) for i in (1, 12, 2, 3, 4)])
        await it.kept.ended(5)
        assert max(seen) == 5
        assert sum(seen) == 22
        for i in (1, 12, 2, 3, 4):
            assert it.kept.outputs[f"r{i}"][0].ravel().tolist() == [2.0 * i] * i


async def test_several_inputs_and_outputs_of_any_dtype_and_rank(tmp_path: Path) -> None:
    """Each request gets the rows that the graph gives for it alone."""
    loaded = session(
        tmp_path,
        [
            helper.make_node("Identity", ["words"], ["same"]),
            helper.make_node("Greater", ["numbers", "zero"], ["positive"]),
            helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("ArgMax", ["image"], ["best"], axis=2, keepdims=0),
        ],
        {"words": ("string", (None, 2)), "numbers": ("int32", (None,)), "image": ("float16", (None, 2, 3))},
        {"same": ("string", (None, 2)), "positive": ("bool", (None,)), "turned": ("float16", (None, 3, 2)),
         "best": ("int64", (None, 2))},
        {"zero": np.int32(0)},
    )  # fmt: skip
    model = tensor_model("many", loaded)
    noise = np.random.default_rng(5)
    async with rig() as it:
        sent = {}
        for i, rows in enumerate((1, 3, 2)):
            sent[f"r{i}"] = {
                "words": noise.choice(["ä", "", "long " * 9], (rows, 2)).astype(object),
                "numbers": noise.integers(-3, 3, rows, np.int32),
                "image": noise.normal(size=(rows, 2, 3)).astype(np.float16),
            }
        it.accept(model, *[it.ask(model, name, **tensors) for name, tensors in sent.items()])
        await it.kept.ended(3)
        assert it.kept.runs == [["r0", "r1", "r2"]]
        for name, tensors in sent.items():
            for output, expected in zip(it.kept.outputs[name], loaded.run(tensors), strict=True):
                assert output.dtype == expected.dtype
                np.testing.assert_array_equal(output, expected)


async def test_only_requests_of_equal_row_shapes_share_a_run(tmp_path: Path) -> None:
    loaded = session(
        tmp_path,
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"])],
        {"x": ("float32", (None, None))},
        {"y": ("float32", (None, 1))},
        {"axes": np.int64([1])},
    )
    model = tensor_model("sums", loaded)
    async with rig() as it:
        lengths = {"a": 2, "b": 5, "c": 2, "d": 1, "e": 5}
        sent = {name: np.arange(2 * length, dtype=np.float32).reshape(2, length) for name, length in lengths.items()}
        it.accept(model, *[it.ask(model, name, x=x) for name, x in sent.items()])
        await it.kept.ended(5)
        assert it.kept.runs == [["a", "c"], ["b", "e"], ["d"]]
        for name, x in sent.items():
            np.testing.assert_allclose(it.kept.outputs[name][0][:, 0], x.sum(axis=1))


async def test_a_graph_without_rows_gives_its_outputs_whole(tmp_path: Path) -> None:
    loaded = session(
        tmp_path,
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        ],
        {"x": ("float32", (None, 2)), "factor": ("float32", ())},
        {"sum": ("float32", ()), "scaled": ("float32", (None, 2))},
    )
    model = tensor_model("whole", loaded, batched=False)
    async with rig() as it:
        x = np.arange(6, dtype=np.float32).reshape(3, 2)
        it.accept(model, *[it.ask(model, f"r{i}", x=x[:i], factor=np.float32(i)) for i in (1, 2, 3)])
        await it.kept.ended(3)
        assert it.kept.runs == [["r1"], ["r2"], ["r3"]]
        for i in (1, 2, 3):
            total, scaled = it.kept.outputs[f"r{i}"]
            assert total == x[:i].sum()
            np.testing.assert_array_equal(scaled, x[:i] * i)
        assert it.pipeline.rows_in_flight == 0


async def test_more_urgent_requests_are_served_first_and_the_same_level_in_order(tmp_path: Path) -> None:
    model = context_model(
        "levels", doubling(tmp_path), {"x": "float32"}, Execution(priority_levels=3, default_priority=2), cost=LONG
    )
    async with rig() as it:
        it.accept(model, it.ask(model, "first", x=[0.0]))  # it is in its thread when the others come
        for name, priority in (("c1", 3), ("b1", 0), ("a1", 1), ("c2", 99), ("b2", 2), ("a2", 1)):
            it.accept(model, it.ask(model, name, priority=priority, x=np.float32([1])))
        await it.kept.ended(7)
        assert it.kept.runs == [["first"], ["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]


async def test_the_queue_of_one_model_is_full_and_others_are_served(tmp_path: Path) -> None:
    full = context_model("full", slow(tmp_path), {"x": "float32"}, Execution(queue_rows_max=3), cost=LONG)
    other = context_model("other", doubling(tmp_path), {"x": "float32"})
    async with rig() as it:
        for i in range(6):
            it.accept(full, it.ask(full, f"r{i}", x=np.float32([i])))
        assert it.pipeline.queued_rows() == {"full": 3}
        it.accept(other, it.ask(other, "lone", x=np.float32([4])))
        assert it.kept.outputs["lone"][0].tolist() == [[8]]
        assert {name: type(error) for name, error in it.kept.errors.items()} == {"r4": Overloaded, "r5": Overloaded}
        assert it.kept.errors["r4"].limit == "queue_rows_max"
        await it.kept.ended(7)
        assert it.kept.runs[1:] == [["r0"], ["r1", "r2", "r3"]]
        it.accept(full, it.ask(full, "later", x=np.float32([1])))
        await it.kept.ended(8)
        assert it.pipeline.rows_in_flight == 0


async def test_one_request_that_is_larger_than_the_queue_is_served_when_nothing_waits(tmp_path: Path) -> None:
    model = context_model("m", doubling(tmp_path), {"x": "float32"}, Execution(queue_rows_max=2))
    async with rig() as it:
        it.accept(model, it.ask(model, "large", x=np.zeros(9, np.float32)), it.ask(model, "next", x=np.float32([1])))
        await it.kept.ended(2)
        assert set(it.kept.outputs) == {"large"}
        assert isinstance(it.kept.errors["next"], Overloaded)


async def test_two_sinks_of_one_model_get_their_own_answers(tmp_path: Path) -> None:
    model = context_model("m", doubling(tmp_path), {"x": "float32"}, cost=LONG)
    async with rig() as it:
        other = Kept()
        it.pipeline.accept(model, [it.ask(model, "a", x=np.float32([1]))])
        it.pipeline.accept(model, [it.ask(model, "b", x=np.float32([2]))], other)
        it.pipeline.accept(model, [it.ask(model, "c", x=np.float32([3]))])
        await it.kept.ended(2)
        await other.ended(1)
        assert set(it.kept.outputs) == {"a", "c"}
        assert other.outputs["b"][0].tolist() == [[4]]


async def test_cpu_time_is_counted_inline_threaded_and_of_runs_that_fail(tmp_path: Path) -> None:
    async with rig() as it:
        threaded = context_model("threaded", slow(tmp_path), {"x": "float32"}, cost=LONG)
        it.accept(threaded, it.ask(threaded, "a", x=np.float32([1])))
        await it.kept.ended(1)
        await asyncio.sleep(0)
        assert 1e-4 < it.reports[-1].cpu_s < 5
        inline = context_model("inline", doubling(tmp_path), {"x": "float32"})
        for i in range(16):
            it.accept(inline, it.ask(inline, f"r{i}", x=np.float32([1])))
        await asyncio.sleep(0)
        used = [report.cpu_s for report in it.reports if report.model == "inline"]
        assert len(used) == 16
        assert 0 < sum(used) < 0.1
        broken = context_model("broken", up_to(tmp_path, 3), {"x": "float32"}, cost=LONG)
        it.accept(broken, it.ask(broken, "broken", x=np.zeros(5_000, np.float32)))
        await it.kept.ended(18)
        assert isinstance(it.kept.errors["broken"], ModelFailed)
        assert broken.runner.cpu_s > 0, "it is in the next report"


async def test_drain_waits_for_the_last_answer_and_forgets_the_model(tmp_path: Path) -> None:
    model = context_model("m", slow(tmp_path), {"x": "float32"}, cost=LONG)
    async with rig() as it:
        told: list[int] = []
        it.pipeline.drain(model, lambda: told.append(-1))
        await asyncio.sleep(0)
        assert told == [-1], "nothing was in flight"
        for i in range(3):
            it.accept(model, it.ask(model, f"r{i}", x=np.float32([i])))
        it.pipeline.drain(model, lambda: told.append(len(it.kept.outputs)))
        await asyncio.sleep(0.001)
        assert told == [-1]
        await it.kept.ended(3)
        await asyncio.sleep(0.01)
        assert told == [-1, 3]
        assert it.pipeline.queued_rows() == {}
        model.runner.close()


async def test_who_waits_in_the_queue_past_the_deadline_is_skipped(tmp_path: Path) -> None:
    model = context_model("m", slow(tmp_path), {"x": "float32"}, cost=LONG)
    async with rig() as it:
        it.accept(model, it.ask(model, "first", x=np.float32([1])))
        it.accept(model, it.ask(model, "late", stay_s=0, x=np.float32([1])))
        it.accept(model, it.ask(model, "next", x=np.float32([1])))
        await it.kept.ended(3)
        assert isinstance(it.kept.errors["late"], DeadlinePassed)
        assert it.kept.runs == [["first"], ["next"]]


async def test_a_value_that_the_graph_cannot_hold_fails_its_request_alone(tmp_path: Path) -> None:
    loaded = identity(tmp_path, "uint8", (None, 1))
    model = context_model("m", loaded, {"x": "int64"})
    async with rig() as it:
        it.accept(model, *[it.ask(model, f"r{x}", x=np.int64([x])) for x in (3, 256, 255)])
        await it.kept.ended(3)
        assert {name: found[0].tolist() for name, found in it.kept.outputs.items()} == {"r3": [[3]], "r255": [[255]]}
        error = it.kept.errors["r256"]
        assert isinstance(error, RowRejected)
        assert not isinstance(error, ModelFailed)


async def test_predict_answers_with_the_whole_outputs_of_a_graph_without_rows(tmp_path: Path) -> None:
    loaded = session(
        tmp_path,
        [helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0), helper.make_node("Add", ["x", "k"], ["same"])],
        {"x": ("float32", (None, 2)), "k": ("float32", ())},
        {"sum": ("float32", ()), "same": ("float32", (None, 2))},
    )
    model = tensor_model("whole", loaded, batched=False)
    encoder = codec.Encoder(model, bytes(8))
    bodies: list[bytes] = []

    class Encoding(Kept):
        def answer(self, answers: Answers) -> None:
            bodies.extend(body for _, body in encoder.encode(answers))

    async with rig() as it:
        x = np.arange(6, dtype=np.float32).reshape(3, 2)
        it.pipeline.accept(model, [it.ask(model, "r", x=x, k=np.float32(0))], Encoding())
        await soon(lambda: bool(bodies), 10)
        total, same = pb.PredictResponse.FromString(bodies[0]).outputs
        assert np.frombuffer(total.raw, np.float32).tolist() == [15]
        assert list(same.shape) == [3, 2]
        assert same.raw == x.tobytes()
