"""What `headrace features backfill` does: opens what it needs, shows a bar, and says what became of the ids."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from featureclient.client import FeatureClient
from featureclient.compute import Computer
from featureclient.evolution import count_rows, row_pattern
from featureclient.load import (
    Backfill,
    BackfillOptions,
    BackfillReport,
    LoadReport,
    Pace,
    load_file,
    older_version,
    refuse_other_ids,
    refuse_what_others_write,
)
from featureclient.schema import Catalogue, View
from featureclient.store import OnlineStore
from featureclient.warmup import IdFile
from gateway.server.command import progress_bar, stop
from gateway.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, wherever the rows come from."""

    view: View
    rows_per_s: float
    resume: bool
    as_json: bool


async def from_table(settings: Settings, catalogue: Catalogue, store: OnlineStore, asked: Asked, path: Path) -> None:
    """Load rows that were computed elsewhere."""
    refuse_what_others_write(asked.view)
    async with FeatureClient(catalogue, store, settings.features) as client:
        with progress_bar() as progress:
            task = progress.add_task(f"backfill {asked.view.ref}", total=None)
            report = await load_file(
                client,
                asked.view,
                path,
                on_bad_row="skip",
                resume=asked.resume,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
                pace=Pace(asked.rows_per_s),
            )
    _say_loaded(asked, report)


async def from_compute(
    settings: Settings,
    catalogue: Catalogue,
    store: OnlineStore,
    asked: Asked,
    *,
    ids_from: str | None,
    ids: Path | None,
) -> None:
    """Compute the rows, of the ids of another view's rows or of a file."""
    view = asked.view
    refuse_what_others_write(view)
    other = None
    if ids is None:
        other = older_version(catalogue, view) if ids_from is None else catalogue.view(ids_from)
        if other is None:
            stop(f"{view.ref} has no version before it: say whose ids to fill, with --ids-from or --ids")
        refuse_other_ids(view, other)
    # The computations of other views are not needed, and may not even run here.
    alone = replace(catalogue, views={view.ref: view})
    options = BackfillOptions(attempt_pause_s=settings.compute.breaker_open_s, renew=not asked.resume)
    async with (
        FeatureClient(catalogue, store, settings.features) as client,
        Computer(alone, settings.compute) as computer,
    ):
        total = None if other is None else await count_rows(store, row_pattern(other, other.ref, other.namespace))
        if other is not None and not total:
            stop(f"no rows of {other.ref} are stored, so there are no ids to fill {view.ref} for; give --ids")
        with progress_bar() as progress:
            task = progress.add_task(f"backfill {view.ref}", total=total)
            backfill = Backfill(
                client,
                computer,
                view,
                options,
                pace=Pace(asked.rows_per_s),
                progress=lambda done: progress.update(task, completed=done),
            )
            with _always_said(asked, backfill.report):
                if other is not None:
                    await backfill.from_stored(other)
                elif ids is not None:
                    await backfill.from_file(IdFile(ids, catalogue, view.ref, piece_ids=options.batch_ids))
    wrong = backfill.report.failed.total() + backfill.report.bad_lines_total
    if wrong:
        stop(f"{wrong:,} ids got no row for a reason that can be mended; run it again then")


@contextmanager
def _always_said(asked: Asked, report: BackfillReport) -> Iterator[None]:
    """Say what became of the ids however it ended."""
    ended = False
    try:
        yield
        ended = True
    finally:
        if asked.as_json:
            click.echo(json.dumps({"view": asked.view.ref, "complete": ended, **_counted(report)}))
        else:
            _say_filled(asked.view, report)
            if not ended:
                click.echo("not finished: run it again, and it goes on behind what is written", err=True)


def _counted(report: BackfillReport) -> dict[str, Any]:
    return {**asdict(report), "failed": dict(report.failed)}


def _say_filled(view: View, report: BackfillReport) -> None:
    for bad in report.bad_lines:
        click.echo(f"bad {bad}", err=True)
    for reason, count in report.failed.most_common():
        click.echo(f"failed: {count:,} ids ({', '.join(map(repr, report.samples[reason]))}): {reason}", err=True)
    click.echo(
        f"{view.ref}: {report.ids:,} ids: {report.written:,} written, {report.there:,} already there, "
        f"{report.superseded:,} superseded by newer stored rows, {report.no_row:,} have no row, "
        f"{report.failed.total():,} failed"
    )


def _say_loaded(asked: Asked, report: LoadReport) -> None:
    for bad in report.bad_rows:
        click.echo(f"bad {bad}", err=True)
    if asked.as_json:
        click.echo(json.dumps({"view": asked.view.ref, "complete": True, **asdict(report)}))
    else:
        click.echo(
            f"{asked.view.ref}: {report.rows:,} rows: {report.written:,} written, "
            f"{report.superseded:,} superseded by newer stored rows, {report.bad:,} bad"
            + (f" (resumed at row {report.resumed_at:,})" if report.resumed_at else "")
        )
    if report.bad:
        stop(f"{report.bad:,} rows are not what {asked.view.ref} declares; mend them, and run again")
