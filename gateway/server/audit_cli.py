"""`headrace audit skew`: whether the model would say the same again of what the journal has."""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from gateway.server import settings as settings_file
from gateway.server.command import CONFIG, console, progress_bar
from gateway.server.dataset_cli import JOURNAL, JSON, journal_of, pinned_of, span, told, utc

if TYPE_CHECKING:
    from gateway.training.audit import Audit


@click.group()
def audit() -> None:
    """Whether what is kept is what the model does."""


@audit.command()
@CONFIG
@JOURNAL
@span
@click.option("--model", required=True, help="The model that served.")
@click.option("--version", type=click.IntRange(min=0), help="Its version; else the highest that there is.")
@click.option("--limit", type=click.IntRange(min=1), help="Replay at most so many rows, the oldest.")
@click.option("--rtol", type=click.FloatRange(min=0), default=1e-5, show_default=True, help="Of outputs, relative.")
@click.option("--atol", type=click.FloatRange(min=0), default=1e-7, show_default=True, help="Of outputs, absolute.")
@JSON
@told
def skew(
    *,
    config: Path,
    journal: Path | None,
    since: datetime | None,
    until: datetime | None,
    model: str,
    version: int | None,
    limit: int | None,
    rtol: float,
    atol: float,
    as_json: bool,
) -> None:
    """Replay a window of the journal through the model and its transforms, and report what differs.

    Derived columns have to be the same bit for bit, outputs within --rtol. Exits with 1 where something differs.
    """
    from gateway.training.audit import audit as audited
    from gateway.training.window import opened

    settings = settings_file.load(config)
    pinned = pinned_of(settings, model, version)
    folder = journal_of(settings, journal)
    with opened(folder, model, utc(since), utc(until)) as window, progress_bar() as bar:
        task = bar.add_task(f"{model}/{pinned.version}", total=min(window.rows_max, limit or window.rows_max))
        for found in audited(pinned, window, limit=limit, rtol=rtol, atol=atol):
            bar.update(task, completed=found.rows)
        bar.update(task, total=found.rows)
    if as_json:
        click.echo(json.dumps({**asdict(found), "skewed": found.skewed}, default=str))
    else:
        _print(found)
    if found.skewed:
        sys.exit(1)


def _print(found: "Audit") -> None:
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if found.unverified:
        click.echo(f"note: the journal does not tell these, so they were not compared: {', '.join(found.unverified)}")
    table = Table("column", "kind", "rows", "differ", "largest", "example", title=f"{found.model}/{found.version}")
    for column in found.columns:
        example = ""
        if column.examples:
            first = column.examples[0]
            example = f"{first.prediction_id} row {first.row}: served {first.served}, replayed {first.replayed}"
        largest = f"{column.largest:.3g}" if column.differ else ""
        shown = example.replace("[", "\\[")
        table.add_row(column.name, column.kind, f"{column.rows:,}", f"{column.differ:,}", largest, shown)
    console().print(table)
    others = {
        "of other versions": found.other_versions,
        "sent as tensors": found.as_tensors,
        "with outputs that a check replaced": found.replaced,
    }
    for what, rows in others.items():
        if rows:
            click.echo(f"{rows:,} rows {what}")
    if found.changed_cells:
        click.echo(f"{found.changed_cells:,} derived cells that a check had changed were taken from the journal")
    click.echo(f"{found.rows:,} rows replayed, {found.differ:,} differ")
