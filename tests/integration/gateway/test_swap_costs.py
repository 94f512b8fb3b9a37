"""What a load leaves to the loop: the core, and short collections of garbage."""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.inference.background import ASIDE_NICENESS, aside, in_thread, step_back
from gateway.inference.probing import probe
from gateway.inference.session import InferenceOptions
from gateway.records.request import Array
from gateway.records.signature import Signature
from tests.models import PLAIN, add_scaled
from tests.running import Site, make_site, running

linux = pytest.mark.skipif(sys.platform != "linux", reason="a thread has no niceness of its own here")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@linux
async def test_a_load_steps_back_and_what_computes_steps_back_further() -> None:
    own = niceness()
    loading, computing = await in_thread(lambda: (niceness(), aside(niceness)))
    assert own <= loading <= computing
    assert (loading, computing) == (max(own, 5), max(own, ASIDE_NICENESS))
    assert niceness() == own


@linux
async def test_stepping_back_never_steps_forward() -> None:
    def twice() -> int:
        step_back(ASIDE_NICENESS, threading.get_native_id())
        step_back(1, threading.get_native_id())
        return niceness()

    assert await in_thread(twice) == max(niceness(), ASIDE_NICENESS)


def test_what_fails_aside_fails_where_it_is_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)


@linux
def test_the_process_that_tries_a_graph_steps_back_from_its_first_instruction(tmp_path: Path) -> None:
    graph = add_scaled(tmp_path, "scaled", 1, 3)
    before = set(children())
    seen: list[int] = []

    def trials(signature: Signature) -> Iterator[Mapping[str, Array]]:
        seen.extend(os.getpriority(os.PRIO_PROCESS, child) for child in children() if child not in before)
        return iter(())

    probe(graph, InferenceOptions(), trials=trials)
    assert seen
    assert set(seen) == {max(niceness(), ASIDE_NICENESS)}


async def test_a_swap_does_not_look_at_all_that_lives(redis_url: str, tmp_path: Path) -> None:
    site: Site = make_site(tmp_path, redis_url)
    add_scaled(site.models, "scaled", 1, 1, model__yaml=PLAIN.format(name="scaled"))
    generations: list[int] = []

    def seen(phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            generations.append(info["generation"])

    with running(site) as up:
        frozen = gc.get_freeze_count()
        gc.callbacks.append(seen)
        try:
            add_scaled(site.models, "scaled", 2, 2)
            load = asyncio.run_coroutine_threadsafe(up.gateway.models.load("scaled"), up.loop)
            await asyncio.to_thread(load.result, 60)
            # The loop does what a swap has left for later.
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), up.loop))
        finally:
            gc.callbacks.remove(seen)
        assert up.gateway.models.latest("scaled").version == 2
        assert generations, "the load's garbage is collected"
        assert 2 not in generations
        assert gc.get_freeze_count() > frozen
