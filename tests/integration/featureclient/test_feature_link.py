"""The link on a real Redis: over a Unix socket, TCP and TLS, with users, databases, errors and pushes."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from featureclient.store import StoreRefused, StoreUnavailable
from featureclient.store import link as links
from featureclient.store.link import Endpoint, Link, LinkFull, LinkLost, ReplyError
from featureclient.store.redis import RedisOptions, RedisStore


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Link]:
    link = await Link.open(Endpoint.of_url(url, connect_timeout_s=5.0), timeout_s=5.0, **options)
    try:
        yield link
    finally:
        link.close()
        await asyncio.sleep(0)


@pytest.fixture
def admin(redis_url: str) -> "Iterator[redis.Redis]":
    with redis.Redis.from_url(redis_url) as made:
        yield made


@pytest.fixture
def user(admin: "redis.Redis") -> Iterator[str]:
    """A user that may do a few things only; its password needs escaping in a url."""
    admin.execute_command("ACL", "SETUSER", "reader", "on", ">p@ss/wörd", "~*", "+mget", "+ping", "+select", "+client")
    yield "reader"
    admin.execute_command("ACL", "DELUSER", "reader")


async def test_replies_come_to_their_calls(redis_url: str) -> None:
    async with opened(redis_url) as link:
        await link.pipeline([("SET", f"k{i}", i) for i in range(500)])
        values = await asyncio.gather(*[link.call("GET", f"k{i}") for i in range(500)])
        assert values == [b"%d" % i for i in range(500)]
        assert await link.pipeline([]) == []
        assert len(link) == 0


async def test_the_calls_of_a_turn_leave_in_one_write(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(redis_url) as link:
        written: list[bytes] = []
        transport = link._transport

        class Spy:
            def write(self, data: bytes) -> None:
                written.append(data)
                transport.write(data)

        monkeypatch.setattr(link, "_transport", Spy())
        await asyncio.gather(*[link.call("PING") for _ in range(3)], link.pipeline([("PING",), ("PING",)]))
        monkeypatch.setattr(link, "_transport", transport)
        assert written == [b"*1\r\n$4\r\nPING\r\n" * 5]


async def test_errors_are_of_their_own_call(redis_url: str) -> None:
    async with opened(redis_url) as link:
        before, wrong, after = link.call("SET", "k", "v"), link.call("LPUSH", "k", "x"), link.call("GET", "k")
        batch = link.pipeline([("GET", "k"), ("INCR", "k"), ("GET", "k")])
        assert await before == b"OK"
        with pytest.raises(ReplyError, match="WRONGTYPE") as raised:
            await wrong
        assert raised.value.kind == "WRONGTYPE"
        assert await after == b"v"
        first, error, last = await batch
        assert (first, last) == (b"v", b"v")
        assert isinstance(error, ReplyError)
        assert not link.lost


async def test_a_cancelled_call_keeps_its_place(redis_url: str) -> None:
    async with opened(redis_url) as link:
        await link.pipeline([("SET", "a", "A"), ("SET", "b", "B")])
        for cancelled in (link.call("GET", "a"), link.pipeline([("GET", "a"), ("FOO",)])):
            later = link.call("GET", "b")
            cancelled.cancel()
            assert await later == b"B"


async def test_a_reply_of_many_megabytes(redis_url: str) -> None:
    value = bytes(range(256)) * 40_000
    async with opened(redis_url) as link:
        await link.call("SET", "large", value)
        assert await link.pipeline([("GET", "large"), ("PING",), ("GET", "large")]) == [value, b"PONG", value]


async def test_resp3_pushes_that_arrive_together_come_together(redis_url: str) -> None:
    pushed: list[list[Any]] = []
    async with opened(redis_url, resp3=True, on_push=pushed.append) as link:
        await link.call("CLIENT", "TRACKING", "ON", "BCAST")
        await link.pipeline([("SET", "a", "1"), ("SET", "b", "2"), ("HGETALL", "none"), ("GET", "a")])
        # A boolean is a reply like any other.
        assert await link.call("EVAL", "redis.setresp(3) return {map={a=false}}", 0) in ({b"a": False}, {b"a": None})
        await link.call("PING")
    assert sorted(key for pushes in pushed for push in pushes for key in push[1]) == [b"a", b"b"]


async def test_calls_that_wait_are_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "CALLS_MAX", 3)
    async with opened(redis_url) as link:
        waiting = [link.call("PING") for _ in range(3)]
        for refused in (link.call("PING"), link.pipeline([("PING",)])):
            with pytest.raises(LinkFull, match="3 calls wait"):
                await refused
        assert await asyncio.gather(*waiting) == [b"PONG"] * 3
        assert await link.call("PING") == b"PONG"


async def test_a_closed_link_answers_everybody(redis_url: str) -> None:
    told: list[LinkLost] = []
    link = await Link.open(Endpoint.of_url(redis_url), on_lost=told.append)
    waiting = [link.call("PING"), link.pipeline([("PING",)] * 2)]
    link.close()
    link.close()
    for one in (*waiting, link.call("PING"), link.pipeline([])):
        with pytest.raises(LinkLost, match="closed"):
            await one
    assert told == []
    await asyncio.sleep(0)


async def test_the_database_the_name_and_further_commands(redis_url: str, admin: "redis.Redis") -> None:
    admin.set("k", "zero")
    endpoint = Endpoint.of_url(f"{redis_url}?db=3&client_name=headrace")
    for resp3 in (False, True):
        link = await Link.open(endpoint, resp3=resp3)
        assert await link.call("GET", "k") is None
        assert await link.call("CLIENT", "GETNAME") == b"headrace"
        link.close()
    await asyncio.sleep(0)
    with pytest.raises(ReplyError, match="unknown command"):
        await Link.open(Endpoint(path=endpoint.path, commands=(("NO-SUCH",),)))
    with pytest.raises(ReplyError, match="DB index"):
        await Link.open(Endpoint(path=endpoint.path, db=10_000))


@pytest.mark.parametrize("resp3", [False, True])
async def test_a_user_of_the_acl(redis_url: str, user: str, resp3: bool) -> None:
    async with opened(f"{redis_url}?username={user}&password=p%40ss%2Fw%C3%B6rd", resp3=resp3) as link:
        assert await link.call("MGET", "a") == [None]
        with pytest.raises(ReplyError, match="NOPERM"):
            await link.call("SET", "a", 1)
    with pytest.raises(ReplyError, match="WRONGPASS"):
        await Link.open(Endpoint.of_url(redis_url, username=user, password="wrong"), resp3=resp3)


async def test_a_store_as_a_user(redis_url: str, user: str) -> None:
    store = RedisStore(RedisOptions(redis_url, username=user, password="p@ss/wörd"))
    assert await store.read([b"a"]) == [None]
    with pytest.raises(StoreRefused, match="NOPERM"):
        await store.delete([b"a"])
    with pytest.raises(StoreRefused, match="NOPERM"):
        await store.get_blob("a")
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.read([b"a"])
    store = RedisStore(RedisOptions(redis_url, username=user, password="wrong"))
    with pytest.raises(StoreUnavailable, match=r"login was refused: WRONGPASS"):
        await store.ping()
    await store.close()


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that signs, one of a server and one of a client, all the same: self-signed for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], cwd=folder, check=True, capture_output=True)
    return folder


@asynccontextmanager
async def encrypted(redis_url: str, certificates: Path, *, ask_for_one: bool = False) -> AsyncIterator[str]:
    """A TLS front of the server, since not every build of Redis has TLS. Yields the url without its options."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    if ask_for_one:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "cert.pem")
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(redis_url.removeprefix("unix://"))
        for one in (pump(client, to_server), pump(server, to_client)):
            tasks.add(asyncio.create_task(one))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"rediss://127.0.0.1:{listener.sockets[0].getsockname()[1]}/2"
    finally:
        listener.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        await asyncio.sleep(0.01)


async def test_tls(redis_url: str, certificates: Path) -> None:
    async with encrypted(redis_url, certificates) as url:
        async with opened(f"{url}?ssl_ca_certs={certificates}/cert.pem") as link:
            value = bytes(300_000)
            assert await link.pipeline([("SET", "k", value), ("GET", "k")]) == [b"OK", value]
        async with opened(f"{url}?ssl_cert_reqs=none&ssl_check_hostname=false", resp3=True) as link:
            assert await link.call("PING") == b"PONG"
        with pytest.raises(LinkLost, match="certificate verify failed"):
            await Link.open(Endpoint.of_url(url))
        store = RedisStore(RedisOptions(url))
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            await store.ping()
        await store.close()


async def test_tls_with_a_certificate_of_the_client(redis_url: str, certificates: Path) -> None:
    async with encrypted(redis_url, certificates, ask_for_one=True) as url:
        files = f"ssl_certfile={certificates}/cert.pem&ssl_keyfile={certificates}/key.pem"
        async with opened(f"{url}?ssl_ca_certs={certificates}/cert.pem&{files}") as link:
            assert await link.call("PING") == b"PONG"
        with pytest.raises(LinkLost):
            async with opened(f"{url}?ssl_ca_certs={certificates}/cert.pem") as link:
                await link.call("PING")


async def test_tls_to_a_server_that_has_none_ends_in_time(redis_url: str) -> None:
    async with _plain(redis_url) as port:
        endpoint = Endpoint.of_url(f"rediss://127.0.0.1:{port}", connect_timeout_s=0.2)
        async with asyncio.timeout(3):
            with pytest.raises(LinkLost):
                await Link.open(endpoint)


@asynccontextmanager
async def _plain(redis_url: str) -> AsyncIterator[int]:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass
        writer.close()

    listener = await asyncio.start_server(swallow, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await asyncio.sleep(0.01)
