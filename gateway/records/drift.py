"""What is known of drift: one record a window, one a column. Made by `gateway.validation`, shown by telemetry and the
CLI."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.records.sinks import SinkState

Verdict = Literal["few", "stable", "shifted", "drifted"]

VERDICT_NUMBERS: dict[str, int] = {"few": -1, "stable": 0, "shifted": 1, "drifted": 2}
"""How a verdict is shown where only numbers are."""


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """One column of a window against its reference."""

    column: str
    """A feature by its name, `out.<output>`, `age_ms.<alias>` or `status.<alias>`."""
    kind: str
    """feature, output, age or status."""
    rows: int
    """Rows of the window, nulls among them."""
    psi: float
    psi_excess: float
    """PSI less what sampling alone gives so many rows and bins."""
    psi_pvalue: float
    """Uncorrected; of categories the one of Pearson's chi-square."""
    jensen_shannon: float
    """The distance, base 2: 0 to 1."""
    ks: float
    """Kolmogorov-Smirnov between the bins; 0 for categories."""
    ks_pvalue: float
    """Uncorrected."""
    null_share: float
    null_share_reference: float
    unknown_shift: float
    """Change of the share of categories that the reference does not list."""
    mean: float
    """Of the finite values; NaN where there are none."""
    mean_reference: float
    dispersion: float
    """How many times more the counts vary than those of independent rows; 1 where they are independent."""
    pvalue: float
    """The least of the column's p-values, corrected for all tests of the window."""
    verdict: Verdict
    reasons: tuple[str, ...]
    """What made the verdict: distribution, nulls, unknown categories."""


@dataclass(frozen=True, slots=True)
class WindowDrift:
    """All columns of one window."""

    kind: str
    """sliding or tumbling."""
    start_ms: int
    end_ms: int
    rows: int
    panes: int
    columns: tuple[ColumnDrift, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the columns'."""
        return max((one.verdict for one in self.columns), key=VERDICT_NUMBERS.__getitem__, default="few")


class StreamKey(NamedTuple):
    """Whose predictions are looked at together."""

    model: str
    version: int
    variant: str


@dataclass(frozen=True, slots=True)
class MonitorSnapshot:
    """What the second process last told, and how it is."""

    up: bool
    """It runs and was heard of lately."""
    restarts: int
    """How often it ended and was started again."""
    status: Mapping[str, float]
    """Its own counts: rows_read, rows_counted, rows_skipped, bytes_skipped, batches, problems, cpu_s, lag_s, streams,
    bytes_behind."""
    streams: Mapping[StreamKey, WindowDrift]
    """The newest sliding window of each stream."""
    sinks: Mapping[str, SinkState] = field(default_factory=dict)
    """The journal's sinks by their names."""
    tumbling: Mapping[StreamKey, WindowDrift] = field(default_factory=dict)
    """The newest tumbling window of each stream."""
