"""Who waits for which key. Pure: no clock, no loop; `FeatureClient` does the reading.

    Pending.join ──▶ the keys of a fetch that nobody reads become a Batch; it shares the batches of those that are read
    Pending.take ──▶ the batches of the next read, oldest first
    Pending.settle(batch, rows) ──▶ rows go into every waiting list, and `Settled` notes whose they were

A fetch is one or many callers who wait together, such as the requests of one tick. Each caller is told as soon as its
own last row is there. The usual fetch gets all its rows from one read, and then nothing is counted caller by caller.
Keys travel in batches, as they came, so that nothing is made for a key alone: `Tier.pending` maps an id to its batch.

Invariants
- A key is read once at a time, however many wait for it; only a write that happens meanwhile starts a second read.
- A batch belongs to the client. A fetch that ends early (cancelled, out of time) leaves its batches alone; one that
  nobody waits for any more is dropped before it is read, and never while it is.
- A caller is told once, when its last row is there, and never after `cancel`.
- At most `keys_max` keys are queued and in flight together, and at most `read_keys_max` in one read.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

from featureclient.client.tier import Tier
from featureclient.schema import Id

Row: TypeAlias = bytes | None
Done: TypeAlias = Callable[[Sequence[int]], None]


class Want(NamedTuple):
    """What a fetch is missing of one view: the row of `ids[i]`, stored under `keys[i]`, for `rows[positions[i]]`, which
    `callers[i]` waits for."""

    tier: Tier
    ids: Sequence[Id]
    keys: Sequence[bytes]
    rows: list[Row]
    positions: Sequence[int]
    callers: Sequence[int]


class Waiter(NamedTuple):
    """One place that waits for a row."""

    fetch: "Fetch"
    rows: list[Row]
    position: int
    caller: int


class Fetch:
    """Callers who wait for rows, numbered from 0. `cancel` is all that they may do with it.

    `done` gets the numbers of those whose rows are all there. Until `give_up_at` they wait for the store, and then
    until `compute_until` for what is computed instead.
    """

    __slots__ = ("_left", "_unanswered", "callers", "compute_until", "done", "give_up_at", "late", "missing", "wants")

    def __init__(self, give_up_at: float, done: Done, callers: int = 1, compute_until: float | None = None) -> None:
        self.give_up_at = give_up_at
        self.compute_until = give_up_at if compute_until is None else compute_until
        self.done: Done | None = done
        self.callers = callers
        self.missing = 0
        """Rows that are not there yet."""
        self.wants: Sequence[Want] = []
        """What was asked for, as long as the fetch is live."""
        self.late = False
        """The time for the store is over, so some places may be filled when their read ends."""
        self._unanswered = callers
        self._left: list[int] | None = None

    def __repr__(self) -> str:
        return f"<Fetch missing={self.missing} live={self.live}>"

    @property
    def live(self) -> bool:
        """Somebody still waits."""
        return self.done is not None

    @property
    def ends_at(self) -> float:
        """The next moment at which its time is over."""
        return self.compute_until if self.late else self.give_up_at

    def cancel(self) -> None:
        """The callers have left: `done` will not be called, the lists not touched. The read goes on for others."""
        self.done = None
        self.wants = []

    def ask(self, wants: Sequence[Want]) -> None:
        """Say what is missing, before the fetch joins anything."""
        self.wants = wants
        self.missing = sum([len(want.positions) for want in wants])

    def count_off(self, parts: Sequence[Sequence[int]]) -> Sequence[int]:
        """The callers who have all their rows, now that for each number in `parts` another row of that caller is there.

        `missing` has been reduced by these rows before.
        """
        left = self._left
        if left is None:
            if not self.missing:
                return range(self.callers)
            left = self._left = [0] * self.callers
            for want in self.wants:
                for caller in want.callers:
                    left[caller] += 1
        ready = []
        for callers in parts:
            for caller in callers:
                left[caller] -= 1
                if not left[caller]:
                    ready.append(caller)
        return ready

    def finish(self, callers: int) -> Done | None:
        """So many callers are to be told: whom to call, which is nobody after `cancel`. The last ones end the fetch."""
        done = self.done
        self._unanswered -= callers
        if not self._unanswered:
            self.cancel()
        return done


class Settled:
    """The rows that came in together, by the fetch that they are for."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: dict[Fetch, list[Sequence[int]]] = {}

    def add(self, fetch: Fetch, callers: Sequence[int]) -> None:
        """For each number, one more row of that caller is there."""
        fetch.missing -= len(callers)
        self._parts.setdefault(fetch, []).append(callers)

    def give(self, waiter: Waiter, row: bytes) -> None:
        """Fill one place, unless it has been filled or left."""
        fetch, rows, position, caller = waiter
        if fetch.live and rows[position] is None:
            rows[position] = row
            self.add(fetch, (caller,))

    def ready(self) -> list[tuple[Fetch, Sequence[int]]]:
        """Who is to be told, and of which callers."""
        found = [(fetch, fetch.count_off(parts)) for fetch, parts in self._parts.items()]
        return [(fetch, callers) for fetch, callers in found if callers]


class Batch:
    """Keys of one view that were asked for together, and are read together. Made for one fetch, shared by others.

    Its rows go to that fetch, and to whoever shares it.
    """

    __slots__ = ("_callers", "_computed", "_dirty", "_fetch", "_positions", "_rows", "_shared", "ids", "keys", "sent",
                 "tier")  # fmt: skip

    def __init__(self, fetch: Fetch, want: Want) -> None:
        self.tier, self.ids, self.keys, self._rows, self._positions, self._callers = want
        self._fetch = fetch
        self.sent = False
        # Made when there is something to put in.
        self._shared: dict[Id, list[Waiter]] | None = None
        self._dirty: set[Id] | None = None
        self._computed: dict[Id, bytes] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def live(self) -> bool:
        """Somebody waits for it."""
        if self._fetch.live or self._shared is None:
            return self._fetch.live
        return any(waiter.fetch.live for waiters in self._shared.values() for waiter in waiters)

    @property
    def dirty(self) -> Collection[Id]:
        """The ids that were written while the batch was read."""
        return self._dirty or ()

    def share(self, one: Id, waiter: Waiter) -> None:
        """Have another fetch, or another position of the same, wait for one of the ids."""
        if self._shared is None:
            self._shared = {}
        self._shared.setdefault(one, []).append(waiter)

    def leave_dirty(self, one: Id) -> None:
        """An id was written: nobody new may wait for it here, and its row must not be cached."""
        if self._dirty is None:
            self._dirty = set()
        self._dirty.add(one)
        del self.tier.pending[one]

    def note_computed(self, one: Id, row: bytes) -> None:
        """While the read was under way, an earlier one that found nothing has had this row computed."""
        if self._computed is None:
            self._computed = {}
        self._computed[one] = row

    def computed(self, one: Id) -> bytes | None:
        """What was computed of an id while the read was under way."""
        return None if self._computed is None else self._computed.get(one)

    def leave(self) -> None:
        """Nobody new may wait for this batch."""
        pending = self.tier.pending
        for one in self.ids:
            # One that is dirty has left already, and its place may be another's.
            if self._dirty is None or one not in self._dirty:
                del pending[one]

    def hand_out(self, rows: Sequence[Row], settled: Settled) -> None:
        """Give `rows`, in the order of `ids`, to all who wait. None is given to nobody: `waiters` tells who that is."""
        fetch, wanted = self._fetch, self._rows
        if fetch.live:
            if fetch.late or None in rows:
                for position, caller, row in zip(self._positions, self._callers, rows, strict=True):
                    if row is not None:
                        settled.give(Waiter(fetch, wanted, position, caller), row)
            else:
                for position, row in zip(self._positions, rows, strict=True):
                    wanted[position] = row
                settled.add(fetch, self._callers)
        if self._shared is not None:
            row_of = dict(zip(self.ids, rows, strict=True))
            for one, waiters in self._shared.items():
                row = row_of[one]
                if row is not None:
                    for waiter in waiters:
                        settled.give(waiter, row)

    def waiters(self, index: int) -> list[Waiter]:
        """Everybody who waits for the row of `ids[index]`."""
        first = Waiter(self._fetch, self._rows, self._positions[index], self._callers[index])
        return [first, *(self._shared or {}).get(self.ids[index], ())]


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

    def join(self, fetch: Fetch, want: Want) -> list[int]:
        """Wait for the rows of a want. Returns which of its ids found no room, beyond `keys_max`."""
        tier, ids, keys, rows, positions, callers = want
        pending = tier.pending
        again: list[int] = []
        new: Sequence[int] = range(len(ids))
        if not pending.keys().isdisjoint(ids) or len(set(ids)) < len(ids):
            # Backwards, so that the first place of each id is the one that stays.
            first = dict(zip(reversed(ids), reversed(new), strict=True))
            fresh = first.keys() - pending.keys()
            chosen = sorted([first[one] for one in fresh])
            again = sorted({*new}.difference(chosen))
            new, ids, keys = chosen, [ids[i] for i in chosen], [keys[i] for i in chosen]
            positions, callers = [positions[i] for i in chosen], [callers[i] for i in chosen]
        room = max(0, self._keys_max - self._keys)
        for start in range(0, min(len(ids), room), self._read_keys_max):
            cut = slice(start, min(start + self._read_keys_max, room))
            batch = Batch(fetch, Want(tier, ids[cut], keys[cut], rows, positions[cut], callers[cut]))
            pending.update(dict.fromkeys(batch.ids, batch))
            self._queue.append(batch)
            self._keys += len(batch.ids)
        shed = list(new[room:])
        for i in again:
            joined = pending.get(want.ids[i])
            if joined is None:
                shed.append(i)
            else:
                joined.share(want.ids[i], Waiter(fetch, rows, want.positions[i], want.callers[i]))
        return shed

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

    def settle(self, batch: Batch, rows: Sequence[Row], settled: Settled) -> None:
        """Hand the rows of a batch to all who wait, and close it."""
        self._keys -= len(batch)
        batch.leave()
        batch.hand_out(rows, settled)
