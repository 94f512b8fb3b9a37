"""Rows in a Redis cluster: each key by itself, at the node that has its slot.

    read   keys ─▶ slots ─▶ nodes ─▶ one pipeline of GETs to each, all at once ─▶ values in the order of the keys
    write  the same with runs of the script, one for each key, so that no command ever needs two slots

Commands of one key are never answered by CROSSSLOT or, in the middle of a move, by TRYAGAIN. What else is answered:
MOVED      the slot is another node's: ask there, and read the map of slots again
ASK        the slot is on its way and the key has gone ahead: ask there, after ASKING, this once
a server that is not in service (CLUSTERDOWN, LOADING)    try again a few times, with pauses
Each is bounded: ROUNDS_MAX times, and not after the time limit of a read or a write.

The keys of a node that is down are UNREAD, and the read is a PartlyRead; see `featureclient.store.cluster_map`.

Invariants
- A nil counts only from the primary of the slot, which answers ASK for what it has not while it gives the slot away. So
  a move never makes a row absent.
- StoreUnavailable (and PartlyRead) and StoreRefused (and WatchUnsupported) are all that leaves this room.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from featureclient.store.cluster_map import ClusterMap, ClusterOptions, Node, Shard
from featureclient.store.lane import Lane, store_error
from featureclient.store.link import Argument, Command, ReplyError
from featureclient.store.protocol import UNREAD, Change, PartlyRead, StoreError, StoreUnavailable, Unread
from featureclient.store.redis import BULK, CHANGED, WRITE_SCRIPT, scan_lane
from featureclient.store.replicas import PRIMARY, Hedge, hedged
from featureclient.store.slots import Redirect, slot_of
from featureclient.store.watches import Watches

ROUNDS_MAX: Final = 6
"""How often a command is sent, redirections and pauses together."""

PAUSE_S: Final = 0.005
"""Before a command is sent again that a server was not in service for; twice that before the next time, and so on."""

CALM_ROUNDS: Final = 2
"""After so many, redirections are followed with pauses, too; and reads wait for no server to be in service again, since
the keys of others would wait with them."""

LATER_KINDS: Final = frozenset(("CLUSTERDOWN", "TRYAGAIN", "LOADING", "NOSCRIPT"))
"""Errors of a server that is not in service yet, or from which somebody removed the script a moment ago."""

NO_ANSWER: Final = "a replica's nil is no answer"
"""Why a key is not read whose primary could not be asked in time for what its replica has not."""

WRITE_SHA: Final = hashlib.sha1(WRITE_SCRIPT.encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class _Sending:
    """Commands for one node, by their positions."""

    node: Node
    asking: bool = False
    shard: Shard | None = None
    member: int = PRIMARY
    positions: list[int] = field(default_factory=list)

    @property
    def of_replica(self) -> bool:
        """What comes back may be redirected to the primary."""
        return self.member != PRIMARY


class RedisClusterStore:
    """An `OnlineStore` on a Redis cluster. Connects when it is first used, and again whenever it has to."""

    def __init__(self, options: ClusterOptions) -> None:
        self._options = options
        self._map = ClusterMap(options, self._follow_map)
        self._hedge = Hedge(options.reads) if options.reads.hedge else None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turn = asyncio.Lock()
        self._watch: Watches | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<RedisClusterStore {self._map} watch={self._watch}>"

    # ── The store ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def ping(self) -> None:
        """Return when a node has told which nodes there are."""
        await self._map.refresh()

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Pipelines of GETs, one to each node."""
        replies = await self._run([("GET", key) for key in keys], [slot_of(key) for key in keys], writes=False)
        return replies if BULK.issuperset(map(type, replies)) else _values(replies)

    async def read_primary(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same of the primaries, on the way that writes take."""
        return _values(await self._run([("GET", key) for key in keys], [slot_of(key) for key in keys], writes=True))

    async def query(self, commands: Sequence[Command]) -> list[Any]:
        """Replies of commands that change nothing, each about the one key that is its first argument.

        ReplyErrors are among them. Raises PartlyRead, with UNREAD for those whose node cannot be reached.
        """
        replies = await self._run(commands, [slot_of(_as_bytes(command[1])) for command in commands], writes=False)
        lost = [reply for reply in replies if isinstance(reply, StoreError)]
        if not lost:
            return replies
        if len(lost) == len(replies):
            raise lost[0]
        values = [UNREAD if isinstance(reply, StoreError) else reply for reply in replies]
        raise PartlyRead(f"{len(lost)} of {len(replies)} keys: {lost[0]}", values)

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
        """A run of the script for each key, with all rows of the key in their order.

        When some are refused, the others are written. Round trips take turns, so two writes of a key that each fit into
        one (`write_rows_max` rows) happen in the order in which they were made, unless one of them is redirected or
        tried again. One that takes several lets others go between them, since a row must not wait for a bulk load: what
        is written of a key meanwhile may happen before. Then the later event stays, unless one is forced.
        """
        if force and only_absent:
            raise ValueError("force and only_absent: one replaces what is there, the other leaves it alone")
        written = 0
        rows_max = self._options.write_rows_max
        for start in range(0, len(keys), rows_max):
            rows: dict[bytes, list[bytes]] = {}
            for key, value in zip(keys[start : start + rows_max], values[start : start + rows_max], strict=True):
                rows.setdefault(key, []).append(value)
            if only_absent:
                ttl = ("PX", ttl_ms) if ttl_ms else ()
                commands: list[Command] = [("SET", key, some[0], "NX", *ttl) for key, some in rows.items()]
                written += (await self._change(commands, list(rows))).count(b"OK")
            else:
                settings = ("1" if force else "0", ttl_ms or 0, event_ms_max)
                commands = [
                    ("EVALSHA", WRITE_SHA, len(some), *([key] * len(some)), *settings, *some)
                    for key, some in rows.items()
                ]
                written += sum(await self._change(commands, list(rows)))
        return written

    async def delete(self, keys: Sequence[bytes]) -> int:
        """UNLINK, key by key."""
        removed = 0
        rows_max = self._options.write_rows_max
        for start in range(0, len(keys), rows_max):
            some = keys[start : start + rows_max]
            removed += sum(await self._change([("UNLINK", key) for key in some], some))
        return removed

    async def scan(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """Pages of the keys of every primary that match a glob pattern. A key whose slot is moved meanwhile may be
        missed, or found twice."""
        await self._map.refresh()
        for node in dict.fromkeys(shard.primary for shard in self._map.shards):
            async for page in scan_lane(node.reads, pattern):
                yield page

    async def get_blob(self, name: str) -> bytes | None:
        """The value of `<namespace>:blob:<name>`."""
        return (await self.read([self._blob_key(name)]))[0]

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """Set `<namespace>:blob:<name>`. Empty data removes it."""
        key = self._blob_key(name)
        ttl = ("PX", ttl_ms) if ttl_ms else ()
        await self._change([("SET", key, data, *ttl) if data else ("UNLINK", key)], [key])

    async def watch(self, prefixes: Sequence[bytes], on_change: Callable[[Change], None]) -> None:
        """One tracking connection to every node that is read from."""
        if self._watch is not None:
            raise RuntimeError("a store is watched once")
        if not self._map.shards:
            await self._map.refresh()
        watch = Watches(prefixes, on_change, self._map.lost_sight)
        self._watch = watch
        try:
            await watch.start(self._map.endpoints())
        except BaseException:
            self._watch = None
            await watch.close()
            raise
        self._map.keep()

    async def close(self) -> None:
        """Drop the connections."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._watch is not None:
            await self._watch.close()
        await self._map.close()

    def _follow_map(self) -> None:
        if self._watch is not None and not self._closed:
            task = asyncio.get_running_loop().create_task(self._watch.follow(self._map.endpoints()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _blob_key(self, name: str) -> bytes:
        return f"{self._options.namespace}:blob:{name}".encode()

    async def _change(self, commands: Sequence[Command], keys: Sequence[bytes]) -> list[Any]:
        """Run changes, and raise for the first that failed when all have ended."""
        async with self._turn:
            replies = await self._run(commands, [slot_of(key) for key in keys], writes=True)
        for reply in replies:
            if isinstance(reply, Exception):
                raise _store_error(reply) from reply
        return replies

    # ── Sending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, commands: Sequence[Command], slots: Sequence[int], *, writes: bool) -> list[Any]:
        """The reply to each command, or the exception that it came to: ReplyError or StoreError."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + (self._options.write_timeout_s if writes else self._options.timeout_s)
        if not self._map.shards:
            await self._map.refresh()
        replies: list[Any] = [None] * len(commands)
        sendings = self._route(range(len(commands)), slots, replies, writes=writes)
        for attempt in range(ROUNDS_MAX):
            outcomes = await self._send(sendings, commands, writes=writes)
            again, later = self._sort(sendings, commands, outcomes, replies)
            if not writes and attempt >= CALM_ROUNDS:
                later.clear()
            if not (again or later) or attempt == ROUNDS_MAX - 1 or loop.time() >= give_up_at:
                break
            if later or attempt >= CALM_ROUNDS:
                await asyncio.sleep(min(PAUSE_S * 2**attempt, max(0.0, give_up_at - loop.time())))
            sendings = [*again, *self._route(later, slots, replies, writes=True)]
        return replies

    def _sort(
        self, sendings: Sequence[_Sending], commands: Sequence[Command], outcomes: Sequence[Any], replies: list[Any]
    ) -> tuple[list[_Sending], list[int]]:
        """Put the outcomes among the replies; return what to send elsewhere, and what to send later."""
        again: dict[tuple[Node, bool], _Sending] = {}
        later: list[int] = []
        for sending, outcome in zip(sendings, outcomes, strict=True):
            if isinstance(outcome, StoreError):
                self._map.lost(sending.node)
                outcome = [outcome] * len(sending.positions)  # noqa: PLW2901  # the outcome of each
            for position, reply in zip(sending.positions, outcome, strict=True):
                replies[position] = reply
                if sending.of_replica:
                    if _is_whole(commands[position], reply):
                        continue
                    if not isinstance(reply, StoreError):
                        # What it comes to when there is no time left to ask the primary.
                        replies[position] = StoreUnavailable(NO_ANSWER)
                elif type(reply) in CHANGED:
                    continue
                if (other := self._other(sending, reply)) is not None:
                    again.setdefault((other.node, other.asking), other).positions.append(position)
                elif isinstance(reply, ReplyError) and reply.kind in LATER_KINDS:
                    self._map.refresh_soon()
                    later.append(position)
        return list(again.values()), later

    def _other(self, sending: _Sending, reply: Any) -> _Sending | None:
        """Who else is to be asked what got this reply."""
        if sending.of_replica:
            assert sending.shard is not None
            return _Sending(sending.shard.primary)
        redirect = Redirect.of_error(reply, sending.node.place) if isinstance(reply, ReplyError) else None
        return None if redirect is None else _Sending(self._map.redirected(redirect), redirect.once)

    def _route(
        self, positions: Sequence[int], slots: Sequence[int], replies: list[Any], *, writes: bool
    ) -> list[_Sending]:
        """Where each command goes. What cannot go anywhere gets its error as its reply."""
        owners = self._map.slots
        by_shard: dict[int, _Sending] = {}
        for position in positions:
            shard = owners[slots[position]]
            if shard is None:
                replies[position] = StoreUnavailable(f"no node serves slot {slots[position]}")
                self._map.refresh_soon()
                continue
            sending = by_shard.get(id(shard))
            if sending is None:
                member = PRIMARY if writes else shard.chooser.pick(shard.usable() if shard.reads_replicas else ())
                sending = by_shard[id(shard)] = _Sending(shard.nodes[member], shard=shard, member=member)
            sending.positions.append(position)
        return list(by_shard.values())

    async def _send(self, sendings: Sequence[_Sending], commands: Sequence[Command], *, writes: bool) -> list[Any]:
        """The replies to each sending, or the StoreError that it came to."""
        ways = [
            self._send_one(sending, [commands[i] for i in sending.positions], writes=writes) for sending in sendings
        ]
        if len(ways) == 1:
            return [await ways[0]]
        return await asyncio.gather(*ways)

    async def _send_one(self, sending: _Sending, commands: list[Command], *, writes: bool) -> Any:
        node = sending.node
        if node.down:
            return StoreUnavailable(f"{node.endpoint} is down")
        try:
            if writes:
                return await _pipeline(node.writes, commands, asking=sending.asking)
            if self._hedge is not None and sending.shard is not None:
                return await self._read_hedged(self._hedge, sending, commands)
            if sending.shard is None:
                return await _pipeline(node.reads, commands, asking=sending.asking)
            return await self._read_member(sending.shard, sending.member, commands)
        except StoreError as error:
            return error

    async def _read_member(
        self, shard: Shard, member: int, commands: list[Command], *, second: bool = False
    ) -> list[Any]:
        node = shard.nodes[member]
        lane = node.replica_reads if member != PRIMARY else node.second_reads if second else node.reads
        if not shard.reads_replicas:
            return await lane.pipeline(commands)
        loop = asyncio.get_running_loop()
        started = loop.time()
        replies = await lane.pipeline(commands)
        shard.chooser.took(member, loop.time() - started)
        return replies

    async def _read_hedged(self, hedge: Hedge, sending: _Sending, commands: list[Command]) -> list[Any]:
        shard, first = sending.shard, sending.member
        assert shard is not None

        async def other() -> list[Any]:
            second = shard.chooser.second(first, shard.usable())
            replies = await self._read_member(shard, second, commands, second=second == first)
            if second != PRIMARY and not all(map(_is_whole, commands, replies)):
                raise StoreUnavailable(NO_ANSWER)
            return replies

        return await hedged(hedge, partial(self._read_member, shard, first, commands), other, self._tasks)


def _values(replies: Sequence[Any]) -> list[bytes | None]:
    """The values of a read of which some are missing. Raises PartlyRead, or what all of it came to."""
    values: list[bytes | Unread | None] = []
    why = ""
    for reply in replies:
        if type(reply) in BULK:
            values.append(reply)
        elif isinstance(reply, ReplyError) and reply.kind == "WRONGTYPE":
            values.append(None)  # as MGET has it
        else:
            error = _store_error(reply)
            if not isinstance(error, StoreUnavailable):
                raise error
            why = str(error)
            values.append(UNREAD)
    unread = values.count(UNREAD)
    if unread and unread == len(values):
        raise StoreUnavailable(why)
    if unread:
        raise PartlyRead(f"{unread} of {len(values)} keys: {why}", values)
    return [value for value in values if value is not UNREAD]


def _is_whole(command: Command, reply: Any) -> bool:
    """A replica's reply counts: nothing is missing in it that the primary may have.

    Of a whole hash nobody can tell, since the fields that are there may be another view's.
    """
    if type(reply) is list:
        return None not in reply and command[0] not in {"HGETALL", b"HGETALL"}
    return type(reply) is bytes


def _as_bytes(key: Argument) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()


def _store_error(error: Any) -> StoreError:
    if isinstance(error, StoreError):
        return error
    if isinstance(error, ReplyError):
        if error.kind in {"MOVED", "ASK", "NOSCRIPT"}:
            return StoreUnavailable(f"the cluster is being changed: still {error} after {ROUNDS_MAX} attempts")
        return store_error(error)
    return StoreUnavailable(f"an answer of the wrong shape ({type(error).__name__}): this is not Redis")


async def _pipeline(lane: Lane, commands: list[Command], *, asking: bool) -> list[Any]:
    """The replies to commands, with what has to go before them."""
    before: list[Command] = [("SCRIPT", "LOAD", WRITE_SCRIPT)] if commands[0][0] == "EVALSHA" else []
    if asking:
        sent = [*before, *[one for command in commands for one in (("ASKING",), command)]]
    else:
        sent = [*before, *commands] if before else commands
    replies = await lane.pipeline(sent)
    return replies[len(before) + 1 :: 2] if asking else replies[len(before) :]
