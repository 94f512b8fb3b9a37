"""Models that are slow, that fail at a batch size, or that go away while they are asked: nobody else is harmed."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from gateway.inference.batching import Execution
from gateway.inference.cost import Cost
from gateway.records.errors import CallerLeft, ModelFailed
from tests.executing import context_model, doubling, rig, slow, up_to

LONG = Cost(1.0, 2.0, 64)
HANG_S = 30
"""A bound for hangs, not a measurement."""


async def test_a_slow_model_does_not_keep_a_fast_one_waiting(tmp_path: Path) -> None:
    """No lone caller of a fast model waits for a run of the slow one, let alone for its queue."""
    slow_model = context_model("slow", slow(tmp_path), {"x": "float32"}, Execution(max_batch_rows=1), cost=LONG)
    fast_model = context_model("fast", doubling(tmp_path), {"x": "float32"})
    async with rig() as it:
        it.accept(slow_model, *[it.ask(slow_model, f"s{i}", x=np.float32([i])) for i in range(20)])
        served_meanwhile = 0
        while slow_model.runner.busy:
            name = f"f{served_meanwhile}"
            it.accept(fast_model, it.ask(fast_model, name, x=np.float32([1])))
            assert name in it.kept.outputs, "answered before accept returned"
            served_meanwhile += 1
            await asyncio.sleep(0.0005)
        assert served_meanwhile > 20, "more than the slow model has runs"
        await it.kept.ended(20 + served_meanwhile, HANG_S)
        assert it.pipeline.rows_in_flight == 0


async def test_runs_on_the_loop_leave_it_to_others_in_between(tmp_path: Path) -> None:
    """A model whose runs take the loop for as long as one may: other work has its turn after each or two of them."""
    cost = Cost(0.9 * 200e-6, 0.9 * 200e-6, 64)
    model = context_model("m", doubling(tmp_path), {"x": "float32"}, Execution(max_batch_rows=1), cost=cost)
    async with rig(tick_rows_max=10_000) as it:
        it.accept(model, *[it.ask(model, f"r{i}", x=np.float32([i])) for i in range(30)])
        turns = []
        while len(it.kept.outputs) < 30:
            turns.append(len(it.kept.outputs))
            await asyncio.sleep(0)
        steps = np.diff(turns)
        assert max(turns[0], *steps) <= 3
        assert it.pipeline.rows_in_flight == 0


async def test_a_lone_caller_does_not_wait_for_the_backlog_of_another_model(tmp_path: Path) -> None:
    """Hundred runs of the one model are due, each of which has the loop for as long as one may."""
    cost = Cost(0.9 * 200e-6, 0.9 * 200e-6, 64)
    many = context_model("many", doubling(tmp_path), {"x": "float32"}, Execution(max_batch_rows=1), cost=cost)
    lone = context_model("lone", doubling(tmp_path), {"x": "float32"})
    large = context_model("large", doubling(tmp_path), {"x": "float32"}, Execution(max_batch_rows=1), cost=cost)
    async with rig() as it:
        it.accept(many, *[it.ask(many, f"m{i}", x=np.float32([i])) for i in range(100)])
        assert len(it.kept.outputs) < 4
        it.accept(lone, it.ask(lone, "lone", x=np.float32([1])))
        assert "lone" in it.kept.outputs
        it.accept(large, *[it.ask(large, f"l{i}", x=np.float32([i])) for i in range(5)])
        await it.kept.ended(106, HANG_S)
        order = [name for run in it.kept.runs for name in run]
        assert order.index("l4") < 30, "the models take turns"
        assert [name for name in order if name[0] == "m"] == [f"m{i}" for i in range(100)]


@pytest.mark.parametrize("cost", [None, LONG])
async def test_a_graph_that_fails_at_a_batch_size_answers_whoever_it_can(tmp_path: Path, cost: Cost | None) -> None:
    model = context_model("m", up_to(tmp_path, 8), {"x": "float32"}, **({"cost": cost} if cost else {}))
    async with rig() as it:
        it.accept(
            model,
            *[it.ask(model, f"r{i}", x=np.float32([i])) for i in range(60)],
            it.ask(model, "large", x=np.zeros(9, np.float32)),
        )
        await it.kept.ended(61, HANG_S)
        assert {name: type(error) for name, error in it.kept.errors.items()} == {"large": ModelFailed}
        assert [it.kept.outputs[f"r{i}"][0].tolist() for i in range(60)] == [[float(i)] for i in range(60)]
        assert it.pipeline.rows_in_flight == 0


async def test_max_batch_rows_keeps_a_graph_below_the_size_at_which_it_fails(tmp_path: Path) -> None:
    model = context_model("m", up_to(tmp_path, 8), {"x": "float32"}, Execution(max_batch_rows=8))
    async with rig() as it:
        it.accept(model, *[it.ask(model, f"r{i}", x=np.arange(i, dtype=np.float32)) for i in (9, 30, 1)])
        await it.kept.ended(3, HANG_S)
        assert it.kept.errors == {}
        assert it.kept.outputs["r30"][0].tolist() == [*range(30)]


async def test_instances_run_at_one_time_and_answer_everybody_once(tmp_path: Path) -> None:
    """Under load from many callers: at most `instances` runs at one time, more than one now and then, none lost."""
    loaded = slow(tmp_path)
    running, most = 0, 0
    session_run = loaded.run

    def counted(inputs: object) -> object:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return session_run(inputs)  # type: ignore[arg-type]
        finally:
            running -= 1

    loaded.run = counted  # type: ignore[method-assign, assignment]
    model = context_model("m", loaded, {"x": "float32"}, Execution(instances=3, max_batch_rows=4), cost=LONG)
    async with rig() as it:
        for i in range(60):
            it.accept(model, it.ask(model, f"r{i}", x=np.float32([i])))
            if i % 7 == 0:
                await asyncio.sleep(0.001)
        await it.kept.ended(60, HANG_S)
        assert [it.kept.outputs[f"r{i}"][0].item() for i in range(60)] == pytest.approx([*range(60)])
        assert 1 < most <= 3
        assert not model.runner.busy
        assert it.pipeline.rows_in_flight == 0
    model.runner.close()


async def test_a_run_in_a_thread_and_one_on_the_loop_are_never_on_at_one_time(tmp_path: Path) -> None:
    """A short batch that comes while a long one is in its thread goes to a thread as well."""
    loaded = slow(tmp_path)
    model = context_model("m", loaded, {"x": "float32"}, Execution(instances=2), cost=Cost(1e-6, 64.0, 64))
    async with rig() as it:
        it.accept(model, it.ask(model, "long", x=np.zeros(64, np.float32)))
        it.accept(model, it.ask(model, "short", x=np.float32([1])))
        assert it.kept.outputs == {}, "the short one did not run on the loop"
        await it.kept.ended(2, HANG_S)
        await asyncio.sleep(0)
        assert {report.threaded for report in it.reports} == {True}


async def test_drain_under_load_loses_nothing(tmp_path: Path) -> None:
    """A model is swapped for another while callers keep coming: each gets one answer, by the model that took it in."""
    async with rig() as it:
        count = 0
        drained: list[str] = []
        for version in range(5):
            model = context_model(f"v{version}", doubling(tmp_path), {"x": "float32"}, cost=LONG)
            for _ in range(40):
                it.accept(model, it.ask(model, f"r{count}", x=np.float32([count])))
                count += 1
                if count % 9 == 0:
                    await asyncio.sleep(0)

            def done(model: object = model) -> None:
                model.runner.close()  # type: ignore[attr-defined]
                drained.append(model.name)  # type: ignore[attr-defined]

            it.pipeline.drain(model, done)
        await it.kept.ended(count, HANG_S)
        await asyncio.sleep(0.01)
        assert sorted(drained) == [f"v{i}" for i in range(5)]
        assert [it.kept.outputs[f"r{i}"][0].item() for i in range(count)] == [2.0 * i for i in range(count)]
        assert (it.pipeline.rows_in_flight, it.pipeline.queued_rows()) == (0, {})


async def test_a_late_request_to_a_model_that_was_drained_is_answered(tmp_path: Path) -> None:
    model = context_model("m", doubling(tmp_path), {"x": "float32"}, cost=LONG)
    async with rig() as it:
        it.accept(model, it.ask(model, "first", x=np.float32([1])))
        it.pipeline.drain(model, model.runner.close)
        await it.kept.ended(1, HANG_S)
        await asyncio.sleep(0)
        it.accept(model, it.ask(model, "late", x=np.float32([2])))
        await it.kept.ended(2, HANG_S)
        assert it.kept.outputs["late"][0].tolist() == [[4]]
    model.runner.close()


async def test_callers_who_leave_while_they_wait_cost_no_run(tmp_path: Path) -> None:
    model = context_model("m", slow(tmp_path), {"x": "float32"}, Execution(max_batch_rows=1), cost=LONG)
    async with rig() as it:
        requests = [it.ask(model, f"r{i}", x=np.float32([i])) for i in range(50)]
        it.accept(model, *requests)
        for request in requests[1:-1]:
            request.caller.cancelled = True  # type: ignore[misc]
        began = time.monotonic()
        await it.kept.ended(50, HANG_S)
        assert time.monotonic() - began < HANG_S
        assert it.kept.runs == [["r0"], ["r49"]]
        assert {type(error) for error in it.kept.errors.values()} == {CallerLeft}
