"""The rows of one view version in a store: found by their keys' pattern, counted by revision, dropped.

    pages_of      pages of keys, as SCAN gives them: in no order, some twice, none that was there all the time missing
    look_at_rows  a sample of the rows, by fingerprint
    drop_rows     UNLINK, page by page, at most so many rows a second

A drop that is interrupted is resumed by another: what is gone is not found again. Rows that somebody writes meanwhile
may be found or not, so a drop goes over the keys until it finds none, at most `PASSES_MAX` times.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, runtime_checkable

from featureclient.evolution.checking import StoredRows
from featureclient.schema import FeatureError, View
from featureclient.store import OnlineStore
from featureclient.wire import RowReader

PASSES_MAX = 3
READ_KEYS_MAX = 256
FOREVER_MS = 2**62

_FINGERPRINT = slice(4, 8)
_HEAD_BYTES = 8


@runtime_checkable
class Scanning(Protocol):
    """A store that can find keys."""

    def scan(self, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
        """Pages of keys that match a glob pattern; some may be empty, and a key may come twice."""
        ...


class CannotScan(FeatureError):
    """The store has no way to find keys."""


def row_pattern(view: View | None, ref: str, namespace: str) -> bytes:
    """The glob pattern of the keys of `ref`. Without the view, which a catalogue may have lost, those of any entity."""
    name, _, version = ref.partition("@")
    entity = "*" if view is None else view.entity.name
    return f"{namespace}:{{{entity}:*}}:{name}:{version}".encode()


async def pages_of(store: OnlineStore, pattern: bytes) -> AsyncIterator[Sequence[bytes]]:
    """The pages of a scan that have keys. Raises CannotScan for a store that has no `scan`."""
    if not isinstance(store, Scanning):
        raise CannotScan(f"{type(store).__name__} cannot find keys: this works on a store with `scan`")
    async for page in store.scan(pattern):
        if page:
            yield page


async def count_rows(store: OnlineStore, pattern: bytes) -> int:
    """How many rows there are; a key that SCAN gives twice is counted twice."""
    return sum([len(page) async for page in pages_of(store, pattern)])


async def look_at_rows(store: OnlineStore, view: View, rows_max: int) -> StoredRows:
    """Read up to `rows_max` rows, and say of which fingerprint they are and which of them are refused."""
    reader = RowReader(view)
    known = {revision.fingerprint for revision in (*view.revisions, view.newest)}
    fingerprints: Counter[int] = Counter()
    invalid: Counter[str] = Counter()
    rows = 0
    seen: set[bytes] = set()
    async for keys, values in _rows(store, row_pattern(view, view.ref, view.namespace)):
        admitted = reader.admit(keys, values, 0.0, FOREVER_MS)
        for position, value in enumerate(values):
            if value is None or keys[position] in seen:  # gone since it was found, or found twice
                continue
            seen.add(keys[position])
            if rows == rows_max:
                return StoredRows(view.ref, rows, fingerprints, invalid, complete=False)
            rows += 1
            fingerprint = int.from_bytes(value[_FINGERPRINT], "little")
            reason = admitted.invalid.get(position)
            if reason == "fingerprint" or (reason is None and len(value) >= _HEAD_BYTES):
                fingerprints[fingerprint] += 1
            elif reason is not None:
                if fingerprint in known:
                    fingerprints[fingerprint] += 1
                invalid[reason] += 1
    return StoredRows(view.ref, rows, fingerprints, invalid)


async def _rows(store: OnlineStore, pattern: bytes) -> AsyncIterator[tuple[Sequence[bytes], Sequence[bytes | None]]]:
    async for page in pages_of(store, pattern):
        for start in range(0, len(page), READ_KEYS_MAX):
            keys = page[start : start + READ_KEYS_MAX]
            yield keys, await store.read(keys)


async def drop_rows(
    store: OnlineStore,
    pattern: bytes,
    *,
    rows_per_s: float,
    progress: Callable[[int], None],
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """Delete every key of the pattern and return how many there were. `progress` is called with the number so far."""
    started = monotonic()
    dropped = 0
    for _ in range(PASSES_MAX):
        found = 0
        async for page in pages_of(store, pattern):
            found += len(page)
            dropped += await store.delete(page)
            progress(dropped)
            ahead_s = dropped / rows_per_s - (monotonic() - started)
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
        if not found:
            break
    return dropped
