"""Views that Feast writes, beside our own rows, in one Redis.

    read     our keys ─▶ those of Feast's views as Feast's keys ─▶ one HGETALL or HMGET each, in one round trip
             ◀─ rows of our layout, under our keys ◀─ hashes
    watch    our prefixes and Feast's ─▶ Redis tells of one of Feast's keys ─▶ one of our keys for every view of it
    the rest goes to the store below; a write or a delete of Feast's rows is refused

So whoever is above sees one store with one layout. Redis keeps a small hash as a list, and HMGET walks along it once
for each field: 50 fields of 51 take it 31 µs, and HGETALL 5 µs. So a view of `WHOLE_FIELDS_MIN` fields or more is read
by HGETALL, until its hashes turn out to hold WHOLE_TIMES as many fields, of other views of the entity.

Invariant: nothing is written where Feast writes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

from featureclient.feast import FeastKeys, FeastRows, Refusal
from featureclient.schema import View
from featureclient.store.lane import store_error
from featureclient.store.link import Command, ReplyError
from featureclient.store.protocol import (
    UNREAD,
    Change,
    KeysChanged,
    OnlineStore,
    PartlyRead,
    StoreRefused,
    StoreUnavailable,
    Unread,
)
from featureclient.wire import refused

WHOLE_FIELDS_MIN: Final = 16
"""Fewer fields are asked for by name."""

WHOLE_TIMES: Final = 3
"""How many times a view's own fields a hash may hold and still be read as a whole."""

Answer: TypeAlias = bytes | Unread | None
"""A row, none, or nothing known."""

_WRONG_TYPE: Final = "WRONGTYPE"


class CommandStore(OnlineStore, Protocol):
    """A store on Redis that also answers commands."""

    async def query(self, commands: Sequence[Command]) -> list[Any]:
        """The replies of commands that change nothing, each about the one key that is its first argument.

        ReplyErrors are among the replies. Raises StoreUnavailable; PartlyRead, with UNREAD among its values, when only
        some of the commands could be asked.
        """
        ...

    def scan(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """Pages of the keys that match a glob pattern."""
        ...


class _FeastView:
    """What is known of one view. `whole` is whether its hashes are worth reading as a whole."""

    __slots__ = ("keys", "ref", "rows", "whole")

    def __init__(self, view: View) -> None:
        self.ref = view.ref
        self.keys = FeastKeys(view)
        self.rows = FeastRows(view)
        self.whole = len(self.rows.fields) >= WHOLE_FIELDS_MIN

    def command(self, feast_key: bytes) -> Command:
        return (b"HGETALL", feast_key) if self.whole else (b"HMGET", feast_key, *self.rows.fields)


class FeastStore:
    """An `OnlineStore` above another one. `views` are those of a catalogue; the ones without `feast` are left alone.

    `on_refused` is told of every row of Feast's that is refused, on the loop: which column, and why.
    """

    def __init__(
        self, store: CommandStore, views: Iterable[View], *, on_refused: Callable[[Refusal], None] | None = None
    ) -> None:
        self._store = store
        self._on_refused = on_refused
        self._views: dict[bytes, _FeastView] = {}
        self.serve(views)

    def __repr__(self) -> str:
        return f"<FeastStore views={[view.ref for view in self._views.values()]} {self._store}>"

    def serve(self, views: Iterable[View]) -> None:
        """Read these views, too. One that is known already is replaced: its definition may have changed."""
        for view in views:
            if view.feast is not None:
                made = _FeastView(view)
                self._views[made.keys.suffix] = made

    async def ping(self) -> None:
        """That of the store below."""
        await self._store.ping()

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Rows of both layouts. One of Feast's that is refused is what `featureclient.wire.refused` gives."""
        return await self._read(keys, self._store.read)

    async def _read(
        self, keys: Sequence[bytes], read_ours: Callable[[Sequence[bytes]], Awaitable[list[bytes | None]]]
    ) -> list[bytes | None]:
        ours, by_view = self._sorted(keys)
        if not by_view:
            return await read_ours(keys)
        values: list[Answer] = [None] * len(keys)
        why = ""
        if ours:
            try:
                found: Sequence[Answer] = await read_ours([keys[i] for i in ours])
            except PartlyRead as error:
                why, found = str(error), error.values
            _put(values, ours, found)
        commands = [
            view.command(key)
            for view, positions in by_view.items()
            for key in view.keys.of([keys[i] for i in positions])
        ]
        wholes = [view.whole for view in by_view]
        try:
            replies = await self._store.query(commands)
        except PartlyRead as error:
            why, replies = str(error), list(error.values)
        start = 0
        for (view, positions), whole in zip(by_view.items(), wholes, strict=True):
            some = replies[start : start + len(positions)]
            start += len(positions)
            _put(values, positions, self._rows(view, whole, [keys[i] for i in positions], some))
        if why:
            raise PartlyRead(why, values)
        return values  # type: ignore[return-value]  # UNREAD comes with PartlyRead only

    async def read_primary(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same, with our own rows from primaries. Feast's are as `read` has them: here nobody writes them."""
        return await self._read(keys, self._store.read_primary)

    def _sorted(self, keys: Sequence[bytes]) -> tuple[list[int], dict[_FeastView, list[int]]]:
        """The positions of our own rows, and of those of each view of Feast's."""
        views = self._views
        if keys:
            # Most reads are of one view. Braces are escaped in ids, so the last one ends the id.
            suffix = keys[0][keys[0].rfind(b"}") :]
            size = len(suffix)
            if {key[-size:] for key in keys} == {suffix}:
                one, every = views.get(suffix), list(range(len(keys)))
                return (every, {}) if one is None else ([], {one: every})
        ours: list[int] = []
        by_view: dict[_FeastView, list[int]] = {}
        for i, key in enumerate(keys):
            view = views.get(key[key.rfind(b"}") :])
            if view is None:
                ours.append(i)
            else:
                by_view.setdefault(view, []).append(i)
        return ours, by_view

    def _rows(self, view: _FeastView, whole: bool, keys: Sequence[bytes], replies: Sequence[Any]) -> Sequence[Answer]:
        """Rows of one view; what is no reply about a hash stays aside."""
        odd = [i for i, reply in enumerate(replies) if not _is_hash(reply, None if whole else len(view.rows.fields))]
        if not odd:
            return self._decoded(view, whole, keys, replies)
        values: list[Answer] = [None] * len(replies)
        good = sorted(set(range(len(replies))) - set(odd))
        _put(values, good, self._decoded(view, whole, [keys[i] for i in good], [replies[i] for i in good]))
        for i in odd:
            values[i] = self._not_a_hash(view, keys[i], replies[i])
        return values

    def _decoded(
        self, view: _FeastView, whole: bool, keys: Sequence[bytes], replies: Sequence[Any]
    ) -> list[bytes | None]:
        if whole:
            if max(map(len, replies), default=0) > 2 * WHOLE_TIMES * len(view.rows.fields):
                view.whole = False
            replies = view.rows.pick(replies)
        rows, refusals = view.rows.rows(keys, replies)
        if self._on_refused is not None:
            for refusal in refusals:
                self._on_refused(refusal)
        return rows

    def _not_a_hash(self, view: _FeastView, key: bytes, reply: object) -> bytes | Unread:
        if reply is UNREAD:
            return UNREAD
        if not isinstance(reply, ReplyError):
            raise StoreUnavailable(f"a reply of {type(reply).__name__} where a hash should be: this is not Redis")
        if reply.kind != _WRONG_TYPE:
            raise store_error(reply) from reply
        if self._on_refused is not None:
            self._on_refused(Refusal(view.ref, key, "", "hash", "what is under Feast's key is no hash"))
        return refused("hash")

    async def write(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        *,
        ttl_ms: int | None = None,
        force: bool = False,
        only_absent: bool = False,
        event_ms_max: int,
    ) -> int:
        """That of the store below. Raises StoreRefused, before anything is written, for a row of Feast's."""
        self._refuse_changes(keys)
        return await self._store.write(
            keys, values, ttl_ms=ttl_ms, force=force, only_absent=only_absent, event_ms_max=event_ms_max
        )

    async def delete(self, keys: Sequence[bytes]) -> int:
        """That of the store below. Raises StoreRefused, before anything is deleted, for a row of Feast's."""
        self._refuse_changes(keys)
        return await self._store.delete(keys)

    def _refuse_changes(self, keys: Sequence[bytes]) -> None:
        _, by_view = self._sorted(keys)
        if by_view:
            refs = ", ".join(sorted(view.ref for view in by_view))
            raise StoreRefused(f"{refs}: Feast writes these rows, and here they are read only; write them with Feast")

    async def scan(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """Pages of keys of the store below, where it can find keys. Rows of Feast's are not among those of a view."""
        async for page in self._store.scan(pattern):
            yield page

    async def get_blob(self, name: str) -> bytes | None:
        """That of the store below."""
        return await self._store.get_blob(name)

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """That of the store below."""
        await self._store.put_blob(name, data, ttl_ms)

    async def watch(self, prefixes: Sequence[bytes], on_change: Callable[[Change], None]) -> None:
        """That of the store below, with Feast's keys told of as ours.

        A change of one of Feast's hashes may be of any view of the entity, and is told of for all of them.
        """
        views = [view for view in self._views.values() if view.keys.ours_start.startswith(tuple(prefixes))]
        if not views:
            await self._store.watch(prefixes, on_change)
            return

        def told(change: Change) -> None:
            on_change(KeysChanged(_as_ours(change.keys, views)) if isinstance(change, KeysChanged) else change)

        feast_prefixes = dict.fromkeys(view.keys.prefix for view in views)
        await self._store.watch([*prefixes, *feast_prefixes], told)

    async def close(self) -> None:
        """That of the store below."""
        await self._store.close()


def with_feast(
    store: OnlineStore, views: Iterable[View], *, on_refused: Callable[[Refusal], None] | None = None
) -> OnlineStore:
    """The store itself where no view is Feast's, else a FeastStore above it. What `open_store` makes may be below."""
    some = list(views)
    if all(view.feast is None for view in some):
        return store
    if not hasattr(store, "query"):
        raise TypeError(f"{type(store).__name__} cannot read the views of Feast: it has no `query`")
    return FeastStore(cast("CommandStore", store), some, on_refused=on_refused)


def _as_ours(keys: Sequence[bytes], views: Sequence[_FeastView]) -> list[bytes]:
    """Our keys for all that changed. Feast's keys of other projects are of no account."""
    made: list[bytes] = []
    starts = tuple({view.keys.prefix for view in views})
    for key in keys:
        if key.startswith(starts):
            made += [one for view in views if (one := view.keys.ours(key)) is not None]
        else:
            made.append(key)
    return made


def _is_hash(reply: object, values: int | None) -> bool:
    """It has so many values; or, for None, names and values by turns."""
    return type(reply) is list and (len(reply) % 2 == 0 if values is None else len(reply) == values)


def _put(values: list[Answer], positions: Sequence[int], found: Sequence[Answer]) -> None:
    for i, value in zip(positions, found, strict=True):
        values[i] = value
