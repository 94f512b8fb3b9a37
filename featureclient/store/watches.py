"""What changes in several servers, told of as if they were one.

    Tracker, one a server ─▶ Watches ─▶ on_change

Invariants
- Between WatchLost and WatchRestored at least one server does not tell. A further loss is told of again.
- A server that joins counts as lost until it tells, because its rows may have been read before.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from featureclient.store.link import Endpoint
from featureclient.store.protocol import Change, WatchLost, WatchRestored
from featureclient.store.slots import Place
from featureclient.store.tracking import Tracker


class Watches:
    """The tracking connections to the servers that are read from. `on_lost` is told which of them is lost."""

    def __init__(
        self,
        prefixes: Sequence[bytes],
        on_change: Callable[[Change], None],
        on_lost: Callable[[Place], None] | None = None,
    ) -> None:
        self._prefixes = prefixes
        self._on_change = on_change
        self._on_lost = on_lost
        self._trackers: dict[Place, Tracker] = {}
        self._lost: set[Place] = set()
        self._turn = asyncio.Lock()
        self._told_lost = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<watch trackers={list(self._trackers.values())} lost={sorted(self._lost)}>"

    async def start(self, places: Mapping[Place, Endpoint]) -> None:
        """Raises WatchUnsupported."""
        async with self._turn:
            for error in await self._add(places):
                if error is not None:
                    raise error

    async def follow(self, places: Mapping[Place, Endpoint]) -> None:
        """The servers are others now."""
        async with self._turn:
            if self._closed:
                return
            new = [place for place in places if place not in self._trackers]
            for place in new:
                self._lose(place, WatchLost(f"{places[place]} has joined"))
            for place in [place for place in self._trackers if place not in places]:
                await self._trackers.pop(place).close()
                self._lost.discard(place)
            # One that cannot tell stays lost. The others tell of a loss themselves, before they return.
            await self._add({place: places[place] for place in new})
            self._lost.difference_update(place for place in new if self._trackers[place].on)
            if not self._lost and (new or self._told_lost):
                self._told_lost = False
                self._on_change(WatchRestored())

    async def close(self) -> None:
        """Stop telling."""
        self._closed = True
        for tracker in self._trackers.values():
            await tracker.close()

    async def _add(self, places: Mapping[Place, Endpoint]) -> list[BaseException | None]:
        """Start a tracker for each, and return what each start came to."""
        trackers = {
            place: Tracker(endpoint, self._prefixes, partial(self._tell, place)) for place, endpoint in places.items()
        }
        self._trackers |= trackers
        return await asyncio.gather(*[tracker.start() for tracker in trackers.values()], return_exceptions=True)

    def _lose(self, place: Place, change: WatchLost) -> None:
        self._lost.add(place)
        self._told_lost = True
        self._on_change(change)

    def _tell(self, place: Place, change: Change) -> None:
        if self._closed:
            return
        if isinstance(change, WatchLost):
            self._lose(place, change)
            if self._on_lost is not None:
                self._on_lost(place)
        elif isinstance(change, WatchRestored):
            self._lost.discard(place)
            if not self._lost:
                self._told_lost = False
                self._on_change(change)
        else:
            self._on_change(change)
