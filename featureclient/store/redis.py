"""Rows in one Redis server: MGET to read, a compare-and-set in Lua to write.

Reads share the links of `read_lanes`, and a read takes the idlest: none waits for another's turn, and what is asked in
one turn of the loop leaves in one write. All writes share one link and their round trips take turns, so two writes of a
key that each fit into one (`write_rows_max` times `write_runs_max` rows) happen in the order in which they were made,
also where one of them is tried again, and one round trip of writes is in memory. A write of several round trips lets
others go between them, since a row must not wait for a bulk load: what is written or deleted of a key meanwhile may
happen before the bulk load's row of it. Of two rows the one of the later event stays, unless one is forced.

Time is bounded: connecting ends within `connect_timeout_s`, a read within `timeout_s` and a round trip of a write
within `write_timeout_s` from when it is sent to its last reply, however slowly that trickles. What is tried once more,
and when, is in `featureclient.store.lane`.

Invariants: StoreUnavailable and StoreRefused (and WatchUnsupported) are all that leaves this room. An answer of another
shape than the command's drops the link it came over.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from featureclient.store.lane import Lane, store_error
from featureclient.store.link import Command, Endpoint, ReplyError
from featureclient.store.protocol import Change, StoreUnavailable
from featureclient.store.tracking import Tracker

WRITE_SCRIPT = """\
local force, ttl, latest = ARGV[1] == '1', ARGV[2], tonumber(ARGV[3])
local written = 0
for i, key in ipairs(KEYS) do
  local row = ARGV[i + 3]
  local newer = true
  if not force then
    local head = redis.pcall('GETRANGE', key, 0, 23)
    if type(head) == 'string' and #head == 24 and string.byte(head) == 1 then
      local stored = struct.unpack('<i8', head, 9)
      newer = stored > latest or struct.unpack('<i8', row, 9) >= stored
    end
  end
  if newer then
    if ttl == '0' then redis.call('SET', key, row) else redis.call('SET', key, row, 'PX', ttl) end
    written = written + 1
  end
end
return written
"""
"""Sent with every batch, by its text: Redis keeps it compiled, it is a hundredth of the rows that travel with it, and
a server that was restarted needs no loading. The header is what `featureclient.schema.layout` says."""


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How to reach the server, and how much to ask of it at once."""

    url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://` (TLS) or `unix:///path/to/socket`, with user, password and database as in redis-py."""
    username: str | None = None
    """Goes before the user in the url."""
    password: str | None = field(default=None, repr=False)
    """Goes before the password in the url."""
    connect_timeout_s: float = 0.5
    """The limit of connecting, TLS and login included."""
    timeout_s: float = 0.25
    """The limit of sending a read and receiving its reply. The budgets of callers may be shorter."""
    write_timeout_s: float = 5.0
    """The same for one round trip of a write. A write is worth waiting for, and a bulk load keeps its own loop busy."""
    read_lanes: int = 2
    """Connections for reads; the client has at most two reads in flight."""
    write_rows_max: int = 256
    """Rows in one run of the script: Redis does nothing else meanwhile (about 0.5 ms)."""
    write_runs_max: int = 16
    """Runs of the script in one round trip."""
    namespace: str = "hr"
    """In front of the names of blobs. (Rows bring their own, from the catalogue.)"""

    def __post_init__(self) -> None:
        try:
            self.endpoint()
        except ValueError as error:
            raise ValueError(f"url: {error}") from error
        if min(self.connect_timeout_s, self.timeout_s, self.write_timeout_s) <= 0:
            raise ValueError("connect_timeout_s, timeout_s and write_timeout_s must be above 0")
        if min(self.read_lanes, self.write_rows_max, self.write_runs_max) < 1:
            raise ValueError("read_lanes, write_rows_max and write_runs_max must be at least 1")

    def endpoint(self) -> Endpoint:
        """The server of the url, with the user and password that go before the url's."""
        return Endpoint.of_url(
            self.url, username=self.username, password=self.password, connect_timeout_s=self.connect_timeout_s
        )


class RedisStore:
    """An `OnlineStore` on one server. Connects when it is first used, and again whenever it has to."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._endpoint = options.endpoint()
        self._reads = [Lane(self._endpoint, options.timeout_s) for _ in range(options.read_lanes)]
        self._writes = Lane(self._endpoint, options.write_timeout_s)
        self._turn = asyncio.Lock()
        self._tracker: Tracker | None = None

    def __repr__(self) -> str:
        return f"<RedisStore reads={self._reads} writes={self._writes} watch={self._tracker}>"

    async def ping(self) -> None:
        """Return when the server answers."""
        lane = self._read_lane()
        try:
            reply = await lane.call(b"PING")
        except ReplyError as error:
            raise store_error(error) from error
        if reply != b"PONG":
            raise _not_redis(lane, reply)

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One MGET."""
        lane = self._read_lane()
        try:
            values: list[bytes | None] = await lane.call(b"MGET", *keys)
        except ReplyError as error:
            raise store_error(error) from error
        if type(values) is not list or len(values) != len(keys) or not BULK.issuperset(map(type, values)):
            raise _not_redis(lane, values)
        return values

    async def read_primary(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same: there is one server."""
        return await self.read(keys)

    async def query(self, commands: Sequence[Command]) -> list[Any]:
        """Replies of commands that change nothing, in one round trip. ReplyErrors are among them."""
        return await self._read_lane().pipeline(commands)

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
        """Runs of the script, several to a round trip. When one is refused, those before it are written.

        With `only_absent`, a SET NX for each row. One that was sent again because its connection was lost finds the row
        of its first time: it is stored, and not counted.
        """
        options = self._options
        rows_max = options.write_rows_max
        if only_absent:
            if force:
                raise ValueError("force and only_absent: one replaces what is there, the other leaves it alone")
            ttl = ("PX", ttl_ms) if ttl_ms else ()
            sets = [("SET", key, value, "NX", *ttl) for key, value in zip(keys, values, strict=True)]
            return (await self._change(sets, rows_max * options.write_runs_max)).count(b"OK")
        settings = ("1" if force else "0", ttl_ms or 0, event_ms_max)
        runs: list[Command] = []
        for start in range(0, len(keys), rows_max):
            some = keys[start : start + rows_max]
            runs.append(("EVAL", WRITE_SCRIPT, len(some), *some, *settings, *values[start : start + rows_max]))
        return sum(await self._change(runs, options.write_runs_max))

    async def delete(self, keys: Sequence[bytes]) -> int:
        """UNLINK, so that the server frees large rows beside its loop."""
        rows_max = self._options.write_rows_max
        runs: list[Command] = [("UNLINK", *keys[start : start + rows_max]) for start in range(0, len(keys), rows_max)]
        return sum(await self._change(runs, DELETE_RUNS_MAX))

    async def scan(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """Pages of the keys that match a glob pattern, some of them empty, and some keys twice."""
        async for page in scan_lane(self._read_lane(), pattern):
            yield page

    async def get_blob(self, name: str) -> bytes | None:
        """The value of `<namespace>:blob:<name>`."""
        lane = self._read_lane()
        try:
            blob: bytes | None = await lane.call(b"GET", self._blob_key(name))
        except ReplyError as error:
            raise store_error(error) from error
        if type(blob) not in BULK:
            raise _not_redis(lane, blob)
        return blob

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """Set `<namespace>:blob:<name>`. Empty data removes it."""
        key = self._blob_key(name)
        ttl = ("PX", ttl_ms) if ttl_ms else ()
        await self._change([("SET", key, data, *ttl) if data else ("UNLINK", key)], 1)

    async def watch(self, prefixes: Sequence[bytes], on_change: Callable[[Change], None]) -> None:
        """One tracking connection to the server; see `featureclient.store.tracking`."""
        if self._tracker is not None:
            raise RuntimeError("a store is watched once")
        self._tracker = Tracker(self._endpoint, prefixes, on_change)
        await self._tracker.start()

    async def close(self) -> None:
        """Drop the connections."""
        if self._tracker is not None:
            await self._tracker.close()
        for lane in (*self._reads, self._writes):
            await lane.close()

    def _blob_key(self, name: str) -> str:
        return f"{self._options.namespace}:blob:{name}"

    def _read_lane(self) -> Lane:
        return min(self._reads, key=Lane.load)

    async def _change(self, commands: Sequence[Command], commands_max: int) -> list[Any]:
        """Run changes, at most `commands_max` to a round trip, and return their replies. Round trips take turns."""
        replies: list[Any] = []
        for start in range(0, len(commands), commands_max):
            async with self._turn:
                some = await self._writes.pipeline(commands[start : start + commands_max])
            for reply in some:
                if isinstance(reply, ReplyError):
                    raise store_error(reply) from reply
                if type(reply) not in CHANGED:
                    raise _not_redis(self._writes, reply)
            replies += some
        return replies


DELETE_RUNS_MAX = 256
"""UNLINKs of `write_rows_max` keys in one round trip."""

SCAN_KEYS = 1000
"""How many keys a SCAN looks at: about 0.3 ms of the server."""

BULK = frozenset((bytes, type(None)))
"""The types of values that are read."""

CHANGED = frozenset((int, bytes, type(None)))
"""The types of replies to changes: a number of rows, `OK`, and nil for a SET NX that found something."""


async def scan_lane(lane: Lane, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
    """SCAN one server. A key that is there all the time is found; others may be. Raises what a store raises."""
    cursor = b"0"
    while True:
        try:
            reply = await lane.call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", SCAN_KEYS)
        except ReplyError as error:
            raise store_error(error) from error
        if type(reply) is not list or [*map(type, reply)] != [bytes, list] or {*map(type, reply[1])} - {bytes}:
            raise _not_redis(lane, reply)
        cursor, keys = reply
        yield keys
        if cursor == b"0":
            return


def _not_redis(lane: Lane, reply: object) -> StoreUnavailable:
    what = f"an answer of the wrong shape ({type(reply).__name__})"
    lane.drop(what)
    return StoreUnavailable(f"{lane.endpoint}: {what}: this is not Redis, or not the answer to what was asked")
