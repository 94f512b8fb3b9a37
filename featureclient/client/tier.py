"""Everything the client has for one view: how to name, read and write its rows, its cache, and the keys being read."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from featureclient.cache import ViewCache
from featureclient.client.options import ClientOptions
from featureclient.schema import Id, View, status
from featureclient.wire import KeyCodec, RowReader, RowWriter, with_status

if TYPE_CHECKING:
    from featureclient.client.fetches import Batch


class Freshness(NamedTuple):
    """The times of one read: until when its rows and its nils may be served, and the latest event that is believed."""

    fresh_until: float
    absent_until: float
    event_ms_max: int


class Answered(NamedTuple):
    """A row for every key of a read, and why some of them were refused."""

    rows: list[bytes]
    invalid: Sequence[str]


class Tier:
    """The parts of one view. `pending` has the batch of every id that a new caller may wait for."""

    __slots__ = ("absent_row", "cache", "invalid_row", "keys", "pending", "reader", "unreached_row", "view", "writer")

    def __init__(self, view: View, options: ClientOptions, cache_bytes_max: int) -> None:
        self.view = view
        self.keys = KeyCodec(view, options.id_bytes_max)
        self.reader = RowReader(view)
        self.writer = RowWriter(view, self.keys, options.bad_rows_max)
        self.absent_row = self.reader.substitute(status.ABSENT)
        self.invalid_row = self.reader.substitute(status.INVALID)
        self.unreached_row = self.reader.substitute(status.UNREACHED)
        self.cache = ViewCache(options.cache, cache_bytes_max, self.absent_row)
        self.pending: dict[Id, Batch] = {}

    def fallback(self, one: Id) -> bytes:
        """The row of an id when the store does not answer: the one that has expired, or the defaults."""
        row = self.cache.stale(one)
        return self.unreached_row if row is None else with_status(row, status.STALE | status.UNREACHED)

    def admit(self, batches: Sequence["Batch"], values: Sequence[bytes | None], freshness: Freshness) -> Answered:
        """What the store answered for the keys of some batches: a row for each of them, cached where it may be."""
        ids = [one for batch in batches for one in batch.ids]
        keys = [key for batch in batches for key in batch.keys]
        dirty = {one for batch in batches for one in batch.dirty}
        stored, invalid = self.reader.admit(keys, values, freshness.fresh_until, freshness.event_ms_max)
        if not dirty and None not in stored:
            rows = cast("list[bytes]", stored)
            self.cache.put_all(ids, rows)
            return Answered(rows, ())
        answered: list[bytes] = []
        for position, (one, row) in enumerate(zip(ids, stored, strict=True)):
            if row is not None:
                answered.append(row)
                if one not in dirty:
                    self.cache.put(one, row)
            elif position in invalid:
                answered.append(self.invalid_row)
            else:
                answered.append(self.absent_row)
                if one not in dirty:
                    self.cache.put_absent(one, freshness.absent_until)
        return Answered(answered, tuple(invalid.values()))

    def written(self, ids: Iterable[Id]) -> None:
        """Rows were written or deleted: nothing that was read before may stay.

        A read that is under way may have run before the write. Whoever waits for it gets its value, but it is not
        cached, and a caller from now on starts a new read.
        """
        for one in ids:
            self.cache.forget(one)
            batch = self.pending.get(one)
            if batch is not None and batch.sent:
                batch.leave_dirty(one)
