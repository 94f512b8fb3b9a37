"""Shadows that crash, hang, lie or fall behind, and stores that do not answer them: primaries do not notice."""

import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.inference.session import Session
from gateway.pipeline.shadow_options import RESULTS
from tests.executing import session
from tests.faultproxy import FaultProxy
from tests.running import Site
from tests.shadowing import Rig, on, shadow_rig, shadow_site, write_second
from tests.waiting import soon

USERS = 40
WIDTH = 7


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    return shadow_site(tmp_path, redis_url)


@pytest.fixture
async def rig(site: Site, redis_url: str) -> AsyncIterator[Rig]:
    async with shadow_rig(site, redis_url, breaker_failures=3, breaker_open_s=0.2, run_timeout_s=0.3) as rig:
        await write_second(rig.client, USERS)
        yield rig


def crashing(folder: Path) -> Session:
    """A graph that raises whatever it gets."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["wide"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "beyond"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["score"]),
    ]
    constants = {"beyond": np.int64([[1 << 40]]), "table": np.float32([0.0])}
    return session(folder, nodes, {"x": ("float32", (None, WIDTH))}, {"score": ("float32", (None, 1))}, constants)


def summing(folder: Path) -> Session:
    """A graph that answers with one row, however many it gets."""
    nodes = [helper.make_node("ReduceSum", ["x"], ["score"], keepdims=1)]
    return session(folder, nodes, {"x": ("float32", (None, WIDTH))}, {"score": ("float32", (None, 1))})


def looping(folder: Path, turns: int) -> Session:
    """A graph that takes some 25 ms for each thousand turns, and then answers with zeros."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("MatMul", ["square", "square"], ["product"]),
            helper.make_node("Identity", ["product"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("square", TensorProto.FLOAT, [96, 96]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [96, 96]),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["turns", "", "zeros"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["total"], keepdims=0),
        helper.make_node("Mul", ["x", "none"], ["empty"]),
        helper.make_node("ReduceMean", ["empty"], ["flat"], axes=[1], keepdims=1),
        helper.make_node("Add", ["flat", "total"], ["score"]),
    ]
    constants = {"turns": np.int64(turns), "zeros": np.zeros((96, 96), np.float32), "none": np.float32(0)}
    return session(folder, nodes, {"x": ("float32", (None, WIDTH))}, {"score": ("float32", (None, 1))}, constants)


async def ask(rig: Rig, count: int, prefix: str = "r", rows: int = 1) -> None:
    """So many requests; each has its answer when this returns, and it is the right one."""
    before = len(rig.kept.outputs)
    users = [f"u{i % USERS}" for i in range(rows)]
    rig.pipeline.accept(rig.model, [rig.ask(f"{prefix}{i}", users) for i in range(count)])
    await rig.kept.ended(before + count)
    await asyncio.sleep(0)  # the copies are taken in the turn after the answers
    assert rig.kept.errors == {}


async def offered(rig: Rig, rows: int, wait_s: float = 15.0) -> dict[str, int]:
    """What became of so many rows, each counted once."""
    counts = await rig.counted(rows, wait_s=wait_s)
    assert sum(counts.values()) == rows
    assert set(counts) <= set(RESULTS)
    return counts


@pytest.mark.parametrize("graph", [crashing, summing])
async def test_a_variant_that_raises_or_gives_other_shapes_is_counted_and_left_alone(
    rig: Rig, tmp_path: Path, graph: Any
) -> None:
    rig.shadowed(on(rig.variant(), graph(tmp_path)))
    for i in range(5):
        await ask(rig, 10, f"{i}-")
        await asyncio.sleep(0.02)
    counts = await offered(rig, 50)
    assert set(counts) == {"failed", "broken"}
    assert 30 <= counts["failed"] + counts["broken"] == 50
    assert rig.compared == []
    assert rig.shadow.state().broken == [("try", "second")]
    failed = counts["failed"]
    await asyncio.sleep(0.25)
    await ask(rig, 10, "again-")
    assert (await offered(rig, 60))["failed"] > failed  # it was tried again


async def test_a_variant_that_fails_does_not_stop_another(rig: Rig, tmp_path: Path) -> None:
    rig.shadowed(on(rig.variant("bad"), crashing(tmp_path), variant="bad"), rig.variant())
    for i in range(5):
        await ask(rig, 10, f"{i}-")
        await asyncio.sleep(0.02)
    assert await offered(rig, 50) == {"compared": 50}
    assert "compared" not in rig.counts("bad")


async def test_a_run_that_hangs_is_given_up_and_holds_nothing_but_itself(rig: Rig, tmp_path: Path) -> None:
    rig.shadowed(on(rig.variant(), looping(tmp_path, 30_000)))
    await ask(rig, 10)
    await soon(lambda: "hung" in rig.counts(), 5)
    assert rig.counts()["hung"] == 10
    for i in range(20):
        await ask(rig, 50, f"{i}-")
    assert await offered(rig, 1010) == {"hung": 10, "broken": 1000}
    assert rig.shadow.state().queued_rows == 0
    # When it comes back after all, its answer is nobody's, and the next run is tried.
    await soon(lambda: rig.shadow.state().broken == [], 30)
    await ask(rig, 5, "later-")
    await soon(lambda: rig.counts().get("hung", 0) > 10 or rig.counts().get("compared", 0) > 0, 10)
    assert not any(one.shadow.requests[0].request_id.startswith("r") for one in rig.compared)


async def test_a_long_model_runs_in_a_thread_of_its_own_beside_the_primary(
    site: Site, redis_url: str, tmp_path: Path
) -> None:
    async with shadow_rig(site, redis_url, run_timeout_s=20.0, wait_max_s=60.0) as rig:
        await write_second(rig.client, USERS)
        rig.shadowed(on(rig.variant(), looping(tmp_path, 3_000), cost_s=0.1))
        await ask(rig, 10)
        await asyncio.sleep(0.02)
        for i in range(30):  # all of them while the first run is in its thread
            await ask(rig, 1, f"{i}-")
        assert rig.counts() == {}
        assert rig.shadow.state().queued_rows == 40
        assert await offered(rig, 40, wait_s=30.0) == {"compared": 40}
        seen = [request.request_id for one in rig.compared for request in one.shadow.requests]
        assert seen == [*[f"r{i}" for i in range(10)], *[f"{i}-0" for i in range(30)]]


@pytest.mark.slow
async def test_overloaded_it_drops_the_newest_and_its_memory_is_flat(
    site: Site, redis_url: str, tmp_path: Path
) -> None:
    async with shadow_rig(site, redis_url, queue_rows_max=2000, run_timeout_s=60.0, wait_max_s=60.0) as rig:
        await write_second(rig.client, USERS)
        rig.shadowed(on(rig.variant(), looping(tmp_path, 2000), cost_s=0.05))
        total = 0
        sizes = []
        for i in range(40):
            await ask(rig, 20, f"{i}-", rows=100)
            total += 2000
            rig.kept.outputs.clear()
            rig.kept.runs.clear()
            assert rig.shadow.state().queued_rows <= 4000  # noted, and waiting for the variant
            rig.compared.clear()
            rig.journaled.clear()
            await asyncio.sleep(0)
            if i % 10 == 9:
                gc.collect()
                sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        await soon(lambda: sum(rig.counts().values()) + rig.shadow.state().queued_rows >= total, 10)
        counts = rig.counts()
        assert counts["queue"] > 0.5 * total
        assert sizes[-1] - sizes[0] < 30_000  # KiB
        rig.shadow.close()
        assert sum(rig.counts().values()) == total
        assert rig.shadow.state().queued_rows == 0


async def test_it_sheds_when_the_loop_is_busy(site: Site, redis_url: str) -> None:
    async with shadow_rig(site, redis_url, load_max=0.1) as rig:
        await write_second(rig.client, USERS)
        rig.shadowed(rig.variant())
        until = time.monotonic() + 1.0
        i = 0
        while time.monotonic() < until:
            await ask(rig, 50, f"{i}-")
            i += 1
        counts = await offered(rig, 50 * i)
        assert counts["busy"] > 0
        assert counts["busy"] + counts.get("queue", 0) > 0.5 * 50 * i
        await asyncio.sleep(1.0)
        await ask(rig, 1, "idle-")  # its window is a long and idle one
        await soon(lambda: rig.counts().get("compared", 0) > counts.get("compared", 0), 5)


async def test_copies_that_have_waited_too_long_are_dropped(site: Site, redis_url: str) -> None:
    async with shadow_rig(site, redis_url, wait_max_s=0.01, linger_ms=100) as rig:
        await write_second(rig.client, USERS)
        rig.shadowed(rig.variant())
        await ask(rig, 3)
        assert await offered(rig, 3) == {"age": 3}


async def test_a_store_that_stalls_holds_up_the_shadow_alone(site: Site, redis_url: str, tmp_path: Path) -> None:
    async with FaultProxy(redis_url, tmp_path) as proxy, shadow_rig(
        site, redis_url, store_url=proxy.url, fetch_timeout_ms=100, fetch_rows_max=50
    ) as rig:  # fmt: skip
        await write_second(rig.client, USERS)
        rig.shadowed(rig.variant())
        proxy.hold(b"MGET")
        for i in range(10):
            began = time.monotonic()
            await ask(rig, 30, f"{i}-")
            assert time.monotonic() - began < 1.0
            assert rig.shadow.state().fetching_rows <= 200
            await asyncio.sleep(0.05)
        counts = await offered(rig, 300)
        assert "compared" not in counts
        assert set(counts) <= {"unread", "broken", "queue", "age"}
        assert sum(rig.reads) <= 3 * USERS


async def test_when_a_model_goes_what_waits_for_it_is_dropped(site: Site, redis_url: str) -> None:
    async with shadow_rig(site, redis_url, linger_ms=10_000, slice_us=100_000) as rig:
        await write_second(rig.client, USERS)
        variant = rig.variant()
        rig.shadowed(variant)
        await ask(rig, 20)
        await soon(lambda: rig.shadow.state().queued_rows == 20, 5)
        drained = asyncio.Event()
        rig.pipeline.drain(rig.model, drained.set)
        await asyncio.wait_for(drained.wait(), 5)  # nobody waits for the shadow
        rig.shadow.forget(rig.model)
        assert rig.counts() == {"removed": 20}
        assert rig.shadow.state().queued_rows == 0
        await ask(rig, 5, "more-")  # an answer that came late makes a new start
        await soon(lambda: rig.shadow.state().queued_rows == 5, 5)
        assert rig.journaled == []


async def test_when_a_variant_goes_what_waits_for_it_is_dropped(site: Site, redis_url: str, tmp_path: Path) -> None:
    async with shadow_rig(site, redis_url) as rig:
        await write_second(rig.client, USERS)
        variant = on(rig.variant(), looping(tmp_path, 10_000), cost_s=1.0)
        rig.shadowed(variant, rig.variant("other"))
        for i in range(4):
            await ask(rig, 10, f"{i}-")
            await asyncio.sleep(0.03)
        await rig.counted(40, "other")
        await soon(lambda: rig.shadow.state().queued_rows == 40, 5)
        rig.shadow.forget(variant)
        assert rig.counts() == {"removed": 40}
        assert rig.counts("other") == {"compared": 40}


async def test_a_stop_drops_what_is_queued_and_what_is_in_a_thread_and_waits_for_nothing(
    site: Site, redis_url: str, tmp_path: Path
) -> None:
    async with shadow_rig(site, redis_url) as rig:
        await write_second(rig.client, USERS)
        rig.shadowed(on(rig.variant(), looping(tmp_path, 20_000), cost_s=1.0))
        await ask(rig, 20)
        await asyncio.sleep(0.1)
        await ask(rig, 20, "more-")
        await asyncio.sleep(0.05)
        began = time.monotonic()
        rig.shadow.close()
        assert time.monotonic() - began < 0.5
        assert rig.counts() == {"closed": 40}
        await ask(rig, 5, "after-")
        assert rig.counts() == {"closed": 40}


async def test_who_is_told_may_raise(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def told(_: object) -> None:
        raise RuntimeError("the comparison has a bug")

    rig.shadow.told = told
    rig.shadowed(rig.variant())
    await ask(rig, 5)
    assert await offered(rig, 5) == {"compared": 5}
    assert "could not be kept" in caplog.text


async def test_targets_may_raise(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def targets(_: object) -> Any:
        raise RuntimeError("the experiments have a bug")

    rig.shadow.targets = targets
    await ask(rig, 5)
    await asyncio.sleep(0.02)
    assert "could not be copied" in caplog.text
