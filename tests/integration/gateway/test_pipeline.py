"""The pipeline on real Redis and real graphs: callers that leave, overload, and a request that breaks the model."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.inference import InferenceOptions, Model, ModelRepository
from gateway.pipeline import Answers, Pipeline, PipelineOptions
from gateway.plan.transform import resolver
from gateway.records.errors import CallerLeft, DeadlinePassed, HeadraceError, InvalidRequest, ModelFailed, Overloaded
from gateway.records.report import BatchReport
from gateway.records.request import Asked, Request
from tests.running import Site, make_site, write_graph

DROPPER = """
name: dropper
context: {value: float32}
inputs: {x: [value]}
"""
PICKER = """
name: picker
context: {index: int64}
inputs: {x: [index]}
"""


@dataclass
class Caller:
    """Who waits in a test."""

    name: str
    cancelled: bool = False


@dataclass
class Outcomes:
    """A sink that remembers."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, HeadraceError] = field(default_factory=dict)
    runs: list[int] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[BatchReport] = field(default_factory=list)

    def answer(self, answers: Answers) -> None:
        if self.breaks:
            raise RuntimeError("the encoder has a bug")
        start = 0
        self.runs.append(len(answers.requests))
        for request in answers.requests:
            end = start + request.rows
            assert isinstance(request.caller, Caller)
            self._once(request.caller.name)
            self.scores[request.caller.name] = answers.outputs[0][start:end].ravel().tolist()
            start = end

    def refuse(self, request: Request, error: HeadraceError, model: Model) -> None:
        assert isinstance(request.caller, Caller)
        self._once(request.caller.name)
        self.errors[request.caller.name] = error

    def _once(self, name: str) -> None:
        self.changed.set()
        assert name not in self.scores, f"{name} was ended twice"
        assert name not in self.errors, f"{name} was ended twice"

    breaks: bool = False

    async def ended(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.scores) + len(self.errors) < count:
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Bench:
    """A pipeline with all around it."""

    pipeline: Pipeline
    models: ModelRepository
    client: FeatureClient
    outcomes: Outcomes

    def picks(self, *indexes: int) -> list[Request]:
        return [self.request("picker", f"r{i}", {}, {"index": np.array([index])}) for i, index in enumerate(indexes)]

    def ranks(self, count: int, rows: int = 1) -> list[Request]:
        return [
            self.request(
                "ranker",
                f"r{i}",
                {"user": [f"u{i}"], "item": list(range(rows))},
                {"hour": np.float32([i])},
            )
            for i in range(count)
        ]

    def request(self, model: str, name: str, entities: Any, context: Any, **changes: Any) -> Request:
        bound = self.models.latest(model).plan.bind(Asked(entities, context, {}, (), False), 10_000)
        now = time.monotonic()
        request = Request(Caller(name), model, name, now, now + 5, bound.rows, bound.ids, bound.context, (), (), False)
        return request._replace(**changes)

    def accept(self, requests: list[Request]) -> None:
        self.pipeline.accept(self.model(requests[0].model), requests)

    def model(self, name: str) -> Model:
        return self.models.latest(name)


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    site = make_site(tmp_path, redis_url)
    table = numpy_helper.from_array(np.float32([[10], [20], [30]]), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["picked"]), helper.make_node("Squeeze", ["picked"], ["score"])],
        "picker",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [None])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
        [table],
    )
    graph.node[1].input.append("axes")
    graph.initializer.append(numpy_helper.from_array(np.int64([1]), "axes"))
    write_graph(site.models / "picker/1/model.onnx", graph)
    (site.models / "picker/model.yaml").write_text(PICKER)
    kept = helper.make_graph(
        [
            helper.make_node("GreaterOrEqual", ["x", "zero"], ["kept"]),
            helper.make_node("Compress", ["x", "kept"], ["score"], axis=0),
        ],
        "dropper",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    write_graph(site.models / "dropper/1/model.onnx", kept)
    (site.models / "dropper/model.yaml").write_text(DROPPER)
    return site


@pytest.fixture
def bench(site: Site, redis_url: str) -> Callable[..., Any]:
    @asynccontextmanager
    async def open_bench(inference: InferenceOptions | None = None, **options: int) -> AsyncIterator[Bench]:
        catalogue = Catalogue.load(site.folder / "features.yaml")
        models = ModelRepository.open(site.models, catalogue, resolver(()), inference or InferenceOptions())
        outcomes = Outcomes()
        async with FeatureClient(catalogue, RedisStore(RedisOptions(url=redis_url))) as client:
            settings = PipelineOptions(**{"store_timeout_ms": 2000, **options})
            yield Bench(Pipeline(client, settings, outcomes, outcomes.reports.append), models, client, outcomes)
        models.close()

    return open_bench


async def test_a_request_that_breaks_the_model_fails_alone(bench: Callable[..., Any]) -> None:
    async with bench() as it:
        it.accept(it.picks(0, 99, 2, 1))
        assert it.outcomes.scores == {"r0": [10], "r2": [30], "r3": [20]}
        assert isinstance(it.outcomes.errors["r1"], ModelFailed)
        assert it.pipeline.rows_in_flight == 0


@pytest.mark.parametrize("inline_max_us", [0, 1_000_000])
async def test_a_model_that_drops_a_row_never_answers_with_a_neighbours(
    bench: Callable[..., Any], inline_max_us: int
) -> None:
    async with bench(InferenceOptions(inline_max_us=inline_max_us)) as it:
        values = {"a": [-1.0], "b": [7.0, 8.0], "c": [9.0]}
        it.accept([it.request("dropper", name, {}, {"value": np.float32(found)}) for name, found in values.items()])
        await it.outcomes.ended(3)
        assert it.outcomes.scores == {"b": [7, 8], "c": [9]}
        assert "shapes [0] for 1 rows" in str(it.outcomes.errors["a"])
        assert it.pipeline.rows_in_flight == 0


@pytest.mark.parametrize("inline_max_us", [0, 1_000_000])
async def test_a_bug_in_the_answer_ends_its_calls_and_the_next_are_served(
    bench: Callable[..., Any], inline_max_us: int
) -> None:
    async with bench(InferenceOptions(inline_max_us=inline_max_us)) as it:
        it.outcomes.breaks = True
        it.accept(it.picks(0, 1))
        await it.outcomes.ended(2)
        assert {type(error) for error in it.outcomes.errors.values()} == {ModelFailed}
        it.outcomes.breaks = False
        it.accept([it.picks(2)[0]._replace(caller=Caller("next"))])
        await it.outcomes.ended(3)
        assert it.outcomes.scores == {"next": [30]}
        assert it.pipeline.rows_in_flight == 0


async def test_a_model_that_always_fails_is_tried_once_for_each_request_and_leaves_the_loop_to_others(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench() as it:
        runs = []

        def run(inputs: Any) -> Any:
            runs.append(inputs)
            raise RuntimeError("broken")

        monkeypatch.setattr(it.model("picker").runner.session, "run", run)
        it.accept(it.picks(*[0] * 500))
        per_turn = []
        while len(it.outcomes.errors) < 500:
            before = len(runs)
            await asyncio.sleep(0)
            per_turn.append(len(runs) - before)
        assert len(runs) <= 500 + 2 * 100, "halving would take 999"
        assert max(per_turn[50:]) == 1
        assert it.pipeline.rows_in_flight == 0


async def test_no_thread_to_be_had_is_an_error_of_that_run_only(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(InferenceOptions(inline_max_us=0)) as it:
        with monkeypatch.context() as patch:
            patch.setattr("threading.Thread.start", lambda self: (_ for _ in ()).throw(RuntimeError("can't start")))
            it.accept(it.picks(0))
        assert isinstance(it.outcomes.errors["r0"], ModelFailed)
        it.accept([it.picks(1)[0]._replace(caller=Caller("next"))])
        await it.outcomes.ended(2)
        assert it.outcomes.scores == {"next": [20]}


async def test_one_pass_takes_in_at_most_so_many_rows(bench: Callable[..., Any]) -> None:
    async with bench(batch_rows_max=10, tick_rows_max=20) as it:
        for burst in range(5):
            it.accept(
                [
                    request._replace(caller=Caller(f"{burst}-{index}"))
                    for index, request in enumerate(it.picks(*[0] * 40))
                ]
            )
        assert len(it.outcomes.scores) == 20
        for turn in range(2, 5):
            await asyncio.sleep(0)
            assert len(it.outcomes.scores) <= 20 * turn
        await it.outcomes.ended(200)


async def test_who_has_left_is_skipped_before_the_model(bench: Callable[..., Any]) -> None:
    async with bench() as it:
        requests = it.picks(0, 1, 2)
        requests[0].caller.cancelled = True
        requests[1] = requests[1]._replace(deadline=time.monotonic() - 1)
        it.accept(requests)
        assert it.outcomes.scores == {"r2": [30]}
        assert it.outcomes.runs == [1]
        assert {name: type(error) for name, error in it.outcomes.errors.items()} == {
            "r0": CallerLeft,
            "r1": DeadlinePassed,
        }


async def test_who_leaves_while_parked_is_skipped_too(bench: Callable[..., Any]) -> None:
    async with bench() as it:
        requests = it.ranks(3)
        it.accept(requests)
        assert it.pipeline.rows_parked == 3
        requests[1].caller.cancelled = True
        await it.outcomes.ended(3)
        assert set(it.outcomes.scores) == {"r0", "r2"}
        assert it.outcomes.runs == [2]
        assert (it.pipeline.rows_parked, it.pipeline.rows_in_flight) == (0, 0)


async def test_full_is_refused_at_the_door_and_room_comes_back(bench: Callable[..., Any]) -> None:
    async with bench(rows_in_flight_max=2) as it:
        it.accept(it.ranks(3))
        error = it.outcomes.errors["r2"]
        assert isinstance(error, Overloaded)
        assert error.limit == "rows_in_flight_max"
        await it.outcomes.ended(3)
        assert set(it.outcomes.scores) == {"r0", "r1"}
        it.accept([request._replace(caller=Caller("later")) for request in it.ranks(1)])
        await it.outcomes.ended(4)
        assert "later" in it.outcomes.scores


async def test_parked_rows_have_a_bound_of_their_own(bench: Callable[..., Any]) -> None:
    async with bench(parked_rows_max=2) as it:
        it.accept(it.ranks(3))
        error = it.outcomes.errors["r2"]
        assert isinstance(error, Overloaded)
        assert error.limit == "parked_rows_max"
        await it.outcomes.ended(3)


async def test_a_request_with_an_id_that_cannot_be_fails_alone(bench: Callable[..., Any]) -> None:
    async with bench() as it:
        good, bad = it.ranks(2)
        it.accept([good, bad._replace(ids=(["x" * 100_000], *bad.ids[1:]))])
        await it.outcomes.ended(2)
        assert isinstance(it.outcomes.errors["r1"], InvalidRequest)
        assert "r0" in it.outcomes.scores
        assert it.pipeline.rows_in_flight == 0


@pytest.mark.parametrize("options", [{}, {"batch_rows_max": 7}, {"batch_rows_max": 3, "tick_rows_max": 5}])
@pytest.mark.parametrize("inline_max_us", [0, 1_000_000])
async def test_batches_of_any_size_inline_or_threaded_give_the_same(
    bench: Callable[..., Any], options: dict[str, int], inline_max_us: int
) -> None:
    async with bench(InferenceOptions(inline_max_us=inline_max_us), **options) as it:
        for pass_number in range(2):  # the first finds nothing cached, the second everything
            it.outcomes.scores.clear()
            it.accept(it.ranks(20, rows=4))
            await it.outcomes.ended(20)
            for index in range(20):
                row = it.outcomes.scores[f"r{index}"]
                # No rows are stored: price 9 weighs 0.5, age -1 weighs 1.25, and the hour 0.1.
                np.testing.assert_allclose(row, [4.5 - 1.25 + 0.1 * index] * 4, rtol=1e-5, err_msg=f"{pass_number}")
        await asyncio.sleep(0)  # reports come behind the answers
        assert {report.threaded for report in it.outcomes.reports} == {inline_max_us == 0}
        assert sum(report.rows for report in it.outcomes.reports) == 160
        assert it.pipeline.rows_in_flight == 0


async def test_what_arrives_while_the_model_runs_is_the_next_batch(bench: Callable[..., Any]) -> None:
    async with bench(InferenceOptions(inline_max_us=0)) as it:
        for request in it.picks(0, 1, 2, 0, 1):
            it.accept([request])
        await it.outcomes.ended(5)
        assert it.outcomes.runs == [1, 4]


async def test_the_budget_of_the_store_is_half_of_what_is_left(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench() as it:
        budgets: list[float] = []
        fetch = it.client.fetch

        def noted(asks: Any, give_up_at: float, done: Any, **more: Any) -> Any:
            budgets.append(give_up_at - time.monotonic())
            return fetch(asks, give_up_at, done, **more)

        monkeypatch.setattr(it.client, "fetch", noted)
        now = time.monotonic()
        short, endless = it.ranks(2)
        it.accept([short._replace(deadline=now + 0.4), endless._replace(deadline=math.inf)])
        await it.outcomes.ended(2)
        assert budgets[0] == pytest.approx(0.2, abs=0.05)
        assert budgets[1] == pytest.approx(2.0, abs=0.05)
