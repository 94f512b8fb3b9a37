"""Where counts are kept: in named blobs of the store, which can be read and set, but neither listed nor changed.

    warmup:counts:<replica>   what this replica has counted itself; nobody else sets it, so nothing is overwritten
    warmup:replicas           who has saved, and when: small, read, changed and set by everybody

Two who set the list at the same time may leave one of them out. So each reads it again afterwards, at most
`LIST_TRIES` times, and is in it again when it saves next. Only what a replica counted itself is saved under its name:
if the merged counts were, each restart would count everybody once more.

Invariants: the list names at most `replicas_max` replicas, those that saved last, none that is older than `keep_ms`.
A blob that is not what it should be is as good as none. Errors of the store go to the caller.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

LIST_NAME = "warmup:replicas"
LIST_TRIES = 3
LIST_BYTES_MAX = 65_536
_FORMAT = 1


class Blobs(Protocol):
    """The two methods of an `OnlineStore` that are used here. They raise FeatureError, and nothing else."""

    async def get_blob(self, name: str) -> bytes | None:
        """A small piece of shared state."""
        ...

    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None:
        """Set a small piece of shared state. Empty data removes it."""
        ...


class CountsShelf:
    """The blobs of one replica and of its peers."""

    def __init__(self, blobs: Blobs, replica: str, *, replicas_max: int, keep_ms: int) -> None:
        self._blobs = blobs
        self.replica = replica
        self._replicas_max = replicas_max
        self._keep_ms = keep_ms

    def __repr__(self) -> str:
        return f"<CountsShelf replica={self.replica}>"

    async def save(self, data: bytes, now_ms: int) -> None:
        """Set the counts of this replica, and its place in the list. `now_ms` is since the epoch."""
        await self._blobs.put_blob(_name_of(self.replica), data, self._keep_ms)
        for _ in range(LIST_TRIES):
            others = await self._list(now_ms)
            others[self.replica] = now_ms
            listed = json.dumps({"format": _FORMAT, "replicas": dict(_latest(others, self._replicas_max))})
            await self._blobs.put_blob(LIST_NAME, listed.encode(), self._keep_ms)
            if self.replica in await self._list(now_ms):
                return

    async def names(self, now_ms: int) -> Sequence[tuple[str, int]]:
        """The replicas whose counts are kept, with how old these are in milliseconds, the latest first."""
        listed = _latest(await self._list(now_ms), self._replicas_max)
        return [(replica, now_ms - saved_at) for replica, saved_at in listed]

    async def load(self, replica: str) -> bytes | None:
        """What a replica has saved."""
        return await self._blobs.get_blob(_name_of(replica))

    async def _list(self, now_ms: int) -> dict[str, int]:
        data = await self._blobs.get_blob(LIST_NAME)
        listed = _parsed(data) if data is not None else {}
        # A clock that is ahead must not keep its replica in the list for ever.
        return {replica: min(at, now_ms) for replica, at in listed.items() if now_ms - at <= self._keep_ms}


def _name_of(replica: str) -> str:
    return f"warmup:counts:{replica}"


def _latest(listed: Mapping[str, int], replicas_max: int) -> list[tuple[str, int]]:
    return sorted(listed.items(), key=lambda item: (-item[1], item[0]))[:replicas_max]


def _parsed(data: bytes) -> dict[str, int]:
    """The list, or an empty one where it is not one."""
    try:
        content = json.loads(data) if len(data) <= LIST_BYTES_MAX else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return {}
    replicas = content.get("replicas")
    if not isinstance(replicas, dict):
        return {}
    return {name: at for name, at in replicas.items() if type(at) is int}
