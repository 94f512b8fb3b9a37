"""What changes in a Redis server, told by the server itself.

    Tracker ─▶ HELLO 3, CLIENT TRACKING ON BCAST PREFIX … ─▶ on a connection of its own
    on_change ◀─ KeysChanged, AllChanged ◀─ invalidations, gathered from all that arrived together
    on_change ◀─ WatchLost, WatchRestored ◀─ what became of the connection

The server is asked PING every PING_EVERY_S, behind whatever it has to tell. An answer that is missing SILENCE_S after
the last one is loss: the connection may be dead, or its news so old that nobody should count on them. A lost connection
is made again at once when it had lived for a while, and at most every RETRY_S.

Invariants
- A change that happens after `start` has returned is told, or WatchLost is, within SILENCE_S and what the loop needs.
- WatchLost is told once for a loss (and once more, with another reason, should the server turn out to be one that
  cannot tell at all). Between it and WatchRestored nothing can be counted on; whoever watches treats all that it read
  before WatchRestored as suspect.
- `on_change` is called on the loop, and never again when `close` was called. When it raises, its news is lost: the
  loop's exception handler is told, and the connection is made again, so that the watcher learns what it may not trust.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from featureclient.store.link import FULL_SERVER, Endpoint, Link, LinkError, LinkLost, ReplyError
from featureclient.store.protocol import AllChanged, Change, KeysChanged, WatchLost, WatchRestored, WatchUnsupported

PING_EVERY_S: Final = 1.0
"""Between two questions whether the server still tells."""

SILENCE_S: Final = 2.0
"""How long a server may be silent, and how old its news may be."""

RETRY_S: Final = 0.5
"""Between two attempts to connect."""

CONNECT_S_MIN: Final = 1.0
"""Nobody waits for a tracking connection, so it may take longer than one for reads."""

UNSUPPORTED_KINDS: Final = frozenset(("ERR", "NOPERM", "NOPROTO"))
"""What servers answer with that do not know the commands, or this user."""


class Tracker:
    """Tells of the changes of one server. `start` it once, `close` it once."""

    def __init__(self, endpoint: Endpoint, prefixes: Sequence[bytes], on_change: Callable[[Change], None]) -> None:
        self._endpoint = replace(endpoint, connect_timeout_s=max(endpoint.connect_timeout_s, CONNECT_S_MIN))
        self._prefixes = _without_overlap(prefixes)
        self._on_change = on_change
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._link_ended = asyncio.Event()
        self._lost_why: str | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "on" if self.on else f"off ({self._lost_why})"
        return f"<Tracker {self._endpoint} {state} prefixes={len(self._prefixes)}>"

    @property
    def on(self) -> bool:
        """Changes are told of."""
        return self._link is not None and not self._link.lost

    async def start(self) -> None:
        """Return when changes are told of; or when WatchLost is, because the server cannot be reached yet.

        Raises WatchUnsupported, which says what to do.
        """
        loop = asyncio.get_running_loop()
        attempted_at = loop.time()
        await self._attempt(first=True)
        if not self._closed:
            self._task = loop.create_task(self._run(attempted_at))

    async def close(self) -> None:
        """Stop telling, and give the connection back."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._link is not None:
            self._link.close()
            # A transport closes its socket in the next turn of the loop.
            await asyncio.sleep(0)

    async def _run(self, attempted_at: float) -> None:
        """Follow the connection to its end, connect again, and so on."""
        loop = asyncio.get_running_loop()
        while True:
            if self._link is not None:
                await self._follow(self._link)
                self._link = None
            await asyncio.sleep(max(0.0, attempted_at + RETRY_S - loop.time()))
            attempted_at = loop.time()
            await self._attempt()
            if self._link is not None:
                self._lost_why = None
                self._emit(WatchRestored())

    async def _attempt(self, *, first: bool = False) -> None:
        """Connect, or tell why not."""
        try:
            await self._open()
        except (LinkLost, WatchUnsupported) as error:
            if first and isinstance(error, WatchUnsupported):
                raise
            self._lose(str(error), tell_again=isinstance(error, WatchUnsupported))

    async def _open(self) -> None:
        self._link_ended.clear()
        timeout_s = SILENCE_S - PING_EVERY_S
        try:
            link = await Link.open(self._endpoint, timeout_s=timeout_s, on_push=self._tell, on_lost=self._link_lost)
        except ReplyError as error:
            # Of the login, which has nothing to do with watching.
            raise LinkLost(f"{self._endpoint}: the login was refused: {error}") from error
        self._link = link
        try:
            prefixes = [part for prefix in self._prefixes for part in ("PREFIX", prefix)]
            asked = [("HELLO", 3), ("CLIENT", "TRACKING", "ON", "BCAST", *prefixes)]
            for reply in await link.pipeline(asked):
                if isinstance(reply, ReplyError):
                    raise self._refusal(reply)
        except BaseException:
            link.close()
            self._link = None
            raise
        if self._closed:
            link.close()

    async def _follow(self, link: Link) -> None:
        """Ping, until the link is lost."""
        while not link.lost:
            try:
                await link.call("PING")
            except ReplyError as error:
                link.drop(f"PING: {error}")
            except LinkError:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._link_ended.wait(), PING_EVERY_S)

    def _link_lost(self, error: LinkLost) -> None:
        self._link_ended.set()
        self._lose(str(error))

    def _lose(self, why: str, *, tell_again: bool = False) -> None:
        told, self._lost_why = self._lost_why, why
        if told is None or (tell_again and told != why):
            self._emit(WatchLost(why))

    def _tell(self, pushes: list[Any]) -> None:
        keys: list[bytes] = []
        for push in pushes:
            if push[0] != b"invalidate":
                continue
            if push[1] is None:
                self._emit(AllChanged())
                return
            keys += push[1]
        if keys:
            self._emit(KeysChanged(keys))

    def _emit(self, change: Change) -> None:
        if self._closed:
            return
        try:
            self._on_change(change)
        except Exception as error:  # noqa: BLE001  # reported, and made good by a new connection
            context = {"message": "a watcher of changes raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            if self._link is not None:
                self._link.drop("its watcher raised")

    def _refusal(self, error: ReplyError) -> LinkLost | WatchUnsupported:
        if error.kind not in UNSUPPORTED_KINDS or str(error).startswith(FULL_SERVER):
            return LinkLost(f"{self._endpoint}: {error}")
        who = f"user {self._endpoint.username}" if self._endpoint.username else "its default user"
        return WatchUnsupported(
            f"{self._endpoint} cannot tell of changed keys ({error}): it takes Redis 6 or later, reached without a "
            f"proxy, and {who} with the permissions +ping and +client|tracking; or do without, and let cached rows "
            "live for a time"
        )


def _without_overlap(prefixes: Sequence[bytes]) -> list[bytes]:
    """Redis refuses a prefix that starts with another; it is told of by the shorter one anyway."""
    kept: list[bytes] = []
    for prefix in sorted(set(prefixes)):
        if not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    return kept
