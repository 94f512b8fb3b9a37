"""Combined views: one stored row with the columns of several views of one entity, so that all of them cost one key.

    views:
      plane@1: {entity: plane, combine: [plane_stats@1, plane_age@1]}

A combined view has the columns of its members, in the order of `combine`, each member's in its own order, under the
names that they have there. It has a version and a fingerprint of its own: to every reader it is a view like any other.

Revisions follow from the members'. A combined row was made of some revision of each member, so every combination of
theirs is a revision of the combined view, and a member that gains a column breaks no combined row that is stored.

Ages. A row is STALE when its event is older than its view's `max_age`, and a combined row has one event time for all of
its members. `event_times` chooses it so that the combined row is STALE from the moment on at which the first of its
members would be: `max_age` of the combined view is the shortest of its members', and a member with a longer one counts
as so much younger. Without any `max_age` it is the newest event. `ttl` is the shortest too, unless the view has its
own.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from featureclient.schema.view import Column, Revision, View

COMBINED_REVISIONS_MAX = 64
"""How many layouts of a combined view may be known: the product of its members' revisions."""


def combined_columns(members: Sequence[View]) -> tuple[Column, ...]:
    """The columns of a combined view."""
    return tuple(column for member in members for column in member.columns)


def combined_revisions(name: str, version: int, members: Sequence[View]) -> tuple[Revision, ...]:
    """The earlier revisions of a combined view, oldest first; without those that are the same as a later one."""
    newest = Revision.of(name, version, combined_columns(members))
    layouts = product(*[[*(revision.columns for revision in member.revisions), member.columns] for member in members])
    revisions = [Revision.of(name, version, [column for part in layout for column in part]) for layout in layouts]
    known = {revision.fingerprint: revision for revision in revisions if revision.fingerprint != newest.fingerprint}
    return tuple(known.values())


def combination_troubles(entity: str, members: Sequence[View]) -> Iterator[tuple[int, str]]:
    """What is wrong with combining these views for `entity`, as (position in `combine`, message)."""
    owners: dict[str, str] = {}
    for position, member in enumerate(members):
        if member.entity.name != entity:
            yield position, f"{member.ref} is a view of {member.entity.name}, a row of {entity} has no key for it"
        if member.feast is not None:
            yield position, f"{member.ref} is stored by Feast, whose rows cannot be combined"
        columns = {column.name for column in member.columns}
        columns |= {column.name for revision in member.revisions for column in revision.columns}
        for column in sorted(columns):
            owner = owners.setdefault(column, member.ref)
            if owner != member.ref:
                yield (
                    position,
                    f"{owner} and {member.ref} both have or had a column {column!r}; a row has one of each name",
                )
    layouts = prod(len(member.revisions) + 1 for member in members)
    if layouts > COMBINED_REVISIONS_MAX:
        yield 0, f"the members' revisions make {layouts} layouts, the limit is {COMBINED_REVISIONS_MAX}"


def shortest(ages_ms: Iterable[int | None]) -> int | None:
    """The least of the ages that are declared."""
    return min((age for age in ages_ms if age is not None), default=None)


def event_times(
    members: Sequence[View], events_ms: Sequence[npt.NDArray[np.int64]], there: Sequence[npt.NDArray[np.bool_]]
) -> npt.NDArray[np.int64]:
    """The event times of combined rows, int64 [rows]; -1 where none is known.

    `events_ms` has the event times of each member's rows (-1 unknown), `there` whether there is such a row.
    """
    known = [found & (events >= 0) for found, events in zip(there, events_ms, strict=True)]
    newest = _where_known(np.maximum, events_ms, known, -1)
    allowed_ms = shortest(member.max_age_ms for member in members)
    if allowed_ms is None:
        return newest
    ageing = [index for index, member in enumerate(members) if member.max_age_ms is not None]
    never = np.iinfo(np.int64).max
    soonest = _where_known(
        np.minimum,
        [events_ms[index] + ((members[index].max_age_ms or 0) - allowed_ms) for index in ageing],
        [known[index] for index in ageing],
        never,
    )
    return np.where(soonest == never, newest, np.minimum(soonest, newest))


def _where_known(
    choose: "np.ufunc",
    events_ms: Sequence[npt.NDArray[np.int64]],
    known: Sequence[npt.NDArray[np.bool_]],
    otherwise: int,
) -> npt.NDArray[Any]:
    chosen: npt.NDArray[Any] = choose.reduce(
        [np.where(some, events, otherwise) for events, some in zip(events_ms, known, strict=True)]
    )
    return chosen
