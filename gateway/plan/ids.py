"""Ids as a request has them -> ids as the feature client takes them."""

from collections.abc import Mapping, Sequence

from featureclient.schema import Entity, JoinKey
from featureclient.wire.keys import canonical_part
from gateway.records.errors import InvalidRequest
from gateway.records.request import Id

ID_TYPES = {"string": str, "int64": int}
"""A join key's dtype and what its ids are in Python."""


def join_ids(entity: Entity, columns: Mapping[str, Sequence[str] | Sequence[int]]) -> Sequence[Id]:
    """The ids of an entity from columns that are named after its join keys; one id is broadcast to the longest."""
    names = [key.name for key in entity.join_keys]
    if columns.keys() != set(names):
        needs = ", ".join(f"{key.name} ({key.dtype})" for key in entity.join_keys)
        raise InvalidRequest(
            f"entity {entity.name} is joined by {needs}; the request has {sorted(columns)}", field="entities"
        )
    rows = max(map(len, columns.values()))
    for name, ids in columns.items():
        if len(ids) not in (1, rows):
            raise InvalidRequest(
                f"join key {name!r} has {len(ids)} ids, the longest has {rows}", field=f"entities.{name}"
            )
    typed = [typed_ids(key.name, columns[key.name], key.dtype) for key in entity.join_keys]
    return typed[0] if len(typed) == 1 else join(typed, rows)


def typed_ids(name: str, ids: Sequence[str] | Sequence[int], dtype: str) -> Sequence[str] | Sequence[int]:
    """Check the type of an id column. A string for an int64 key must be the canonical decimal of one number."""
    if isinstance(ids[0], ID_TYPES[dtype]):
        return ids
    key = JoinKey(name, "int64" if dtype == "int64" else "string")
    try:
        return [canonical_part(key, given) for given in ids]  # type: ignore[return-value]  # all of the key's type
    except ValueError as error:
        raise InvalidRequest(str(error), field=f"entities.{name}") from error


def join(columns: list[Sequence[str] | Sequence[int]], rows: int) -> Sequence[Id]:
    """The ids of a composite key: tuples of its columns' values."""
    longest = max(map(len, columns))
    if longest == 1:
        return [tuple(column[0] for column in columns)]
    return list(zip(*[column if len(column) == rows else [column[0]] * rows for column in columns], strict=True))
