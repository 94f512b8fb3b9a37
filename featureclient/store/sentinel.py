"""Rows in a primary that Sentinels know, and in its replicas.

    Sentinels ─▶ who is the primary ─▶ ROLE: does it say so itself ─▶ ReplicatedStore

All Sentinels are asked at once. Where they differ, the one with the latest configuration epoch is right, and an epoch
that was told once is remembered: a Sentinel that comes back alone with an older one is not believed. They are asked
when the store is first used, every `check_s`, and at once when a command failed or was answered by READONLY, which a
primary that was degraded says. So a failover takes what the Sentinels need for it, and a moment, and no restart.

Invariants
- A server is written to only after it has said that it is a primary.
- Nobody goes back to the primary of an older epoch, whose failover has left the writes since then elsewhere; except
  when epochs have begun anew (SENTINEL REMOVE and MONITOR), see EPOCH_DOWN_S.
- Sentinels that are gone cost nothing as long as the primary is there: the last answer counts.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from featureclient.store.lane import Lane
from featureclient.store.link import Command, Endpoint, Link, LinkError, ReplyError
from featureclient.store.protocol import Change, StoreError, StoreRefused, StoreUnavailable
from featureclient.store.redis import RedisOptions
from featureclient.store.replicas import ReadOptions
from featureclient.store.replicated import ReplicatedStore
from featureclient.store.slots import Place

Result = TypeVar("Result")

AGAIN_S: Final = 0.1
"""Between two rounds of asking the Sentinels, however many commands fail."""


@dataclass(frozen=True, slots=True)
class SentinelOptions:
    """Who knows the primary, and how to use it."""

    sentinels: tuple[Place, ...]
    """Host and port of the Sentinels."""
    primary: str
    """What they call it."""
    server: RedisOptions
    """How to reach and use the primary and its replicas; host and port of the url are replaced."""
    sentinel: Endpoint = field(default_factory=Endpoint)
    """The login and the TLS of every Sentinel; host and port are replaced."""
    reads: ReadOptions = field(default_factory=ReadOptions)
    """Whether replicas are read, and reads hedged."""
    check_s: float = 1.0
    """Between two questions who is the primary."""

    def __post_init__(self) -> None:
        if not self.sentinels:
            raise ValueError("sentinels: there has to be at least one")
        if not self.primary:
            raise ValueError("primary: what the Sentinels call it")
        if self.check_s <= 0:
            raise ValueError("check_s must be above 0")


EPOCH_DOWN_S: Final = 5.0
"""How long all Sentinels that answer, and these are most of them, have to name one primary with a lower epoch than was
told before, until epochs are taken to have begun anew. Sentinels that are there hear of each other in two seconds."""


class _Told(NamedTuple):
    """What a Sentinel says; the latest epoch is right."""

    epoch: int
    primary: Place
    replicas: tuple[Place, ...]


class SentinelStore:
    """An `OnlineStore` on whichever server is the primary. Connects when it is first used."""

    def __init__(self, options: SentinelOptions) -> None:
        self._options = options
        timeout_s = options.sentinel.connect_timeout_s
        self._sentinels = [Lane(options.sentinel.at(*place), timeout_s) for place in options.sentinels]
        self._servers: ReplicatedStore | None = None
        self._epoch = 0
        self._lower: tuple[Place, float] | None = None
        self._finding: asyncio.Task[ReplicatedStore] | None = None
        self._following: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<SentinelStore {self._options.primary} {self._servers}>"

    async def ping(self) -> None:
        """Return when the primary answers."""
        await self._use(lambda servers: servers.ping())

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """A read of the primary, or of a replica."""
        return await self._use(lambda servers: servers.read(keys))

    async def read_primary(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """A read of the primary."""
        return await self._use(lambda servers: servers.read_primary(keys))

    async def query(self, commands: Sequence[Command]) -> list[Any]:
        """Replies of commands that change nothing, of the primary. ReplyErrors are among them."""
        return await self._use(lambda servers: servers.query(commands))

    async def write(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        *,
        ttl_ms: int | None = None,
        force: bool = False,
        only_absent: bool = False,
        event_ms_max: int,
    ) -> int:
        """A write to the primary; made again when that has just been degraded."""
        return await self._use(
            lambda servers: servers.write(
                keys, values, ttl_ms=ttl_ms, force=force, only_absent=only_absent, event_ms_max=event_ms_max
            )
        )

    async def delete(self, keys: Sequence[bytes]) -> int:
        """A deletion at the primary."""
        return await self._use(lambda servers: servers.delete(keys))

    async def scan(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """Pages of the keys of the primary that match a glob pattern. A failover in between ends it with an error."""
        servers = await self._found()
        async for page in servers.scan(pattern):
            yield page

    async def get_blob(self, name: str) -> bytes | None:
        """A blob of the primary."""
        return await self._use(lambda servers: servers.get_blob(name))

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """Set a blob at the primary."""
        await self._use(lambda servers: servers.put_blob(name, data, ttl_ms))

    async def watch(self, prefixes: Sequence[bytes], on_change: Callable[[Change], None]) -> None:
        """One tracking connection to the primary, and to the replicas that are read; others after a failover."""
        servers = await self._found()
        await servers.watch(prefixes, on_change)

    async def close(self) -> None:
        """Drop the connections."""
        self._closed = True
        tasks = [task for task in (self._finding, self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._sentinels:
            await lane.close()
        if self._servers is not None:
            await self._servers.close()

    # ── Who is the primary ──────────────────────────────────────────────────────────────────────────────────────────

    async def _use(self, use: Callable[[ReplicatedStore], Awaitable[Result]]) -> Result:
        servers = await self._found()
        try:
            return await use(servers)
        except StoreUnavailable:
            self._wake.set()
            raise
        except StoreRefused as error:
            if not str(error).startswith("READONLY"):
                raise
            degraded = servers.primary
        try:
            await self._find()
        except StoreError as error:
            raise StoreUnavailable(f"{degraded[0]}:{degraded[1]} is no primary any more: {error}") from error
        if servers.primary == degraded:
            raise StoreUnavailable(
                f"{degraded[0]}:{degraded[1]} is no primary any more, and the Sentinels know no other"
            )
        return await use(servers)

    async def _found(self) -> ReplicatedStore:
        return self._servers if self._servers is not None else await self._find()

    async def _find(self) -> ReplicatedStore:
        """Ask now. Whoever asks meanwhile shares it, and one who leaves cancels it for nobody."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._finding is None:
            self._finding = asyncio.get_running_loop().create_task(self._ask_and_adopt())
            self._finding.add_done_callback(self._asked)
        try:
            return await asyncio.shield(self._finding)
        except asyncio.CancelledError:
            if self._closed:
                raise StoreUnavailable("the store is closed") from None
            raise

    def _asked(self, task: "asyncio.Task[ReplicatedStore]") -> None:
        self._finding = None
        if not task.cancelled():
            # Asked for, so that nobody is told of an error that nobody waits for.
            task.exception()

    async def _follow(self) -> None:
        """Ask every `check_s`, and when something has failed."""
        while True:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.check_s):
                    await self._wake.wait()
            # Where nobody answers, the last answer counts; they are asked again in a moment.
            with contextlib.suppress(StoreError):
                await self._find()
            await asyncio.sleep(AGAIN_S)

    async def _ask_and_adopt(self) -> ReplicatedStore:
        told = await self._ask()
        servers = self._servers
        if told is None:
            assert servers is not None
            return servers
        primary = self._server(told.primary)
        replicas = [self._server(place) for place in told.replicas]
        if servers is None:
            servers = self._servers = ReplicatedStore(primary, replicas, self._options.reads)
            self._following = asyncio.get_running_loop().create_task(self._follow())
        elif servers.places != (told.primary, *told.replicas):
            await servers.follow(primary, replicas)
        return servers

    async def _ask(self) -> _Told | None:
        """The answer of the Sentinels; None when all they tell is older than what is known.

        Raises StoreUnavailable, and StoreRefused when they do not know the name.
        """
        answers = await asyncio.gather(*[self._ask_one(lane) for lane in self._sentinels])
        answered = [one for one in answers if isinstance(one, _Told)]
        told = self._latest(answered)
        if answered and not told:
            if self._servers is not None:
                return None
            raise StoreUnavailable("the Sentinels that answer know an older primary only; the others have to be asked")
        why: Exception | None = next((one for one in answers if isinstance(one, StoreError)), None)
        current = self._servers.primary if self._servers is not None else None
        for one in told:
            if one.primary == current:
                return one
            try:
                if await self._is_primary(one.primary):
                    return one
                why = StoreUnavailable(f"{one.primary[0]}:{one.primary[1]} says that it is no primary")
            except LinkError as error:
                why = StoreUnavailable(str(error))
        if isinstance(why, StoreError):
            raise why
        raise StoreUnavailable("no Sentinel answers")

    def _latest(self, answered: Sequence[_Told]) -> list[_Told]:
        """What is told with the highest epoch that was ever told."""
        now = asyncio.get_running_loop().time()
        highest = max((one.epoch for one in answered), default=self._epoch)
        primaries = {one.primary for one in answered}
        if highest >= self._epoch or len(primaries) != 1 or 2 * len(answered) <= len(self._sentinels):
            self._lower = None
        elif self._lower is None or self._lower[0] not in primaries:
            self._lower = (answered[0].primary, now)
        elif now - self._lower[1] >= EPOCH_DOWN_S:
            self._lower, self._epoch = None, highest
        self._epoch = max(self._epoch, highest)
        return [one for one in answered if one.epoch == self._epoch]

    async def _ask_one(self, lane: Lane) -> _Told | StoreError:
        name = self._options.primary
        replicas = self._options.reads.read_from != "primary"
        commands: list[tuple[str, ...]] = [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name), ("SENTINEL", "MASTER", name)]
        if replicas:
            commands.append(("SENTINEL", "REPLICAS", name))
        try:
            address, about, *others = await lane.pipeline(commands)
        except StoreError as error:
            return error
        if address is None or (isinstance(about, ReplyError) and "No such master" in str(about)):
            return StoreRefused(f"the Sentinel {lane.endpoint} knows no primary called {name!r}")
        for reply in (address, about, *others):
            if isinstance(reply, ReplyError):
                return StoreRefused(f"the Sentinel {lane.endpoint}: {reply}")
        try:
            epoch = int(_fields(about).get(b"config-epoch", 0))
            primary = (address[0].decode(), int(address[1]))
            places = (
                tuple(sorted(place for one in others[0] if (place := _replica(one)) not in {None, primary}))
                if others
                else ()
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return StoreUnavailable(f"{lane.endpoint} answers as no Sentinel does")
        return _Told(epoch, primary, places)

    async def _is_primary(self, place: Place) -> bool:
        endpoint = self._server(place).endpoint()
        link = await Link.open(endpoint, timeout_s=self._options.server.timeout_s)
        try:
            role = await link.call("ROLE")
        finally:
            link.close()
        return isinstance(role, list) and role[:1] == [b"master"]

    def _server(self, place: Place) -> RedisOptions:
        return at(self._options.server, place)


def at(options: RedisOptions, place: Place) -> RedisOptions:
    """The same options for another server."""
    parts = urlsplit(options.url)
    login, sign, _ = parts.netloc.rpartition("@")
    host, port = place
    netloc = f"{login}{sign}[{host}]:{port}" if ":" in host else f"{login}{sign}{host}:{port}"
    return replace(options, url=urlunsplit(parts._replace(netloc=netloc)))


def _fields(reply: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _replica(reply: Sequence[Any]) -> Place | None:
    """Where a replica is, when the Sentinel can see it and it follows the primary."""
    about = _fields(reply)
    flags = set(about[b"flags"].split(b","))
    if flags & {b"s_down", b"o_down", b"disconnected"} or about.get(b"master-link-status") != b"ok":
        return None
    return about[b"ip"].decode(), int(about[b"port"])
