"""A cluster whose nodes die, hang, and are followed by their replicas."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest

from featureclient.store import (
    UNREAD,
    Change,
    KeysChanged,
    OnlineStore,
    PartlyRead,
    StoreUnavailable,
    WatchLost,
    WatchRestored,
)
from featureclient.store.cluster import RedisClusterStore
from featureclient.store.opening import StoreOptions, open_store
from featureclient.store.replicas import ReadOptions
from tests.redisfleet import Cluster, Server, row, running_cluster
from tests.waiting import until_available

LATEST = 10_000
TIMEOUT_S = 0.5
WAIT_S_MAX = 20.0
until = partial(until_available, wait_s=WAIT_S_MAX)


KEYS = [f"hr:{{plane:N{i:03}}}:stats:1".encode() for i in range(60)]
ROWS = [row(1, str(i)) for i in range(60)]


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with running_cluster(node_timeout_ms=1000) as made:
        yield made


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """Three nodes without replicas, repaired after each test: who was killed comes back to its slots."""
    shared.repair()
    for server in shared.servers:
        server.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    shared.flush()
    return shared


@pytest.fixture
def replicated() -> Iterator[Cluster]:
    with running_cluster(replicas=1, node_timeout_ms=1000) as made:
        yield made


@asynccontextmanager
async def opened(cluster: Cluster, reads: ReadOptions | None = None) -> AsyncIterator[OnlineStore]:
    options = StoreOptions(
        cluster.url, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, write_timeout_s=1.0, reads=reads or ReadOptions()
    )
    store = open_store(options)
    try:
        await store.write(KEYS, ROWS, event_ms_max=LATEST)
        yield store
    finally:
        await store.close()


def without(cluster: Cluster, dead: Server, owners: dict[bytes, Server]) -> list[object]:
    """What a read of all keys has while a node is down."""
    return [UNREAD if owners[key] is dead else value for key, value in zip(KEYS, ROWS, strict=True)]


async def test_a_node_that_is_killed_takes_no_key_of_the_others_with_it(cluster: Cluster) -> None:
    owners = {key: cluster.owner(key) for key in KEYS}
    async with opened(cluster) as store:
        dead = cluster.primaries[1]
        dead.kill()
        for _ in range(20):
            with pytest.raises(PartlyRead) as caught:
                await store.read(KEYS)
            assert caught.value.values == without(cluster, dead, owners)
        alive = [key for key in KEYS if owners[key] is not dead]
        assert None not in await store.read(alive)
        assert await store.write(alive, [row(2)] * len(alive), event_ms_max=LATEST) == len(alive)
        with pytest.raises(StoreUnavailable):
            await store.write(KEYS, [row(2)] * 60, event_ms_max=LATEST)
        await store.ping()

        dead.start()
        # It comes back empty, and says so.
        lost = [key for key in KEYS if owners[key] is dead]
        assert await until(lambda: store.read(lost)) == [None] * len(lost)
        assert await until(lambda: store.write(KEYS, [row(3)] * 60, event_ms_max=LATEST)) == 60
        assert await store.read(KEYS) == [row(3)] * 60


async def test_a_node_that_hangs_holds_up_one_read_and_no_other(cluster: Cluster) -> None:
    owners = {key: cluster.owner(key) for key in KEYS}
    async with opened(cluster) as store:
        hung = cluster.primaries[0]
        hung.freeze()
        try:
            started = time.monotonic()
            for _ in range(20):
                with pytest.raises(PartlyRead) as caught:
                    await store.read(KEYS)
                assert caught.value.values == without(cluster, hung, owners)
            # Twenty reads that waited for it would take twenty times its limit.
            assert time.monotonic() - started < 10 * TIMEOUT_S
        finally:
            hung.thaw()
        assert await until(lambda: store.read(KEYS)) == ROWS


async def test_a_cluster_that_is_gone_is_unavailable_within_the_limits(cluster: Cluster) -> None:
    async with opened(cluster) as store:
        for server in cluster.servers:
            server.kill()
        started = time.monotonic()
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await store.read(KEYS)
        with pytest.raises(StoreUnavailable):
            await store.ping()
        assert time.monotonic() - started < 20 * TIMEOUT_S
        fresh = open_store(StoreOptions(cluster.url))
        with pytest.raises(StoreUnavailable):
            await fresh.read(KEYS)
        for server in cluster.servers:
            server.start()
        await until(lambda: store.write(KEYS, ROWS, event_ms_max=LATEST))
        assert await until(lambda: fresh.read(KEYS)) == ROWS
        await fresh.close()


@pytest.mark.slow
async def test_a_cluster_that_wants_all_of_its_slots_is_unavailable_without_one(cluster: Cluster) -> None:
    for server in cluster.servers:
        server.call("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    owners = {key: cluster.owner(key) for key in KEYS}
    async with opened(cluster) as store:
        dead = cluster.primaries[2]
        dead.kill()
        alive = [key for key in KEYS if owners[key] is not dead]
        with pytest.raises(StoreUnavailable, match="CLUSTERDOWN"):  # noqa: PT012  # it takes a while to be so
            give_up_at = time.monotonic() + WAIT_S_MAX
            while time.monotonic() < give_up_at:
                await store.read(alive)
                await asyncio.sleep(0.05)
        dead.start()
        assert len(await until(lambda: store.read(KEYS))) == 60


@pytest.mark.slow
async def test_a_replica_takes_the_place_of_its_primary_while_changes_are_told(replicated: Cluster) -> None:
    changes: list[Change] = []
    async with opened(replicated) as store:
        await store.watch([b"hr:{plane:"], changes.append)
        dead = replicated.owner(KEYS[0])
        dead.kill()
        assert await until(lambda: store.read(KEYS)) == ROWS
        assert await until(lambda: store.write(KEYS, [row(2)] * 60, event_ms_max=LATEST)) == 60
        assert await store.read(KEYS) == [row(2)] * 60

        give_up_at = time.monotonic() + WAIT_S_MAX
        while not isinstance(changes[-1], WatchRestored) and WatchRestored() not in changes:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)
        assert any(isinstance(change, WatchLost) for change in changes)
        changes.clear()
        await store.write(KEYS, [row(3)] * 60, event_ms_max=LATEST)
        while {key for change in changes if isinstance(change, KeysChanged) for key in change.keys} != set(KEYS):
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)

        # The one that was dead comes back as a replica, and is never read for what it was.
        dead.start()
        dead.wait_until(lambda server: server.info()["role"] == "slave")
        for _ in range(20):
            assert await store.read(KEYS) == [row(3)] * 60


@pytest.mark.slow
async def test_a_primary_that_hangs_is_followed_and_believed_no_more_when_it_wakes(replicated: Cluster) -> None:
    async with opened(replicated) as store:
        hung = replicated.owner(KEYS[0])
        hung.freeze()
        try:
            assert await until(lambda: store.read(KEYS)) == ROWS
            assert await until(lambda: store.write(KEYS, [row(2)] * 60, event_ms_max=LATEST)) == 60
        finally:
            hung.thaw()
        for _ in range(50):
            assert await until(lambda: store.read(KEYS)) == [row(2)] * 60
            await asyncio.sleep(0.02)


async def test_replicas_are_read_and_what_they_have_not_is_asked_of_their_primary(replicated: Cluster) -> None:
    async with opened(replicated, ReadOptions(read_from="replica")) as store:
        give_up_at = time.monotonic() + WAIT_S_MAX
        for server in replicated.replicas:
            # The first reads come before it is known that a replica follows its primary.
            while "cmdstat_get" not in server.info("INFO", "commandstats"):
                assert await store.read(KEYS) == ROWS
                assert time.monotonic() < give_up_at
                await asyncio.sleep(0.02)
        at_primaries = [server.info("INFO", "commandstats").get("cmdstat_get") for server in replicated.primaries]
        assert await store.read(KEYS) == ROWS
        assert [
            server.info("INFO", "commandstats").get("cmdstat_get") for server in replicated.primaries
        ] == at_primaries

        # As if nothing had reached the replica yet.
        behind = replicated.replicas[0]
        behind.call("CONFIG", "SET", "replica-read-only", "no")
        behind.call("FLUSHALL")
        assert await store.read([*KEYS, b"absent"]) == [*ROWS, None]

        behind.freeze()
        try:
            assert await until(lambda: store.read(KEYS)) == ROWS
        finally:
            behind.thaw()


def _has(count: int, server: Server) -> bool:
    return bool(server.call("DBSIZE") == count)


async def read_from_replicas(store: OnlineStore, cluster: Cluster) -> None:
    """Return when every replica is read. The first reads come before it is known that one follows its primary."""
    give_up_at = time.monotonic() + WAIT_S_MAX
    while not all("cmdstat_get" in server.info("INFO", "commandstats") for server in cluster.replicas):
        assert await store.read(KEYS) == ROWS
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.02)


async def test_what_a_replica_has_not_is_not_absent_when_there_is_no_time_for_the_primary(replicated: Cluster) -> None:
    async with opened(replicated, ReadOptions(read_from="replica")) as store:
        await read_from_replicas(store, replicated)
        behind = replicated.replicas[0]
        behind.call("CONFIG", "SET", "replica-read-only", "no")
        behind.call("FLUSHALL")
        key = next(key for key in KEYS if replicated.owner(key) is replicated.primaries[0])
        why = ""
        give_up_at = time.monotonic() + WAIT_S_MAX
        while "nil is no answer" not in why:
            assert time.monotonic() < give_up_at
            read = asyncio.create_task(store.read([key]))
            for _ in range(2):
                await asyncio.sleep(0)
            # A loop that is busy until the time of the read is over, while the nil waits to be read.
            time.sleep(1.2 * TIMEOUT_S)  # noqa: ASYNC251
            try:
                assert await read == [ROWS[KEYS.index(key)]]
            except StoreUnavailable as error:
                why = str(error)
            await asyncio.sleep(0.2)
        assert await store.read(KEYS) == ROWS


async def test_a_list_is_asked_of_the_primary_only_where_the_replica_has_not_all_of_it(replicated: Cluster) -> None:
    async with opened(replicated, ReadOptions(read_from="replica")) as made:
        store = cast("RedisClusterStore", made)
        await read_from_replicas(store, replicated)
        hashes = [f"hash{{{i}}}".encode() for i in range(20)]
        for key in hashes:
            replicated.owner(key).call("HSET", key, "a", "1", "b", "2")
        for primary, replica in zip(replicated.primaries, replicated.replicas, strict=True):
            replica.wait_until(partial(_has, primary.call("DBSIZE")))

        def asked() -> list[str | None]:
            stats = [server.info("INFO", "commandstats").get("cmdstat_hmget") for server in replicated.primaries]
            return [None if stat is None else stat.split(",")[0] for stat in stats]

        before = asked()
        assert await store.query([("HMGET", key, "a", "b") for key in hashes]) == [[b"1", b"2"]] * 20
        assert asked() == before
        behind = replicated.replicas[0]
        behind.call("CONFIG", "SET", "replica-read-only", "no")
        behind.call("FLUSHALL")
        assert await store.query([("HMGET", key, "a", "b") for key in hashes]) == [[b"1", b"2"]] * 20
        assert asked() != before


async def test_a_hedged_read_does_not_wait_for_a_replica_that_hangs(replicated: Cluster) -> None:
    reads = ReadOptions(read_from="replica", hedge=True, hedge_share_max=1.0)
    async with opened(replicated, reads) as store:
        give_up_at = time.monotonic() + WAIT_S_MAX
        while not all("cmdstat_get" in server.info("INFO", "commandstats") for server in replicated.replicas):
            assert await store.read(KEYS) == ROWS
            assert time.monotonic() < give_up_at
        for _ in range(30):
            assert await store.read(KEYS) == ROWS
        hung = replicated.replicas[1]
        hung.freeze()
        try:
            started = time.monotonic()
            assert await store.read(KEYS) == ROWS
            assert time.monotonic() - started < TIMEOUT_S / 2
        finally:
            hung.thaw()
