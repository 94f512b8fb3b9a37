"""Answers that wait until their record is on the disk. Loop only.

    park -> settle (written and synced, or not)      done(numbers, None or the error)
       `--> expire (a deadline passes first)         done(numbers, DeadlinePassed)

Invariants: each request of a commit is told once; a caller's deadline does not wait for the disk. The record of a
request whose deadline passed may be written all the same.
"""

import asyncio
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TypeAlias

from gateway.records.errors import DeadlinePassed, HeadraceError
from gateway.records.request import Request

Done: TypeAlias = Callable[[Sequence[int], HeadraceError | None], None]
"""Told which requests of a run (their numbers, from 0) may be answered, or are to be refused with an error."""

_deadline_of = itemgetter(Request._fields.index("deadline"))
_FAR_S = 3600.0
"""The longest a timer is set for; a deadline may be infinite."""


class Commit:
    """The requests of one run. `left` are the numbers of those that still wait."""

    __slots__ = ("_done", "earliest", "left", "requests")

    def __init__(self, requests: Sequence[Request], done: Done) -> None:
        self.requests = requests
        self.left: Sequence[int] = range(len(requests))
        self.earliest = min(map(_deadline_of, requests))
        self._done = done

    def expire(self, now: float) -> None:
        """Tell those whose deadline has passed."""
        gone = [number for number in self.left if self.requests[number].deadline <= now]
        if gone:
            self.left = [number for number in self.left if self.requests[number].deadline > now]
            self.earliest = min((self.requests[number].deadline for number in self.left), default=float("inf"))
            self._done(gone, DeadlinePassed("the deadline passed before the journal was on the disk"))

    def settle(self, error: HeadraceError | None) -> None:
        """Tell those that still wait."""
        left, self.left = self.left, ()
        if left:
            self._done(left, error)


class Commits:
    """The commits that wait. Their bound is the buffer's, whose bytes are released when they are settled."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._parked: set[Commit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, commit: Commit) -> None:
        """Watch over the deadlines of a commit until it is settled."""
        self._parked.add(commit)
        if commit.earliest < self._timer_at:
            self._set_timer(commit.earliest)

    def settle(self, settled: Sequence[tuple[Commit, HeadraceError | None]]) -> None:
        """The writer is through with these."""
        for commit, error in settled:
            self._parked.discard(commit)
            commit.settle(error)
        if not self._parked:
            self._stop_timer()

    def _set_timer(self, at: float) -> None:
        self._stop_timer()
        wait_s = min(max(at - self._monotonic(), 0.0), _FAR_S)
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, float("inf")

    def _expire(self) -> None:
        now = self._monotonic()
        for commit in [*self._parked]:
            if commit.earliest <= now:
                commit.expire(now)
        self._stop_timer()
        earliest = min((commit.earliest for commit in self._parked), default=float("inf"))
        if earliest < float("inf"):
            self._set_timer(earliest)
