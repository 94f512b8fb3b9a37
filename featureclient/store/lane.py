"""A way to one server that is always there: it opens a link when it is needed, and another when that one is lost.

What was asked on a link that had worked, and was lost, is asked once more, at once and of a new link, because a server
that was restarted leaves stale connections behind. After a timeout it is not, which would only double the time. So
every command may run twice, and every call ends: within the link's `timeout_s` when the link is there, twice that and
two times `connect_timeout_s` at the very worst.

Invariants: opening is shared by all who wait for it, and a caller who is cancelled cancels it for nobody.
StoreUnavailable is what trouble with the link becomes; a ReplyError is the server's answer, and passes.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from featureclient.store.link import (
    FULL_SERVER,
    Argument,
    Command,
    Endpoint,
    Link,
    LinkError,
    LinkLost,
    LinkTimedOut,
    ReplyError,
)
from featureclient.store.protocol import StoreError, StoreRefused, StoreUnavailable

Answer = TypeVar("Answer")

PASSING_KINDS: Final = frozenset(("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOAUTH", "WRONGPASS"))
"""Errors that a server answers with while it is not in service, or not for us: trying later may help."""

CLUSTER_KINDS: Final = frozenset(("CROSSSLOT", "MOVED"))
"""What a node of a cluster says to who takes it for a single server."""


def store_error(error: ReplyError) -> StoreError:
    """What a server's error is to the callers of a store."""
    if error.kind in PASSING_KINDS or str(error).startswith(FULL_SERVER):
        return StoreUnavailable(str(error))
    if error.kind in CLUSTER_KINDS:
        return StoreRefused(f"{error}: this server is a node of a cluster: use redis+cluster://")
    return StoreRefused(str(error))


class Lane:
    """A link to one server, opened when it is first used, and again whenever that has to be."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, *, resp3: bool = False) -> None:
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._resp3 = resp3
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._joining = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Lane {self.endpoint} connected={self.connected} calls={self.load()}>"

    @property
    def connected(self) -> bool:
        """There is a link that has not been lost."""
        return self._link is not None and not self._link.lost

    def load(self) -> int:
        """How many calls are under way, or wait for a link."""
        return self._joining if self._link is None else self._joining + len(self._link)

    async def call(self, *command: Argument) -> Any:
        """Run a command. Raises StoreUnavailable, and ReplyError when the server answers with an error."""
        link = self._link
        if link is None or link.lost:
            return await self._use(lambda link: link.call(*command), None)
        try:
            return await link.call(*command)
        except LinkError as error:
            if isinstance(error, ReplyError):
                raise
            return await self._use(lambda link: link.call(*command), error)

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip; ReplyErrors are among the replies. Raises StoreUnavailable."""
        link = self._link
        if link is None or link.lost:
            return await self._use(lambda link: link.pipeline(commands), None)
        try:
            return await link.pipeline(commands)
        except LinkError as error:
            return await self._use(lambda link: link.pipeline(commands), error)

    def drop(self, why: str) -> None:
        """Give up the link, because what came over it cannot be trusted."""
        if self._link is not None:
            self._link.drop(why)

    async def close(self) -> None:
        """End the link. Calls that wait end with StoreUnavailable, and so do all that come later."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        if self._link is not None:
            self._link.close()
        # A transport closes its socket in the next turn of the loop.
        await asyncio.sleep(0)

    async def _use(self, use: "Callable[[Link], asyncio.Future[Answer]]", before: LinkError | None) -> Answer:
        """Try with a new link. `before` is how it ended with the one that there was, if there was one."""
        if before is not None and (isinstance(before, LinkTimedOut) or not isinstance(before, LinkLost)):
            raise StoreUnavailable(str(before)) from before
        try:
            return await use(await self._connected())
        except ReplyError:
            raise
        except LinkError as error:
            raise StoreUnavailable(str(error)) from error

    async def _connected(self) -> Link:
        if self._closed:
            raise StoreUnavailable(f"{self.endpoint}: the store is closed")
        if self._link is not None and not self._link.lost:
            return self._link
        self._joining += 1
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(self._opened)
        try:
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise StoreUnavailable(f"{self.endpoint}: the store is closed") from None
            raise
        except ReplyError as error:
            raise StoreUnavailable(f"{self.endpoint}: the login was refused: {error}") from error
        finally:
            self._joining -= 1

    async def _open(self) -> Link:
        self._link = await Link.open(self.endpoint, resp3=self._resp3, timeout_s=self._timeout_s)
        return self._link

    def _opened(self, task: "asyncio.Task[Link]") -> None:
        self._opening = None
        if not task.cancelled():
            # Asked for, so that nobody is told of an error whose callers have all left.
            task.exception()
