"""`headrace profile`: what a model's columns and outputs look like in its training data, written beside its graph."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table as Shown

from featureclient.schema import Catalogue
from gateway.plan.transform import resolver
from gateway.server import settings as settings_file
from gateway.server.command import CONFIG, command, console, progress_bar, stop

if TYPE_CHECKING:
    from gateway.training.profiling import Subject
    from gateway.training.tables import Table
    from gateway.validation.profile import ColumnProfile, Profile


@click.command()
@CONFIG
@click.option("--model", required=True, help="The model, by its folder's name.")
@click.option("--version", type=click.IntRange(min=0), help="Its version; else the highest.")
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Training data: a Parquet, Arrow or CSV file, or a folder of them. Columns are named as in the manifest.",
)
@click.option(
    "--from-journal",
    "journal",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Or: what was served.",
)
@click.option("--since", type=click.DateTime(), help="Of the journal: from this time on, UTC.")
@click.option("--until", type=click.DateTime(), help="Of the journal: before this time, UTC.")
@click.option(
    "--served-by",
    type=click.IntRange(min=0),
    help="Of the journal: what this version served, where --version has served nothing yet. Outputs are its own.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to; else beside the graph.")
@command
async def profile(
    *,
    config: Path,
    model: str,
    version: int | None,
    data: Path | None,
    journal: Path | None,
    since: datetime | None,
    until: datetime | None,
    served_by: int | None,
    out: Path | None,
) -> None:
    """Write the reference profile of a model version, in one pass over its training data."""
    if (data is None) == (journal is None):
        raise click.UsageError("name one of --data and --from-journal")
    try:
        from gateway.training.profiling import ProfilingError, Subject, write
        from gateway.training.tables import TableError
    except ModuleNotFoundError as error:
        stop(f"{error.name} is not installed: pip install 'headrace[journal]'")
    settings = settings_file.load(config)
    if settings.transform_path is not None and str(settings.transform_path) not in sys.path:
        sys.path.insert(0, str(settings.transform_path))
    catalogue = Catalogue.load(settings.catalogue)
    try:
        subject = Subject.open(settings.models, model, version, catalogue, resolver(settings.transform_modules))
        made = _made(subject, _opened(subject, data, journal, since=since, until=until, served_by=served_by))
    except (ProfilingError, TableError) as error:
        stop(str(error))
    path = out or subject.path
    write(made, path)
    _print(made)
    click.echo(f"wrote {path}")


def _opened(
    subject: "Subject",
    data: Path | None,
    journal: Path | None,
    *,
    since: datetime | None,
    until: datetime | None,
    served_by: int | None,
) -> "Table":
    from gateway.training.tables import open_files, open_journal

    if data is not None:
        return open_files(data, {name: column.dtype for name, column in subject.plan.columns.items()})
    assert journal is not None
    version = subject.version if served_by is None else served_by
    return open_journal(journal, subject.plan, version, _utc(since), _utc(until))


def _made(subject: "Subject", table: "Table") -> "Profile":
    from gateway.training.profiling import ProfilingError, profile_of

    made = None
    with progress_bar() as progress:
        task = progress.add_task(f"{subject.plan.model}/{subject.version}", total=table.rows)
        for rows, made in profile_of(subject, table, datetime.now(UTC)):  # noqa: B007 - the last one is wanted
            progress.update(task, completed=rows)
    if made is None:
        raise ProfilingError(f"{table.what} has no rows")
    return made


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _print(made: "Profile") -> None:
    shown = Shown("column", "dtype", "null", "NaN", "mean", "std", "min", "max", "values")
    for name, column in {**made.columns, **{f"→ {name}": column for name, column in made.outputs.items()}}.items():
        shown.add_row(name, column.dtype.replace("[", "\\["), *_numbers(column), _values(column))
    shown.title = f"{made.model}/{made.version}: {made.rows:,} rows of {made.source}"
    console().print(shown)


def _numbers(column: "ColumnProfile") -> list[str]:
    shares = [f"{column.null_share:.2%}", f"{column.nans / column.count:.2%}" if column.count else "-"]
    return shares + ["-" if one is None else f"{one:.5g}" for one in (column.mean, column.std, column.min, column.max)]


def _values(column: "ColumnProfile") -> str:
    if column.categories is None:
        return ""
    return f"{len(column.categories)}" + ("" if column.complete else " and more")
