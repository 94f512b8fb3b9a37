"""The settings of drift. Apart from what they steer, which needs SciPy."""

from dataclasses import dataclass
from typing import Literal, get_args

Correction = Literal["holm", "bh"]
_PANES_MIN = 2


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """How long windows are."""

    rows: int = 20_000
    """Rows of a window. With fewer a window ends by time."""
    seconds: float = 3600.0
    """The longest time that a window spans."""
    panes: int = 10
    """Parts of a window. A sliding window moves on by one part, so this is also how fresh a verdict is."""

    def __post_init__(self) -> None:
        if self.panes < _PANES_MIN:
            raise ValueError("panes must be at least 2: a window that slides has parts")
        if self.rows < self.panes:
            raise ValueError("rows must be at least panes")
        if self.seconds <= 0:
            raise ValueError("seconds must be positive")

    @property
    def pane_rows(self) -> int:
        """Rows of one part."""
        return self.rows // self.panes

    @property
    def pane_ms(self) -> float:
        """The longest time that one part spans, milliseconds."""
        return self.seconds * 1000 / self.panes


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """When a difference is called one."""

    level: float = 0.01
    """The probability of any false alarm in a window of a stream in which nothing changes."""
    correction: Correction = "holm"
    """How p-values are corrected for the number of tests: `holm`, or `bh`, which finds more where much changes."""
    rows_min: int = 500
    """Rows of a window, and values of a reference, below which there is no verdict."""
    psi_shifted: float = 0.02
    """PSI, less what sampling alone gives, from which a column has shifted. A normal column that moves by 0.2 standard
    deviations has 0.04."""
    psi_drifted: float = 0.2
    """The same, from which a column has drifted."""
    share_shifted: float = 0.01
    """Change of the share of nulls, or of unknown categories, from which a column has shifted."""
    share_drifted: float = 0.1
    """The same, from which a column has drifted."""
    expected_min: float = 5.0
    """Neighbouring bins are merged until each is expected to hold so many values, before a p-value is computed."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError("level must be between 0 and 1")
        if self.correction not in get_args(Correction):
            raise ValueError(f"correction must be one of {', '.join(get_args(Correction))}")
        if self.rows_min < 1 or self.expected_min <= 0:
            raise ValueError("rows_min and expected_min must be positive")
        if not 0 < self.psi_shifted <= self.psi_drifted or not 0 < self.share_shifted <= self.share_drifted:
            raise ValueError("shifted must be positive and at most drifted, for psi and for share")
