"""`headrace drift`: a span of the journal against the profile of the model that served it."""

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from gateway.server import settings as settings_file
from gateway.server.command import console, stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.monitor.comparison import Span, Stream
    from gateway.validation.options import DriftOptions

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_COLOURS = {"drifted": "bold red", "shifted": "yellow", "stable": "green", "few": "dim"}


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The settings file, for the folders of the journal and of the models.",
)
@click.option("--model", required=True, help="The model.")
@click.option("--version", type=int, help="One of its versions; all by default.")
@click.option("--variant", help="One of its variants; all by default.")
@click.option(
    "--journal",
    "journals",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The journal's folder. Name those of several replicas to compare their rows together.",
)
@click.option(
    "--models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The model repository, for profiles.",
)
@click.option(
    "--since",
    default="24h",
    show_default=True,
    help="From when: 30m, 24h, 7d ago, a moment as 2026-01-31T12:00 (UTC without a zone), or `all`.",
)
@click.option("--window", help="How long, as 1h; until now by default.")
@click.option("--level", type=float, help="The probability of a false alarm; 0.01 by default.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report with plots to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def drift(
    *,
    config: Path | None,
    model: str,
    version: int | None,
    variant: str | None,
    journals: tuple[Path, ...],
    models: Path | None,
    since: str,
    window: str | None,
    level: float | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare what a model saw with its reference profile. Exits with 3 when a column has drifted."""
    try:
        from gateway.monitor.comparison import compare
        from gateway.validation.profile import ProfileError
    except ImportError as error:
        stop(f"drift needs more packages: pip install 'headrace[journal]' ({error})")
    journals, models = _folders(config, journals, models)
    options = _options(level)
    span = _span(journals, model, since, window, version=version, variant=variant)
    problems: list[str] = []
    try:
        streams = compare(journals, models, model, span, version=version, variant=variant, problem=problems.append)
    except (ProfileError, OSError, ValueError) as error:
        stop(str(error))
    for problem in dict.fromkeys(problems):
        click.echo(problem, err=True)
    if not streams:
        stop(f"{_named(journals)}: no rows of {model} to compare in this span; --since all takes every row")
    if html is not None:
        from gateway.monitor.report import render

        html.write_text(render(streams, span, options, datetime.now(UTC)), encoding="utf-8")
        click.echo(f"wrote {html}", err=True)
    verdicts = _shown(streams, options, as_json=as_json)
    if "drifted" in verdicts:
        raise SystemExit(3)


def _shown(streams: "list[Stream]", options: "DriftOptions", *, as_json: bool) -> set[str]:
    """Print the streams; return their verdicts."""
    from gateway.monitor.report import ranked
    from gateway.validation.drift import plain

    judged = [(stream.key, stream.judge(options)) for stream in streams]
    if as_json:
        click.echo(json.dumps([key._asdict() | plain(found) for key, found in judged], indent=2))
        return {found.verdict for _, found in judged}
    for key, found in judged:
        heads = ("column", "verdict", "PSI", "above noise", "KS", "p, corrected", "nulls", "mean", "reference")
        table = Table(*heads, title=f"{key.model}/{key.version} {key.variant}: {found.rows:,} rows")
        for column in ranked(found):
            colour = _COLOURS[column.verdict]
            table.add_row(
                column.column,
                f"[{colour}]{column.verdict}[/{colour}]",
                f"{column.psi:.3f}",
                f"{column.psi_excess:.3f}",
                f"{column.ks:.3f}" if column.ks else "-",
                f"{column.pvalue:.2g}",
                f"{column.null_share:.2%}",
                _number(column.mean),
                _number(column.mean_reference),
            )
        console().print(table)
    return {found.verdict for _, found in judged}


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.4g}"  # noqa: PLR0124  # NaN: a column of categories


def _named(journals: "Sequence[Path]") -> str:
    return ", ".join(map(str, journals))


def _folders(config: Path | None, journals: tuple[Path, ...], models: Path | None) -> tuple[tuple[Path, ...], Path]:
    """The folders that were named, and for the others those of the settings."""
    if not journals or models is None:
        settings = settings_file.load(config or Path("headrace.yaml"))
        options = getattr(settings, "journal", None)
        journals = journals or ((options.path,) if options is not None else ())
        models = models or settings.models
    if not journals:
        stop("no journal: name its folder with --journal")
    # A folder that is named twice is counted once.
    return tuple({path.resolve(): path for path in journals}.values()), models


def _options(level: float | None) -> "DriftOptions":
    from gateway.validation.options import DriftOptions

    try:
        return DriftOptions() if level is None else DriftOptions(level=level)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--level") from error


def _span(
    journals: "Sequence[Path]", model: str, since: str, window: str | None, *, version: int | None, variant: str | None
) -> "Span":
    from gateway.monitor.comparison import Span, whole_span

    now_ms = time.time_ns() // 1_000_000
    if since == "all":
        whole = whole_span(journals, model, version=version, variant=variant)
        if whole is None:
            stop(f"{_named(journals)} has no rows of {model}")
        start_ms, end_ms = whole.start_ms, whole.end_ms
    else:
        length_ms = _length_ms(since)
        start_ms, end_ms = (_moment_ms(since) if length_ms is None else now_ms - length_ms), now_ms
    if window is not None:
        length_ms = _length_ms(window)
        if length_ms is None:
            raise click.BadParameter(f"{window!r} is no length as 30m, 24h or 7d", param_hint="--window")
        end_ms = min(end_ms, start_ms + length_ms)
    if end_ms <= start_ms:
        raise click.BadParameter(f"{since!r} is not in the past", param_hint="--since")
    asked = Span(start_ms, end_ms)
    # Parts are cut from the first row on: ten minutes of traffic are one part of a day, and one part has no verdict.
    return whole_span(journals, model, within=asked, version=version, variant=variant) or asked


def _length_ms(text: str) -> int | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    return int(float(found[1]) * _UNITS_S[found[2]] * 1000) if found else None


def _moment_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no moment; try 24h or 2026-01-31T12:00", param_hint="--since") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
