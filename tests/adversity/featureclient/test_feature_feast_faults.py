"""Feast's rows through a Redis that fails: the right row or none, inside the time, and right again afterwards."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import redis

from featureclient.cache import CacheOptions
from featureclient.client import ClientOptions, FeatureClient
from featureclient.feast import FeastKeys, FeastRows
from featureclient.feast.value_pb2 import Value
from featureclient.schema import Catalogue, status
from featureclient.store.feast import FeastStore
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.wire import KeyCodec
from tests.faultproxy import FaultProxy

NAMES = [f"f{i}" for i in range(20)]
CATALOGUE = Catalogue.parse(
    "entities: {driver: {driver_id: int64}}\nviews:\n"
    "  large@1:\n    entity: driver\n    feast: {project: p, view: large}\n"
    f"    columns: {{{', '.join(f'{name}: float32' for name in NAMES)}}}\n"
    "  small@1:\n    entity: driver\n    feast: {project: p, view: small}\n    columns: {a: int64}\n"
)
IDS = list(range(40))
CACHE_OFF = CacheOptions(enabled=False)
LONG_S = 10.0


def write(url: str, plus: int = 0) -> None:
    """Row `i` of the large view is i + plus everywhere, and of the small one, too."""
    with redis.Redis.from_url(url) as connection:
        pipeline = connection.pipeline()
        for ref, value_of in (
            ("large@1", lambda i: Value(float_val=i + plus)),
            ("small@1", lambda i: Value(int64_val=i + plus)),
        ):
            view = CATALOGUE.view(ref)
            fields = FeastRows(view).fields
            for i, key in zip(IDS, FeastKeys(view).of(KeyCodec(view).encode(IDS)[1]), strict=True):
                mapping = dict.fromkeys(fields[:-1], value_of(i).SerializeToString())
                pipeline.hset(key, mapping={**mapping, fields[-1]: b"\x08\x01"})  # type: ignore[dict-item]  # bytes
        pipeline.execute()


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[FaultProxy]:
    write(redis_url)
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        async with FaultProxy(redis_url, Path(folder)) as made:
            yield made


def client_of(url: str, cache: CacheOptions = CACHE_OFF, *, watch: bool = False) -> FeatureClient:
    store = FeastStore(RedisStore(RedisOptions(url=url, timeout_s=0.5)), CATALOGUE.views.values())
    return FeatureClient(
        CATALOGUE, store, ClientOptions(cache=cache, read_timeout_s=1.0, breaker_open_s=0.01, watch=watch)
    )


@pytest.mark.parametrize("ref", ["large@1", "small@1"])
@pytest.mark.parametrize("after_bytes", [0, 1, 37, 400, 600])
async def test_a_reply_that_is_cut_gives_no_wrong_row(proxy: FaultProxy, ref: str, after_bytes: int) -> None:
    async with client_of(proxy.url) as client:
        proxy.cut(after_bytes)
        rows = await client.read(ref, IDS)
        proxy.heal()
        assert set(rows.status.tolist()) == {status.MISSING | status.UNREACHED}
        await until_right(client, ref)


@pytest.mark.parametrize(
    "garbage",
    [b"*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n" * 40, b"+OK\r\n" * 40, b"$-1\r\n" * 40, b"*-1\r\n" * 40, b"garbage\r\n",
     b":1\r\n" * 40, b"-LOADING wait\r\n" * 40],
)  # fmt: skip
@pytest.mark.parametrize("ref", ["large@1", "small@1"])
async def test_replies_of_other_shapes_are_no_rows(proxy: FaultProxy, ref: str, garbage: bytes) -> None:
    async with client_of(proxy.url) as client:
        proxy.garble(garbage)
        rows = await client.read(ref, IDS)
        assert set(rows.status.tolist()) == {status.MISSING | status.UNREACHED}
        proxy.heal()
        await until_right(client, ref)


async def until_right(client: FeatureClient, ref: str) -> None:
    """Recovery needs nobody's help, and what then comes is right."""
    give_up_at = time.monotonic() + LONG_S
    while True:
        rows = await client.read(ref, IDS)
        if set(rows.status.tolist()) == {status.PRESENT}:
            break
        assert time.monotonic() < give_up_at, "does not recover"
        await asyncio.sleep(0.05)
    for values in rows.columns.values():
        np.testing.assert_array_equal(values, IDS)


async def test_a_materialisation_while_its_rows_are_read_leaves_nothing_stale(
    proxy: FaultProxy, redis_url: str
) -> None:
    cache = CacheOptions(expire_s=3600.0)
    async with client_of(proxy.url, cache, watch=True) as client:
        for _ in range(1000):
            if client.watched:
                break
            await asyncio.sleep(0.01)
        assert client.watched
        proxy.hold(b"HGETALL")
        before = asyncio.create_task(client.read("large@1", IDS[:5], timeout_s=LONG_S))
        await asyncio.wait_for(proxy.held.wait(), LONG_S)
        write(redis_url, plus=100)
        await asyncio.sleep(0.2)  # the invalidation passes, the reply does not
        proxy.heal()
        assert (await before).columns["f0"].tolist()[0] in {0.0, 100.0}
        for _ in range(2):
            rows = await client.read("large@1", IDS[:5], timeout_s=LONG_S)
            assert rows.columns["f0"].tolist() == [100.0, 101.0, 102.0, 103.0, 104.0]
        # A warm row is dropped when Feast writes it again.
        write(redis_url, plus=200)
        give_up_at = time.monotonic() + LONG_S
        while (await client.read("large@1", [3])).columns["f0"].tolist() != [203.0]:
            assert time.monotonic() < give_up_at, "a warm row stays stale"
            await asyncio.sleep(0.01)
