"""What a run of a model costs, learned from its runs. Pure: CPU seconds are arguments."""

_WEIGHT = 0.1
_OUTLIER = 4.0


class Cost:
    """Seconds of a run as `overhead_s + rows * row_s`.

    Two trial runs give the start. After that each run corrects both terms by its error, as the normalised least mean
    squares filter does (Widrow and Hoff 1960): a run of few rows teaches the overhead, one of many rows the cost of a
    row. A run that was held up counts as at most `_OUTLIER` times what was expected.
    """

    __slots__ = ("_scale_rows", "overhead_s", "row_s")

    def __init__(self, one_s: float, many_s: float, rows: int) -> None:
        """Start from two trial runs: one row took `one_s`, `rows` rows took `many_s`."""
        self.row_s = max((many_s - one_s) / (rows - 1), 0.0)
        self.overhead_s = max(one_s - self.row_s, 0.0)
        self._scale_rows = rows

    def __repr__(self) -> str:
        return f"Cost(overhead_us={self.overhead_s * 1e6:.1f}, row_us={self.row_s * 1e6:.2f})"

    def predict(self, rows: int) -> float:
        """Seconds that a run of `rows` rows will take."""
        return self.overhead_s + rows * self.row_s

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a run."""
        expected_s = self.predict(rows)
        error_s = min(seconds, expected_s * _OUTLIER) - expected_s if expected_s > 0 else seconds
        scaled_rows = rows / self._scale_rows
        step_s = _WEIGHT * error_s / (1 + scaled_rows * scaled_rows)
        self.overhead_s = max(self.overhead_s + step_s, 0.0)
        self.row_s = max(self.row_s + step_s * scaled_rows / self._scale_rows, 0.0)
