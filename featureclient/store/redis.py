"""Rows in one Redis server: MGET to read, a compare-and-set in Lua to write.

Connections are lanes: a lane has one connection and one batch of commands under way, and callers wait for it in order.
A read takes the idlest of `read_lanes`. All writes share one, so two writes of a key happen in the order in which they
were made. A pool would raise past its size, and redis-py's client above the connection costs 25 us a command more.
Commands are packed by hiredis into one piece: redis-py's list of a thousand small ones costs 1 ms to write.

Time is bounded here: connecting ends within `connect_timeout_s`, a batch of commands within `timeout_s` (a write within
`write_timeout_s`) from when it is sent to its last reply, however slowly that trickles. Commands are tried once more,
at once, when a connection that had worked was lost, because a server that was restarted leaves stale sockets behind.
They are not tried again after a timeout, which would only double it. Every command here may run twice.

Invariants: StoreUnavailable and StoreRefused are all that leaves this room. A lane that did not read all its replies,
for whatever reason, drops its connection, so no reply is ever taken for another's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from featureclient.store.protocol import StoreRefused, StoreUnavailable

Command: TypeAlias = tuple[bytes | str | int, ...]

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
            parse_url(self.url)
        except ValueError as error:
            raise ValueError(f"url: {error}") from error
        if min(self.connect_timeout_s, self.timeout_s, self.write_timeout_s) <= 0:
            raise ValueError("connect_timeout_s, timeout_s and write_timeout_s must be above 0")
        if min(self.read_lanes, self.write_rows_max, self.write_runs_max) < 1:
            raise ValueError("read_lanes, write_rows_max and write_runs_max must be at least 1")


class RedisStore:
    """An `OnlineStore` on one server. Connects when it is first used, and again whenever it has to."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        login = {"username": options.username, "password": options.password}
        pool = ConnectionPool.from_url(
            options.url,
            **{name: value for name, value in login.items() if value is not None},
            protocol=2,
            decode_responses=False,
            socket_connect_timeout=options.connect_timeout_s,
            socket_timeout=None,  # it would cost a task for each command; a lane has one limit for all it does
            retry=Retry(NoBackoff(), 0),
        )
        self._reads = [_Lane(pool, options.connect_timeout_s, options.timeout_s) for _ in range(options.read_lanes)]
        self._writes = _Lane(pool, options.connect_timeout_s, options.write_timeout_s)

    def __repr__(self) -> str:
        return f"<RedisStore reads={self._reads} writes={self._writes}>"

    async def ping(self) -> None:
        """Return when the server answers."""
        await self._read_lane().call([("PING",)])

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One MGET."""
        values: list[bytes | None] = (await self._read_lane().call([("MGET", *keys)]))[0]
        if len(values) != len(keys):
            raise StoreUnavailable(f"{len(values)} values for {len(keys)} keys: this is not Redis")
        return values

    async def write(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        *,
        ttl_ms: int | None = None,
        force: bool = False,
        event_ms_max: int,
    ) -> int:
        """Runs of the script, several to a round trip. When one is refused, those before it are written."""
        rows_max = self._options.write_rows_max
        settings = ("1" if force else "0", ttl_ms or 0, event_ms_max)
        runs: list[Command] = []
        for start in range(0, len(keys), rows_max):
            some = keys[start : start + rows_max]
            runs.append(("EVAL", WRITE_SCRIPT, len(some), *some, *settings, *values[start : start + rows_max]))
        written = 0
        for start in range(0, len(runs), self._options.write_runs_max):
            written += sum(await self._writes.call(runs[start : start + self._options.write_runs_max]))
        return written

    async def delete(self, keys: Sequence[bytes]) -> int:
        """UNLINK, so that the server frees large rows beside its loop."""
        rows_max = self._options.write_rows_max
        runs: list[Command] = [("UNLINK", *keys[start : start + rows_max]) for start in range(0, len(keys), rows_max)]
        return sum(await self._writes.call(runs)) if runs else 0

    async def get_blob(self, name: str) -> bytes | None:
        """The value of `<namespace>:blob:<name>`."""
        blob: bytes | None = (await self._read_lane().call([("GET", self._blob_key(name))]))[0]
        return blob

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """Set `<namespace>:blob:<name>`. Empty data removes it."""
        key = self._blob_key(name)
        if data:
            await self._writes.call([("SET", key, data, "PX", ttl_ms) if ttl_ms else ("SET", key, data)])
        else:
            await self._writes.call([("UNLINK", key)])

    async def close(self) -> None:
        """Drop the connections."""
        for lane in (*self._reads, self._writes):
            await lane.close()

    def _blob_key(self, name: str) -> str:
        return f"{self._options.namespace}:blob:{name}"

    def _read_lane(self) -> "_Lane":
        return min(self._reads, key=_Lane.load)


def _pack(commands: Sequence[Command]) -> bytes:
    # hiredis' stubs ask for a tuple of one element.
    return b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]


class _Lane:
    """One connection. Batches of commands take turns on it."""

    def __init__(self, pool: ConnectionPool, connect_timeout_s: float, timeout_s: float) -> None:
        # The pool is there for its knowledge of urls only; it never sees this connection again.
        self._connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no type for it
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<lane connected={self._connection.is_connected} waiting={self._waiting}>"

    def load(self) -> int:
        """How many batches are under way or wait."""
        return self._waiting

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send all, then read all replies. Raises StoreUnavailable, or StoreRefused when any was refused."""
        self._waiting += 1
        try:
            async with self._turn:
                replies = await self._call_twice(commands)
        except TimeoutError as error:
            raise StoreUnavailable("no answer in time") from error
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the reply is not one of Redis: {type(error).__name__}: {error}") from error
        finally:
            self._waiting -= 1
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise StoreRefused(str(reply)) from reply
        return replies

    async def _call_twice(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        if not connection.is_connected:
            return await self._call_once(commands)
        try:
            return await self._call_once(commands)
        except RedisConnectionError:
            return await self._call_once(commands)

    async def _call_once(self, commands: Sequence[Command]) -> list[Any]:
        # Where any of it is interrupted, by these limits or by a cancellation, redis-py drops the connection.
        connection = self._connection
        if not connection.is_connected:
            async with asyncio.timeout(self._connect_timeout_s):
                await connection.connect()
        replies = []
        async with asyncio.timeout(self._timeout_s):
            await connection.send_packed_command(_pack(commands))
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
        return replies

    async def close(self) -> None:
        """Drop the connection."""
        await self._connection.disconnect()
