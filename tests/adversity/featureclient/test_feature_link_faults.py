"""Links and the store on them, while replies stall, are cut, trickle, or are no replies at all."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import uvloop

from featureclient.store import StoreUnavailable
from featureclient.store.link import Endpoint, Link, LinkLost, LinkTimedOut
from featureclient.store.redis import RedisOptions, RedisStore
from tests.faultproxy import FaultProxy
from tests.redisfleet import Server, running_server

LIMIT_S = 0.15
# How much later than its limit an answer may come on a machine that is busy with other tests.
LATE_S = 0.5


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as made:
        yield made


@pytest.fixture
async def store(proxy: FaultProxy) -> AsyncIterator[RedisStore]:
    made = RedisStore(RedisOptions(proxy.url, timeout_s=LIMIT_S, write_timeout_s=LIMIT_S, read_lanes=1))
    yield made
    await made.close()


async def timed_out(*waiting: "asyncio.Future[object]") -> None:
    started = time.monotonic()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, LinkTimedOut)
    assert time.monotonic() - started < LIMIT_S + LATE_S


async def test_a_call_that_takes_too_long_drops_the_link_with_all_on_it(proxy: FaultProxy) -> None:
    told: list[LinkLost] = []
    link = await Link.open(Endpoint.of_url(proxy.url), timeout_s=LIMIT_S, on_lost=told.append)
    assert await link.call("SET", "a", "A") == b"OK"
    proxy.hold(b"GET")
    await timed_out(link.call("GET", "a"), link.pipeline([("PING",), ("PING",)]), link.call("PING"))
    assert link.lost
    assert [type(error) for error in told] == [LinkTimedOut]
    with pytest.raises(LinkTimedOut, match="no answer in time"):
        await link.call("PING")
    proxy.heal()
    await asyncio.sleep(0.02)


async def test_a_link_that_is_used_all_the_time_has_a_limit_for_each_call(proxy: FaultProxy) -> None:
    link = await Link.open(Endpoint.of_url(proxy.url), timeout_s=LIMIT_S)
    give_up_at = time.monotonic() + 2.5 * LIMIT_S
    while time.monotonic() < give_up_at:
        assert await link.call("PING") == b"PONG"
    proxy.hold(b"PING")
    await timed_out(link.call("PING"))


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_was_busy_does_not_blame_the_server(
    redis_url: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The reply waits in the socket while the loop is busy, and takes several passes to be read."""

    async def run() -> None:
        link = await Link.open(Endpoint.of_url(redis_url), timeout_s=LIMIT_S)
        value = bytes(150_000)
        await link.call("SET", "large", value)
        waiting = link.call("GET", "large")
        await asyncio.sleep(0)  # the request goes out
        time.sleep(LIMIT_S + 0.05)  # noqa: ASYNC251  # that is what is tested
        assert await waiting == value
        link.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


@pytest.mark.parametrize("after_bytes", [0, 1, 3, 11, 12])
async def test_a_reply_that_is_cut_ends_all_calls(proxy: FaultProxy, after_bytes: int) -> None:
    link = await Link.open(Endpoint.of_url(proxy.url), timeout_s=5.0)
    await link.call("SET", "a", "A")
    proxy.cut(after_bytes)
    replies = await asyncio.gather(*[link.call("GET", "a") for _ in range(3)], return_exceptions=True)
    good = after_bytes // len(b"$1\r\nA\r\n")
    assert replies[:good] == [b"A"] * good
    assert [type(reply) for reply in replies[good:]] == [LinkLost] * (3 - good)


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\0", b"$notanumber\r\n", b"*1\r\n\r\n"]
)
async def test_garbage_drops_the_link(proxy: FaultProxy, garbage: bytes) -> None:
    link = await Link.open(Endpoint.of_url(proxy.url), timeout_s=LIMIT_S)
    proxy.garble(garbage)
    for error in await asyncio.gather(link.call("PING"), link.call("PING"), return_exceptions=True):
        assert isinstance(error, LinkLost)
    assert link.lost


async def test_a_reply_that_nobody_asked_for_drops_the_link(proxy: FaultProxy) -> None:
    link = await Link.open(Endpoint.of_url(proxy.url), timeout_s=LIMIT_S)
    proxy.garble(b"+PONG\r\n+STRAY\r\n")
    assert await link.call("PING") == b"PONG"
    assert link.lost


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*1\r\n$1\r\nA\r\n",
        b"*3\r\n$1\r\nA\r\n$-1\r\n$-1\r\n",
        b"*2\r\n$1\r\nA\r\n:3\r\n",
        b"*2\r\n$1\r\nA\r\n*0\r\n",
        b"*2\r\n$1\r\nA\r\n-ERR inside\r\n",
        b"$2\r\nAB\r\n",
        b"+OK\r\n",
        b"*-1\r\n",
        b"_\r\n",
        b"%1\r\n$1\r\nA\r\n$1\r\nA\r\n",
    ],
)
async def test_an_answer_of_another_shape_is_no_answer(proxy: FaultProxy, store: RedisStore, garbage: bytes) -> None:
    await store.write([b"a", b"b"], [b"A", b"B"], event_ms_max=1)
    assert await store.read([b"a", b"b"]) == [b"A", b"B"]
    connections = proxy.connections
    proxy.garble(garbage)
    # What is not even the protocol is asked for once more, since it may have been a connection's end.
    if garbage.startswith(b"HTTP"):
        assert await store.read([b"a", b"b"]) == [b"A", b"B"]
    else:
        with pytest.raises(StoreUnavailable, match="wrong shape"):
            await store.read([b"a", b"b"])
    assert await store.read([b"b", b"a"]) == [b"B", b"A"]
    assert proxy.connections == connections + 1


async def test_writes_and_blobs_of_another_shape(proxy: FaultProxy, store: RedisStore) -> None:
    await store.put_blob("x", b"data")
    for garbage, call in [
        (b"*0\r\n", lambda: store.write([b"a"], [b"A"], event_ms_max=1)),
        (b"*0\r\n", lambda: store.delete([b"a"])),
        (b"*0\r\n", lambda: store.put_blob("x", b"data")),
        (b":1\r\n", lambda: store.get_blob("x")),
        (b":1\r\n", store.ping),
    ]:
        proxy.garble(garbage)
        with pytest.raises(StoreUnavailable, match="wrong shape"):
            await call()
    await store.ping()
    assert await store.get_blob("x") == b"data"


async def test_a_link_that_had_worked_is_tried_once_more_for_everybody(proxy: FaultProxy, store: RedisStore) -> None:
    keys = [b"k%d" % i for i in range(20)]
    await store.write(keys, keys, event_ms_max=1)
    await store.read(keys)
    connections = proxy.connections
    proxy.garble(b"not the protocol")
    assert await asyncio.gather(*[store.read([key]) for key in keys]) == [[key] for key in keys]
    # All share the new connection.
    assert proxy.connections == connections + 1


async def test_a_store_that_keeps_being_cut_off_gives_up_after_two_times(proxy: FaultProxy, store: RedisStore) -> None:
    await store.read([b"a"])
    connections = proxy.connections
    proxy.cut(2)
    with pytest.raises(StoreUnavailable):
        await store.read([b"a"])
    assert proxy.connections == connections + 1
    with pytest.raises(StoreUnavailable):
        await store.read([b"a"])
    assert proxy.connections == connections + 2


async def test_a_timeout_is_not_tried_again(proxy: FaultProxy, store: RedisStore) -> None:
    await store.read([b"a"])
    proxy.hold(b"MGET")
    started = time.monotonic()
    errors = await asyncio.gather(*[store.read([b"a"]) for _ in range(50)], return_exceptions=True)
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert time.monotonic() - started < LIMIT_S + LATE_S
    assert proxy.connections == 1
    proxy.heal()
    assert await store.read([b"a"]) == [None]


async def test_a_trickle_ends_in_time_and_the_next_read_is_right(proxy: FaultProxy, store: RedisStore) -> None:
    await store.write([b"a", b"b"], [b"A" * 50, b"B" * 50], event_ms_max=1)
    proxy.trickle(0.01)
    with pytest.raises(StoreUnavailable, match="no answer in time"):
        await asyncio.wait_for(store.read([b"a"]), LIMIT_S + LATE_S)
    proxy.heal()
    assert await store.read([b"b"]) == [b"B" * 50]


async def test_callers_who_leave_cost_nobody_the_connection(proxy: FaultProxy, store: RedisStore) -> None:
    proxy.hold(b"MGET")
    first = asyncio.create_task(store.read([b"a"]))
    other = asyncio.create_task(store.read([b"b"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()  # while the connection is being made, for both
    await asyncio.wait_for(proxy.held.wait(), 5)
    proxy.heal()
    assert await other == [None]
    assert first.cancelled()
    assert proxy.connections == 1


async def test_closing_while_a_connection_is_made(proxy: FaultProxy) -> None:
    store = RedisStore(RedisOptions(proxy.url))
    reads = [asyncio.create_task(store.read([b"a"])) for _ in range(3)]
    await asyncio.sleep(0)
    await store.close()
    for error in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(error, StoreUnavailable)
        assert "closed" in str(error)
    await asyncio.sleep(0.02)


async def test_a_server_on_tcp_that_dies_hangs_and_comes_back(server: Server) -> None:
    store = RedisStore(RedisOptions(server.url, timeout_s=LIMIT_S, connect_timeout_s=LIMIT_S, write_timeout_s=LIMIT_S))
    await store.write([b"a"], [b"A"], event_ms_max=1)
    assert await store.read([b"a"]) == [b"A"]

    server.freeze()
    started = time.monotonic()
    errors = await asyncio.gather(*[store.read([b"a"]) for _ in range(20)], return_exceptions=True)
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert time.monotonic() - started < LIMIT_S + LATE_S
    server.thaw()
    assert await store.read([b"a"]) == [b"A"]

    server.kill()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await store.read([b"a"])
    server.start()
    server.wait_until(lambda one: bool(one.call("PING")))
    # It is another server now, and empty: nothing of the old one is told.
    assert await store.read([b"a"]) == [None]
    await store.close()


async def test_a_server_that_loads_its_data_is_not_there_yet(proxy: FaultProxy, store: RedisStore) -> None:
    await store.ping()
    for answer in (b"-LOADING Redis is loading the dataset in memory\r\n", b"-ERR max number of clients reached\r\n"):
        proxy.garble(answer)
        with pytest.raises(StoreUnavailable):
            await store.read([b"a"])
    assert await store.read([b"a"]) == [None]


async def test_reads_at_once_have_a_connection_each(proxy: FaultProxy) -> None:
    store = RedisStore(RedisOptions(proxy.url, read_lanes=2))
    for _ in range(3):
        await asyncio.gather(*[store.read([b"a"]) for _ in range(2)])
        assert proxy.connections == 2
    await store.close()
