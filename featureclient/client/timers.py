"""When the next fetch has waited long enough. One heap, so that the loop needs one timer for all of them."""

import heapq
from itertools import count

from featureclient.client.fetches import Fetch

_COMPACT_MIN = 256


class GiveUpTimes:
    """Fetches by the moment at which they give up, in monotonic seconds.

    Fetches that end earlier stay in the heap until their moment; when they are more than half of it, they are removed,
    so it holds at most twice what waits (and a constant).
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Fetch]] = []
        self._order = count()
        self._compact_at = _COMPACT_MIN

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, fetch: Fetch) -> bool:
        """Add a fetch. True when it is now the next to give up."""
        heap = self._heap
        if len(heap) >= self._compact_at:
            heap[:] = [entry for entry in heap if entry[2].live]
            heapq.heapify(heap)
            self._compact_at = max(_COMPACT_MIN, 2 * len(heap))
        entry = (fetch.ends_at, next(self._order), fetch)
        heapq.heappush(heap, entry)
        return heap[0] is entry

    def next(self) -> float | None:
        """The next moment; None when nobody waits."""
        heap = self._heap
        while heap and not heap[0][2].live:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Fetch]:
        """Remove and return the live fetches whose moment has come."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            fetch = heapq.heappop(self._heap)[2]
            if fetch.live:
                found.append(fetch)
        return found
