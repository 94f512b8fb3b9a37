"""What a store of rows has to do. It knows keys and bytes, nothing of views; rows are made in `featureclient.wire`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, TypeAlias

from featureclient.schema import FeatureError


class StoreError(FeatureError):
    """The store did not do what it was asked."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or does not answer in time. Trying later may help."""


class StoreRefused(StoreError):
    """The store answered with an error: wrong credentials, out of memory, a read-only replica."""


class Unread(Enum):
    """What a read has in place of a value that it could not ask for. Nothing is known of such a key."""

    UNREAD = "unread"


UNREAD: Final = Unread.UNREAD


class PartlyRead(StoreUnavailable):
    """Some of the keys could not be read, because the server that has them cannot be reached; the others are here.

    `values` are in the order of the keys, None where there is definitely no value, UNREAD where nothing is known.
    """

    def __init__(self, why: str, values: Sequence[bytes | Unread | None]) -> None:
        super().__init__(why)
        self.values = values


class WatchUnsupported(StoreError):
    """The store cannot tell of changes: it is too old, or the user may not ask for it."""


@dataclass(frozen=True, slots=True)
class KeysChanged:
    """These keys were written, deleted or expired, in any order, some perhaps more than once."""

    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class AllChanged:
    """The store was emptied."""


@dataclass(frozen=True, slots=True)
class WatchLost:
    """From now on, and perhaps for two seconds already, nobody tells of some of the changes."""

    why: str


@dataclass(frozen=True, slots=True)
class WatchRestored:
    """Changes are told of again. What was read before may have changed meanwhile, and nobody has told."""


Change: TypeAlias = KeysChanged | AllChanged | WatchLost | WatchRestored


class OnlineStore(Protocol):
    """A key-value store. Every method raises StoreUnavailable or StoreRefused, and nothing else, when it fails.

    Every method ends within the store's own time limits, so nobody has to cancel one; one that is cancelled all the
    same leaves no half-read answer behind for the next.
    """

    async def ping(self) -> None:
        """Return when the store answers."""
        ...

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order; None where there is none.

        Raises PartlyRead when only some of the keys could be read.
        """
        ...

    async def read_primary(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same, never of a replica: every write that has returned is seen."""
        ...

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
        """Store rows in order, many to a round trip, and return how many were stored.

        A row is left alone when the stored one has a later event time; equal times go to the later writer. `force`
        replaces whatever is there. So is whatever is not a row, and a row with an event later than `event_ms_max`.
        `only_absent` leaves alone whatever is there.
        """
        ...

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Remove keys, and return how many there were."""
        ...

    async def get_blob(self, name: str) -> bytes | None:
        """A small piece of shared state."""
        ...

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """Set a small piece of shared state. Empty data removes it."""
        ...

    async def watch(self, prefixes: Sequence[bytes], on_change: Callable[[Change], None]) -> None:
        """Have `on_change` called, on the loop, for every change of a key that starts with one of `prefixes`.

        When it returns, changes are told of, those of this client included. A watch that is lost is told of within
        three seconds, and taken up again as soon as that can be done. It ends with `close`. A store is watched once.

        Raises WatchUnsupported, and StoreUnavailable when the store cannot be reached; try again later then.
        """
        ...

    async def close(self) -> None:
        """Give the connections back."""
        ...
