"""Combined rows are made of what primaries have, also where everybody reads from replicas."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from featureclient.client import ClientOptions, FeatureClient
from featureclient.schema import Catalogue, status
from featureclient.store.opening import StoreOptions, open_store
from featureclient.store.replicas import ReadOptions
from tests.redisfleet import Cluster, Server, running_cluster, running_sentinels

CATALOGUE = Catalogue.parse("""
entities: {e: {k: string}}
views:
  a@1: {entity: e, columns: {x: {dtype: int64, default: -1}}}
  b@1: {entity: e, columns: {y: {dtype: int64, default: -1}}}
  both@1: {entity: e, combine: [a@1, b@1]}
""")
KEY = b"hr:{e:k}:a:1"
UNCACHED = ClientOptions(watch=False, read_timeout_s=10.0)
WAIT_S_MAX = 15.0


@dataclass(frozen=True)
class Kind:
    options: StoreOptions
    replica: Server


@pytest.fixture(params=["named", "sentinel"])
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    with running_sentinels() as fleet:
        primary, replica = fleet.primary, fleet.replica
        if request.param == "named":
            reads = ReadOptions(read_from="replica", replica_urls=(replica.url,))
            yield Kind(StoreOptions(primary.url, reads=reads), replica)
        else:
            yield Kind(StoreOptions(fleet.url, reads=ReadOptions(read_from="replica")), replica)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster(primaries=3, replicas=3) as made:
        yield made


async def test_a_replica_that_is_behind_does_no_harm(kind: Kind) -> None:
    store = open_store(kind.options)
    async with FeatureClient(CATALOGUE, store, UNCACHED) as client:
        await client.write("a@1", {"k": ["k"], "x": [1]})
        (old,) = await store.read_primary([KEY])
        assert old is not None
        await client.write("a@1", {"k": ["k"], "x": [2]})
        # The replica is as it was before that write, and will be.
        kind.replica.wait_until(lambda server: server.call("GET", KEY) not in {None, old})
        kind.replica.call("CONFIG", "SET", "replica-read-only", "no")
        kind.replica.call("SET", KEY, old)
        give_up_at = time.monotonic() + WAIT_S_MAX
        while await store.read([KEY]) != [old]:
            assert time.monotonic() < give_up_at, "replicas are not read"
            await asyncio.sleep(0.02)
        assert await store.read_primary([KEY, b"nothing"]) != [old, None]
        await client.write("b@1", {"k": ["k"], "y": [3]})
    primaries = StoreOptions(kind.options.url)
    async with FeatureClient(CATALOGUE, open_store(primaries), UNCACHED) as client:
        rows = await client.read("both@1", ["k"])
        assert rows.status.tolist() == [status.PRESENT]
        assert (rows.columns["x"].tolist(), rows.columns["y"].tolist()) == ([2], [3])


async def test_primaries_of_a_cluster(cluster: Cluster) -> None:
    keys = [f"hr:{{e:{i}}}:a:1".encode() for i in range(60)]

    def reads_of_replicas() -> list[str | None]:
        return [server.info("INFO", "commandstats").get("cmdstat_get") for server in cluster.replicas]

    store = open_store(StoreOptions(cluster.url, timeout_s=5.0, reads=ReadOptions(read_from="replica")))
    try:
        give_up_at = time.monotonic() + WAIT_S_MAX
        while None in reads_of_replicas():
            assert await store.read(keys) == [None] * 60
            assert time.monotonic() < give_up_at, "replicas are not read"
            await asyncio.sleep(0.02)
        before = reads_of_replicas()
        for _ in range(5):
            assert await store.read_primary(keys) == [None] * 60
        assert reads_of_replicas() == before
        await store.read(keys)
        assert reads_of_replicas() != before
    finally:
        await store.close()
