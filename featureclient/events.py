"""What happened, as data. The client hands these to its `on_event`; whoever runs the client counts them."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class StoreRead:
    """One read of the store, of one or more views.

    `found` counts the keys that had a value. `error` is None, or the kind of trouble (the name of an exception class),
    and `why` what it says.
    """

    keys: int
    found: int
    seconds: float
    error: str | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class StoreWrite:
    """One write or delete. `error` is None, or the kind of trouble (the name of an exception class), and `why` what it
    says."""

    rows: int
    seconds: float
    error: str | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class RowInvalid:
    """A stored row was refused. `reason` is one of `featureclient.wire.rows.REASONS`."""

    view: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReadShed:
    """Keys that were answered as unreached, because `pending_keys_max` keys wait already or the breaker is open."""

    keys: int


@dataclass(frozen=True, slots=True)
class ComputeRun:
    """One run of a view's function or query, for `rows` ids, of which `found` got a row.

    `unasked` are rows for ids that nobody asked for; they were dropped. `error` is None, or the kind of trouble (the
    name of an exception class).
    """

    view: str
    rows: int
    found: int
    seconds: float
    error: str | None
    unasked: int = 0


@dataclass(frozen=True, slots=True)
class ComputeRefused:
    """Ids that were not computed: the view's breaker is open, or `waiting_ids_max` ids wait already."""

    view: str
    ids: int


@dataclass(frozen=True, slots=True)
class ComputeUnavailable:
    """A view cannot be computed for now: its source did not answer when a worker started."""

    view: str
    why: str


@dataclass(frozen=True, slots=True)
class ComputeWorkerLost:
    """A worker process ended, or was killed because its run took too long. It is replaced."""

    why: str


@dataclass(frozen=True, slots=True)
class ComputeDropped:
    """Rows that were not computed (`what` is `ids`) or not stored (`write_back`), because too many are under way, or
    that were computed and are none of the view's (`invalid`): the event is in the future."""

    view: str
    what: str
    rows: int


@dataclass(frozen=True, slots=True)
class Changed:
    """The store told that rows of a view were written, deleted or expired."""

    view: str
    rows: int


@dataclass(frozen=True, slots=True)
class Watched:
    """Whether the store tells of changes from now on; if not, `why`, and what is cached is only as new as its age."""

    on: bool
    why: str


Event: TypeAlias = (
    StoreRead
    | ComputeDropped
    | Changed
    | Watched
    | StoreWrite
    | RowInvalid
    | ReadShed
    | ComputeRun
    | ComputeRefused
    | ComputeUnavailable
    | ComputeWorkerLost
)
