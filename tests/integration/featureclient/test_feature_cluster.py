"""Rows in a real cluster of three nodes: redirections, slots on the move, what is told of changes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest

from featureclient.client import FeatureClient
from featureclient.events import Event, StoreRead, StoreWrite
from featureclient.schema import Catalogue
from featureclient.store import (
    UNREAD,
    AllChanged,
    Change,
    KeysChanged,
    OnlineStore,
    PartlyRead,
    StoreRefused,
    StoreUnavailable,
    WatchLost,
    WatchRestored,
)
from featureclient.store.cluster_map import MAP_AGE_S, NODE_KEPT_S
from featureclient.store.opening import StoreOptions, open_store
from featureclient.store.slots import slot_of
from tests.redisfleet import Cluster, Server, row, running_cluster, running_server

LATEST = 10_000
WAIT_S_MAX = 10.0


KEYS = [f"hr:{{plane:N{i:03}}}:stats:1".encode() for i in range(60)]
ROWS = [row(1, str(i)) for i in range(60)]


@pytest.fixture
async def store(redis_cluster: Cluster) -> AsyncIterator[OnlineStore]:
    made = open_store(StoreOptions(redis_cluster.url, timeout_s=2.0))
    await made.write(KEYS, ROWS, event_ms_max=LATEST)
    yield made
    await made.close()


@contextmanager
def moving(cluster: Cluster, slot: int, source: Server, target: Server) -> Iterator[None]:
    """The slot is on its way, and where it was when the block ends."""
    cluster.begin_move(slot, source, target)
    try:
        yield
    finally:
        if cluster.owner_of(slot) is source:
            cluster.move_keys(slot, source, target)
            cluster.end_move(slot, target)
        cluster.move(slot, target, source)


def errors(cluster: Cluster, kind: str) -> int:
    """How many errors of a kind the nodes have answered with."""
    counts = [server.info("INFO", "errorstats").get(f"errorstat_{kind}", "count=0") for server in cluster.servers]
    return sum(int(count.removeprefix("count=")) for count in counts)


def other_than(cluster: Cluster, server: Server) -> Server:
    return next(one for one in cluster.primaries if one is not server)


def test_slots_are_those_of_the_server(redis_cluster: Cluster) -> None:
    for key in (
        b"a",
        b"hr:{plane:N1}:v:1",
        b"{}x",
        b"{a}{b}",
        b"{a",
        b"}a{b}",
        b"x{{y}}z",
        "hr:{é:%7B}:v:1".encode(),
        b"",
    ):
        assert slot_of(key) == redis_cluster.slot(key)


async def test_keys_of_many_slots_are_read_and_written_without_one_wrong_command(
    store: OnlineStore, redis_cluster: Cluster
) -> None:
    before = {kind: errors(redis_cluster, kind) for kind in ("CROSSSLOT", "MOVED", "ASK", "TRYAGAIN")}
    keys = [*KEYS, b"absent", *KEYS[::-1]]
    assert await store.read(keys) == [*ROWS, None, *ROWS[::-1]]
    assert await store.write(KEYS * 2, [row(2)] * 120, event_ms_max=LATEST) == 120
    assert await store.write(KEYS, [row(3)] * 60, only_absent=True, event_ms_max=LATEST) == 0
    assert await store.delete(KEYS) == 60
    assert {kind: errors(redis_cluster, kind) for kind in before} == before
    assert {redis_cluster.owner(key) for key in KEYS} == set(redis_cluster.primaries)


async def test_a_slot_that_has_moved_is_asked_for_at_its_new_node_and_the_map_is_read_again(
    store: OnlineStore, redis_cluster: Cluster
) -> None:
    key = KEYS[0]
    slot, source = redis_cluster.slot(key), redis_cluster.owner(key)
    target = other_than(redis_cluster, source)
    assert await store.read(KEYS) == ROWS
    with moving(redis_cluster, slot, source, target):
        redis_cluster.move_keys(slot, source, target)
        redis_cluster.end_move(slot, target)
        moved = errors(redis_cluster, "MOVED")
        assert await store.read(KEYS) == ROWS
        assert errors(redis_cluster, "MOVED") == moved + 1
        assert await store.read(KEYS) == ROWS
        assert await store.write([key], [row(2)], event_ms_max=LATEST) == 1
        assert errors(redis_cluster, "MOVED") == moved + 1
    assert await store.read([key]) == [row(2)]


async def test_a_slot_that_moves_is_asked_for_at_both_nodes(store: OnlineStore, redis_cluster: Cluster) -> None:
    # The views of one entity share its slot.
    keys = [f"hr:{{plane:N000}}:view{i}:1".encode() for i in range(20)]
    values = [row(1, str(i)) for i in range(20)]
    await store.write(keys, values, event_ms_max=LATEST)
    slot, source = redis_cluster.slot(keys[0]), redis_cluster.owner(keys[0])
    target = other_than(redis_cluster, source)
    with moving(redis_cluster, slot, source, target):
        assert redis_cluster.move_keys(slot, source, target, 9) == 9
        asked = errors(redis_cluster, "ASK")
        assert await store.read([*keys, b"hr:{plane:N000}:absent:1"]) == [*values, None]
        assert errors(redis_cluster, "ASK") > asked
        # The compare is with the row, wherever that is.
        assert await store.write(keys, [row(0)] * 20, event_ms_max=LATEST) == 0
        assert await store.write(keys, [row(2)] * 20, event_ms_max=LATEST) == 20
        assert await store.write([b"hr:{plane:N000}:new:1"] * 2, [row(3), row(4)], event_ms_max=LATEST) == 2
        assert await store.write(keys, [row(9)] * 20, only_absent=True, event_ms_max=LATEST) == 0
        assert await store.read([*keys, b"hr:{plane:N000}:new:1"]) == [*[row(2)] * 20, row(4)]
        assert await store.delete(keys[:10]) == 10
        assert errors(redis_cluster, "TRYAGAIN") == 0
        assert await store.read(keys) == [*[None] * 10, *[row(2)] * 10]


async def test_no_row_is_wrong_or_absent_while_its_slot_moves_to_and_fro(
    store: OnlineStore, redis_cluster: Cluster
) -> None:
    keys = [f"hr:{{plane:N000}}:view{i}:1".encode() for i in range(30)]
    values = [row(1, str(i)) for i in range(30)]
    await store.write(keys, values, event_ms_max=LATEST)
    slot, source = redis_cluster.slot(keys[0]), redis_cluster.owner(keys[0])
    target = other_than(redis_cluster, source)
    absent = b"hr:{plane:N000}:absent:1"
    stop = asyncio.Event()
    reads = 0

    async def read() -> None:
        nonlocal reads
        while not stop.is_set():
            assert await store.read([*keys, absent, *KEYS]) == [*values, None, *ROWS]
            reads += 1

    readers = [asyncio.create_task(read()) for _ in range(4)]
    try:
        for _ in range(3):
            await asyncio.to_thread(redis_cluster.move, slot, source, target)
            await asyncio.to_thread(redis_cluster.move, slot, target, source)
    finally:
        stop.set()
        await asyncio.gather(*readers)
    assert reads > 20


async def test_a_slot_that_nobody_serves_costs_only_its_own_keys(store: OnlineStore, redis_cluster: Cluster) -> None:
    slot, owner = redis_cluster.slot(KEYS[0]), redis_cluster.owner(KEYS[0])
    for server in redis_cluster.primaries:
        server.call("CLUSTER", "DELSLOTS", slot)
    try:
        with pytest.raises(PartlyRead) as caught:
            await store.read(KEYS)
        assert caught.value.values == [UNREAD, *ROWS[1:]]
        with pytest.raises(StoreUnavailable):
            await store.read(KEYS[:1])
        with pytest.raises(StoreUnavailable):
            await store.write(KEYS[:1], [row(2)], event_ms_max=LATEST)
    finally:
        for server in redis_cluster.primaries:
            server.call("CLUSTER", "SETSLOT", slot, "NODE", redis_cluster.node_id(owner))
    redis_cluster.wait_until_up()
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            try:
                assert await store.read(KEYS) == ROWS
            except StoreUnavailable:
                await asyncio.sleep(0.02)
            else:
                break


async def test_a_script_that_somebody_removed_is_there_again(store: OnlineStore, redis_cluster: Cluster) -> None:
    for server in redis_cluster.primaries:
        server.call("SCRIPT", "FLUSH")
    assert await store.write(KEYS, [row(2)] * 60, event_ms_max=LATEST) == 60


async def test_a_user_needs_no_more_than_these_permissions(redis_cluster: Cluster) -> None:
    rows = "+get +set +getrange +evalsha +script|load +unlink +asking"
    about = "+cluster|slots +role +readonly +ping +hello +client|tracking"
    for server in redis_cluster.servers:
        server.call("ACL", "SETUSER", "reader", "on", ">pw", "~hr:*", *rows.split(), *about.split())
    store = open_store(StoreOptions(redis_cluster.url, username="reader", password="pw", timeout_s=2.0))
    changes: list[Change] = []
    try:
        await store.ping()
        await store.watch([b"hr:{plane:"], changes.append)
        assert await store.write(KEYS, ROWS, event_ms_max=LATEST) == 60
        assert await store.read(KEYS) == ROWS
        assert await store.delete(KEYS[:9]) == 9
        await _until(lambda: _keys(changes) == set(KEYS))
        with pytest.raises(StoreRefused, match="NOPERM"):
            await store.read([b"another's"])
    finally:
        await store.close()
        for server in redis_cluster.servers:
            server.call("ACL", "DELUSER", "reader")


async def test_changes_of_all_nodes_are_told(store: OnlineStore, redis_cluster: Cluster) -> None:
    changes: list[Change] = []
    await store.watch([b"hr:{plane:"], changes.append)
    await store.write([*KEYS, b"hr:{other}:v:1"], [row(2)] * 61, event_ms_max=LATEST)
    await _until(lambda: len(_keys(changes)) >= len(KEYS))
    assert _keys(changes) == set(KEYS)
    redis_cluster.primaries[2].call("FLUSHALL")
    await _until(lambda: AllChanged() in changes)
    with pytest.raises(RuntimeError):
        await store.watch([b"hr:"], changes.append)


async def test_nothing_is_read_of_no_keys(store: OnlineStore) -> None:
    assert await store.read([]) == []
    assert await store.read_primary([]) == []


@pytest.mark.slow
async def test_what_is_read_of_a_node_that_imports_its_first_slot_is_told_of() -> None:
    key = KEYS[0]
    with (
        running_cluster() as cluster,
        running_server(
            "cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-require-full-coverage no"
        ) as joining,
    ):
        joining.call("CLUSTER", "MEET", "127.0.0.1", cluster.primaries[0].port)
        for server in cluster.servers:
            server.wait_until(lambda one: str(joining.port) in one.call("CLUSTER", "NODES").decode())
        joining.wait_until(lambda one: one.info("CLUSTER", "INFO")["cluster_state"] == "ok")
        slot, source = cluster.slot(key), cluster.owner(key)
        joining_id = joining.call("CLUSTER", "MYID")
        store = open_store(StoreOptions(cluster.url, timeout_s=2.0))
        changes: list[Change] = []
        try:
            await store.write([key], [row(1)], event_ms_max=LATEST)
            await store.watch([b"hr:{plane:"], changes.append)
            joining.call("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.node_id(source))
            source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", joining_id)
            assert cluster.move_keys(slot, source, joining) == 1
            assert await store.read([key]) == [row(1)]
            await _until(lambda: WatchRestored() in changes)
            assert any(isinstance(change, WatchLost) for change in changes)
            # Longer than any other node is kept that only a redirection has named.
            await asyncio.sleep(NODE_KEPT_S + 2 * MAP_AGE_S)
            changes.clear()
            assert await store.write([key], [row(2)], event_ms_max=LATEST) == 1
            await _until(lambda: _keys(changes) == {key})
        finally:
            await store.close()


async def _until(what: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S_MAX
    while not what():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


def _keys(changes: list[Change]) -> set[bytes]:
    return {key for change in changes if isinstance(change, KeysChanged) for key in change.keys}


async def test_who_takes_a_node_for_a_single_server_is_told_so(redis_cluster: Cluster) -> None:
    """By the read that fails, and by the event that says so."""
    catalogue = Catalogue.parse(
        "entities: {plane: {tailnum: string}}\nviews: {v@1: {entity: plane, columns: {a: int8}}}"
    )
    events: list[Event] = []
    store = open_store(StoreOptions(redis_cluster.primaries[0].url))
    async with FeatureClient(catalogue, store, on_event=events.append) as client:
        for ids in (["a", "b", "c", "d"], ["e"], ["f"], ["g"], ["h"]):  # CROSSSLOT; MOVED, unless it is that node's
            await client.read("v@1", ids)
        with pytest.raises(StoreRefused, match=r"a node of a cluster: use redis\+cluster://"):
            await client.write("v@1", {"tailnum": ["a", "b", "c"], "a": [1, 2, 3]})
    told = [event for event in events if isinstance(event, StoreRead | StoreWrite) and event.error is not None]
    assert {event.why.partition(" ")[0] for event in told} == {"CROSSSLOT", "MOVED"}
    assert {event.why.rpartition(": this ")[2] for event in told} == {
        "server is a node of a cluster: use redis+cluster://"
    }
