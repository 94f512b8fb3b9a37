"""Warming while its Redis is dead, slow, or answers with garbage: a start goes on, and counts are not lost."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, Id, View
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.warmup import CountsLoaded, CountsSaved, Warmer, WarmupEvent, WarmupOptions
from tests.faultproxy import FaultProxy

CATALOGUE = Catalogue.parse("entities: {e: {k: string}}\nviews:\n  v@1: {entity: e, columns: {a: int64}}\n")
VIEW = CATALOGUE.view("v@1")
# How much later than its budget a warming may end on a machine that is busy with other tests.
LATE_S = 1.0


async def all_cached(_view: View, ids: Sequence[Id], _give_up_at: float) -> int:
    return len(ids)


async def save_counts(url: str, replica: str, ids: list[Id]) -> None:
    store = RedisStore(RedisOptions(url))
    warmer = Warmer(CATALOGUE, store, all_cached, WarmupOptions(replica=replica))
    warmer.hot.offer(VIEW.ref, ids)
    assert await warmer.save()
    await store.close()


async def test_without_a_store_a_start_goes_on_at_once(tmp_path: Path) -> None:
    events: list[WarmupEvent] = []
    client = FeatureClient(CATALOGUE, RedisStore(RedisOptions(f"unix://{tmp_path}/none")))
    warmer = Warmer(CATALOGUE, client.store, client.warm, WarmupOptions(), on_event=events.append)
    async with client, warmer:
        warmer.hot.offer(VIEW.ref, ["a"])
        started = time.monotonic()
        (warmed,) = await warmer.prefetch(30.0)
        assert time.monotonic() - started < 10
        assert (warmed.why, warmed.ids) == ("done", 0)
    loaded, saved = events[0], events[-1]
    assert isinstance(loaded, CountsLoaded)
    assert isinstance(saved, CountsSaved)
    assert (loaded.error, saved.error) == ("StoreUnavailable", "StoreUnavailable")


async def test_a_store_that_does_not_answer_costs_the_budget_and_no_more(proxy: FaultProxy, redis_url: str) -> None:
    await save_counts(redis_url, "a", ["x"])
    events: list[WarmupEvent] = []
    store = RedisStore(RedisOptions(proxy.url, timeout_s=60.0, write_timeout_s=60.0))
    warmer = Warmer(CATALOGUE, store, all_cached, WarmupOptions(replica="b"), on_event=events.append)
    proxy.hold(b"GET")
    started = time.monotonic()
    (warmed,) = await warmer.prefetch(0.2)
    assert time.monotonic() - started < 0.2 + LATE_S
    assert (warmed.why, warmed.ids) == ("budget", 0)
    loaded = events[0]
    assert isinstance(loaded, CountsLoaded)
    assert loaded.error == "TimeoutError"
    proxy.heal()
    (warmed,) = await warmer.prefetch(10.0)
    assert (warmed.why, warmed.ids) == ("done", 1)
    await store.close()


async def test_counts_of_an_earlier_run_survive_a_start_without_the_store(proxy: FaultProxy, redis_url: str) -> None:
    await save_counts(redis_url, "one", ["x"] * 5)
    store = RedisStore(RedisOptions(proxy.url))
    warmer = Warmer(CATALOGUE, store, all_cached, WarmupOptions(replica="one"))
    proxy.cut(0)
    await warmer.prefetch(1.0)
    warmer.hot.offer(VIEW.ref, ["x", "y"])
    assert not await warmer.save()
    proxy.heal()
    assert await warmer.save()
    assert warmer.hot.count(VIEW.ref, "x") == pytest.approx(6, abs=0.1)
    merged = await warmer.load(time.monotonic() + 5)
    assert merged.count(VIEW.ref, "x") == pytest.approx(6, abs=0.1)
    assert merged.count(VIEW.ref, "y") == pytest.approx(1, abs=0.1)
    await store.close()


async def test_replies_that_are_garbage_are_trouble_of_the_store(proxy: FaultProxy, redis_url: str) -> None:
    await save_counts(redis_url, "a", ["x"])
    events: list[WarmupEvent] = []
    store = RedisStore(RedisOptions(proxy.url))
    warmer = Warmer(CATALOGUE, store, all_cached, WarmupOptions(replica="b"), on_event=events.append)
    proxy.garble(b"\x00\x01garbage\r\n")
    (warmed,) = await warmer.prefetch(5.0)
    assert warmed.ids == 0
    assert isinstance(events[0], CountsLoaded)
    assert events[0].error == "StoreUnavailable"
    (warmed,) = await warmer.prefetch(5.0)
    assert warmed.ids == 1
    await store.close()
