"""What a run of a model costs, learned from its runs. Pure: seconds are arguments."""

_WEIGHT = 0.1
_OUTLIER = 4.0


class Cost:
    """Seconds of a run as `overhead_s + rows * row_s`.

    The overhead is measured once, at load; the cost of a row follows the runs as a moving average, in which a run that
    was held up by the machine counts as at most `_OUTLIER` times what was expected.
    """

    __slots__ = ("overhead_s", "row_s")

    def __init__(self, one_s: float, many_s: float, rows: int) -> None:
        """Start from two trial runs: one row took `one_s`, `rows` rows took `many_s`."""
        self.row_s = max((many_s - one_s) / (rows - 1), 0.0)
        self.overhead_s = max(one_s - self.row_s, 0.0)

    def __repr__(self) -> str:
        return f"Cost(overhead_us={self.overhead_s * 1e6:.1f}, row_us={self.row_s * 1e6:.2f})"

    def predict(self, rows: int) -> float:
        """Seconds that a run of `rows` rows will take."""
        return self.overhead_s + rows * self.row_s

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a run."""
        expected = self.predict(rows)
        if expected > 0:
            seconds = min(seconds, expected * _OUTLIER)
        row_s = max(seconds - self.overhead_s, 0.0) / rows
        self.row_s += _WEIGHT * (row_s - self.row_s)
