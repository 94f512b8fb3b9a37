"""Puts the experiments of the settings among the other parts of a gateway, and keeps them going.

settings.experiments ─▶ Live ─▶ handlers of the edge, swaps, metrics, the page ─▶ watched, canaries looked at
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from featureclient.client import FeatureClient
from gateway.inference import Model, ModelRepository, RepositoryOptions, Swap
from gateway.inference.watching import watch
from gateway.pipeline import Pipeline
from gateway.server.experiments.live import Live
from gateway.server.experiments.page import experiments_page, seen
from gateway.server.experiments.stored import StoredRows
from gateway.server.http import Page
from gateway.server.swaps import Swaps
from gateway.telemetry import Telemetry

_WATCH_DEBOUNCE_MS = 200
"""An edit of one small file is no flood."""
_LOOK_EVERY_S = 2.0
"""How often the store is asked for rows of new feature versions, and the file is looked at whoever tells of changes."""
_log = logging.getLogger(__name__)


class Edge(Protocol):
    """A handler that deals requests out."""

    experiments: Live | None


class Experiments:
    """The experiments of a gateway; none where the settings name no file."""

    def __init__(self, path: Path | None, models: ModelRepository, telemetry: Telemetry) -> None:
        """Reads the file. Raises ConfigError with every problem."""
        self.live: Live | None = None
        self.comparisons: Callable[[str], Mapping[str, Any]] = lambda name: {}
        """What comparing a shadow's answers has come to, by variant; set by whoever compares."""
        self._tasks: list[asyncio.Task[NoReturn]] = []
        if path is not None:
            live = self.live = Live(path, models, secrets.token_hex(8))
            live.load()
            telemetry.watch_experiments(lambda: seen(live))

    def __repr__(self) -> str:
        return f"<Experiments {self.live!r}>"

    def page(self) -> Page:
        """The page `/experiments`."""

        def comparisons(name: str) -> Mapping[str, Any]:
            return self.comparisons(name)  # which may be set later

        return experiments_page(self.live, comparisons)

    def join(self, edges: Sequence[Edge], swaps: Swaps, pipeline: Pipeline) -> None:
        """Have the handlers deal requests out. Whoever hears of swaps hears of variants from now on."""
        live = self.live
        if live is None:
            return
        tells, forgets = swaps.told

        def announce(swap: Swap) -> None:
            for tell in tells:
                tell(swap)

        def forget(model: Model) -> None:
            pipeline.forget(model)
            for one in forgets:
                one(model)

        live.announce, live.forget = announce, forget
        announce(Swap([*live.variants.values()], []))
        # Last of all: the handlers have heard of the models that its variants are of.
        swaps.tell(live.on_swap, live.gone)
        for edge in edges:
            edge.experiments = live

    async def begin(self, client: FeatureClient, options: RepositoryOptions) -> None:
        """Ask the store how far the canaries are, and follow the file. The server is about to serve."""
        live = self.live
        if live is None:
            return
        await live.open(client.store)
        stored = StoredRows(live, client)
        watched = replace(options, watch_debounce_ms=_WATCH_DEBOUNCE_MS)
        works: dict[str, Coroutine[Any, Any, NoReturn]] = {
            "canaries": live.run(client.store),
            "watch": watch(live.path.parent, watched, live.refresh, recursive=False),
            "look": _look(live, stored),
        }
        for name, work in works.items():
            self._tasks.append(asyncio.create_task(work, name=f"headrace-experiments-{name}"))

    def close(self) -> None:
        """Follow nothing any more."""
        for task in self._tasks:
            task.cancel()
        if self.live is not None:
            self.live.close()


async def _look(live: Live, stored: StoredRows) -> NoReturn:
    """What is not told of is looked at now and then."""
    while True:
        try:
            await stored.look()
            await live.refresh()
        except Exception:  # noqa: BLE001 - a bug of ours must not end the look-out
            _log.exception("looking at the experiments failed")
        await asyncio.sleep(_LOOK_EVERY_S)
