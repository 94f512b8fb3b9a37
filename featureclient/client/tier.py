"""Everything the client has for one view: how to name, read and write its rows, its cache, and the keys being read."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from featureclient.cache import ViewCache
from featureclient.client.options import ClientOptions
from featureclient.schema import Id, View, status
from featureclient.wire import KeyCodec, RowReader, RowWriter, with_status

if TYPE_CHECKING:
    from featureclient.client.fetches import Slot


class Tier:
    """The parts of one view. `pending` has the slot of every id that a new caller may wait for."""

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
        self.pending: dict[Id, Slot] = {}

    def fallback(self, one: Id) -> bytes:
        """The row of an id when the store does not answer: the one that has expired, or the defaults."""
        row = self.cache.stale(one)
        return self.unreached_row if row is None else with_status(row, status.STALE | status.UNREACHED)

    def written(self, ids: Iterable[Id]) -> None:
        """Rows were written or deleted: nothing that was read before may stay.

        A read that is under way may have run before the write. Whoever waits for it gets its value, but it is not
        cached, and a caller from now on starts a new read.
        """
        for one in ids:
            self.cache.forget(one)
            slot = self.pending.get(one)
            if slot is not None and slot.sent:
                slot.dirty = True
                del self.pending[one]
