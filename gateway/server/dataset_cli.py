"""`headrace dataset …`: training sets of what was served, or of what would have been, and the log in Feast's schema."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from featureclient.schema import Catalogue, ConfigError, FeatureError
from gateway.plan.transform import resolver
from gateway.server import settings as settings_file
from gateway.server.command import CONFIG, progress_bar, stop

if TYPE_CHECKING:
    from gateway.server.settings import Settings
    from gateway.training.pinned import PinnedModel

_P = ParamSpec("_P")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
FILE = click.Path(dir_okay=False, path_type=Path)
JOURNAL = click.option(
    "--journal", type=click.Path(file_okay=False, path_type=Path), help="The journal's folder, if not the settings'."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
OUT = click.option("-o", "--out", type=FILE, required=True, help="The Parquet file to write.")
ZONE = click.option("--time-zone", "zone", help="The zone of times that have none, as UTC or Europe/Zurich.")
_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])


def span(command: Callable[_P, None]) -> Callable[_P, None]:
    """The options of a window of the journal."""
    command = click.option("--until", type=_TIME, help="Rows answered before this time, UTC.")(command)
    return click.option("--since", type=_TIME, help="Rows answered from this time on, UTC.")(command)


def told(run: Callable[_P, None]) -> Callable[_P, None]:
    """What a user can mend is one message; an extra that is missing is named."""

    @wraps(run)
    def started(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            from gateway.training.audit import AuditError
            from gateway.training.backfill import BackfillError
            from gateway.training.dataset import DatasetError
            from gateway.training.feast_log import FeastLogError
            from gateway.training.pinned import PinnedModelError
            from gateway.training.relation import RelationError
            from gateway.training.window import WindowError
        except ImportError as error:
            stop(f"{error.name} is not installed: pip install 'headrace[journal]'")
        ours = (AuditError, BackfillError, DatasetError, FeastLogError, PinnedModelError, RelationError, WindowError)
        try:
            run(*args, **kwargs)
        except (*ours, ConfigError, FeatureError, OSError) as error:
            stop(str(error))
        except KeyboardInterrupt:
            sys.exit(130)

    return started


def utc(moment: datetime | None) -> datetime | None:
    """A time as it was typed, which is UTC."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def journal_of(settings: "Settings", journal: Path | None) -> Path:
    """The folder that was named, or that of the settings."""
    return journal or settings.journal.path


def pinned_of(settings: "Settings", name: str, version: int | None) -> "PinnedModel":
    """The model, opened."""
    from gateway.training.pinned import PinnedModel

    if settings.transform_path is not None and str(settings.transform_path) not in sys.path:
        sys.path.insert(0, str(settings.transform_path))
    catalogue = Catalogue.load(settings.catalogue)
    return PinnedModel.open(settings.models, name, version, catalogue, resolver(settings.transform_modules))


@click.group()
def dataset() -> None:
    """Training sets: of what was served, and of what would have been."""


@dataset.command()
@CONFIG
@JOURNAL
@span
@click.option("--model", required=True, help="The model that served.")
@click.option("--version", type=click.IntRange(min=0), help="One of its versions; else all.")
@click.option("--labels", type=FILE, required=True, help="A Parquet, CSV or Arrow file.")
@click.option(
    "--on",
    type=click.Choice(["prediction_id", "request_id", "entity"]),
    default="prediction_id",
    show_default=True,
    help="What labels are joined by. With ids, a column `row` says which row of the request.",
)
@click.option("--entity", "entities", multiple=True, help="A request column to join by; else all of the model's.")
@click.option("--label-time", help="The column that says when a label was.")
@click.option("--window", help="How long after the prediction a label may be: 90s, 15m, 3h, 2d.")
@ZONE
@click.option("--duplicates", type=click.Choice(["last", "first", "refuse"]), default="last", show_default=True)
@click.option("--match", type=click.Choice(["all", "last"]), default="all", show_default=True,
              help="With --on entity: every row in the window before a label, or only the last.")  # fmt: skip
@click.option("--keep-unmatched", is_flag=True, help="Keep rows without a label too.")
@JSON
@OUT
@told
def build(
    *,
    config: Path,
    journal: Path | None,
    since: datetime | None,
    until: datetime | None,
    model: str,
    as_json: bool,
    out: Path,
    window: str | None,
    **how: Any,
) -> None:
    """Join labels to what was served, and write the rows that have one."""
    from gateway.training.dataset import DatasetOptions
    from gateway.training.dataset import build as rows_of
    from gateway.training.output import ParquetOutput
    from gateway.training.window import opened

    settings = settings_file.load(config)
    try:
        options = DatasetOptions(window=length(window), salt=settings.journal.pii_salt.encode(), **how)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    folder = journal_of(settings, journal)
    with opened(folder, model, utc(since), utc(until)) as found, ParquetOutput(out) as output, progress_bar() as bar:
        task = bar.add_task(model, total=found.rows_max)
        for batch, report in rows_of(found, options):
            if batch is not None:
                output.write(batch)
            bar.update(task, completed=report.served)
        bar.update(task, total=report.served)
    _end(asdict(report), out, output.rows, as_json=as_json)


@dataset.command()
@CONFIG
@click.option("--model", required=True, help="The model that is to be trained.")
@click.option("--version", type=click.IntRange(min=0), help="Its version; else the highest.")
@click.option("--entities", type=FILE, required=True, help="Ids, times, context columns, and labels.")
@click.option(
    "--view", "views", multiple=True, metavar="VIEW=FILE", help="A view's history: plane_stats@1=plane.parquet"
)
@click.option("--time", default="time", show_default=True, help="The column of the entities' times.")
@click.option("--event-time", default="event_time_ms", show_default=True, help="The column of the histories' times.")
@ZONE
@JSON
@OUT
@told
def backfill(
    *,
    config: Path,
    model: str,
    version: int | None,
    entities: Path,
    views: tuple[str, ...],
    time: str,
    event_time: str,
    zone: str | None,
    as_json: bool,
    out: Path,
) -> None:
    """Write the columns that would have been served, from offline tables."""
    from gateway.training.backfill import BackfillOptions
    from gateway.training.backfill import backfill as rows_of
    from gateway.training.output import ParquetOutput

    settings = settings_file.load(config)
    histories = dict(_history(text) for text in views)
    options = BackfillOptions(entities, histories, time, event_time, zone, settings.journal.redaction)
    pinned = pinned_of(settings, model, version)
    with ParquetOutput(out) as output, progress_bar() as bar:
        task = bar.add_task(model, total=None)
        for batch, done in rows_of(pinned, options):
            if batch is not None:
                output.write(batch)
            bar.update(task, total=done.total, completed=done.rows + done.rejected)
    _end(asdict(done), out, output.rows, as_json=as_json)


@dataset.command("feast-log")
@CONFIG
@JOURNAL
@span
@click.option("--model", required=True, help="The model that served.")
@click.option("--version", type=click.IntRange(min=0), help="One of its versions; else all.")
@OUT
@told
def feast_log(
    *,
    config: Path,
    journal: Path | None,
    since: datetime | None,
    until: datetime | None,
    model: str,
    version: int | None,
    out: Path,
) -> None:
    """Write the journal as Feast logs the features that it serves."""
    from gateway.training.feast_log import feast_log as rows_of
    from gateway.training.output import ParquetOutput
    from gateway.training.window import opened

    folder = journal_of(settings_file.load(config), journal)
    with opened(folder, model, utc(since), utc(until)) as found, ParquetOutput(out) as output, progress_bar() as bar:
        task = bar.add_task(model, total=found.rows_max)
        for batch, rows in rows_of(found, version):
            output.write(batch)
            bar.update(task, completed=rows)
        bar.update(task, total=output.rows)
    if not output.rows:
        stop("nothing was served in this window; widen --since and --until")
    click.echo(f"{output.rows:,} rows in {out}")


def _end(report: dict[str, Any], out: Path, rows: int, *, as_json: bool) -> None:
    notes = report.pop("notes", [])
    if as_json:
        click.echo(json.dumps({**report, "notes": notes, "rows_written": rows}))
    else:
        for note in notes:
            click.echo(f"note: {note}", err=True)
        for name, count in report.items():
            click.echo(f"{name.replace('_', ' '):<12} {_said(count)}")
        click.echo(f"{rows:,} rows in {out}" if rows else "no rows, so no file is written")
    if not rows:
        sys.exit(1)


def _said(count: Any) -> str:
    if isinstance(count, dict):
        return ", ".join(f"{name} {number:,}" for name, number in count.items()) or "-"
    return f"{count:,}"


def length(text: str | None) -> timedelta | None:
    """A length of time as it was typed."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a length of time, as 90s, 15m, 3h or 2d", param_hint="--window")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def _history(text: str) -> tuple[str, Path]:
    view, equals, path = text.partition("=")
    if not equals or not path:
        raise click.BadParameter(f"{text!r} is not VIEW=FILE", param_hint="--view")
    return view, Path(path)
