"""Who is let in. Pure: the clock is an argument.

Two reasons to refuse a call at the door. The bound `max_active_calls` is reached; or the call has a deadline that the
server, as strained as it is, cannot meet, and computing its answer would only take time from those whose deadline it
can.

The second is Little's law: while calls wait all the time the server completes as many a second as it can, and a
newcomer waits for about (calls that wait) / (completions per second). A burst on a server that keeps its deadlines
would look the same, so nobody is refused for a deadline before one has been missed; from then on until a second has
passed in which none was missed and none was refused.

Invariant: `active` is the number of admitted calls that have not ended. Streams count there, but neither wait nor
complete: a health watch says nothing about capacity.
"""

import math
from collections import Counter

_WINDOW_S = 0.1
_SMOOTHING = 0.5
_STRAINED_S = 1.0
_SHARE_OF_DEADLINE = 0.5
"""A newcomer is let in when the expected wait is at most this share of the time it has: the wait is an estimate, and
the answer must still travel."""


class Admission:
    """The calls that are active, and how fast those in batches are completed when the server is busy."""

    __slots__ = (
        "_completed",
        "_rate",
        "_strained_until",
        "_window_completed",
        "_window_start",
        "active",
        "active_max",
        "turned_away",
        "waiting",
    )

    def __init__(self, active_max: int) -> None:
        self.active = 0
        self.active_max = active_max
        self.waiting = 0
        self.turned_away: Counter[int] = Counter()
        """Calls that no handler has answered, by the status code they got."""
        self._completed = 0
        self._window_completed = 0
        self._window_start = -math.inf
        self._rate = math.inf
        self._strained_until = -math.inf

    def hopeless(self, deadline: float, now: float) -> bool:
        """A call with this deadline would, by the present rate, be answered too late."""
        if now > self._strained_until or self.waiting <= _SHARE_OF_DEADLINE * (deadline - now) * self._rate:
            return False
        self._strained_until = now + _STRAINED_S
        return True

    def missed(self, now: float) -> None:
        """A call that was let in has run out of time."""
        self._strained_until = now + _STRAINED_S

    def completed(self) -> None:
        """A call of a batch method got its answer."""
        self._completed += 1

    def observe(self, now: float) -> None:
        """Called once in each pass of the loop, after its answers."""
        if not self.waiting:
            # An idle moment: what was completed in this window says nothing about what could have been. Under strain
            # it only means that a queue has expired as a whole, and the next one must not be let in as a whole.
            self._window_start = -math.inf
            if now > self._strained_until:
                self._rate = math.inf
        elif self._window_start == -math.inf:
            self._window_start = now
            self._window_completed = self._completed
        elif (elapsed_s := now - self._window_start) >= _WINDOW_S:
            rate = (self._completed - self._window_completed) / elapsed_s
            if rate:
                known = self._rate < math.inf
                self._rate = _SMOOTHING * self._rate + (1 - _SMOOTHING) * rate if known else rate
            self._window_start = now
            self._window_completed = self._completed

    def __repr__(self) -> str:
        return f"<Admission {self.active}/{self.active_max} active, {self.waiting} waiting, {self._rate:.0f} a second>"
