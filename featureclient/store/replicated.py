"""Rows in one primary that writes, and in replicas of it that are read.

    read   Chooser ─▶ a member's MGET (hedged: a second member's, too) ─▶ what a replica has not is asked of the primary
    write  the primary
    watch  every member, so that whatever was read is told of when it changes where it was read

Who the primary is may change while reads are under way (`follow`); a member that stays keeps its connections.

Invariants: StoreUnavailable (PartlyRead) and StoreRefused (WatchUnsupported) are all that leaves this room. A replica
that cannot be asked, or does not follow its primary, costs a read at most its time limit once; it is asked again when
it does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from featureclient.store.lane import Lane
from featureclient.store.link import Command, Endpoint, ReplyError
from featureclient.store.protocol import UNREAD, Change, PartlyRead, StoreError, StoreUnavailable
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.store.replicas import PRIMARY, REPLICA_EVERY_S, Chooser, Hedge, ReadOptions, follows, hedged
from featureclient.store.slots import Place
from featureclient.store.watches import Watches


class _Member:
    """A server. `second` is another way to it, for hedges where there is nobody else to ask."""

    def __init__(self, options: RedisOptions) -> None:
        self.options = options
        self.endpoint = options.endpoint()
        self.place = place_of(self.endpoint)
        self.store = RedisStore(options)
        self.second = RedisStore(options)
        self.role = Lane(self.endpoint, options.timeout_s)
        self.in_sync = False

    def __repr__(self) -> str:
        return f"<member {self.endpoint} in_sync={self.in_sync}>"

    async def close(self) -> None:
        await self.role.close()
        await self.store.close()
        await self.second.close()


class ReplicatedStore:
    """An `OnlineStore` on a primary and its replicas. Connects when it is first used."""

    def __init__(self, primary: RedisOptions, replicas: Sequence[RedisOptions], reads: ReadOptions) -> None:
        self._options = reads
        self._members = [_Member(options) for options in (primary, *replicas)]
        self._chooser = Chooser(reads.read_from, len(self._members))
        self._hedge = Hedge(reads) if reads.hedge else None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._checking: asyncio.Task[None] | None = None
        self._watch: Watches | None = None

    def __repr__(self) -> str:
        return f"<ReplicatedStore {self._members} {self._chooser} hedge={self._hedge} watch={self._watch}>"

    @property
    def primary(self) -> Place:
        """Who is written to."""
        return self._members[PRIMARY].place

    @property
    def places(self) -> tuple[Place, ...]:
        """The primary, then the replicas."""
        return tuple(member.place for member in self._members)

    async def follow(self, primary: RedisOptions, replicas: Sequence[RedisOptions]) -> None:
        """The servers, or their roles, are others now."""
        known = {member.options.url: member for member in self._members}
        members = []
        for options in (primary, *replicas):
            member = known.pop(options.url, None)
            members.append(_Member(options) if member is None else member)
            members[-1].in_sync = False
        self._members = members
        self._chooser = Chooser(self._options.read_from, len(members))
        for member in known.values():
            await member.close()
        if self._watch is not None:
            await self._watch.follow(self._endpoints())

    async def ping(self) -> None:
        """Return when the primary answers."""
        await self._members[PRIMARY].store.ping()

    async def query(self, commands: Sequence[Command]) -> list[Any]:
        """Replies of commands that change nothing, of the primary. ReplyErrors are among them."""
        return await self._members[PRIMARY].store.query(commands)

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """An MGET of the member whose turn it is, and one of the primary for what a replica has not."""
        if self._options.read_from != "primary" and self._checking is None:
            self._checking = asyncio.get_running_loop().create_task(self._check())
        members, chooser = self._members, self._chooser
        first = chooser.pick(_usable(members))
        primary = members[PRIMARY].store
        try:
            if self._hedge is None:
                values = await self._read_member(members, first, keys)
            else:
                values = await self._read_hedged(self._hedge, members, first, keys)
        except StoreError:
            if first == PRIMARY:
                raise
            members[first].in_sync = False
            return await primary.read(keys)
        missing = [i for i, value in enumerate(values) if value is None] if first != PRIMARY else ()
        if missing:
            try:
                asked = await primary.read([keys[i] for i in missing])
            except StoreUnavailable as error:
                if len(missing) == len(keys):
                    raise
                partly = [UNREAD if value is None else value for value in values]
                raise PartlyRead(f"{len(missing)} keys that a replica has not: {error}", partly) from error
            for i, value in zip(missing, asked, strict=True):
                values[i] = value
        return values

    async def read_primary(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """An MGET of the primary."""
        return await self._members[PRIMARY].store.read(keys)

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
        """A write to the primary."""
        store = self._members[PRIMARY].store
        return await store.write(
            keys, values, ttl_ms=ttl_ms, force=force, only_absent=only_absent, event_ms_max=event_ms_max
        )

    async def delete(self, keys: Sequence[bytes]) -> int:
        """A deletion at the primary."""
        return await self._members[PRIMARY].store.delete(keys)

    async def scan(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """Pages of the keys of the primary that match a glob pattern."""
        async for page in self._members[PRIMARY].store.scan(pattern):
            yield page

    async def get_blob(self, name: str) -> bytes | None:
        """A blob of the primary."""
        return await self._members[PRIMARY].store.get_blob(name)

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """Set a blob at the primary."""
        await self._members[PRIMARY].store.put_blob(name, data, ttl_ms)

    async def watch(self, prefixes: Sequence[bytes], on_change: Callable[[Change], None]) -> None:
        """One tracking connection to every member that is read."""
        if self._watch is not None:
            raise RuntimeError("a store is watched once")
        watch = self._watch = Watches(prefixes, on_change)
        try:
            await watch.start(self._endpoints())
        except BaseException:
            self._watch = None
            await watch.close()
            raise

    async def close(self) -> None:
        """Drop the connections."""
        tasks = list(self._tasks)
        if self._checking is not None:
            tasks.append(self._checking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._watch is not None:
            await self._watch.close()
        for member in self._members:
            await member.close()

    def _endpoints(self) -> dict[Place, Endpoint]:
        return {member.place: member.endpoint for member in self._members}

    async def _read_member(
        self, members: Sequence[_Member], which: int, keys: Sequence[bytes], *, again: bool = False
    ) -> list[bytes | None]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        member = members[which]
        values = await (member.second if again else member.store).read(keys)
        if members is self._members:
            self._chooser.took(which, loop.time() - started)
        return values

    async def _read_hedged(
        self, hedge: Hedge, members: Sequence[_Member], first: int, keys: Sequence[bytes]
    ) -> list[bytes | None]:
        chooser = self._chooser

        async def other() -> list[bytes | None]:
            second = chooser.second(first, _usable(members))
            values = await self._read_member(members, second, keys, again=second == first)
            if first == PRIMARY != second and None in values:
                raise StoreUnavailable("that a replica has no row is no answer")
            return values

        return await hedged(hedge, partial(self._read_member, members, first, keys), other, self._tasks)

    async def _check(self) -> None:
        """Ask the replicas, again and again, whether they follow the primary."""
        while True:
            await asyncio.gather(*[_check_role(member) for member in self._members[1:]])
            await asyncio.sleep(REPLICA_EVERY_S)


async def _check_role(member: _Member) -> None:
    try:
        member.in_sync = follows(await member.role.call("ROLE"))
    except (StoreError, ReplyError):
        member.in_sync = False


def _usable(members: Sequence[_Member]) -> list[bool]:
    return [True, *(member.in_sync for member in members[1:])]


def place_of(endpoint: Endpoint) -> Place:
    """Where a server is, in short."""
    return (endpoint.path, 0) if endpoint.path is not None else (endpoint.host, endpoint.port)
