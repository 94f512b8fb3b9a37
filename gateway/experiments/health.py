"""How an arm does: counts that grow with every answer, may be added up over processes, and go through JSON. Pure.

Scores are one per request, the mean of its rows: rows of one request are alike, and a test that took each for an
observation of its own would be too sure.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gateway.experiments.sequential import Moments

BOUNDS_S = tuple(1e-4 * 1.2**power for power in range(72))
"""Upper ends of the buckets of durations: from 0.1 ms to 42 s, each a fifth longer than the one before."""


@dataclass(slots=True)
class Durations:
    """A histogram of durations."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def add(self, seconds: Iterable[float]) -> None:
        """Count every value."""
        counts = self.counts
        for one in seconds:
            counts[bisect_left(BOUNDS_S, one)] += 1

    @property
    def total(self) -> int:
        """How many were counted."""
        return sum(self.counts)

    def quantile_s(self, level: float) -> float:
        """The upper end of the bucket that the quantile is in; 0.0 where nothing was counted."""
        total = self.total
        if not total:
            return 0.0
        place = bisect_left(list(accumulate(self.counts)), math.ceil(level * total))
        return BOUNDS_S[min(place, len(BOUNDS_S) - 1)]

    def above(self, limit_s: float) -> int:
        """How many are certainly longer than a limit: those of buckets that begin at it or beyond."""
        return sum(self.counts[bisect_left(BOUNDS_S, limit_s) + 1 :])


@dataclass(slots=True)
class ArmCounts:
    """What has been seen of an arm."""

    requests: int = 0
    """Answered or failed."""
    errors: int = 0
    """Of them those that failed by the arm's or the server's fault."""
    rows: int = 0
    violations: int = 0
    """Rows with a violated check, or with a score that is no finite number."""
    scores: Moments = field(default_factory=Moments)
    durations: Durations = field(default_factory=Durations)

    def answered(
        self,
        rows: Sequence[int],
        seconds: Iterable[float],
        scores: npt.NDArray[np.float64] | None,
        violated: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Count answers: the rows of each request, how long it took, and per row the score and whether a check failed.

        `scores` is None where the output has no numbers or its rows are not the requests'.
        """
        self.requests += len(rows)
        self.durations.add(seconds)
        self.rows += sum(rows)
        wrong = violated
        if scores is not None and scores.size:
            finite = np.isfinite(scores)
            if not finite.all():
                wrong = ~finite if wrong is None else wrong | ~finite
            if len(rows) != len(scores):
                starts = [0, *accumulate(rows[:-1])]
                scores = np.add.reduceat(scores, starts) / np.asarray(rows, np.float64)
            self.scores = self.scores + Moments.of(scores[np.isfinite(scores)])
        if wrong is not None:
            self.violations += int(np.count_nonzero(wrong))

    def failed(self, requests: int = 1) -> None:
        """Count requests that failed."""
        self.requests += requests
        self.errors += requests

    def __iadd__(self, other: Self) -> Self:
        self.requests += other.requests
        self.errors += other.errors
        self.rows += other.rows
        self.violations += other.violations
        self.scores = self.scores + other.scores
        self.durations.counts = [a + b for a, b in zip(self.durations.counts, other.durations.counts, strict=True)]
        return self

    def to_json(self) -> dict[str, Any]:
        """As JSON; durations as [bucket, count] where there are any."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "rows": self.rows,
            "violations": self.violations,
            "scores": [self.scores.count, self.scores.mean, self.scores.squares],
            "durations": [[bucket, count] for bucket, count in enumerate(self.durations.counts) if count],
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """What `to_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
        durations = Durations()
        for bucket, count in told["durations"]:
            if not 0 <= bucket < len(durations.counts):
                raise ValueError("no such bucket")
            durations.counts[bucket] = int(count)
        count, mean, squares = told["scores"]
        scores = Moments(int(count), float(mean), float(squares))
        requests, errors = int(told["requests"]), int(told["errors"])
        return cls(requests, errors, int(told["rows"]), int(told["violations"]), scores, durations)


def shares(count: int, of: int) -> Moments:
    """The moments of so many ones among zeros."""
    mean = count / of if of else 0.0
    return Moments(of, mean, of * mean * (1 - mean))
