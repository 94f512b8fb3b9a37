"""How fast rows may go: a token bucket, and a wait on it. `Bucket` is pure, the time is an argument.

Invariant: in any span of t seconds at most `rows_per_s` · (t + `BURST_S`) rows are let through.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST_S = 0.25
"""How many seconds' worth of rows may go at once after a rest."""
WAIT_S_MAX = 1.0
"""How long one wait is at most, when rows are taken in batches of `batch_max`."""


class Bucket:
    """Tokens for rows, which come back at `rows_per_s`. It begins full, at the time of the first call."""

    __slots__ = ("_at", "_level", "_rows_per_s")

    def __init__(self, rows_per_s: float) -> None:
        if not 0 < rows_per_s < float("inf"):
            raise ValueError("rows_per_s has to be a number above 0")
        self._rows_per_s = rows_per_s
        self._level = rows_per_s * BURST_S
        self._at: float | None = None

    def __repr__(self) -> str:
        return f"<Bucket level={self._level:.0f} rows_per_s={self._rows_per_s:g}>"

    def take(self, rows: int, now: float) -> float:
        """Take tokens, maybe ones that are still to come; return the seconds until they are there."""
        elapsed_s = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._level = min(self._rows_per_s * BURST_S, self._level + elapsed_s * self._rows_per_s) - rows
        return max(0.0, -self._level / self._rows_per_s)


class Pace:
    """Waits until rows may go. None is as fast as it can be."""

    __slots__ = ("_bucket", "_monotonic", "_sleep", "batch_max")

    def __init__(
        self,
        rows_per_s: float | None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bucket = None if rows_per_s is None else Bucket(rows_per_s)
        self._monotonic = monotonic
        self._sleep = sleep
        self.batch_max = None if rows_per_s is None else max(1, int(rows_per_s * WAIT_S_MAX))
        """The most rows to take at once, so that waits are short; None when any number is fine."""

    async def take(self, rows: int) -> None:
        """Return when so many rows may go."""
        if self._bucket is not None:
            wait_s = self._bucket.take(rows, self._monotonic())
            if wait_s > 0:
                await self._sleep(wait_s)
