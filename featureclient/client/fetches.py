"""Who waits for which key. Pure: no clock, no loop; `FeatureClient` does the reading.

    Pending.join ──▶ the keys of a fetch that nobody reads become a Batch; it shares the batches of those that are read
    Pending.take ──▶ the batches of the next read, oldest first
    Pending.settle(batch, rows) ──▶ rows go into every waiting list; fetches that have all of theirs are `finished`

Keys travel in batches, as they came, so that nothing is made for a key alone: `Tier.pending` maps an id to its batch.

Invariants
- A key is read once at a time, however many wait for it; only a write that happens meanwhile starts a second read.
- A batch belongs to the client. A fetch that ends early (cancelled, out of time) leaves its batches alone; one that
  nobody waits for any more is dropped before it is read, and never while it is.
- `finished` has a fetch at most once, and never one that was cancelled.
- At most `keys_max` keys are queued and in flight together, and at most `read_keys_max` in one read.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
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


class Batch:
    """Keys of one view that were asked for together, and are read together. Made for one fetch, shared by others.

    Its rows go to that fetch, and to whoever shares it.
    """

    __slots__ = ("_dirty", "_fetch", "_positions", "_rows", "_shared", "ids", "keys", "sent", "tier")

    def __init__(self, fetch: Fetch, want: Want) -> None:
        self.tier, self.ids, self.keys, self._rows, self._positions = want
        self._fetch = fetch
        self.sent = False
        # Made when there is something to put in: most batches are of one key that one caller wants.
        self._shared: dict[Id, list[tuple[Fetch, list[Row], int]]] | None = None
        self._dirty: set[Id] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def live(self) -> bool:
        """Somebody waits for it."""
        if self._fetch.live or self._shared is None:
            return self._fetch.live
        return any(fetch.live for waiters in self._shared.values() for fetch, _, _ in waiters)

    @property
    def dirty(self) -> Collection[Id]:
        """The ids that were written while the batch was read."""
        return self._dirty or ()

    def share(self, one: Id, fetch: Fetch, rows: list[Row], position: int) -> None:
        """Have another fetch, or another position of the same, wait for one of the ids."""
        if self._shared is None:
            self._shared = {}
        self._shared.setdefault(one, []).append((fetch, rows, position))

    def leave_dirty(self, one: Id) -> None:
        """An id was written: nobody new may wait for it here, and its row must not be cached."""
        if self._dirty is None:
            self._dirty = set()
        self._dirty.add(one)
        del self.tier.pending[one]

    def leave(self) -> None:
        """Nobody new may wait for this batch."""
        pending = self.tier.pending
        for one in self.ids:
            # One that is dirty has left already, and its place may be another's.
            if self._dirty is None or one not in self._dirty:
                del pending[one]

    def hand_out(self, rows: Sequence[bytes], finished: list[Fetch]) -> None:
        """Give `rows`, in the order of `ids`, to all who wait. Fetches that have all of theirs go into `finished`."""
        fetch = self._fetch
        if fetch.live:
            wanted = self._rows
            for position, row in zip(self._positions, rows, strict=True):
                wanted[position] = row
            _count(fetch, len(rows), finished)
        if self._shared is not None:
            for one, row in zip(self.ids, rows, strict=True):
                for other, wanted, position in self._shared.get(one, ()):
                    if other.live:
                        wanted[position] = row
                        _count(other, 1, finished)


def _count(fetch: Fetch, rows: int, finished: list[Fetch]) -> None:
    fetch.missing -= rows
    if not fetch.missing:
        finished.append(fetch)


class Pending:
    """All batches of a client: those in the queue and those in flight. Bounds are in keys, not in batches."""

    def __init__(self, keys_max: int, read_keys_max: int) -> None:
        self._keys_max = keys_max
        self._read_keys_max = read_keys_max
        self._queue: deque[Batch] = deque()
        self._keys = 0

    def __repr__(self) -> str:
        return f"<Pending keys={self._keys} batches_queued={len(self._queue)}>"

    def __len__(self) -> int:
        return self._keys

    @property
    def queued(self) -> bool:
        """Something waits to be read."""
        return bool(self._queue)

    def join(self, fetch: Fetch, want: Want) -> int:
        """Wait for the rows of a want. Those beyond `keys_max` get their fallback at once; returns how many."""
        tier, ids, keys, rows, positions = want
        pending = tier.pending
        again: list[int] = []
        if any(map(pending.__contains__, ids)) or len(set(ids)) < len(ids):
            first: dict[Id, int] = {}
            for i, one in enumerate(ids):
                if one in pending or one in first:
                    again.append(i)
                else:
                    first[one] = i
            new = list(first.values())
            ids, keys, positions = list(first), [keys[i] for i in new], [positions[i] for i in new]
        room = max(0, self._keys_max - self._keys)
        for start in range(0, min(len(ids), room), self._read_keys_max):
            cut = slice(start, min(start + self._read_keys_max, room))
            batch = Batch(fetch, Want(tier, ids[cut], keys[cut], rows, positions[cut]))
            for one in batch.ids:
                pending[one] = batch
            self._queue.append(batch)
            self._keys += len(batch.ids)
        shed = list(zip(ids[room:], positions[room:], strict=True)) if len(ids) > room else []
        for i in again:
            one, position = want.ids[i], want.positions[i]
            joined = pending.get(one)
            if joined is None:
                shed.append((one, position))
            else:
                joined.share(one, fetch, rows, position)
        for one, position in shed:
            rows[position] = tier.fallback(one)
        fetch.missing -= len(shed)
        return len(shed)

    def take(self) -> list[Batch]:
        """The batches of the next read, oldest first. They are in flight until they are settled."""
        queue = self._queue
        taken: list[Batch] = []
        room = self._read_keys_max
        while queue and len(queue[0]) <= room:
            batch = queue.popleft()
            if batch.live:
                batch.sent = True
                taken.append(batch)
                room -= len(batch)
            else:
                batch.leave()
                self._keys -= len(batch)
        return taken

    def take_all(self) -> list[Batch]:
        """The whole queue, to be settled without a read."""
        taken: list[Batch] = []
        while self._queue:
            taken += self.take()
        return taken

    def settle(self, batch: Batch, rows: Sequence[bytes], finished: list[Fetch]) -> None:
        """Hand the rows of a batch to all who wait. Fetches that have all of theirs now go into `finished`."""
        self._keys -= len(batch)
        batch.leave()
        batch.hand_out(rows, finished)
