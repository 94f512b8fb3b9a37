"""Whether the store has rows of the feature versions that variants ask for: a comparison with defaults says nothing.

Keys cannot be listed, so ids are asked for that the other version is served for: those that are cached by now.
"""

import logging
from collections.abc import Iterator

from featureclient.client import FeatureClient
from featureclient.schema import View
from featureclient.store import StoreError
from featureclient.wire import KeyCodec
from gateway.server.experiments.live import Live, Running

_IDS = 64
_log = logging.getLogger(__name__)


class StoredRows:
    """Asks once for each feature version of each experiment, as soon as there are ids to ask for, and until some are
    found."""

    def __init__(self, live: Live, client: FeatureClient) -> None:
        self._live = live
        self._client = client
        self._fine: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        return f"<StoredRows {len(self._fine)} found>"

    async def look(self) -> None:
        """Ask where it is not known yet. Never raises."""
        for name, one in list(self._live.running.items()):
            for served, asked in self._changed(name):
                if (name, asked.ref) in self._fine:
                    continue
                try:
                    found = await self._found(served, asked)
                except StoreError:
                    continue  # whoever else asks the store says so
                if found is not None:
                    self._tell(one, asked.ref, found)

    def _changed(self, name: str) -> Iterator[tuple[View, View]]:
        """The views of a running experiment that are not those that the model is served with."""
        for (experiment, _), variant in list(self._live.variants.items()):
            if experiment != name:
                continue
            latest = self._live.models.latest(variant.name)
            for one, other in zip(latest.plan.bindings, variant.plan.bindings, strict=True):
                if one.ref != other.ref and other.view.compute is None:
                    yield one.view, other.view

    async def _found(self, served: View, asked: View) -> int | None:
        """How many of the ids there are rows for; None where there is no id to ask for."""
        ids = self._client.cached_ids(served, _IDS)
        if not ids:
            return None
        _, keys = KeyCodec(asked).encode(ids)
        return sum(row is not None for row in await self._client.store.read(keys))

    def _tell(self, one: Running, ref: str, found: int) -> None:
        name = one.experiment.name
        if found:
            self._fine.add((name, ref))
            one.warnings.pop(ref, None)
        elif ref not in one.warnings:
            one.warnings[ref] = (
                f"the store has no row of {ref} for any of {_IDS} entities that are asked for, so its columns are "
                f"defaults; fill it with `headrace features backfill {ref}`"
            )
            _log.warning("experiment %s: %s", name, one.warnings[ref])
