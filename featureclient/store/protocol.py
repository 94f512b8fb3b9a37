"""What a store of rows has to do. It knows keys and bytes, nothing of views; rows are made in `featureclient.wire`."""

from collections.abc import Sequence
from typing import Protocol

from featureclient.schema import FeatureError


class StoreError(FeatureError):
    """The store did not do what it was asked."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or does not answer in time. Trying later may help."""


class StoreRefused(StoreError):
    """The store answered with an error: wrong credentials, out of memory, a read-only replica."""


class OnlineStore(Protocol):
    """A key-value store. Every method raises StoreUnavailable or StoreRefused, and nothing else, when it fails.

    Every method ends within the store's own time limits, so nobody has to cancel one; one that is cancelled all the
    same leaves no half-read answer behind for the next.
    """

    async def ping(self) -> None:
        """Return when the store answers."""
        ...

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order; None where there is none."""
        ...

    async def write(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        *,
        ttl_ms: int | None = None,
        force: bool = False,
        event_ms_max: int,
    ) -> int:
        """Store rows in order, many to a round trip, and return how many were stored.

        A row is left alone when the stored one has a later event time; equal times go to the later writer. `force`
        replaces whatever is there. So is whatever is not a row, and a row with an event later than `event_ms_max`.
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

    async def close(self) -> None:
        """Give the connections back."""
        ...
