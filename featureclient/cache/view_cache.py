"""The cache of one view: rows by id, bounded by bytes, each fresh until a moment that it carries in its first bytes.

`lookup` is the hot path. It asks the young dict for all ids in one `map`, then takes the smallest row: `fresh_until` is
big-endian in front of every row, so the smallest row is the one that ends first, and an id that was not found is None,
which cannot be compared and raises. One pass at C speed so tells both that every row is there and that every row is
fresh. Only when it does not are ids looked at one by one.

Invariants
- A row is handed out only while `now < fresh_until`. After that it stays, until it is replaced or evicted, as what
  `stale` gives when the store cannot answer.
- The sum of `cost` over all rows and known-absent ids never exceeds `bytes_max`. A cost is the memory that an entry
  keeps alive, so the bound is one of memory, not of payload.
- Ids known to be absent share one row, and take at most `absent_share` of the bytes.
- An id is in one of the two maps, or in neither.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from sys import getsizeof

from featureclient.cache.generations import Generations
from featureclient.schema import Id

ENTRY_BYTES = 112
"""What an entry costs beside its row's bytes and its id: a slot of a dict that just grew (60 to 80 bytes), the header
of the bytes object and the rounding of the allocator (49 at most). Measured in tests/unit/featureclient."""

ABSENT_BYTES = 112
"""The same for an id known to be absent: a slot, and a float."""

_fresh_until = struct.Struct(">d").unpack_from
_end_of = struct.Struct(">d").pack


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """How much to keep, and for how long."""

    enabled: bool = True
    bytes_max: int = 256 * 1024 * 1024
    """Memory of all views together; each has an equal share."""
    expire_s: float = 60.0
    """How long a row is served before it is read again."""
    absent_expire_s: float = 5.0
    """The same for an id that the store has no row of."""
    absent_share: float = 0.1
    """How much of a view's memory such ids may take."""

    def __post_init__(self) -> None:
        if self.bytes_max < 0 or self.expire_s <= 0 or self.absent_expire_s <= 0:
            raise ValueError("bytes_max must not be negative; expire_s and absent_expire_s must be above 0")
        if not 0 <= self.absent_share <= 1:
            raise ValueError("absent_share is a share, from 0 to 1")


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """A view's cache at one moment. `bytes` is the sum of costs, `negatives` are the ids known to be absent."""

    entries: int
    bytes: int
    bytes_max: int
    hits: int
    misses: int
    evictions: int
    negatives: int


class ViewCache:
    """Rows by id. `absent_row` stands for every id known to be absent. Moments are monotonic seconds, from 0 on."""

    __slots__ = ("_absent", "_absent_bytes", "_absent_bytes_max", "_absent_row", "_bytes_max", "_enabled", "_evictions",
                 "_hits", "_misses", "_rows", "_rows_bytes")  # fmt: skip

    def __init__(self, options: CacheOptions, bytes_max: int, absent_row: bytes) -> None:
        self._enabled = options.enabled
        self._bytes_max = bytes_max
        self._absent_bytes_max = int(bytes_max * options.absent_share)
        self._absent_row = absent_row
        self._rows: Generations[Id, bytes] = Generations()
        self._rows_bytes = 0
        self._absent: Generations[Id, float] = Generations()
        self._absent_bytes = 0
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def __repr__(self) -> str:
        return f"<ViewCache {self.snapshot()}>"

    def lookup(self, ids: Sequence[Id], now: float) -> list[bytes | None]:
        """The rows that are fresh, in the order of `ids`; None for every other id."""
        rows: list[bytes | None] = list(map(self._rows.young.get, ids))
        try:
            first_to_end = min(rows)  # type: ignore[type-var]  # None raises, as it is meant to
        except (TypeError, ValueError):
            return self._lookup_each(ids, rows, now)
        if first_to_end is None or first_to_end[:8] <= _end_of(now):
            return self._lookup_each(ids, rows, now)
        self._hits += len(rows)
        return rows

    def _lookup_each(self, ids: Sequence[Id], rows: list[bytes | None], now: float) -> list[bytes | None]:
        misses = 0
        for position, row in enumerate(rows):
            if row is None:
                one = ids[position]
                row = self._rows.peek(one)  # noqa: PLW2901  # the same row, from the other generation
                if row is not None:
                    self._rows.use(one)
                elif (until := self._absent.peek(one)) is not None and now < until:
                    self._absent.use(one)
                    rows[position] = self._absent_row
                    continue
            if row is not None and now < _fresh_until(row)[0]:
                rows[position] = row
            else:
                rows[position] = None
                misses += 1
        self._misses += misses
        self._hits += len(rows) - misses
        return rows

    def stale(self, one: Id) -> bytes | None:
        """The row of an id whether or not it is still fresh."""
        return self._rows.peek(one)

    def put(self, one: Id, row: bytes) -> None:
        """Keep a row, which has its `fresh_until` in its first bytes."""
        cost = _cost(one, row)
        if not self._enabled or cost > self._bytes_max:
            return
        if len(self._absent):
            self._forget_absent(one)
        before = self._rows.put(one, row)
        self._rows_bytes += cost if before is None else cost - _cost(one, before)
        if self._rows_bytes + self._absent_bytes > self._bytes_max:
            self._shrink()
        elif self._rows_bytes * 2 > self._bytes_max and self._rows.all_young:
            self._rows.turn()

    def put_all(self, ids: Sequence[Id], rows: Sequence[bytes]) -> None:
        """`put` for each."""
        if not self._enabled:
            return
        for one, row in zip(ids, rows, strict=True):
            self.put(one, row)

    def put_absent(self, one: Id, fresh_until: float) -> None:
        """Remember that the store has no row of an id. Only a definite nil may lead here, never an error."""
        cost = _absent_cost(one)
        if not self._enabled or cost > self._absent_bytes_max:
            return
        self._forget_row(one)
        if self._absent.put(one, fresh_until) is None:
            self._absent_bytes += cost
        while self._absent_bytes > self._absent_bytes_max:
            self._absent_bytes -= _absent_cost(self._absent.evict()[0])
            self._evictions += 1
        self._shrink()

    def forget(self, one: Id) -> None:
        """Drop what is known about an id: it was written."""
        self._forget_row(one)
        self._forget_absent(one)

    def clear(self) -> None:
        """Drop everything."""
        self._rows.clear()
        self._absent.clear()
        self._rows_bytes = self._absent_bytes = 0

    def snapshot(self) -> CacheSnapshot:
        """The state now."""
        return CacheSnapshot(
            entries=len(self._rows),
            bytes=self._rows_bytes + self._absent_bytes,
            bytes_max=self._bytes_max,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            negatives=len(self._absent),
        )

    def _shrink(self) -> None:
        # An absent id may push out a row, but only up to its share; a row pushes out rows.
        while self._rows_bytes + self._absent_bytes > self._bytes_max:
            if self._rows_bytes:
                self._rows_bytes -= _cost(*self._rows.evict())
            else:
                self._absent_bytes -= _absent_cost(self._absent.evict()[0])
            self._evictions += 1

    def _forget_row(self, one: Id) -> None:
        row = self._rows.pop(one)
        if row is not None:
            self._rows_bytes -= _cost(one, row)

    def _forget_absent(self, one: Id) -> None:
        if self._absent.pop(one) is not None:
            self._absent_bytes -= _absent_cost(one)


def _cost(one: Id, row: bytes) -> int:
    return len(row) + ENTRY_BYTES + _id_bytes(one)


def _absent_cost(one: Id) -> int:
    return ABSENT_BYTES + _id_bytes(one)


def _id_bytes(one: Id) -> int:
    if isinstance(one, tuple):
        return getsizeof(one) + sum(map(getsizeof, one))
    return getsizeof(one)
