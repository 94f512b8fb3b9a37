"""What happened, as data. The client hands these to its `on_event`; whoever runs the client counts them."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class StoreRead:
    """One read of the store, of one or more views.

    `found` counts the keys that had a value. `error` is None, or the kind of trouble (the name of an exception class).
    """

    keys: int
    found: int
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class StoreWrite:
    """One write or delete. `error` is None, or the kind of trouble (the name of an exception class)."""

    rows: int
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class RowInvalid:
    """A stored row was refused. `reason` is one of `featureclient.wire.rows.REASONS`."""

    view: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReadShed:
    """Keys that were answered as unreached, because `pending_keys_max` keys wait already or the breaker is open."""

    keys: int


Event: TypeAlias = StoreRead | StoreWrite | RowInvalid | ReadShed
