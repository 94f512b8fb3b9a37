"""The cache of one view: rows by id, bounded by bytes, each with a stamp in its first bytes that says how long.

`lookup` is the hot path. One `itemgetter` asks the young dict for all ids, which raises when one is not there, and one
`min` takes the smallest row: the stamp is big-endian in front of every row, so the smallest row is the one that ends
first. Two passes at C speed so tell that every row is there and that every row is fresh. Only when they do not, the
batch gets a second look.

    put ── soft age ──▶ served, and due: `take_due` tells what to read again in the background
        ── hard age ──▶ not served; kept as what `stale` gives when the store cannot answer
    expire_all          everything that was read before has its soft age behind it, in O(1) (see `stamps`)

Invariants
- A row is served only within its hard age. Where there is no soft age (0), it is due only after an `expire_all`.
- What is due is told once, and again when `refresh_retry_s` has passed and it was not put: see `refreshes`.
- The sum of `cost` over all rows and known-absent ids, with what eviction remembers, never exceeds `bytes_max`. A cost
  is the memory that an entry keeps alive, so the bound is one of memory, not of payload.
- Ids known to be absent share one row, and take at most `absent_share` of the bytes.
- An id is in one of the two maps, or in neither.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from operator import itemgetter
from sys import getsizeof
from typing import cast

from featureclient.cache.generations import Generations
from featureclient.cache.options import CacheOptions
from featureclient.cache.refreshes import Refreshes
from featureclient.cache.row_map import RowMap
from featureclient.cache.stamps import Epochs, pack_stamp, stamp_of
from featureclient.schema import Id

ENTRY_BYTES = 128
"""What an entry costs beside its row's bytes and its id: a slot of a dict that just grew (60 to 80 bytes), the header
of the bytes object and the rounding of the allocator (49 at most), and what remains of the slots that it had before it
moved to another dict. Measured in tests/unit/featureclient."""

ABSENT_BYTES = 112
"""The same for an id known to be absent: a slot, and a float."""

PART_BYTES = 16
"""What each part of an id of several keys adds to its own size, by the rounding of the allocator."""

REFRESH_SPREAD_S = 1.0
"""What `expire_all` made due becomes so over this time, each id at its own moment."""

_AFTER = b"\xff" * 16
_FRACTIONS = 1024


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """A view's cache at one moment. `bytes` is the sum of costs, `negatives` are the ids known to be absent.

    `refreshes` counts the rows that were told to be due.
    """

    entries: int
    bytes: int
    bytes_max: int
    hits: int
    misses: int
    evictions: int
    negatives: int
    refreshes: int = 0


class ViewCache:
    """Rows by id. `absent_row` stands for every id known to be absent. Moments are monotonic seconds, from 0 on.

    `soft_age_s` and `expire_s` are the view's own; the options' where they are None.
    """

    __slots__ = ("_absent", "_absent_age_s", "_absent_bytes", "_absent_bytes_max", "_absent_evictions", "_absent_row",
                 "_after_s", "_age_s", "_bytes_max", "_enabled", "_epochs", "_hits", "_misses", "_refreshes", "_rows",
                 "_spread")  # fmt: skip

    def __init__(
        self,
        options: CacheOptions,
        bytes_max: int,
        absent_row: bytes,
        *,
        soft_age_s: float | None = None,
        expire_s: float | None = None,
    ) -> None:
        soft_age_s = options.soft_age_s if soft_age_s is None else soft_age_s
        expire_s = options.expire_s if expire_s is None else expire_s
        if not 0 <= soft_age_s < expire_s:
            raise ValueError(f"soft_age_s ({soft_age_s}) must be below expire_s ({expire_s}), and not negative")
        self._enabled = options.enabled
        self._bytes_max = bytes_max
        # A row's stamp is the end of its soft age, or of its only one; `_after_s` later it is not served any more.
        self._age_s = soft_age_s or expire_s
        self._after_s = expire_s - self._age_s if soft_age_s else 0.0
        self._absent_age_s = options.absent_expire_s
        self._absent_bytes_max = int(bytes_max * options.absent_share)
        self._absent_row = absent_row
        self._epochs = Epochs()
        self._spread = 0.0
        self._refreshes = Refreshes(options.refresh_keys_max, options.refresh_retry_s)
        self._rows = RowMap(_cost)
        self._absent: Generations[Id, float] = Generations()
        self._absent_bytes = 0
        self._absent_evictions = 0
        self._hits = 0
        self._misses = 0

    def __repr__(self) -> str:
        return f"<ViewCache {self.snapshot()} {self._epochs} {self._refreshes}>"

    # ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def lookup(self, ids: Sequence[Id], now: float) -> list[bytes | None]:
        """The rows that may be served, in the order of `ids`; None for every other id."""
        young = self._rows.main.young
        try:
            if len(ids) == 1:
                row = young[ids[0]]
                rows, first_to_end = [row], row
            else:
                found = itemgetter(*ids)(young)
                rows, first_to_end = list(found), min(found)
        except (KeyError, TypeError):  # an id that is not young; no ids, which itemgetter does not take
            return self._lookup_each(ids, list(map(young.get, ids)), now)
        if first_to_end[:8] <= pack_stamp(self._epochs.base + now):
            return self._lookup_each(ids, cast("list[bytes | None]", rows), now)
        self._hits += len(rows)
        return cast("list[bytes | None]", rows)

    def some_ids(self, limit: int) -> list[Id]:
        """Ids that there are rows of, at most so many, in no order."""
        return self._rows.some_ids(limit)

    @property
    def any_due(self) -> bool:
        """`take_due` would tell something."""
        return bool(self._refreshes.due)

    def take_due(self) -> list[Id]:
        """The ids that lookups served and that have to be read again in the background."""
        return self._refreshes.take()

    def stale(self, one: Id) -> bytes | None:
        """The row of an id whether or not it may still be served."""
        return self._rows.peek(one)

    def _lookup_each(self, ids: Sequence[Id], rows: list[bytes | None], now: float) -> list[bytes | None]:
        """The second look: in the other dicts, at the ages, and among what is known to be absent."""
        missing = [position for position, row in enumerate(rows) if row is None]
        aged = self._rows.aged({ids[position] for position in missing})
        if aged:
            use = self._rows.use
            for position in missing:
                if ids[position] in aged:
                    rows[position] = use(ids[position])
        first = min(filter(None, rows), default=None)
        if first is not None and first[:8] <= pack_stamp(self._epochs.base + now):
            self._part_with_old(ids, rows, first, now)
        misses = rows.count(None)
        if misses and self._absent_bytes:
            for position, row in enumerate(rows):
                if row is None and self._is_absent(ids[position], now):
                    rows[position] = self._absent_row
                    misses -= 1
        self._misses += misses
        self._hits += len(rows) - misses
        return rows

    def _part_with_old(self, ids: Sequence[Id], rows: list[bytes | None], first: bytes, now: float) -> None:
        """Take out what is beyond its hard age, and tell what is beyond its soft age."""
        epochs, after_s = self._epochs, self._after_s
        if not epochs.all_served(stamp_of(first), after_s, self._age_s, now):
            for position, row in enumerate(rows):
                if row is not None and now >= epochs.moment(stamp_of(row)) + after_s:
                    rows[position] = None
        if self._refreshes.has_room(now):
            # With _AFTER a whole row compares as its first eight bytes would.
            limit = pack_stamp(epochs.base + now) + _AFTER
            soft = [one for one, row in zip(ids, rows, strict=True) if row is not None and row < limit]
            if soft and now < epochs.since + REFRESH_SPREAD_S:
                soft = [one for one in soft if self._has_come(one, now)]
            self._refreshes.tell(soft, now)

    def _has_come(self, one: Id, now: float) -> bool:
        fraction = (hash((one,)) % _FRACTIONS / _FRACTIONS + self._spread) % 1.0
        return now >= self._epochs.since + fraction * REFRESH_SPREAD_S

    def _is_absent(self, one: Id, now: float) -> bool:
        stamp = self._absent.peek(one)
        if stamp is None or now >= self._epochs.moment(stamp):
            return False
        self._absent.use(one)
        if not self._epochs.is_current(stamp) and self._has_come(one, now):
            self._refreshes.tell((one,), now)
        return True

    # ── Filling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def stamp(self, read_at: float, jitter: float) -> float:
        """The stamp for the rows of a read that began at `read_at`. `jitter`, from 0 to 1, brings their end forward."""
        return self._epochs.stamp(read_at, self._age_s, jitter)

    def absent_stamp(self, read_at: float, jitter: float) -> float:
        """The same for what the read did not find."""
        return self._epochs.stamp(read_at, self._absent_age_s, jitter)

    def put(self, one: Id, row: bytes) -> None:
        """Keep a row, which has its stamp in its first bytes."""
        self._refreshes.settle(one)
        if not self._enabled:
            return
        if self._absent_bytes:
            self._forget_absent(one)
        self._rows.put(one, row, self._bytes_max)
        self._shrink()

    def put_all(self, ids: Sequence[Id], rows: Sequence[bytes]) -> None:
        """`put` for each. The bound is kept when all are put, whose bytes the caller has in hand anyway."""
        if self._refreshes.told:
            for one in ids:
                self._refreshes.settle(one)
        if not self._enabled:
            return
        if self._absent_bytes:
            self._forget_absent_all(set(ids))
        put, bytes_max = self._rows.put, self._bytes_max
        for one, row in zip(ids, rows, strict=True):
            put(one, row, bytes_max)
        self._shrink()

    def put_absent(self, one: Id, stamp: float) -> None:
        """Remember that the store has no row of an id. Only a definite nil may lead here, never an error."""
        self._refreshes.settle(one)
        # Whether or not the absence can be kept: the row is not there any more.
        self._rows.pop(one)
        cost = _absent_cost(one)
        if not self._enabled or cost > self._absent_bytes_max:
            self._forget_absent(one)
            return
        if self._absent.put(one, stamp) is None:
            self._absent_bytes += cost
        while self._absent_bytes > self._absent_bytes_max:
            self._evict_absent()
        self._shrink()

    # ── Forgetting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def forget(self, one: Id) -> None:
        """Drop what is known about an id: it was written."""
        self._rows.pop(one)
        self._forget_absent(one)

    def forget_all(self, ids: Iterable[Id]) -> None:
        """`forget` for each, at a small cost for those of which nothing is known: writes come as floods."""
        wanted = ids if isinstance(ids, set | frozenset) else set(ids)
        self._rows.pop_all(wanted)
        self._forget_absent_all(wanted)

    def expire_all(self, now: float, jitter: float = 0.0) -> None:
        """What was read before `now` may be no longer so: serve it, but read it again. O(1).

        It becomes due over `REFRESH_SPREAD_S`; `jitter`, from 0 to 1, turns the order of the ids, so that the caches
        of several processes do not all begin with the same ones.
        """
        self._spread = jitter
        if not self._epochs.begin(now):
            self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self._rows.clear()
        self._absent.clear()
        self._absent_bytes = 0
        self._refreshes.clear()

    def snapshot(self) -> CacheSnapshot:
        """The state now."""
        return CacheSnapshot(
            entries=len(self._rows),
            bytes=self._rows.bytes + self._absent_bytes,
            bytes_max=self._bytes_max,
            hits=self._hits,
            misses=self._misses,
            evictions=self._rows.evictions + self._absent_evictions,
            negatives=len(self._absent),
            refreshes=self._refreshes.told_total,
        )

    def _shrink(self) -> None:
        # An absent id may push out a row, but only up to its share; a row pushes out rows.
        if self._rows.bytes + self._absent_bytes > self._bytes_max:
            self._rows.shrink(self._bytes_max - self._absent_bytes)
            while self._rows.bytes + self._absent_bytes > self._bytes_max and self._absent_bytes:
                self._evict_absent()

    def _evict_absent(self) -> None:
        self._absent_bytes -= _absent_cost(self._absent.evict()[0])
        self._absent_evictions += 1

    def _forget_absent(self, one: Id) -> None:
        if self._absent.pop(one) is not None:
            self._absent_bytes -= _absent_cost(one)

    def _forget_absent_all(self, ids: Set[Id]) -> None:
        for one, _ in self._absent.pop_all(ids):
            self._absent_bytes -= _absent_cost(one)


def _cost(one: Id, row: bytes) -> int:
    size = len(row) + ENTRY_BYTES + getsizeof(one)
    return size + _parts_bytes(one) if isinstance(one, tuple) else size


def _absent_cost(one: Id) -> int:
    size = ABSENT_BYTES + getsizeof(one)
    return size + _parts_bytes(one) if isinstance(one, tuple) else size


def _parts_bytes(one: tuple[str | int, ...]) -> int:
    return sum(map(getsizeof, one)) + PART_BYTES * len(one)
