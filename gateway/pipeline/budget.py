"""What a shadow may take of the CPU, and how busy the loop is without it. Pure: moments and CPU times are arguments."""

LOAD_WINDOW_S = 0.1
"""How long the loop is watched before its load is judged."""
BURST_S = 0.02
"""CPU time that may be saved up."""


class Budget:
    """A bucket of CPU time that fills with `share` seconds a second. A run may overdraw it, and is then waited for."""

    __slots__ = ("_at", "_balance_s", "_share", "spent_s")

    def __init__(self, share: float) -> None:
        self._share = share
        self._balance_s = BURST_S
        self._at = 0.0
        self.spent_s = 0.0
        """Of all time."""

    def __repr__(self) -> str:
        return f"<Budget balance_ms={self._balance_s * 1e3:.2f} spent_s={self.spent_s:.3f}>"

    def spend(self, seconds: float) -> None:
        """So much was taken."""
        self.spent_s += seconds
        self._balance_s -= seconds

    def wait_s(self, now: float) -> float:
        """How long until something may be begun; 0.0: now."""
        self._balance_s = min(self._balance_s + (now - self._at) * self._share, BURST_S)
        self._at = now
        return max(0.0, -self._balance_s / self._share)


class Load:
    """The share of the loop's time that goes to everything but the shadow, over the last window."""

    __slots__ = ("_at", "_cpu_s", "_own_s", "own_s", "share")

    def __init__(self) -> None:
        self.share = 0.0
        self.own_s = 0.0
        """CPU time that the shadow took of the loop; whoever spends it adds it."""
        self._at = self._cpu_s = self._own_s = 0.0

    def __repr__(self) -> str:
        return f"<Load {self.share:.2f}>"

    def due(self, now: float) -> bool:
        """A window is over."""
        return now - self._at >= LOAD_WINDOW_S

    def look(self, now: float, cpu_s: float) -> None:
        """Take the CPU time that the loop's thread has used so far."""
        if self._at:
            self.share = (cpu_s - self._cpu_s - (self.own_s - self._own_s)) / (now - self._at)
        self._at, self._cpu_s, self._own_s = now, cpu_s, self.own_s
