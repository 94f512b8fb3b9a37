"""In which order ids are prefetched. Pure.

Ids go into drawers by their counts, a drawer being a fifth wide, and drawers are emptied from the top. So the order is
that of the counts to within a fifth, and making it costs neither a sort of everything nor a long hold of the loop.
"""

from collections.abc import Container, Sequence
from math import log
from typing import NamedTuple

from featureclient.schema import Id
from featureclient.warmup.hotkeys import HotKeys, Steps

_DRAWERS_PER_E = 5.5


class Errand(NamedTuple):
    """Ids of one view to read together, and how often the first drawer of them was seen, as a number of the drawer."""

    view: str
    ids: Sequence[Id]
    drawer: int


def errands(hot: HotKeys, views: Container[str], batch_ids: int) -> Steps[list[Errand]]:
    """The `hot.keys_max` hottest ids of each view, in batches of one view, the hottest batch first over all views."""
    found: list[Errand] = []
    for view in hot.views:
        if view in views:
            drawers: dict[int, list[Id]] = {}
            for some in hot.slices(view):
                for one, count in some:
                    drawers.setdefault(int(log(count) * _DRAWERS_PER_E), []).append(one)
                yield
            found += _batches(view, drawers, hot.keys_max, batch_ids)
            yield
    found.sort(key=lambda errand: -errand.drawer)
    return found


def _batches(view: str, drawers: dict[int, list[Id]], ids_max: int, batch_ids: int) -> list[Errand]:
    ordered: list[Id] = []
    starts: list[tuple[int, int]] = []
    for drawer in sorted(drawers, reverse=True):
        starts.append((len(ordered), drawer))
        ordered += drawers[drawer]
        if len(ordered) >= ids_max:
            del ordered[ids_max:]
            break
    made = []
    at = 0
    for start in range(0, len(ordered), batch_ids):
        while at + 1 < len(starts) and starts[at + 1][0] <= start:
            at += 1
        made.append(Errand(view, ordered[start : start + batch_ids], starts[at][1]))
    return made
