"""Whether probabilities mean what they say: of the rows that got 0.3, three in ten should have the label 1.

Counts per bin of equal width from 0 to 1; they merge, as days and workers do.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

BINS = 10


class Bin(NamedTuple):
    """One bin that has rows: how many, their mean score, and the share of them whose label is 1."""

    rows: int
    score: float
    observed: float


@dataclass(slots=True)
class Reliability:
    """Scores against labels. Rows whose score is no number from 0 to 1 are left out."""

    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    scores: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    labels: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, labels: npt.ArrayLike, scores: npt.ArrayLike) -> None:
        """Take rows: `labels` of 0 and 1, and `scores`, [rows] each."""
        truth, given = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
        kept = (given >= 0) & (given <= 1)
        truth, given = truth[kept], given[kept]
        place = np.minimum((given * BINS).astype(np.int64), BINS - 1)
        self.rows += np.bincount(place, minlength=BINS)
        self.scores += np.bincount(place, given, BINS)
        self.labels += np.bincount(place, truth, BINS)

    def __iadd__(self, other: Self) -> Self:
        self.rows += other.rows
        self.scores += other.scores
        self.labels += other.labels
        return self

    @property
    def bins(self) -> list[Bin]:
        """The bins that have rows, ascending."""
        return [
            Bin(rows, float(score) / rows, float(label) / rows)
            for rows, score, label in zip(self.rows.tolist(), self.scores, self.labels, strict=True)
            if rows
        ]

    @property
    def error(self) -> float:
        """The expected calibration error: how far scores and labels are apart in a bin, by rows; 0.0 for no rows."""
        total = int(self.rows.sum())
        return float(np.abs(self.scores - self.labels).sum()) / total if total else 0.0
