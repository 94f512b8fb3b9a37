"""Keeps the stored rows of combined views what the stored rows of their members make them.

    read the members, from the store itself ─▶ write the combined rows ─▶ read the members again
          ▲                                                                    │ rows of which have changed
          └────────────────────────── at most `ATTEMPTS_MAX` times ────────────┘

Why reading again makes it right, also when many do this at once: whoever writes a combined row last has looked at the
members after that. If they were still those that it was made of, it is right; if not, its writer goes round again and
was not the last. So a combined row is wrong only between a write of a member and the end of the combining that follows
it, or after a process died in between; `headrace features combine` puts everything right.

Combined rows are written with `force`, because the event time of the right row may be older than that of the one that
is there: a member was deleted, or written with `force` itself. Nobody else may write rows of a combined view.

A member that has no row, or one that is INVALID, is null in all its columns: readers see the columns' defaults. Without
a row of any member there is no combined row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featureclient.client.rows import Rows, rows_of
from featureclient.schema import EVENT_TIME, FeatureError, Id, InvalidTable, View, status
from featureclient.schema.combination import event_times
from featureclient.store import OnlineStore
from featureclient.wire import KeyCodec, RowReader

if TYPE_CHECKING:
    from featureclient.client.client import FeatureClient

ATTEMPTS_MAX = 5
"""How often rows are combined anew because a member was written meanwhile."""

ROWS_MAX = 512
"""How many combined rows are made at once."""


@dataclass(frozen=True, slots=True)
class Combined:
    """What became of combined rows: written, or removed because no member has a row.

    `contended` are ids whose members were written too often meanwhile, and which have to be combined again.
    """

    written: int = 0
    removed: int = 0
    contended: tuple[Id, ...] = ()

    def __add__(self, other: "Combined") -> "Combined":
        return Combined(self.written + other.written, self.removed + other.removed, (*self.contended, *other.contended))


class NotCombined(FeatureError, ValueError):
    """The view is not a combined one."""


def combined_table(
    view: View, members: Sequence[Rows], there: Sequence[npt.NDArray[np.bool_]]
) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
    """The table of combined rows that `FeatureClient.encode` takes, and which ids have a row, bool [ids].

    `members` are rows of the same ids, in the order of `view.combine`; `there` says which of them are stored, since a
    row of defaults stands for one that is not. Ids of which no member has a row are left out of the table.
    """
    ids = members[0].ids
    some = np.logical_or.reduce(there)
    kept = [one for one, row in zip(ids, some.tolist(), strict=True) if row]
    table: dict[str, Any] = {}
    keys = view.entity.join_keys
    for position, key in enumerate(keys):
        table[key.name] = kept if len(keys) == 1 else [one[position] for one in kept if isinstance(one, tuple)]
    for rows, found in zip(members, there, strict=True):
        for column in rows.view.columns:
            null = ~(rows.valid[column.name] & found)[some]
            values = rows.columns[column.name][some]
            mask = null if values.ndim == 1 else np.broadcast_to(null[:, None], values.shape)
            table[column.name] = np.ma.masked_array(values, mask)
    events = [rows.block["event_ms"].astype(np.int64) for rows in members]
    table[EVENT_TIME] = event_times([rows.view for rows in members], events, there)[some]
    return table, some


class Combiner:
    """Combines the rows of one combined view of an open client. Raises NotCombined for another view.

    Rows of members with events more than `clock_skew_max_ms` ahead are INVALID, as they are for the client.
    """

    def __init__(self, client: "FeatureClient", view: str | View, clock_skew_max_ms: int = 60_000) -> None:
        self._client = client
        self._clock_skew_max_ms = clock_skew_max_ms
        self.view = client.catalogue.view(view) if isinstance(view, str) else view
        if not self.view.combine:
            raise NotCombined(f"{self.view.ref} is not a combined view: it has no `combine`")
        self.members = [Member(client.catalogue.view(ref)) for ref in self.view.combine]

    async def combine(self, ids: Sequence[Id]) -> Combined:
        """Make the combined rows of `ids` what their members' stored rows make them. Raises InvalidId, StoreError."""
        done = Combined()
        for start in range(0, len(ids), ROWS_MAX):
            done += await self._combine([*dict.fromkeys(ids[start : start + ROWS_MAX])])
        return done

    async def _combine(self, ids: Sequence[Id]) -> Combined:
        done = Combined()
        before = await self._read(ids)
        for _ in range(ATTEMPTS_MAX):
            done += await self._write(ids, before)
            after = await self._read(ids)
            changed = [
                row
                for row in range(len(ids))
                if any(was[row] != now[row] for was, now in zip(before, after, strict=True))
            ]
            if not changed:
                return done
            ids = [ids[row] for row in changed]
            before = [[values[row] for row in changed] for values in after]
        return done + Combined(contended=tuple(ids))

    async def _read(self, ids: Sequence[Id]) -> list[list[bytes | None]]:
        """The stored rows of each member, in one read past every cache: of one moment, where a server reads as one."""
        keys = [key for member in self.members for key in member.keys.encode(ids)[1]]
        values = await read_all(self._client.store, keys)
        return [values[start : start + len(ids)] for start in range(0, len(values), len(ids))]

    async def _write(self, ids: Sequence[Id], stored: Sequence[Sequence[bytes | None]]) -> Combined:
        now_ms = self._client.now_ms()
        rows, there = [], []
        for member, values in zip(self.members, stored, strict=True):
            admitted, found = member.admit(ids, values, now_ms + self._clock_skew_max_ms)
            rows.append(rows_of(member.view, ids, admitted, now_ms))
            there.append(found)
        table, some = combined_table(self.view, rows, there)
        gone = [one for one, row in zip(ids, some.tolist(), strict=True) if not row]
        removed = await self._client.delete(self.view, gone) if gone else 0
        if not some.any():
            return Combined(removed=removed)
        encoded = self._client.encode(self.view, table)
        if encoded.bad_rows_total:
            raise InvalidTable(self.view.ref, (), encoded.bad_rows, encoded.bad_rows_total)
        written = await self._client.put(self.view, encoded, force=True)
        return Combined(written.written, removed)


async def read_all(store: OnlineStore, keys: Sequence[bytes]) -> list[bytes | None]:
    """One read for all keys where there are any, of primaries: a replica may not have what has just been written."""
    return await store.read_primary(keys) if keys else []


class Member:
    """A member of a combined view: its keys, and its rows."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.keys = KeyCodec(view)
        self._reader = RowReader(view)

    def admit(
        self, ids: Sequence[Id], values: Sequence[bytes | None], event_ms_max: int
    ) -> tuple[list[bytes], npt.NDArray[np.bool_]]:
        """Cached rows of stored ones, with the row of defaults where there is none; and which are there."""
        keys = self.keys.encode(ids)[1]
        rows = self._reader.admit(keys, values, 0.0, event_ms_max).rows
        absent = self._reader.substitute(status.ABSENT)
        found = np.array([row is not None for row in rows], np.bool_)
        return [absent if row is None else row for row in rows], found


def combined_views(catalogue_views: Mapping[str, View], member: View) -> list[View]:
    """The combined views that have rows of `member` in theirs: those to combine after it was written."""
    return [view for view in catalogue_views.values() if member.ref in view.combine]
