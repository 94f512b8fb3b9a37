"""Whether to ask a store that has failed before. Pure: `now` is an argument.

    closed     every read may go                              a failure too many opens
    open       no read may go, for `open_s`                   then half open
    half open  one read may go at a time                      its success closes, its failure opens again

A success in any state closes: the store has answered.
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
        """A read may go now."""
        return self.closed or (not self._probing and now >= self._open_until)

    def started(self) -> None:
        """A read goes."""
        self._probing = not self.closed

    def succeeded(self) -> None:
        """A read was answered."""
        self._failures = 0
        self._probing = False

    def failed(self, now: float) -> None:
        """A read was not answered."""
        self._failures += 1
        self._probing = False
        if not self.closed:
            self._open_until = now + self._open_s
