"""How many rows may be looked at, so that a share of one core is enough. Time is an argument."""

_COST_WEIGHT = 0.2
"""How much of the newest measurement goes into the cost of a row."""
BURST_S = 1.0
"""CPU seconds that may be saved up while there is little to do."""


class Budget:
    """Allows `share` seconds of CPU time a second, in rows."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved_s = BURST_S
        self._wall_s: float | None = None
        self._row_s = 0.0

    def __repr__(self) -> str:
        return f"<Budget {self._saved_s:.3f} s saved, {self._row_s * 1e6:.2f} us a row>"

    def grant(self, rows: int, wall_s: float) -> int:
        """Return how many of the rows may be looked at now."""
        if self._wall_s is not None:
            self._saved_s = min(self._saved_s + (wall_s - self._wall_s) * self._share, BURST_S)
        self._wall_s = wall_s
        if self._saved_s <= 0:
            return 0
        return rows if not self._row_s else min(rows, int(self._saved_s / self._row_s))

    def spent(self, rows: int, cpu_s: float) -> None:
        """Tell what it took to look at `rows`."""
        self._saved_s -= cpu_s
        if rows:
            measured = cpu_s / rows
            self._row_s += (measured - self._row_s) * (_COST_WEIGHT if self._row_s else 1.0)

    @property
    def wait_s(self) -> float:
        """How long to rest until there is something to spend; 0 when there is."""
        return max(0.0, -self._saved_s / self._share)
