"""What the store tells of changes, and what that means for rows that are cached, read or computed at the moment.

    a key changed      its row is forgotten; a read of it that is under way is not cached
    all changed        the same for every row
    watch lost, back   every cached row is suspect: still served, and read anew as it is asked for (`expire_all`)

Our own writes do the same as soon as they return. Without a watch (an old Redis, or the option is off) rows live as
long as their ages say.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from featureclient.client.computing import Computing
from featureclient.client.shared import Shared
from featureclient.client.tier import Tier
from featureclient.events import Changed, Watched
from featureclient.schema import Catalogue, Id, View
from featureclient.store import StoreError
from featureclient.store.protocol import AllChanged, Change, KeysChanged, WatchLost, WatchRestored, WatchUnsupported

RETRY_S = 0.5
"""Between attempts to begin while the store cannot be reached."""


class Watching:
    """The watch of one client over the tiers of the views in use."""

    def __init__(self, shared: Shared, catalogue: Catalogue, tiers: Mapping[View, Tier], computing: Computing) -> None:
        self._shared = shared
        self._catalogue = catalogue
        self._tiers = tiers
        self._computing = computing
        self._emit = shared.emit
        self._task: asyncio.Task[None] | None = None
        self._lost = False
        self.on = False

    def __repr__(self) -> str:
        return f"<Watching {'on' if self.on else 'off'}>"

    def start(self) -> None:
        """Begin, now or when the store can be reached."""
        self._task = asyncio.get_running_loop().create_task(self._begin(), name="headrace-watch")

    async def close(self) -> None:
        """Try no more. The watch itself ends with the store."""
        self.on = False
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _begin(self) -> None:
        namespace = self._catalogue.namespace
        prefixes = [f"{namespace}:{{{name}:".encode() for name in self._catalogue.entities]
        why = ""
        while True:
            try:
                await self._shared.store.watch(prefixes, self._changed)
            except WatchUnsupported as error:
                self._emit(Watched(on=False, why=str(error)))
                return
            except StoreError as error:
                if str(error) != why:
                    why = str(error)
                    self._emit(Watched(on=False, why=why))
                await asyncio.sleep(RETRY_S)
            else:
                # It may have begun by saying that it is lost for now.
                if not self._lost:
                    self._set(on=True, why="")
                return

    def _changed(self, change: Change) -> None:
        match change:
            case KeysChanged(keys):
                self._forget(keys)
            case AllChanged():
                for tier in self._tiers.values():
                    self._emit(Changed(tier.view.ref, tier.cache.snapshot().entries))
                    tier.emptied()
            case WatchLost(why):
                self._lost = True
                self._set(on=False, why=why)
            case WatchRestored():
                self._lost = False
                self._set(on=True, why="")

    def _set(self, *, on: bool, why: str) -> None:
        """Begun, lost or restored: what was cached before may have changed, and nobody has told."""
        self.on = on
        for tier in self._tiers.values():
            tier.suspect(self._shared.monotonic(), self._shared.chance())
        self._emit(Watched(on, why))

    def _forget(self, keys: Sequence[bytes]) -> None:
        # A flood of a bulk load is thousands of keys of one view: sorted by their ends first, then view by view.
        by_end: dict[bytes, list[bytes]] = {}
        for key in keys:
            by_end.setdefault(key[key.rfind(b"}") :], []).append(key)
        for tier in self._tiers.values():
            changed = by_end.get(tier.keys.suffix)
            if changed:
                ids = tier.keys.decode(changed)
                self._written(tier, ids)
                self._emit(Changed(tier.view.ref, len(ids)))

    def written(self, view: View, ids: Sequence[Id]) -> None:
        """Rows of a view were written here."""
        for tier in self._tiers.values():
            if tier.view.ref == view.ref:
                self._written(tier, ids)

    def _written(self, tier: Tier, ids: Sequence[Id]) -> None:
        tier.written(ids)
        self._computing.written(tier, ids)
