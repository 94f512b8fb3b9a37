"""Everything the client has for one view: how to name, read and write its rows, its cache, and the keys being read."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from featureclient.cache import ViewCache
from featureclient.client.options import ClientOptions
from featureclient.schema import Id, View, status
from featureclient.store.protocol import UNREAD, Unread
from featureclient.wire import KeyCodec, RowReader, RowWriter, with_status

if TYPE_CHECKING:
    from featureclient.client.fetches import Batch


class Freshness(NamedTuple):
    """The times of one read: when it was asked, how far ahead of its time it ages (a share of the age, so that what was
    read together is not due together), and the latest event that is believed."""

    read_at: float
    jitter: float
    event_ms_max: int


class Answered(NamedTuple):
    """What a read gave. `rows` has None where a row has to be computed, and `causes` says why, by position.

    `invalid` are the reasons for which rows were refused.
    """

    rows: Sequence[bytes | None]
    causes: Mapping[int, int]
    invalid: Sequence[str]


class Tier:
    """The parts of one view. `pending` has the batch of every id that a new caller may wait for."""

    __slots__ = ("cache", "computes", "keys", "pending", "reader", "substitutes", "view", "writer")

    def __init__(self, view: View, options: ClientOptions, cache_bytes_max: int, *, computes: bool = False) -> None:
        self.view = view
        self.computes = computes
        """Rows that the store has not are computed."""
        self.keys = KeyCodec(view, options.id_bytes_max)
        self.reader = RowReader(view)
        self.writer = RowWriter(view, self.keys, options.bad_rows_max)
        self.substitutes = {
            cause: self.reader.substitute(cause)
            for cause in (status.ABSENT, status.INVALID, status.UNREACHED, status.TIMED_OUT)
        }
        self.cache = ViewCache(
            options.cache,
            cache_bytes_max,
            self.substitutes[status.ABSENT],
            soft_age_s=_seconds(view.soft_age_ms),
            expire_s=_seconds(view.hard_age_ms),
        )
        self.pending: dict[Id, Batch] = {}

    def stale(self, one: Id) -> bytes | None:
        """The row that has expired, for when the store does not answer."""
        row = self.cache.stale(one)
        return None if row is None else with_status(row, status.STALE | status.UNREACHED)

    def admit(
        self, batches: Sequence["Batch"], values: Sequence[bytes | Unread | None], freshness: Freshness
    ) -> Answered:
        """What the store answered for the keys of some batches: a row for each of them, cached where it may be."""
        if len(batches) == 1:
            ids, keys = batches[0].ids, batches[0].keys
        else:
            ids = [one for batch in batches for one in batch.ids]
            keys = [key for batch in batches for key in batch.keys]
        dirty = {one for batch in batches for one in batch.dirty}
        unread: Collection[int] = ()
        if UNREAD in values:
            unread = {position for position, value in enumerate(values) if value is UNREAD}
            values = [None if value is UNREAD else value for value in values]
        stamp = self.cache.stamp(freshness.read_at, freshness.jitter)
        known = cast("Sequence[bytes | None]", values)
        rows, invalid = self.reader.admit(keys, known, stamp, freshness.event_ms_max)
        if not dirty and None not in rows:
            self.cache.put_all(ids, cast("list[bytes]", rows))
            return Answered(rows, {}, ())
        causes: dict[int, int] = {}
        for position, row in enumerate(rows):
            if row is not None:
                if ids[position] not in dirty:
                    self.cache.put(ids[position], row)
            elif position in unread:
                rows[position] = self.stale(ids[position])
                causes[position] = status.UNREACHED
            else:
                causes[position] = status.INVALID if position in invalid else status.ABSENT
        if not self.computes:
            self._substitute(ids, rows, causes, freshness, dirty)
            causes = {}
        return Answered(rows, causes, tuple(invalid.values()))

    def _substitute(
        self,
        ids: Sequence[Id],
        rows: list[bytes | None],
        causes: Mapping[int, int],
        freshness: Freshness,
        dirty: Collection[Id],
    ) -> None:
        """Defaults for what is not there, and a note of what the store definitely has not."""
        stamp = self.cache.absent_stamp(freshness.read_at, freshness.jitter)
        for position, cause in causes.items():
            if rows[position] is None:
                rows[position] = self.substitutes[cause]
                if cause == status.ABSENT and ids[position] not in dirty:
                    self.cache.put_absent(ids[position], stamp)

    def written(self, ids: Collection[Id]) -> None:
        """Rows were written or deleted: nothing that was read before may stay.

        A read that is under way may have run before the write. Whoever waits for it gets its value, but it is not
        cached, and a caller from now on starts a new read.
        """
        self.cache.forget_all(ids)
        if self.pending:
            self._leave_dirty([one for one in ids if one in self.pending])

    def emptied(self) -> None:
        """Any row may have been written or deleted."""
        self.cache.clear()
        self._leave_dirty(list(self.pending))

    def suspect(self, now: float, jitter: float) -> None:
        """Any row that was read until `now` may have been written, and nobody has told: serve it, and read it anew.

        That includes what reads that are under way will bring; the cache knows by when they began.
        """
        self.cache.expire_all(now, jitter)

    def _leave_dirty(self, ids: Sequence[Id]) -> None:
        for one in ids:
            batch = self.pending.get(one)
            if batch is not None and batch.sent:
                batch.leave_dirty(one)


def _seconds(age_ms: int | None) -> float | None:
    return None if age_ms is None else age_ms / 1000
