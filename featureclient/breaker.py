"""Whether to ask somebody who has failed before: a store, a source of computed rows. Pure: `now` is an argument.

    closed     every call may go                              a failure too many opens
    open       no call may go, for `open_s`                   then half open
    half open  one call may go at a time                      its success closes, its failure opens again

A success in any state closes: there was an answer.
"""


class Breaker:
    """Counts failures in a row. Times are monotonic seconds."""

    __slots__ = ("_failures", "_failures_max", "_open_s", "_open_until", "_probing")

    def __init__(self, failures_max: int, open_s: float) -> None:
        self._failures_max = failures_max
        self._open_s = open_s
        self._failures = 0
        self._open_until = 0.0
        self._probing = False

    def __repr__(self) -> str:
        return f"<Breaker failures={self._failures} open_until={self._open_until} probing={self._probing}>"

    @property
    def closed(self) -> bool:
        """No trouble is known."""
        return self._failures < self._failures_max

    def allows(self, now: float) -> bool:
        """A call may go now."""
        return self.closed or (not self._probing and now >= self._open_until)

    def started(self) -> None:
        """A call goes."""
        self._probing = not self.closed

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures = 0
        self._probing = False

    def failed(self, now: float) -> None:
        """A call was not answered."""
        self._failures += 1
        self._probing = False
        if not self.closed:
            self._open_until = now + self._open_s

    def open(self, now: float) -> None:
        """It is known without a call that none would be answered."""
        self._failures = max(self._failures, self._failures_max - 1)
        self.failed(now)
