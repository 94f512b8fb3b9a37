"""Who waits for which key. Pure: no clock, no loop; `FeatureClient` does the reading.

    Fetch.add ──▶ Pending.join ──▶ a Slot per (view, id), new or one that others wait for already
    Pending.take ──▶ the slots of the next read, oldest first
    Pending.settle(slot, row) ──▶ the row goes into every waiting list; fetches that have all their rows are `finished`

Invariants
- A key is read once at a time, however many wait for it; only a write that happens meanwhile starts a second read.
- A slot belongs to the client. A fetch that ends early (cancelled, out of time) leaves its slots alone; one that nobody
  waits for any more is dropped before it is read, and never while it is.
- `finished` has a fetch at most once, and never one that was cancelled.
- At most `keys_max` slots exist, queued and in flight together.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from featureclient.client.tier import Tier
from featureclient.schema import Id

Row: TypeAlias = bytes | None


class Want(NamedTuple):
    """What a fetch is missing of one view: the row of `ids[i]`, stored under `keys[i]`, for `rows[positions[i]]`."""

    tier: Tier
    ids: Sequence[Id]
    keys: Sequence[bytes]
    rows: list[Row]
    positions: Sequence[int]


class Fetch:
    """One caller who waits for rows. `cancel` is all that the caller may do with it."""

    __slots__ = ("_wants", "done", "give_up_at", "missing")

    def __init__(self, give_up_at: float, done: Callable[[], None]) -> None:
        self.give_up_at = give_up_at
        self.done: Callable[[], None] | None = done
        self.missing = 0
        self._wants: list[Want] = []

    def __repr__(self) -> str:
        return f"<Fetch missing={self.missing} live={self.live}>"

    @property
    def live(self) -> bool:
        """The caller still waits."""
        return self.done is not None

    def cancel(self) -> None:
        """The caller has left: `done` will not be called, the lists not touched. The read goes on for others."""
        self.done = None
        self._wants = []

    @property
    def wants(self) -> Sequence[Want]:
        """What the fetch asked for, as long as it is live."""
        return self._wants

    def add(self, want: Want) -> None:
        """Ask for more, before the fetch joins anything."""
        self._wants.append(want)
        self.missing += len(want.positions)

    def fall_back(self) -> None:
        """Fill what is missing without the store."""
        for tier, ids, _, rows, positions in self._wants:
            for one, position in zip(ids, positions, strict=True):
                if rows[position] is None:
                    rows[position] = tier.fallback(one)
        self.missing = 0

    def finish(self) -> Callable[[], None] | None:
        """End the fetch and return what to call, which is nothing when it has ended before."""
        done = self.done
        self.cancel()
        return done


class Slot:
    """A key that is being read or waits for it."""

    __slots__ = ("dirty", "id", "key", "sent", "tier", "waiters")

    def __init__(self, tier: Tier, one: Id, key: bytes) -> None:
        self.tier = tier
        self.id = one
        self.key = key
        self.waiters: list[tuple[Fetch, list[Row], int]] = []
        self.sent = False
        self.dirty = False


class Pending:
    """All slots of a client: those in the queue and those in flight."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._queue: deque[Slot] = deque()
        self._in_flight = 0

    def __repr__(self) -> str:
        return f"<Pending queued={len(self._queue)} in_flight={self._in_flight}>"

    def __len__(self) -> int:
        return len(self._queue) + self._in_flight

    @property
    def queued(self) -> int:
        """Slots that wait to be read."""
        return len(self._queue)

    def join(self, fetch: Fetch, want: Want) -> int:
        """Wait for the rows of a want. Those beyond `keys_max` get their fallback at once; returns how many."""
        tier, ids, keys, rows, positions = want
        pending = tier.pending
        room = self._keys_max - len(self)
        shed = 0
        for one, key, position in zip(ids, keys, positions, strict=True):
            slot = pending.get(one)
            if slot is None:
                if room <= 0:
                    rows[position] = tier.fallback(one)
                    shed += 1
                    continue
                room -= 1
                slot = pending[one] = Slot(tier, one, key)
                self._queue.append(slot)
            slot.waiters.append((fetch, rows, position))
        fetch.missing -= shed
        return shed

    def take(self, keys_max: int) -> list[Slot]:
        """The slots of the next read. They are in flight until they are settled."""
        queue = self._queue
        taken: list[Slot] = []
        while queue and len(taken) < keys_max:
            slot = queue.popleft()
            for fetch, _, _ in slot.waiters:
                if fetch.live:
                    slot.sent = True
                    taken.append(slot)
                    break
            else:
                del slot.tier.pending[slot.id]
        self._in_flight += len(taken)
        return taken

    def take_all(self) -> list[Slot]:
        """Every slot of the queue, to be settled without a read."""
        return self.take(len(self._queue))

    def settle(self, slot: Slot, row: bytes, finished: list[Fetch]) -> None:
        """Hand a row to all who wait for it. Fetches that have all their rows now are added to `finished`."""
        self._in_flight -= 1
        if not slot.dirty:
            del slot.tier.pending[slot.id]
        for fetch, rows, position in slot.waiters:
            if fetch.live:
                rows[position] = row
                fetch.missing -= 1
                if not fetch.missing:
                    finished.append(fetch)
