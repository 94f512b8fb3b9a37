"""One warming: batches of ids are drawn and warmed until there are no more, no time, no room or no success.

`warm(view, ids, give_up_at)` reads ids into the cache and returns how many of them have a row. `room(view)` is how many
more rows the cache of a view takes without pushing out what was warmed before; None where that is not known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from featureclient.schema import FeatureError, Id, InvalidId, View
from featureclient.warmup.idfile import BadLine
from featureclient.warmup.progress import Ended, WarmingAdvanced, WarmingEnded, WarmupEvent
from featureclient.wire.keys import KeyCodec

Batch: TypeAlias = tuple[View | None, Sequence[Id]]
"""Ids of a view; of none, where there is nothing to warm yet but the time to be looked at."""
Draw: TypeAlias = Callable[[], Awaitable[Batch | None]]
Warm: TypeAlias = Callable[[View, Sequence[Id], float], Awaitable[int]]
Room: TypeAlias = Callable[[View], int | None]

WARMS_IN_FLIGHT = 2
"""As many as a client has reads in flight: the next batch is ready when one is answered."""
FAILURES_MAX = 3
"""Batches in a row that fail, or bring no row at all, before a warming gives up."""
BAD_LINES_MAX = 20
"""Bad lines of a file that a report names."""


@dataclass(slots=True)
class Warmed:
    """What became of a warming. `bad_lines` are the first wrong lines of a file, `bad_lines_total` how many there are.

    `ids` were asked for; `cached` of them had a row. `problem` says why a file could not be used.
    """

    source: str
    why: Ended = "done"
    ids: int = 0
    cached: int = 0
    failures: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    bad_lines_total: int = 0
    problem: str = ""
    seconds: float = 0.0

    def note(self, lines: Sequence[BadLine]) -> None:
        """Count wrong lines, and keep the first."""
        self.bad_lines_total += len(lines)
        self.bad_lines += lines[: max(0, BAD_LINES_MAX - len(self.bad_lines))]

    def ended(self) -> WarmingEnded:
        """The event that says so."""
        return WarmingEnded(
            self.source,
            self.why,
            self.ids,
            self.cached,
            self.failures,
            self.bad_lines_total,
            self.seconds,
            self.problem,
        )


class Warming:
    """Draws and warms. `give_up_at` is in seconds of `monotonic`."""

    def __init__(
        self,
        warmed: Warmed,
        warm: Warm,
        room: Room,
        *,
        give_up_at: float,
        monotonic: Callable[[], float],
        emit: Callable[[WarmupEvent], None],
    ) -> None:
        self._warmed = warmed
        self._warm = warm
        self._room = room
        self._give_up_at = give_up_at
        self._monotonic = monotonic
        self._emit = emit
        self._full: set[View] = set()
        self._in_flight: dict[View, int] = {}
        self._failures_in_a_row = 0
        self._keeps = False
        self._done: list[tuple[View, Sequence[Id]]] = []

    async def run(self, draw: Draw, *, use_again: bool = False) -> None:
        """Fill in the report. `use_again`: see `_use_again`; it is for draws that are bounded."""
        self._keeps = use_again
        async with asyncio.TaskGroup() as group:
            for _ in range(WARMS_IN_FLIGHT):
                group.create_task(self._work(draw))
        if self._failures_in_a_row >= FAILURES_MAX:
            self._warmed.why = "failed"
        elif self._warmed.why == "done" and self._full:
            self._warmed.why = "full"
        if use_again:
            await self._use_again()

    async def _work(self, draw: Draw) -> None:
        while self._failures_in_a_row < FAILURES_MAX:
            if self._monotonic() >= self._give_up_at:
                self._warmed.why = "budget"
                return
            batch = await draw()
            if batch is None:
                return
            view, ids = batch
            if view is None or view in self._full:
                continue
            room = self._room(view)
            if room is not None and room - self._in_flight.get(view, 0) < len(ids):
                self._full.add(view)
                ids = ids[: max(0, room - self._in_flight.get(view, 0))]
            if ids:
                await self._warm_batch(view, ids)

    async def _warm_batch(self, view: View, ids: Sequence[Id]) -> None:
        warmed = self._warmed
        self._in_flight[view] = self._in_flight.get(view, 0) + len(ids)
        taken = len(ids)
        try:
            try:
                cached = await self._warm(view, ids, self._give_up_at)
            except InvalidId:
                # Counts that were saved before the entity was changed: no reason to give up the ids that fit.
                ids = _fitting(view, ids)
                cached = await self._warm(view, ids, self._give_up_at) if ids else 0
        except InvalidId:  # the client has a lower bound on their length
            return
        except FeatureError:
            cached = 0
        finally:
            self._in_flight[view] -= taken
        if not ids:
            return
        if cached <= 0:
            warmed.failures += 1
            self._failures_in_a_row += 1
            return
        self._failures_in_a_row = 0
        warmed.ids += len(ids)
        warmed.cached += cached
        if self._keeps:
            self._done.append((view, ids))
        self._emit(WarmingAdvanced(warmed.source, view.ref, warmed.ids, warmed.cached))

    async def _use_again(self) -> None:
        """Ask for what was warmed once more, the last first, so that the hottest is what the cache saw used last.

        To a cache, what was put first is what was not used for longest, and leaves first. Nothing is read, except what
        has left already.
        """
        for view, ids in reversed(self._done):
            if self._monotonic() >= self._give_up_at:
                return
            with suppress(FeatureError):
                await self._warm(view, ids, self._give_up_at)
            await asyncio.sleep(0)


def _fitting(view: View, ids: Sequence[Id]) -> list[Id]:
    """Those of `ids` that can be ids of the view."""
    codec = KeyCodec(view)
    fitting: list[Id] = []
    for one in ids:
        with suppress(InvalidId):
            fitting += codec.encode([one])[0]
    return fitting
