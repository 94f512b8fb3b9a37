"""The report of drift as one HTML file: no script, no font and no picture from elsewhere.

Stream, its verdicts ─▶ bars and lines as numbers ─▶ report.html.j2 (Jinja2, everything escaped) ─▶ HTML with SVG
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from gateway.monitor.comparison import PARTS, Span, Stream
from gateway.records.drift import VERDICT_NUMBERS, ColumnDrift, WindowDrift
from gateway.validation import statistics
from gateway.validation.options import DriftOptions

CATEGORIES_SHOWN = 20
WIDTH, HEIGHT = 360.0, 110.0
"""Of a plot, in units of SVG."""
LINE_HEIGHT = 34.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin: where it stands, and how high the two shares are."""

    x: float
    width: float
    live: float
    reference: float
    title: str


@dataclass(frozen=True, slots=True)
class Card:
    """One column as the report shows it."""

    drift: ColumnDrift
    bars: Sequence[Bar]
    first: str
    last: str
    line: str
    """Points of the PSI over time, as SVG wants them; empty where there are too few."""
    peak: float


@dataclass(frozen=True, slots=True)
class Section:
    """One stream."""

    name: str
    drift: WindowDrift
    cards: Sequence[Card]
    counts: dict[str, int]


def render(streams: Sequence[Stream], span: Span, options: DriftOptions, made_at: datetime) -> str:
    """Return the whole page."""
    environment = Environment(
        loader=PackageLoader("gateway.monitor", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["moment"] = _moment
    environment.filters["short"] = lambda value: f"{value:.4g}"
    template = environment.get_template("report.html.j2")
    return template.render(
        sections=[_section(stream, options) for stream in streams],
        span=span,
        options=options,
        made_at=made_at.strftime("%Y-%m-%d %H:%M UTC"),
        width=WIDTH,
        height=HEIGHT,
        line_height=LINE_HEIGHT,
    )


def ranked(drift: WindowDrift) -> list[ColumnDrift]:
    """Return the columns, the worst first."""
    return sorted(drift.columns, key=lambda one: (-VERDICT_NUMBERS[one.verdict], -one.psi_excess, one.column))


def _section(stream: Stream, options: DriftOptions) -> Section:
    drift = stream.judge(options)
    cards = [_card(stream, column, options) for column in ranked(drift)]
    counts = {
        verdict: sum(column.verdict == verdict for column in drift.columns)
        for verdict in ("drifted", "shifted", "stable", "few")
    }
    return Section(f"{stream.key.model}/{stream.key.version} {stream.key.variant}".strip(), drift, cards, counts)


def _card(stream: Stream, column: ColumnDrift, options: DriftOptions) -> Card:
    reference = stream.known[column.column]
    names = reference.binning.names()
    live = statistics.shares(stream.window.whole.columns[column.column].counts)
    known = statistics.shares(reference.histogram.counts)
    if reference.binning.categories:  # the most frequent, and always those that the reference does not list
        order = sorted(range(len(names) - 1), key=lambda place: -max(live[place], known[place]))[: CATEGORIES_SHOWN - 1]
        places = [*order, len(names) - 1]
    else:
        places = list(range(len(names)))
    top = max(float(max(live[places].max(), known[places].max())), 1e-9)
    step = WIDTH / len(places)
    bars = [
        Bar(
            x=number * step,
            width=step,
            live=float(live[place]) / top * HEIGHT,
            reference=float(known[place]) / top * HEIGHT,
            title=f"{names[place]}: live {live[place]:.2%}, reference {known[place]:.2%}",
        )
        for number, place in enumerate(places)
    ]
    values = stream.over_time(column.column, options.rows_min)
    there = [value for value in values if value is not None]
    peak = max([*there, options.psi_drifted])
    points = [
        f"{(number + 0.5) * WIDTH / PARTS:.1f},{LINE_HEIGHT - value / peak * (LINE_HEIGHT - 2):.1f}"
        for number, value in enumerate(values)
        if value is not None
    ]
    line = " ".join(points) if len(points) > 1 else ""
    return Card(column, bars, names[places[0]], names[places[-1]], line, max(there, default=0.0))


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
