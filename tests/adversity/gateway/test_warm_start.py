"""A gateway that starts again has warm caches before it says that it serves; and it does say so in time."""

import asyncio
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.client import BlockingClient, CallFailed, HeadraceClient
from gateway.server import settings
from gateway.server.app import Gateway
from tests.faultproxy import FaultProxy
from tests.running import CATALOGUE, Site, make_site, running, write_items, write_users

USERS = 300
HOT = 200
SOON_S = 20.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# The same name after a restart, and time enough for a store that is held.
SETTINGS = {
    "warmup": {"replica": "one", "budget_s": 60.0, "batch_ids": 64},
    "store": {"timeout_s": 30.0},
}


def served_before(site: Site) -> None:
    """A gateway has served HOT of the users, and ended."""
    with running(site, SETTINGS) as gateway, BlockingClient(gateway.target) as client:
        write_users(client, USERS)
        write_items(client, 5)
        for _ in range(3):
            ids = [f"u{i}" for i in range(HOT)]
            client.predict("ranker", {"user": ids, "item": 1}, {"hour": [0.0]})


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    return make_site(tmp_path, redis_url)


def behind(site: Site, proxy: FaultProxy, **warmup: object) -> Gateway:
    overrides = {
        "warmup": {**SETTINGS["warmup"], **warmup},
        "store": {**SETTINGS["store"], "url": proxy.url},
    }
    return Gateway(settings.load(site.config, overrides))


def readyz(gateway: Gateway) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{gateway.http_address}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def health(gateway: Gateway) -> int:
    async with grpc.aio.insecure_channel(gateway.addresses[0]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return int(answer.status)


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    return gateway.telemetry.registry.get_sample_value(f"headrace_{name}", labels) or 0.0


async def test_not_serving_until_the_hottest_are_cached(site: Site, proxy: FaultProxy) -> None:
    await asyncio.to_thread(served_before, site)
    proxy.hold(b"MGET")
    async with behind(site, proxy) as gateway:
        await asyncio.wait_for(proxy.held.wait(), SOON_S)
        assert await asyncio.to_thread(readyz, gateway) == (503, "warming the caches\n")
        assert await health(gateway) == NOT_SERVING
        async with HeadraceClient(gateway.addresses[0]) as client:
            with pytest.raises(CallFailed) as caught:
                await client.predict("ranker", {"user": "u1", "item": 1}, {"hour": [0.0]})
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            proxy.heal()
            await asyncio.wait_for(gateway.wait_ready(), SOON_S)
            assert await asyncio.to_thread(readyz, gateway) == (200, "ready\n")
            assert await health(gateway) == SERVING
            assert metric(gateway, "cache_entries", view="user_stats@1") == HOT
            warmed = metric(gateway, "warmed_rows_total", source="hot")
            assert warmed == HOT + 1, "the users, and the one item"
            # The first request after the start waits for nothing but the pairs, which nobody has stored.
            read = metric(gateway, "store_read_keys_sum")
            ids = [f"u{i}" for i in range(HOT)]
            await client.predict("ranker", {"user": ids, "item": 1}, {"hour": [0.0]})
            assert metric(gateway, "store_read_keys_sum") - read <= HOT
            assert metric(gateway, "cache_misses_total", view="user_stats@1") <= HOT, "those of the warming"
        assert metric(gateway, "hot_counts_saves_total", result="failed") == 0


async def test_a_store_that_hangs_costs_the_budget_and_no_more(site: Site, proxy: FaultProxy) -> None:
    await asyncio.to_thread(served_before, site)
    proxy.hold(b"MGET")
    started = time.monotonic()
    async with behind(site, proxy, budget_s=0.5) as gateway:
        await asyncio.wait_for(proxy.held.wait(), SOON_S)
        assert (await asyncio.to_thread(readyz, gateway))[1] == "warming the caches\n"
        await asyncio.wait_for(gateway.wait_ready(), SOON_S)
        assert time.monotonic() - started < SOON_S
        assert metric(gateway, "warmed_rows_total", source="hot") == 0
        proxy.heal()


async def test_files_are_warmed_however_slow_the_store_is(site: Site, redis_url: str, proxy: FaultProxy) -> None:
    async with FeatureClient(Catalogue.parse(CATALOGUE), RedisStore(RedisOptions(redis_url))) as client:
        await client.write("user_stats@1", {"user": ["u1", "u2", "u3"], "age": [1.5, 2.5, 3.5]})
    (site.folder / "ids.csv").write_text("view,user\nuser_stats@1,u1\nuser_stats@1,u3\n")
    proxy.trickle(0.0001)
    async with behind(site, proxy, files=[str(site.folder / "ids.csv")]) as gateway:
        await asyncio.wait_for(gateway.wait_ready(), SOON_S)
        assert metric(gateway, "warmed_rows_total", source="file") == 2
        assert metric(gateway, "cache_entries", view="user_stats@1") == 2
        async with HeadraceClient(gateway.addresses[0]) as caller:
            rows = await caller.get_features("user_stats@1", {"user": ["u3"]})
            np.testing.assert_array_equal(rows.columns["age"], np.float32([3.5]))
        assert metric(gateway, "store_read_keys_sum") == 2
        proxy.heal()
