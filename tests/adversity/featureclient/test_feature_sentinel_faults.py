"""A primary that dies, hangs or is degraded under two Sentinels; and Sentinels that are not there."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest

from featureclient.store import (
    Change,
    KeysChanged,
    OnlineStore,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    WatchLost,
    WatchRestored,
)
from featureclient.store.opening import StoreOptions, open_store
from featureclient.store.replicas import ReadOptions
from featureclient.store.sentinel import EPOCH_DOWN_S
from tests.redisfleet import PRIMARY_NAME, SentinelFleet, Server, row, running_sentinels
from tests.waiting import until_available

LATEST = 10_000
TIMEOUT_S = 0.5
WAIT_S_MAX = 30.0
until = partial(until_available, wait_s=WAIT_S_MAX)


KEYS = [f"hr:{{plane:N{i}}}:stats:1".encode() for i in range(20)]
ROWS = [row(1, str(i)) for i in range(20)]


@pytest.fixture
def fleet() -> Iterator[SentinelFleet]:
    with running_sentinels() as made:
        yield made


@asynccontextmanager
async def opened(fleet: SentinelFleet, reads: ReadOptions | None = None) -> AsyncIterator[OnlineStore]:
    options = StoreOptions(
        fleet.url, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, write_timeout_s=1.0, reads=reads or ReadOptions()
    )
    store = open_store(options)
    try:
        await store.write(KEYS, ROWS, event_ms_max=LATEST)
        fleet.replica.wait_until(lambda server: server.call("DBSIZE") == len(KEYS))
        yield store
    finally:
        await store.close()


def _port(server: Server) -> bytes:
    return str(server.port).encode()


async def changed(changes: list[Change], keys: set[bytes]) -> None:
    give_up_at = time.monotonic() + WAIT_S_MAX
    while {key for change in changes if isinstance(change, KeysChanged) for key in change.keys} != keys:
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_primary_that_is_killed_is_followed_by_its_replica(fleet: SentinelFleet) -> None:
    changes: list[Change] = []
    async with opened(fleet) as store:
        await store.watch([b"hr:{plane:"], changes.append)
        dead = fleet.primary
        dead.kill()
        with pytest.raises(StoreUnavailable):
            await store.read(KEYS)
        assert await until(lambda: store.read(KEYS)) == ROWS
        assert await until(lambda: store.write(KEYS, [row(2)] * 20, event_ms_max=LATEST)) == 20
        assert await store.read(KEYS) == [row(2)] * 20

        give_up_at = time.monotonic() + WAIT_S_MAX
        while WatchRestored() not in changes:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)
        assert any(isinstance(change, WatchLost) for change in changes)
        changes.clear()
        await store.write(KEYS, [row(3)] * 20, event_ms_max=LATEST)
        await changed(changes, set(KEYS))

        # What was the primary thinks for a moment that it still is.
        dead.start()
        for _ in range(50):
            assert await store.read(KEYS) == [row(3)] * 20
            await asyncio.sleep(0.02)
        assert await store.write(KEYS, [row(4)] * 20, event_ms_max=LATEST) == 20


@pytest.mark.slow
async def test_a_primary_that_hangs_is_followed_too_and_believed_no_more_when_it_wakes(fleet: SentinelFleet) -> None:
    async with opened(fleet) as store:
        hung = fleet.primary
        hung.freeze()
        try:
            assert await until(lambda: store.read(KEYS)) == ROWS
            assert await until(lambda: store.write(KEYS, [row(2)] * 20, event_ms_max=LATEST)) == 20
        finally:
            hung.thaw()
        for _ in range(50):
            assert await store.read(KEYS) == [row(2)] * 20
            await asyncio.sleep(0.02)
        assert await store.write(KEYS, [row(3)] * 20, event_ms_max=LATEST) == 20


@pytest.mark.slow
async def test_a_sentinel_alone_with_an_old_epoch_brings_nobody_back_to_the_old_primary(fleet: SentinelFleet) -> None:
    first, second = fleet.sentinels
    conf = first.folder / "conf"
    old_conf = conf.read_text()
    async with opened(fleet) as store:
        old, new = fleet.primary, fleet.replica
        old.freeze()
        assert await until(lambda: store.write(KEYS, [row(2)] * 20, event_ms_max=LATEST)) == 20
        assert new.call("GET", KEYS[0]) == row(2)
        # It was away while the others failed over, and they are away when it and the old primary come back.
        first.kill()
        second.freeze()
        conf.write_text(old_conf)
        old.thaw()
        first.start()
        first.wait_until(lambda one: one.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME)[1] == _port(old))
        written = 0
        over_at = time.monotonic() + EPOCH_DOWN_S + 2.0
        while time.monotonic() < over_at:
            with suppress(StoreUnavailable):
                written += await store.write([b"later"], [row(3)], event_ms_max=LATEST)
            await asyncio.sleep(0.05)
        assert written > 20
        assert old.call("GET", "later") is None
        second.thaw()


@pytest.mark.slow
async def test_sentinels_that_begin_their_epochs_anew_are_believed_in_the_end(fleet: SentinelFleet) -> None:
    async with opened(fleet) as store:
        old, new = fleet.primary, fleet.replica
        # Refused (NOGOODSLAVE) until the Sentinel has heard enough of the replica.
        fleet.sentinels[0].wait_until(lambda one: bool(one.call("SENTINEL", "FAILOVER", PRIMARY_NAME)))
        new.wait_until(lambda one: one.info()["role"] == "master")
        await until(lambda: store.write(KEYS, [row(4)] * 20, event_ms_max=LATEST))
        for sentinel in fleet.sentinels:
            sentinel.wait_until(
                lambda one: one.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME)[1] == _port(new)
            )
        await asyncio.sleep(1.5)  # until the store has asked them
        for sentinel in fleet.sentinels:
            sentinel.call("SENTINEL", "REMOVE", PRIMARY_NAME)
        new.call("REPLICAOF", "127.0.0.1", old.port)
        old.call("REPLICAOF", "NO", "ONE")
        for sentinel in fleet.sentinels:
            sentinel.call("SENTINEL", "MONITOR", PRIMARY_NAME, "127.0.0.1", old.port, 2)
        # A primary that says READONLY is not written to; which other one there is, is not believed at once.
        assert await until(lambda: store.write(KEYS, [row(5)] * 20, event_ms_max=LATEST)) == 20
        assert old.call("GET", KEYS[0]) == row(5)


@pytest.mark.slow
async def test_a_failover_that_somebody_wants_is_followed(fleet: SentinelFleet) -> None:
    async with opened(fleet) as store:
        old = fleet.primary
        # Refused (NOGOODSLAVE) until the Sentinel has heard enough of the replica.
        fleet.sentinels[0].wait_until(lambda one: bool(one.call("SENTINEL", "FAILOVER", PRIMARY_NAME)))
        event_ms = 1
        give_up_at = time.monotonic() + WAIT_S_MAX
        while old.info()["role"] == "master" or fleet.primary is old:
            event_ms += 1
            await until(partial(store.write, KEYS, [row(event_ms)] * 20, event_ms_max=LATEST))
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)
        assert await until(lambda: store.write(KEYS, [row(9_000)] * 20, event_ms_max=LATEST)) == 20
        assert await until(lambda: store.read(KEYS)) == [row(9_000)] * 20


async def test_one_sentinel_is_enough_and_none_is_missed_while_the_primary_is_there(fleet: SentinelFleet) -> None:
    fleet.sentinels[0].kill()
    fleet.sentinels[1].freeze()
    store = open_store(StoreOptions(fleet.url, connect_timeout_s=0.2))
    try:
        with pytest.raises(StoreUnavailable):
            await store.read(KEYS)
        fleet.sentinels[1].thaw()
        assert await until(lambda: store.read(KEYS)) == [None] * 20
        fleet.sentinels[1].kill()
        await asyncio.sleep(1.5)
        assert await store.write(KEYS, ROWS, event_ms_max=LATEST) == 20
        assert await store.read(KEYS) == ROWS
    finally:
        await store.close()


async def test_a_name_that_no_sentinel_knows_is_named(redis_sentinels: SentinelFleet) -> None:
    store = open_store(StoreOptions(redis_sentinels.url.replace(PRIMARY_NAME, "nobody")))
    with pytest.raises(StoreRefused, match="knows no primary called 'nobody'"):
        await store.read(KEYS)
    await store.close()
    with pytest.raises(StoreError):
        await store.ping()


async def test_replicas_are_read_and_a_dead_one_is_not_missed(fleet: SentinelFleet) -> None:
    async with opened(fleet, ReadOptions(read_from="replica")) as store:
        replica, primary = fleet.replica, fleet.primary
        changes: list[Change] = []
        await store.watch([b"hr:"], changes.append)
        give_up_at = time.monotonic() + WAIT_S_MAX
        while "cmdstat_mget" not in replica.info("INFO", "commandstats"):
            assert await store.read(KEYS) == ROWS
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)
        before = primary.info("INFO", "commandstats").get("cmdstat_mget")
        assert await store.read(KEYS) == ROWS
        assert primary.info("INFO", "commandstats").get("cmdstat_mget") == before

        # As if some rows had not reached the replica yet: that is no reason to call them absent.
        replica.call("CONFIG", "SET", "replica-read-only", "no")
        replica.call("DEL", *KEYS[:5])
        assert await store.read([*KEYS, b"absent"]) == [*ROWS, None]
        # It is the replica that tells of what was read there.
        await changed(changes, {*KEYS[:5]})

        replica.kill()
        for _ in range(10):
            assert await store.read(KEYS) == ROWS
        assert any(isinstance(change, WatchLost) for change in changes)


async def test_a_replica_that_has_lost_its_primary_is_not_read(fleet: SentinelFleet) -> None:
    replica, primary = fleet.replica, fleet.primary
    reads = ReadOptions(read_from="replica", replica_urls=(replica.url,))
    store = open_store(StoreOptions(primary.url, reads=reads))
    try:
        for sentinel in fleet.sentinels:
            sentinel.kill()
        await store.write(KEYS, ROWS, event_ms_max=LATEST)
        replica.wait_until(lambda server: server.call("DBSIZE") == len(KEYS))
        # Nobody is at the port that it follows now: what it has grows old, and nothing tells it.
        replica.call("REPLICAOF", "127.0.0.1", fleet.sentinels[0].port)
        await store.write(KEYS, [row(2)] * 20, event_ms_max=LATEST)
        for _ in range(20):
            assert await store.read(KEYS) == [row(2)] * 20
            await asyncio.sleep(0.01)
    finally:
        await store.close()
