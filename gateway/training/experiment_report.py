"""The report of an experiment as one HTML file: no script, no font and no picture from elsewhere.

Comparison ─▶ shapes in units of SVG ─▶ experiment_report.html.j2 (Jinja2, everything escaped) ─▶ HTML
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from gateway.experiments.calibration import Reliability
from gateway.experiments.paired import QUANTILES, quantiles_of
from gateway.experiments.sequential import Interval
from gateway.training.experiment import Comparison, Look
from gateway.training.experiment_columns import ColumnDifference

WIDTH, HEIGHT = 360.0, 160.0
"""Of a plot, in units of SVG."""
SCORE_BINS = 40
COLUMNS_SHOWN = 40

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axis:
    """What the left and the right, or the lower and the upper end of a plot stand for."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], *, zero: bool = False) -> "Axis":
        """From the least to the greatest finite value, and zero where it has to be seen; with some room."""
        there = [one for one in values if math.isfinite(one)] + ([0.0] if zero else [])
        low, high = (min(there), max(there)) if there else (0.0, 1.0)
        room = (high - low) * 0.06 or max(abs(high), 1e-6) * 0.1
        return cls(low - room, high + room)

    def x(self, value: float) -> float:
        """Where a value stands from left to right; beyond the ends, at them."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0) * WIDTH

    def y(self, value: float) -> float:
        """Where a value stands from the top."""
        return HEIGHT - min(max((value - self.low) / (self.high - self.low), 0.0), 1.0) * HEIGHT


@dataclass(frozen=True, slots=True)
class Bars:
    """Histograms of both scores: the left edges, and the heights."""

    step: float
    baseline: Sequence[float]
    candidate: Sequence[float]
    axis: Axis


@dataclass(frozen=True, slots=True)
class Band:
    """The metric's difference over time: its line, the range around it, and where zero is."""

    line: str
    area: str
    zero: float
    axis: Axis
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Whisker:
    """An interval on a common axis."""

    low: float
    high: float
    middle: float
    zero: float


@dataclass(frozen=True, slots=True)
class Cell:
    """Pairs whose scores fall into one square."""

    x: float
    y: float
    opacity: float
    title: str


@dataclass(frozen=True, slots=True)
class Plots:
    """Everything that is drawn of one comparison."""

    scores: Bars | None
    over_time: Band | None
    pairs: Sequence[Cell]
    pairs_axis: Axis | None
    reliability: Sequence[str]
    """Points of the curves of baseline and candidate."""


def render(comparisons: Sequence[Comparison], made_at: datetime) -> str:
    """Return the whole page."""
    environment = Environment(
        loader=PackageLoader("gateway.training", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "moment": _moment,
        "short": lambda value: "-" if value is None or not math.isfinite(value) else f"{value:.4g}",
        "signed": lambda value: "-" if value is None or not math.isfinite(value) else f"{value:+.3g}",
        "percent": lambda value: "-" if not math.isfinite(value) else f"{value:.2%}",
        "whisker": _whisker,
        "quantiles": _quantiles,
    }
    return environment.get_template("experiment_report.html.j2").render(
        sections=[(one, _plots(one)) for one in comparisons],
        made_at=made_at.strftime("%Y-%m-%d %H:%M UTC"),
        width=WIDTH,
        height=HEIGHT,
        cell=WIDTH / SCORE_BINS,
        cell_height=HEIGHT / SCORE_BINS,
        columns_shown=COLUMNS_SHOWN,
    )


def _plots(one: Comparison) -> Plots:
    baseline, candidate = one.scores
    if not (baseline.size and candidate.size):
        return Plots(None, None, (), None, ())
    ends = np.concatenate((baseline, candidate))
    # The outermost thousandth would squeeze all else into one bin.
    low, high = (float(end) for end in np.quantile(ends, (0.001, 0.999)))
    axis = Axis(low, high if high > low else low + max(abs(low), 1.0) * 1e-3)
    cells = _density(baseline, candidate, axis) if one.paired is not None and len(baseline) == len(candidate) else ()
    curves = () if one.calibration is None else tuple(_curve(side) for side in one.calibration)
    return Plots(_bars(baseline, candidate, axis), _band(one.over_time), cells, axis if cells else None, curves)


def _bars(baseline: _Floats, candidate: _Floats, axis: Axis) -> Bars:
    edges = np.linspace(axis.low, axis.high, SCORE_BINS + 1)
    counts = [np.histogram(np.clip(side, axis.low, axis.high), edges)[0] / len(side) for side in (baseline, candidate)]
    top = max(float(max(side.max() for side in counts)), 1e-12)
    one, two = ((side / top * HEIGHT).tolist() for side in counts)
    return Bars(WIDTH / SCORE_BINS, one, two, axis)


def _density(baseline: _Floats, candidate: _Floats, axis: Axis) -> list[Cell]:
    edges = np.linspace(axis.low, axis.high, SCORE_BINS + 1)
    inside = [np.clip(side, axis.low, axis.high) for side in (baseline, candidate)]
    counts = np.histogram2d(inside[0], inside[1], bins=[edges, edges])[0]
    top = math.log1p(float(counts.max()))
    return [
        Cell(
            column * WIDTH / SCORE_BINS,
            HEIGHT - (row + 1) * HEIGHT / SCORE_BINS,
            0.12 + 0.88 * math.log1p(count) / top,
            f"baseline {edges[column]:.3g} to {edges[column + 1]:.3g}, candidate {edges[row]:.3g} to "
            f"{edges[row + 1]:.3g}: {int(count):,} rows",
        )
        for (column, row), count in np.ndenumerate(counts)
        if count
    ]


def _band(looks: Sequence[Look]) -> Band | None:
    known = [one for one in looks if math.isfinite(one.interval.low)]
    if len(known) < 2:  # noqa: PLR2004 - a line has two ends
        return None
    times = Axis(known[0].time_ms, max(known[-1].time_ms, known[0].time_ms + 1))
    # Early ranges are wide; what matters is where it has come to.
    late = known[len(known) // 4 :]
    ends = [end for one in late for end in (one.interval.low, one.interval.high)]
    axis = Axis.over(ends, zero=True)
    upper = [f"{times.x(one.time_ms):.1f},{axis.y(one.interval.high):.1f}" for one in known]
    lower = [f"{times.x(one.time_ms):.1f},{axis.y(one.interval.low):.1f}" for one in reversed(known)]
    line = " ".join(f"{times.x(one.time_ms):.1f},{axis.y(one.interval.estimate):.1f}" for one in known)
    return Band(line, " ".join((*upper, *lower)), axis.y(0.0), axis, known[0].time_ms, known[-1].time_ms)


def _curve(side: Reliability) -> str:
    axis = Axis(0.0, 1.0)
    return " ".join(f"{axis.x(one.score):.1f},{axis.y(one.observed):.1f}" for one in side.bins)


def _whisker(interval: Interval) -> Whisker | None:
    if not math.isfinite(interval.low):
        return None
    reach = max(abs(interval.low), abs(interval.high)) * 1.1 or 1.0
    axis = Axis(-reach, reach)
    return Whisker(axis.x(interval.low), axis.x(interval.high), axis.x(interval.estimate), axis.x(0.0))


def _quantiles(column: ColumnDifference) -> str:
    """Some quantiles of a column's difference."""
    if column.bins is None:
        return "-"
    found = dict(zip(QUANTILES, quantiles_of(column.bins, QUANTILES), strict=True))
    return " / ".join(f"{found[level]:.3g}" for level in (0.05, 0.5, 0.95))


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
