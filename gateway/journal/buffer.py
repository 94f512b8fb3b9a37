"""What was served and is not written yet: put on the loop, taken by the writer's thread, bounded by bytes.

There is no lock. Each counter has one writer, and a deque's ends may be used from two threads.
"""

from collections import deque
from typing import NamedTuple

from gateway.journal.commits import Commit
from gateway.journal.schema import JournalSchema
from gateway.records.served import Failed, Served


class Offer(NamedTuple):
    """One thing to keep."""

    schema: JournalSchema | None
    """None for a failure whose request was bound to no model."""
    what: Served | Failed
    size: int
    """About how many bytes it holds in memory."""
    rows: int
    commit: Commit | None
    """Who waits until it is on the disk."""


class Buffer:
    """A queue of offers that together have `bytes_max` bytes at most."""

    __slots__ = ("_offers", "_put_bytes", "_released_bytes", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._offers: deque[Offer] = deque()
        self._put_bytes = 0
        self._released_bytes = 0

    def __repr__(self) -> str:
        return f"<Buffer {len(self._offers)} offers, {self.pending_bytes} of {self.bytes_max} bytes>"

    @property
    def pending_bytes(self) -> int:
        """What was put and not released yet."""
        return self._put_bytes - self._released_bytes

    def put(self, offer: Offer) -> bool:
        """Add at the end; False when there is no room. Called on the loop only."""
        put_bytes = self._put_bytes + offer.size
        if put_bytes - self._released_bytes > self.bytes_max:
            return False
        self._put_bytes = put_bytes
        self._offers.append(offer)
        return True

    def take(self) -> list[Offer]:
        """Everything that is there. Its bytes count until they are released. Called by the writer only."""
        offers = self._offers
        return [offers.popleft() for _ in range(len(offers))]

    def release(self, size: int) -> None:
        """So many bytes of what was taken are written, or given up. Called by the writer only."""
        self._released_bytes += size
