"""What is written by anybody is what a warm client reads, whatever happens to the server or to its news."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import redis

from featureclient.cache import CacheOptions
from featureclient.client import ClientOptions, FeatureClient
from featureclient.events import Changed, Event, StoreRead, Watched
from featureclient.schema import Catalogue, Id, status
from featureclient.store.redis import RedisOptions, RedisStore
from tests import waiting
from tests.conftest import RedisServer
from tests.faultproxy import FaultProxy

CATALOGUE = Catalogue.parse("""
entities: {e: {k: string}, pair: {s: string, i: int64}, n: {n: int64}}
views:
  v@1: {entity: e, columns: {a: {dtype: int64, default: -1}}}
  w@1: {entity: e, columns: {a: {dtype: int64, default: -1}}}
  p@1: {entity: pair, columns: {a: {dtype: int64, default: -1}}}
  n@1: {entity: n, columns: {a: {dtype: int64, default: -1}}}
""")
# Only news from the server can make a cached row new within such a test.
LONG = ClientOptions(cache=CacheOptions(expire_s=600.0, absent_expire_s=600.0), read_timeout_s=5.0)
SOON_S = 10.0
soon = partial(waiting.soon, wait_s=SOON_S)


@asynccontextmanager
async def opened(url: str, options: ClientOptions = LONG) -> AsyncIterator[tuple[FeatureClient, list[Event]]]:
    """A client whose watch has begun."""
    events: list[Event] = []
    async with FeatureClient(CATALOGUE, RedisStore(RedisOptions(url)), options, on_event=events.append) as client:
        if options.watch:
            await soon(lambda: client.watched)
        yield client, events


async def value(client: FeatureClient, one: Id = "x", view: str = "v@1") -> int:
    return int((await client.read(view, [one])).columns["a"][0])


async def soon_reads(client: FeatureClient, expected: int, one: Id = "x", view: str = "v@1") -> None:
    give_up_at = time.monotonic() + SOON_S
    while (found := await value(client, one, view)) != expected:
        assert time.monotonic() < give_up_at, f"still {found}"
        await asyncio.sleep(0.002)


def changed(events: list[Event]) -> int:
    return sum(event.rows for event in events if isinstance(event, Changed))


async def test_a_row_that_another_wrote_is_seen_and_nothing_else_is_read_again(redis_url: str) -> None:
    async with opened(redis_url) as (reader, events), opened(redis_url) as (writer, _):
        await writer.write("v@1", {"k": ["x", "y"], "a": [1, 2]})
        assert await value(reader) == 1
        assert await value(reader, "y") == 2
        assert await value(reader, "x", "w@1") == -1
        reads = len([event for event in events if isinstance(event, StoreRead)])
        await writer.write("v@1", {"k": ["x"], "a": [3]})
        await soon_reads(reader, 3)
        assert await value(reader, "y") == 2
        assert await value(reader, "x", "w@1") == -1
        assert len([event for event in events if isinstance(event, StoreRead)]) == reads + 1


@pytest.mark.parametrize(
    ("view", "one", "keys"),
    [
        ("v@1", "a:b|c%{é}\n", {"k": ["a:b|c%{é}\n"]}),
        ("p@1", ("a|:%41", -7), {"s": ["a|:%41"], "i": [-7]}),
        ("n@1", -(2**63), {"n": [-(2**63)]}),
    ],
)
async def test_whatever_the_id_looks_like(redis_url: str, view: str, one: Id, keys: dict[str, Any]) -> None:
    async with opened(redis_url) as (reader, _), opened(redis_url) as (writer, _):
        for number in (1, 2):
            await writer.write(view, {**keys, "a": [number]})
            await soon_reads(reader, number, one, view)


async def test_a_row_that_appears_is_seen_although_its_absence_was_cached(redis_url: str) -> None:
    async with opened(redis_url) as (reader, _), opened(redis_url) as (writer, _):
        assert await value(reader) == -1
        await writer.write("v@1", {"k": ["x"], "a": [1]})
        await soon_reads(reader, 1)


async def test_rows_that_go_are_seen_to_be_gone(redis_url: str, redis_server: RedisServer) -> None:
    async with opened(redis_url) as (reader, _), opened(redis_url) as (writer, _):
        await writer.write("v@1", {"k": ["x", "y", "z"], "a": [1, 1, 1]})
        for one in "xyz":
            assert await value(reader, one) == 1
        await writer.delete("v@1", ["x"])
        await soon_reads(reader, -1, "x")
        with redis.Redis(unix_socket_path=redis_server.socket) as connection:
            connection.pexpire("hr:{e:y}:v:1", 1)
            await soon_reads(reader, -1, "y")
            assert await value(reader, "z") == 1
            connection.flushall()
        await soon_reads(reader, -1, "z")


async def test_a_value_that_was_read_before_a_write_and_arrives_after_its_news_is_not_kept(
    redis_url: str, proxy: FaultProxy
) -> None:
    async with (
        opened(proxy.url) as (reader, events),
        opened(redis_url) as (
            writer,
            _,
        ),
    ):
        await writer.write("v@1", {"k": ["x"], "a": [1]})
        await soon(lambda: changed(events) == 0)
        proxy.hold(b"MGET")
        reading = asyncio.create_task(value(reader))
        await proxy.held.wait()
        # The reply of the read, which has the old row, is on its way; the write and its news overtake it.
        await writer.write("v@1", {"k": ["x"], "a": [2]})
        await soon(lambda: changed(events) >= 1)
        later = asyncio.create_task(value(reader))
        await asyncio.sleep(0.01)
        proxy.heal()
        assert await reading == 1
        assert await later == 2
        assert await value(reader) == 2


async def test_an_absence_that_was_read_before_a_write_is_not_kept_either(redis_url: str, proxy: FaultProxy) -> None:
    async with (
        opened(proxy.url) as (reader, events),
        opened(redis_url) as (
            writer,
            _,
        ),
    ):
        proxy.hold(b"MGET")
        reading = asyncio.create_task(value(reader))
        await proxy.held.wait()
        await writer.write("v@1", {"k": ["x"], "a": [2]})
        await soon(lambda: changed(events) >= 1)
        proxy.heal()
        assert await reading == -1
        assert await value(reader) == 2


async def test_what_changed_while_nobody_told_is_seen_when_somebody_tells_again(
    redis_url: str, redis_server: RedisServer
) -> None:
    async with opened(redis_url) as (reader, events), opened(redis_url) as (writer, _):
        await writer.write("v@1", {"k": ["x"], "a": [1]})
        await soon_reads(reader, 1)
        with redis.Redis(unix_socket_path=redis_server.socket) as connection:
            # Once the connection is gone, and before it is back, in one go.
            pipe = connection.pipeline(transaction=True)
            pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            for info in connection.client_list():
                if "t" in info["flags"]:
                    pipe.execute_command("CLIENT", "KILL", "ID", info["id"])
            pipe.execute(raise_on_error=False)
        await writer.write("v@1", {"k": ["x"], "a": [2]})
        await soon_reads(reader, 2)
        await soon(lambda: [event.on for event in events if isinstance(event, Watched)] == [True, False, True])
        await writer.write("v@1", {"k": ["x"], "a": [3]})
        await soon_reads(reader, 3)


async def test_a_bulk_load_is_seen_whole(redis_url: str) -> None:
    rows = 20_000
    names = [f"e{i}" for i in range(rows)]
    async with opened(redis_url) as (reader, events), opened(redis_url) as (writer, _):
        assert await value(reader, names[0]) == -1
        await writer.write("v@1", {"k": names, "a": [1] * rows})
        await soon(lambda: changed(events) == rows)
        assert (await reader.read("v@1", names, timeout_s=SOON_S)).columns["a"].tolist() == [1] * rows
        await writer.write("v@1", {"k": names, "a": [2] * rows})
        await soon(lambda: changed(events) == 2 * rows)
        assert (await reader.read("v@1", names, timeout_s=SOON_S)).columns["a"].tolist() == [2] * rows


async def test_contended_writes_end_with_the_last_value_for_everybody(redis_url: str) -> None:
    names = [f"c{i}" for i in range(20)]
    async with opened(redis_url) as (reader, _), opened(redis_url) as (writer, _):
        writing = True

        async def read_on() -> None:
            while writing:
                await reader.read("v@1", names)
                await asyncio.sleep(0)  # what is cached is read without a turn of the loop

        readers = [asyncio.create_task(read_on()) for _ in range(3)]
        for number in range(150):
            await writer.write("v@1", {"k": names, "a": [number] * len(names)})
        writing = False
        await asyncio.gather(*readers)
        for name in names:
            await soon_reads(reader, 149, name)


async def test_without_a_watch_ages_decide(redis_url: str) -> None:
    options = ClientOptions(cache=CacheOptions(expire_s=0.2), read_timeout_s=5.0, watch=False)
    async with opened(redis_url, options) as (reader, events), opened(redis_url) as (writer, _):
        await writer.write("v@1", {"k": ["x"], "a": [1]})
        assert await value(reader) == 1
        await writer.write("v@1", {"k": ["x"], "a": [2]})
        assert await value(reader) == 1
        await soon_reads(reader, 2)
        assert not any(isinstance(event, Watched | Changed) for event in events)


async def test_a_user_who_may_not_watch_reads_all_the_same_and_is_told_what_to_do(
    redis_url: str, redis_server: RedisServer
) -> None:
    with redis.Redis(unix_socket_path=redis_server.socket) as connection:
        connection.acl_setuser(
            "reader", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-client", "-hello"]
        )
        try:
            events: list[Event] = []
            store = RedisStore(RedisOptions(redis_url, username="reader", password="secret"))
            async with FeatureClient(CATALOGUE, store, LONG, on_event=events.append) as client:
                await soon(lambda: any(isinstance(event, Watched) for event in events))
                (told,) = [event for event in events if isinstance(event, Watched)]
                assert not told.on
                assert "+client|tracking" in told.why
                assert (await client.read("v@1", ["x"])).status.tolist() == [status.DEFAULTED | status.ABSENT]
        finally:
            connection.acl_deluser("reader")


async def test_a_row_past_its_soft_age_is_served_and_read_again_behind(redis_url: str) -> None:
    options = ClientOptions(cache=CacheOptions(soft_age_s=0.1, expire_s=600.0), read_timeout_s=5.0, watch=False)
    async with opened(redis_url, options) as (reader, events), opened(redis_url) as (writer, _):
        await writer.write("v@1", {"k": ["x"], "a": [1]})
        assert await value(reader) == 1
        await writer.write("v@1", {"k": ["x"], "a": [2]})
        await asyncio.sleep(0.15)
        reads = len([event for event in events if isinstance(event, StoreRead)])
        now = time.monotonic()
        assert None not in reader.lookup(CATALOGUE.view("v@1"), ["x"], now)  # at once, the old row
        await soon(lambda: len([event for event in events if isinstance(event, StoreRead)]) == reads + 1)
        assert await value(reader) == 2
