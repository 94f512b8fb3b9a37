"""A real Redis tells of what changes in it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from featureclient.store import (
    AllChanged,
    Change,
    KeysChanged,
    StoreUnavailable,
    WatchLost,
    WatchRestored,
    WatchUnsupported,
)
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.store.tracking import RETRY_S, SILENCE_S, Tracker
from tests.faultproxy import FaultProxy
from tests.redisfleet import Server, running_server

SOON_S = 5.0


class Watcher:
    """What was told, and who waits for more of it."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._more = asyncio.Event()

    def __call__(self, change: Change) -> None:
        self.changes.append(change)
        self._more.set()

    @property
    def keys(self) -> list[bytes]:
        return [key for change in self.changes if isinstance(change, KeysChanged) for key in change.keys]

    @property
    def states(self) -> list[type[Change]]:
        return [type(change) for change in self.changes if not isinstance(change, KeysChanged)]

    async def until_states(self, *states: type[Change]) -> None:
        await self.until(lambda watcher: watcher.states == list(states))

    async def until_keys(self, count: int) -> None:
        await self.until(lambda watcher: len(watcher.keys) == count)

    async def until(self, what: Callable[["Watcher"], bool], within_s: float = SOON_S) -> None:
        async with asyncio.timeout(within_s):
            while not what(self):
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def raw(redis_url: str) -> "AsyncIterator[redis.asyncio.Redis]":
    async with redis.asyncio.Redis.from_url(redis_url) as made:
        yield made


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    made = RedisStore(RedisOptions(redis_url))
    yield made
    await made.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as made:
        yield made


async def test_every_way_to_change_a_key_is_told(store: RedisStore, raw: "redis.asyncio.Redis") -> None:
    watcher = Watcher()
    await store.watch([b"hr:{plane:", b"hr:{route:"], watcher)
    expected = []
    for key, change in [
        (b"hr:{plane:1}", raw.set("hr:{plane:1}", 1)),
        (b"hr:{route:1}", raw.set("hr:{route:1}", 1, px=40)),
        (b"hr:{plane:1}", raw.delete("hr:{plane:1}")),
        (b"hr:{plane:2}", store.write([b"hr:{plane:2}", b"other"], [b"x", b"y"], event_ms_max=1)),
        (b"hr:{plane:2}", raw.rename("hr:{plane:2}", "elsewhere")),
        (b"hr:{plane:3}", raw.copy("elsewhere", "hr:{plane:3}")),
        (b"hr:{plane:3}", raw.pexpire("hr:{plane:3}", 10)),
    ]:
        await change
        expected.append(key)
        await watcher.until(lambda watcher: watcher.keys[: len(expected)] == expected)
    # And two that expire by themselves, in whatever order.
    await watcher.until_keys(len(expected) + 2)
    assert sorted(watcher.keys[len(expected) :]) == [b"hr:{plane:3}", b"hr:{route:1}"]
    assert watcher.states == []


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
async def test_emptying_is_told(store: RedisStore, raw: "redis.asyncio.Redis", command: str) -> None:
    watcher = Watcher()
    await store.watch([b"hr:"], watcher)
    await raw.set("hr:a", 1)
    await raw.execute_command(command)
    await watcher.until(lambda watcher: AllChanged() in watcher.changes)
    await raw.set("hr:b", 1)
    await watcher.until(lambda watcher: b"hr:b" in watcher.keys)
    assert WatchLost not in watcher.states


async def test_a_flood_comes_in_batches(store: RedisStore) -> None:
    watcher = Watcher()
    await store.watch([b"hr:"], watcher)
    keys = [b"hr:{plane:N%05d}:stats:1" % i for i in range(20_000)]
    assert await store.write(keys, [b"x" * 200] * len(keys), event_ms_max=1) == len(keys)
    await watcher.until(lambda watcher: len(watcher.keys) >= len(keys))
    assert sorted(watcher.keys) == keys
    assert len(watcher.changes) < len(keys) / 10
    assert watcher.states == []


async def test_prefixes_that_overlap(store: RedisStore, raw: "redis.asyncio.Redis") -> None:
    watcher = Watcher()
    await store.watch([b"hr:{a:1", b"hr:{a", b"hr:{a", b"hr:{ab", b"x"], watcher)
    for key in ("hr:{a:1}", "hr:{ab}", "y", "x"):
        await raw.set(key, 1)
    await watcher.until(lambda watcher: b"x" in watcher.keys)
    assert watcher.keys == [b"hr:{a:1}", b"hr:{ab}", b"x"]


async def test_nothing_is_told_after_close(redis_url: str, raw: "redis.asyncio.Redis") -> None:
    watcher = Watcher()
    store = RedisStore(RedisOptions(redis_url))
    await store.watch([b""], watcher)
    with pytest.raises(RuntimeError, match="once"):
        await store.watch([b""], watcher)
    await raw.set("a", 1)
    await watcher.until(lambda watcher: watcher.keys == [b"a"])
    await store.close()
    await raw.set("b", 1)
    await asyncio.sleep(0.05)
    assert watcher.changes == [KeysChanged([b"a"])]
    assert all("B" not in client["flags"] for client in await raw.client_list())


# ── Servers that cannot, or may not ──────────────────────────────────────────────────────────────────────────────────


async def test_a_user_who_may_not_is_told_what_to_do(raw: "redis.asyncio.Redis", redis_url: str) -> None:
    await raw.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+mget", "+ping")
    try:
        options = RedisOptions(redis_url, username="reader", password="pw")
        store = RedisStore(options)
        with pytest.raises(WatchUnsupported, match=r"user reader with the permissions \+ping and \+client\|tracking"):
            await store.watch([b"hr:"], Watcher())
        # Reading goes on without.
        assert await store.read([b"hr:a"]) == [None]
        await store.close()

        await raw.execute_command("ACL", "SETUSER", "reader", "+client|tracking")
        store, watcher = RedisStore(options), Watcher()
        await store.watch([b"hr:"], watcher)
        await raw.set("hr:a", 1)
        await watcher.until(lambda watcher: watcher.keys == [b"hr:a"])
        await store.close()
    finally:
        await raw.execute_command("ACL", "DELUSER", "reader")


async def test_a_server_without_resp3_is_told_apart() -> None:
    """As Redis 5 would answer, and proxies that know a few commands only."""
    with running_server('rename-command HELLO ""') as server:
        store = RedisStore(RedisOptions(server.url))
        with pytest.raises(WatchUnsupported, match="Redis 6 or later"):
            await store.watch([b"hr:"], Watcher())
        await store.ping()
        await store.close()


async def test_a_password_that_is_wrong_may_be_right_later(server: Server) -> None:
    server.call("CONFIG", "SET", "requirepass", "secret")
    watcher = Watcher()
    store = RedisStore(RedisOptions(server.url, password="wrong"))
    await store.watch([b"hr:"], watcher)
    assert watcher.states == [WatchLost]
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await asyncio.sleep(0)
    with redis.Redis.from_url(f"redis://:secret@{server.address}") as admin:
        admin.config_set("requirepass", "wrong")
    await watcher.until_states(WatchLost, WatchRestored)
    await store.close()


# ── Connections that end ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_that_was_killed_is_made_again(store: RedisStore, raw: "redis.asyncio.Redis") -> None:
    watcher = Watcher()
    await store.watch([b"hr:"], watcher)
    for times in range(1, 4):
        for client in await raw.client_list():
            if "B" in client["flags"]:
                await raw.client_kill_filter(_id=client["id"])
        await watcher.until_states(*[WatchLost, WatchRestored] * times)
        await raw.set("hr:a", times)
        await watcher.until_keys(times)


async def test_a_server_that_is_not_there_yet(server: Server) -> None:
    server.kill()
    watcher = Watcher()
    store = RedisStore(RedisOptions(server.url))
    await store.watch([b"hr:"], watcher)
    assert watcher.states == [WatchLost]
    await asyncio.sleep(RETRY_S * 1.5)
    server.start()
    await watcher.until_states(WatchLost, WatchRestored)
    server.call("SET", "hr:a", 1)
    await watcher.until(lambda watcher: watcher.keys == [b"hr:a"])
    await store.close()


@pytest.mark.slow
async def test_a_server_that_hangs_is_lost_within_three_seconds(server: Server) -> None:
    watcher = Watcher()
    store = RedisStore(RedisOptions(server.url))
    await store.watch([b"hr:"], watcher)
    server.call("SET", "hr:a", 1)
    # While it answers it is not lost, however little there is to tell.
    await asyncio.sleep(SILENCE_S + 0.5)
    assert watcher.states == []
    server.freeze()
    await watcher.until(lambda watcher: watcher.states == [WatchLost], 3.0)
    server.thaw()
    await watcher.until_states(WatchLost, WatchRestored)
    server.call("SET", "hr:b", 1)
    await watcher.until(lambda watcher: watcher.keys[-1] == b"hr:b")
    await store.close()


@pytest.mark.slow
async def test_news_that_are_held_up_on_the_way_are_loss(redis_url: str, raw: "redis.asyncio.Redis") -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-t-") as folder:
        async with FaultProxy(redis_url, Path(folder)) as proxy:
            watcher = Watcher()
            store = RedisStore(RedisOptions(proxy.url))
            await store.watch([b"hr:"], watcher)
            proxy.hold(b"PING")
            await asyncio.wait_for(proxy.held.wait(), 3.0)
            await raw.set("hr:a", 1)
            await watcher.until(lambda watcher: watcher.states == [WatchLost], 3.0)
            assert watcher.keys == []
            proxy.heal()
            await watcher.until_states(WatchLost, WatchRestored)
            await raw.set("hr:b", 1)
            # The old news went down with the old connection.
            await watcher.until(lambda watcher: watcher.keys == [b"hr:b"])
            # In the middle of what it tells.
            proxy.cut(20)
            await raw.set("hr:c", 1)
            await watcher.until_states(WatchLost, WatchRestored, WatchLost)
            proxy.heal()
            await watcher.until_states(*[WatchLost, WatchRestored] * 2)
            await store.close()


@pytest.mark.slow
async def test_a_server_that_was_restarted_is_watched_again(server: Server) -> None:
    watcher = Watcher()
    tracker = Tracker(RedisOptions(server.url).endpoint(), [b"hr:"], watcher)
    await tracker.start()
    for times in range(1, 3):
        server.kill()
        await watcher.until(lambda watcher: watcher.states[-1:] == [WatchLost], 3.0)
        assert not tracker.on
        await asyncio.sleep(1.2)
        assert watcher.states == [WatchLost, WatchRestored] * (times - 1) + [WatchLost]
        server.start()
        await watcher.until_states(*[WatchLost, WatchRestored] * times)
        assert tracker.on
        server.call("SET", "hr:a", 1)
        await watcher.until_keys(times)
    await tracker.close()


@pytest.mark.slow
async def test_attempts_keep_their_pace(redis_url: str) -> None:
    """A server that ends every connection is not hammered."""
    connections = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    watcher = Watcher()
    url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    store = RedisStore(RedisOptions(url))
    await store.watch([b"hr:"], watcher)
    await asyncio.sleep(4.2 * RETRY_S)
    await store.close()
    listener.close()
    assert 2 <= connections <= 5
    assert watcher.states == [WatchLost]


async def test_a_watcher_that_raises_learns_that_it_missed_something(
    store: RedisStore, raw: "redis.asyncio.Redis"
) -> None:
    watcher = Watcher()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def clumsy(change: Change) -> None:
        watcher(change)
        if watcher.keys == [b"hr:a"] and isinstance(change, KeysChanged):
            raise ZeroDivisionError

    await store.watch([b"hr:"], clumsy)
    await raw.set("hr:a", 1)
    await watcher.until_states(WatchLost, WatchRestored)
    assert [type(error) for error in reported] == [ZeroDivisionError]
    await raw.set("hr:b", 1)
    await watcher.until(lambda watcher: watcher.keys == [b"hr:a", b"hr:b"])
