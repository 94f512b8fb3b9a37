"""One connection to a Redis server, shared by all who call.

    call ─▶ packed ─▶ one write for all calls of a turn of the loop ─▶ the server
    the oldest call that waits ◀─ replies, in order ◀─ hiredis ◀─ bytes
    on_push ◀─ what the server says unasked (RESP3), all that arrived together

Invariants
- Replies belong to calls in the order of the calls; nothing else decides. A call that was cancelled keeps its place,
  and its reply goes nowhere. So a link of which one reply was not read is of no use to anybody: a call that takes
  longer than `timeout_s`, bytes that are not Redis' protocol, or a reply that nobody asked for drop the link, and every
  call on it ends with LinkLost.
- A link that is lost stays lost. Whoever wants another opens one.
- At most CALLS_MAX calls wait on a link.
"""

import asyncio
import math
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, final
from urllib.parse import SplitResult, urlsplit

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

Argument: TypeAlias = bytes | str | int | float
Command: TypeAlias = tuple[Argument, ...]

CALLS_MAX: Final = 8192
"""Calls that may wait for their replies on one link. It is reached when callers ask without waiting for answers."""

READ_BYTES: Final = 65_536
"""What is read from the socket at once. Redis writes 64 KiB of replies before it looks after its next client."""

PARSER_BYTES_KEPT: Final = 1 << 20
"""hiredis gives its buffer back when it is empty and larger than this. Its own bound, 16 KiB, is passed by every MGET
of 200 rows."""

LATE_PASSES: Final = 4
"""Passes of the loop between a timer and giving up. A loop that was busy finds the timer when the reply may long have
been waiting in the socket, where a large one takes several passes to be read."""

TIMER_SLACK_S: Final = 0.001
"""uvloop's clock ticks in milliseconds: a timer that fires within one of its moment is on time."""

KEEPALIVE_IDLE_S: Final = 30
"""Silence on a TCP connection before the system asks whether the other machine still lives."""

FULL_SERVER: Final = "ERR max number of clients reached"
"""How the answer begins of a server that takes no more connections: an error of no kind of its own."""

ENCODE: Final = "percent-encode the password, and whatever else has one of # / ? @ [ ] in it: # is %23, @ is %40"
"""What to do about a url that cannot be read as it was meant. The error must not show any of it."""

DATABASE: Final = re.compile("/?|/[0-9]+")
"""The path of a url that names a server."""

_MORE: Final = object()


class LinkError(Exception):
    """A call came to nothing."""


class LinkLost(LinkError):
    """The connection could not be made, or ended. Whether the server ran the command is not known."""


class LinkTimedOut(LinkLost):
    """The same, because the server did not answer in time."""


class LinkFull(LinkError):
    """CALLS_MAX calls wait already. The command was not sent."""


class ReplyError(LinkError):
    """The server's answer is an error; its first word is the kind: `NOAUTH`, `MOVED`, `ERR`."""

    @property
    def kind(self) -> str:
        """The first word."""
        return str(self).partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, and how to log in."""

    host: str = "127.0.0.1"
    """A name or an address."""
    port: int = 6379
    """The TCP port."""
    path: str | None = None
    """A Unix socket; goes before host and port."""
    tls: ssl.SSLContext | None = None
    """How to encrypt and whom to trust; None is plain TCP."""
    username: str | None = None
    """A user of the server's ACL; None is its default user."""
    password: str | None = field(default=None, repr=False)
    """The user's password; None logs nobody in."""
    db: int = 0
    """The database to select."""
    connect_timeout_s: float = 0.5
    """The limit of connecting, TLS and login included."""
    keepalive: bool = True
    """Whether the system looks after idle TCP connections (SO_KEEPALIVE)."""
    client_name: str | None = None
    """What the connection is called in the server's CLIENT LIST."""
    commands: tuple[Command, ...] = ()
    """What else is sent when a connection is new, such as READONLY. Each has to succeed."""

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of_url(
        cls,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        connect_timeout_s: float = 0.5,
    ) -> Self:
        """Read `redis://`, `rediss://` or `unix://` as redis-py does; `username` and `password` go before the url's.

        TLS files are read now. Raises ValueError.
        """
        parts = parts_of(url)
        if parts.scheme in {"redis", "rediss"} and not DATABASE.fullmatch(parts.path):
            raise ValueError("behind the host comes the number of a database, as in redis://host:6379/0, or nothing")
        if not _has_port(parts):
            raise ValueError(f"the port is no number up to 65535 ({ENCODE})")
        found: dict[str, Any] = dict(parse_url(url))
        encrypted = issubclass(found.pop("connection_class", object), SSLConnection)
        tls = {name: found.pop(name) for name in list(found) if name.startswith("ssl_")}
        known = ("client_name", "db", "host", "password", "path", "port", "username")
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not an option of the url; there are db, client_name and ssl_…")
        if tls and not encrypted:
            raise ValueError(f"{', '.join(tls)}: only a rediss:// url has TLS")
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if name in tls and not Path(tls[name]).is_file():
                raise ValueError(f"{name}: {tls[name]}: there is no such file")
        try:
            found["db"] = int(found.get("db", 0))
            context = SSLConnection(**tls).ssl_context.get() if encrypted else None
        except (OSError, RedisError, TypeError) as error:
            raise ValueError(f"TLS options: {error}") from error
        given = {"username": username, "password": password}
        found |= {name: value for name, value in given.items() if value is not None}
        return cls(**found, tls=context, connect_timeout_s=connect_timeout_s)

    def at(self, host: str, port: int) -> Self:
        """The same login and TLS on another server."""
        return replace(self, host=host, port=port, path=None)


def parts_of(url: str) -> SplitResult:
    """The parts of a url. Raises ValueError, which shows nothing of it, where a password may end too early."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"this is no url ({ENCODE})") from None
    behind = parts.query if parts.scheme == "unix" else parts.path + parts.query
    if "#" in url or "@" in behind:
        raise ValueError(f"a # anywhere, or a @ behind the host: {ENCODE}")
    return parts


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port >= 0
    except ValueError:
        return False


@final
class _Batch:
    """The replies of a pipeline, until they are all there."""

    __slots__ = ("future", "left", "replies")

    def __init__(self, future: "asyncio.Future[list[Any]]", left: int) -> None:
        self.future = future
        self.left = left
        self.replies: list[Any] = []


class Link(asyncio.BufferedProtocol):
    """One connection. `await Link.open(…)` makes one; `call` and `pipeline` use it; `close` ends it."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
        on_lost: Callable[[LinkLost], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._on_push = on_push
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._error: LinkLost | None = None
        self._calls: deque[tuple[asyncio.Future[Any] | _Batch, float]] = deque()
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_MORE)
        self._reader.setmaxbuf(PARSER_BYTES_KEPT)

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        *,
        resp3: bool = False,
        timeout_s: float | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
        on_lost: Callable[[LinkLost], None] | None = None,
    ) -> Self:
        """Connect and log in. `on_lost` is called once, when the link ends without having been closed.

        Raises LinkLost; ReplyError when the server refuses the login, the database or RESP3.
        """
        loop = asyncio.get_running_loop()
        link = cls(endpoint, timeout_s=timeout_s, on_push=on_push)
        limit_s = endpoint.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                if endpoint.path is not None:
                    await loop.create_unix_connection(lambda: link, endpoint.path)
                else:
                    await loop.create_connection(lambda: link, endpoint.host, endpoint.port, ssl=endpoint.tls)
                link._set_keepalive()
                for reply in await link.pipeline(_greeting(endpoint, resp3)):
                    if isinstance(reply, ReplyError):
                        raise _without_password(reply, endpoint)
        except BaseException as error:
            link.close()
            if isinstance(error, TimeoutError):
                raise LinkTimedOut(f"{endpoint} cannot be reached: no connection within {limit_s} s") from error
            if isinstance(error, OSError | UnicodeError):  # UnicodeError: a name that no machine can have
                raise LinkLost(f"{endpoint} cannot be reached: {str(error) or type(error).__name__}") from error
            raise
        link._on_lost = on_lost
        if link._error is not None:
            raise link._error
        return link

    def __repr__(self) -> str:
        return f"<Link {self.endpoint} {'lost' if self.lost else 'open'} calls={len(self._calls)}>"

    def __len__(self) -> int:
        """How many calls wait for their replies."""
        return len(self._calls)

    def __bool__(self) -> bool:
        return True

    @property
    def lost(self) -> bool:
        """The connection has ended, and every call will fail."""
        return self._error is not None

    def call(self, *command: Argument) -> "asyncio.Future[Any]":
        """Send a command with the next write. The future's error is ReplyError, LinkLost or LinkFull."""
        future = self._loop.create_future()
        if self._error is None and len(self._calls) < CALLS_MAX:
            self._send(hiredis.pack_command(command), future)  # type: ignore[arg-type]  # its stub takes one argument
        else:
            future.set_exception(self._why_not())
        return future

    def pipeline(self, commands: Sequence[Command]) -> "asyncio.Future[list[Any]]":
        """Send commands with the next write. The replies come together, and ReplyErrors are among them as values."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if not commands and self._error is None:
            future.set_result([])
        elif self._error is None and len(self._calls) < CALLS_MAX:
            packed = b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]  # same
            self._send(packed, _Batch(future, len(commands)))
        else:
            future.set_exception(self._why_not())
        return future

    def close(self) -> None:
        """End the connection. Calls that wait end with LinkLost."""
        self._on_lost = None
        self._drop(LinkLost(f"{self.endpoint}: the link was closed"))

    def drop(self, why: str) -> None:
        """Give the connection up, because what came over it cannot be trusted."""
        self._drop(LinkLost(f"{self.endpoint}: {why}"))

    # ── Out ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, packed: bytes, call: "asyncio.Future[Any] | _Batch") -> None:
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(packed)
        # Not the loop's time: uvloop's stands still during a turn.
        self._calls.append((call, time.monotonic() + self._timeout_s))
        if self._timer is None and self._timeout_s != math.inf:
            self._timer = self._loop.call_later(self._timeout_s, self._look_at_clock)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._error is None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _why_not(self) -> LinkError:
        if self._error is not None:
            return type(self._error)(*self._error.args)
        return LinkFull(f"{self.endpoint}: {CALLS_MAX} calls wait for their replies")

    # ── In ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Some bytes are there: hand out the replies that are complete."""
        try:
            self._reader.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]  # takes any buffer, says its source
            pushes = self._take_replies()
        except hiredis.HiredisError as error:
            self.drop(f"not the protocol of Redis: {error}")
            return
        if pushes and self._on_push is not None:
            self._on_push(pushes)

    def _take_replies(self) -> list[Any] | None:
        gets, calls = self._reader.gets, self._calls
        pushes: list[Any] | None = None
        while (reply := gets()) is not _MORE:
            kind = type(reply)
            if kind is hiredis.PushNotification:
                if pushes is None:
                    pushes = []
                pushes.append(reply)
                continue
            if not calls:
                self.drop("a reply that nobody asked for")
                break
            call = calls[0][0]
            if type(call) is _Batch:
                call.replies.append(reply)
                call.left -= 1
                if call.left:
                    continue
                calls.popleft()
                if not call.future.done():
                    call.future.set_result(call.replies)
                continue
            calls.popleft()
            if call.done():
                continue
            if kind is ReplyError:
                call.set_exception(reply)
            else:
                call.set_result(reply)
        return pushes

    # ── The end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.BaseProtocol."""
        self._transport = transport
        if self._error is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.BaseProtocol."""
        self._drop(LinkLost(f"{self.endpoint}: {exc or 'the server closed the connection'}"))

    def _set_keepalive(self) -> None:
        raw = self._transport.get_extra_info("socket")
        if self.endpoint.path is None and self.endpoint.keepalive and raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)

    def _look_at_clock(self, passes: int = LATE_PASSES) -> None:
        """Drop the link when its oldest call waits for too long. One timer a link, not one a call."""
        self._timer = None
        if not self._calls:
            return
        left_s = self._calls[0][1] - time.monotonic()
        if left_s > TIMER_SLACK_S:
            self._timer = self._loop.call_later(left_s, self._look_at_clock)
        elif passes:
            self._timer = self._loop.call_soon(self._look_at_clock, passes - 1)
        else:
            self._drop(LinkTimedOut(f"{self.endpoint}: no answer in time ({self._timeout_s} s)"))

    def _drop(self, error: LinkLost) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        calls, self._calls = self._calls, deque()
        for call, _ in calls:
            future = call.future if type(call) is _Batch else call
            if not future.done():
                future.set_exception(type(error)(*error.args))
        if self._on_lost is not None:
            self._on_lost(error)


def _greeting(endpoint: Endpoint, resp3: bool) -> list[Command]:
    """What is sent on a new connection, before anything else, in one write."""
    commands: list[Command] = []
    if endpoint.password is not None:
        user = () if endpoint.username is None else (endpoint.username,)
        commands.append(("AUTH", *user, endpoint.password))
    if resp3:
        commands.append(("HELLO", 3))
    if endpoint.client_name is not None:
        commands.append(("CLIENT", "SETNAME", endpoint.client_name))
    if endpoint.db:
        commands.append(("SELECT", endpoint.db))
    commands += endpoint.commands
    return commands


def _without_password(error: ReplyError, endpoint: Endpoint) -> ReplyError:
    """A server that does not know a command repeats its arguments."""
    if endpoint.password and endpoint.password in str(error):
        return ReplyError(str(error).replace(endpoint.password, "***"))
    return error
