"""`headrace features …`: the views of a catalogue, what a change would break, and the stored rows of a version."""

import asyncio
import json
import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from featureclient.evolution import (
    CannotScan,
    Change,
    Finding,
    Pins,
    StoredRows,
    catalogue_changes,
    check,
    count_rows,
    drop_rows,
    look_at_rows,
    row_pattern,
    view_changes,
)
from featureclient.evolution.difference import said_columns, said_compute, said_entity, said_ms
from featureclient.feast.registry import STRING_BYTES, Imported, ImportOptions, import_registry
from featureclient.schema import Catalogue, ConfigError, View
from featureclient.store import OnlineStore, StoreError
from gateway.server import settings as settings_file
from gateway.server.command import CONFIG, TARGET, command, console, credentials, progress_bar, stop, tls
from gateway.server.pins import pins_of
from gateway.server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_ROWS_MAX = 10_000
_ROWS_PER_S = 20_000.0
_FILLED_PER_S = 5_000.0
_SAYS = {"breaking": "bold red", "warning": "yellow", "note": "dim"}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def features() -> None:
    """Feature views: look at them, compare catalogues, check a change, fill, drop and combine stored rows, warm
    a gateway."""


@features.command("list")
@CONFIG
@_JSON
@command
async def list_views(config: Path, as_json: bool) -> None:
    """List the views of the catalogue."""
    settings, catalogue, pins = _opened(config)
    if as_json:
        click.echo(json.dumps([_described(view, pins) for view in catalogue.views.values()], indent=2))
        return
    table = Table("view", "entity", "columns", "on missing", "max age", "ttl", "models", title=str(settings.catalogue))
    for view in catalogue.views.values():
        table.add_row(
            view.ref,
            said_entity(view.entity),
            f"{len(view.columns)}" + (f" of {', '.join(view.combine)}" if view.combine else ""),
            view.on_missing,
            said_ms(view.max_age_ms),
            said_ms(view.ttl_ms),
            ", ".join(pins.get(view.ref, {})) or "-",
        )
    console().print(table)


@features.command()
@CONFIG
@_JSON
@click.argument("view")
@command
async def show(config: Path, as_json: bool, view: str) -> None:
    """Show a view: its columns and revisions, its ages, what computes it, and which models pin it."""
    _, catalogue, pins = _opened(config)
    found = catalogue.view(view)
    if as_json:
        click.echo(json.dumps(_described(found, pins), indent=2))
        return
    columns = Table("column", "dtype", "default", "read by", title=found.ref)
    for column in found.columns:
        readers = [model for model, names in pins.get(found.ref, {}).items() if column.name in names]
        default = "-" if column.default is None else repr(column.default)
        columns.add_row(column.name, str(column.dtype), default, ", ".join(readers) or "-")
    out = console()
    out.print(columns)
    facts = Table(show_header=False, box=None)
    for name, value in _facts(found, pins).items():
        facts.add_row(name, value)
    out.print(facts)


@features.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("headrace.yaml"),
    show_default=True,
    help="The settings file, for its catalogue; two files need none.",
)
@_JSON
@click.option("--exit-code", is_flag=True, help="Exit with 1 when they differ, as `git diff --exit-code` does.")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@command
async def diff(config: Path, as_json: bool, exit_code: bool, before: str, after: str) -> None:
    """Say what differs between A and B: two catalogue files, or two views of the catalogue of --config."""
    if _is_view(before) and _is_view(after):
        catalogue = Catalogue.load(settings_file.load(config).catalogue)
        changes = view_changes(catalogue.view(before), catalogue.view(after))
    else:
        changes = catalogue_changes(Catalogue.load(before), Catalogue.load(after))
    if as_json:
        click.echo(json.dumps([asdict(change) for change in changes], indent=2))
    elif changes:
        _print_changes(changes)
    else:
        click.echo("no difference")
    if changes and exit_code:
        sys.exit(1)


@features.command("check")
@CONFIG
@_JSON
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The catalogue of before: what is deployed now. Without it, models and stored rows are checked alone.",
)
@click.option("--store/--no-store", "look", default=True, show_default=True, help="Look at rows that are stored.")
@click.option(
    "--rows-max",
    type=click.IntRange(min=1),
    default=_ROWS_MAX,
    show_default=True,
    help="How many stored rows of a view to look at.",
)
@command
async def check_catalogue(config: Path, as_json: bool, against: Path | None, look: bool, rows_max: int) -> None:
    """Check whether the catalogue would break readers, models or stored rows. Exits with 1 when it would."""
    settings, catalogue, pins = _opened(config)
    old = None if against is None else Catalogue.load(against)
    stored, findings = await _stored(settings, catalogue, old, rows_max) if look else ({}, [])
    findings += await _models_compile(settings, catalogue)
    findings = check(catalogue, old, pins=pins, stored=stored) + findings
    findings.sort(key=lambda finding: list(_SAYS).index(finding.severity))
    if as_json:
        looked_at = {ref: _counted(found) for ref, found in stored.items()}
        click.echo(json.dumps({"findings": [*map(asdict, findings)], "stored": looked_at}, indent=2))
    else:
        _print_stored(catalogue, stored)
        _print_findings(findings)
    if any(finding.severity == "breaking" for finding in findings):
        sys.exit(1)


@features.command()
@CONFIG
@click.argument("view")
@click.option("--dry-run", is_flag=True, help="Count the rows, and delete none.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--rows-per-s", default=_ROWS_PER_S, show_default=True, help="How fast to delete at most.")
@command
async def drop(config: Path, view: str, dry_run: bool, yes: bool, rows_per_s: float) -> None:
    """Delete the stored rows of a view version. Run it again when it was interrupted: it goes on with what is left.

    The view may have been taken out of the catalogue already. It is refused while a model pins the view.
    """
    settings, catalogue, pins = _opened(config)
    found = catalogue.views.get(view)
    name, at, version = view.partition("@")
    if found is None and not (name.isidentifier() and at and version.isdecimal()):
        stop(f"{view!r} is not a view version, as plane_stats@1 is")
    if found is not None and found.feast is not None:
        stop(f"{view}: Feast writes these rows, and here they are read only; delete them with Feast")
    models = pins.get(view, {})
    if models and not dry_run:
        stop(f"{view} is pinned by {', '.join(models)}; move the models to another version first")
    for other in catalogue.views.values():
        if view in other.combine:
            click.echo(f"note: {other.ref} combines {view}; its rows keep the values", err=True)
    if rows_per_s <= 0:
        raise click.BadParameter("has to be above 0", param_hint="--rows-per-s")
    pattern = row_pattern(found, view, catalogue.namespace)
    async with _store(settings, catalogue) as store:
        total = await count_rows(store, pattern)
        click.echo(f"{view}: {total:,} rows are stored")
        if dry_run or not total:
            return
        if not yes and not await asyncio.to_thread(click.confirm, f"Delete {total:,} rows of {view}?", err=True):
            stop("nothing was deleted")
        with progress_bar() as progress:
            task = progress.add_task(f"drop {view}", total=total)
            dropped = await drop_rows(
                store, pattern, rows_per_s=rows_per_s, progress=lambda done: progress.update(task, completed=done)
            )
        left = await count_rows(store, pattern)
    click.echo(f"{dropped:,} rows deleted")
    if left:
        stop(f"{left:,} rows were written meanwhile; stop what writes {view}, and run again")


@features.command()
@CONFIG
@click.argument("view")
@command
async def combine(config: Path, view: str) -> None:
    """Make the stored rows of a combined view anew, from the stored rows of its members."""
    from featureclient.client import FeatureClient
    from featureclient.load.combining import combine_all

    settings, catalogue, _ = _opened(config)
    async with _store(settings, catalogue) as store, FeatureClient(catalogue, store, settings.features) as client:
        with progress_bar() as progress:
            task = progress.add_task(f"combine {view}", total=None)
            done = await combine_all(
                client, view, lambda looked_at, total: progress.update(task, completed=looked_at, total=total)
            )
    click.echo(f"{done.written:,} rows written" + (f", {done.removed:,} removed" if done.removed else ""))
    if done.contended:
        stop(f"the members of {len(done.contended):,} rows were written all the time; run again")


@features.command()
@CONFIG
@click.argument("view")
@click.option(
    "--ids-from",
    metavar="VIEW",
    help="Fill the ids that this view has stored rows of.  [default: the version before]",
)
@click.option("--ids", type=_FILE, help="Fill the ids of a file: text, CSV, JSON lines or Parquet.")
@click.option("--from-table", type=_FILE, help="Load rows that were computed elsewhere: Parquet, CSV or Arrow.")
@click.option("--rate", default=_FILLED_PER_S, show_default=True, help="Rows a second at most, computed and written.")
@click.option(
    "--resume/--restart",
    default=True,
    show_default=True,
    help="Leave out what is done; or do all of it again. Rows of later events stay in any case.",
)
@_JSON
@command
async def backfill(
    *,
    config: Path,
    view: str,
    ids_from: str | None,
    ids: Path | None,
    from_table: Path | None,
    rate: float,
    resume: bool,
    as_json: bool,
) -> None:
    """Fill the rows of a new view version beside those of the old one, so that a shadow or a canary can read them.

    They are computed by the view's `compute`. Ctrl-C stops after the write that is under way; run it again to go on.
    Exits with 1 when a row could not be made.
    """
    from gateway.server import backfilling

    if sum(one is not None for one in (ids_from, ids, from_table)) > 1:
        raise click.UsageError("--ids-from, --ids and --from-table exclude each other")
    if not 0 < rate < math.inf:
        raise click.BadParameter("has to be above 0", param_hint="--rate")
    settings = settings_file.load(config)
    catalogue = Catalogue.load(settings.catalogue)
    asked = backfilling.Asked(catalogue.view(view), rate, resume=resume, as_json=as_json)
    async with _store(settings, catalogue) as store:
        if from_table is not None:
            await backfilling.from_table(settings, catalogue, store, asked, from_table)
        else:
            await backfilling.from_compute(settings, catalogue, store, asked, ids_from=ids_from, ids=ids)


@features.command("import-feast")
@click.argument("registry", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--project", help="The Feast project; it may be left out where there is one.")
@click.option(
    "--key-version",
    type=click.Choice(["2", "3"]),
    default="3",
    show_default=True,
    help="entity_key_serialization_version in feature_store.yaml.",
)
@click.option("--string-bytes", default=STRING_BYTES, show_default=True, help="The size of every string column.")
@click.option(
    "--length",
    "lengths",
    multiple=True,
    metavar="VIEW:FEATURE=N",
    help="The elements of a list, or the bytes of a string. May be given often.",
)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the catalogue here.")
@command
async def import_feast(
    *,
    registry: Path,
    project: str | None,
    key_version: str,
    string_bytes: int,
    lengths: tuple[str, ...],
    out: Path | None,
) -> None:
    """Make a catalogue of a Feast repository's registry file, whose rows are then read where Feast writes them.

    What cannot be brought over is named. A file that is there already is not overwritten.
    """
    sizes = {}
    for given in lengths:
        name, _, number = given.rpartition("=")
        if not name or not number.isdecimal():
            raise click.BadParameter(f"{given!r} is not VIEW:FEATURE=N", param_hint="--length")
        sizes[name] = int(number)
    try:
        options = ImportOptions(project, int(key_version), string_bytes, sizes)
    except ValueError as error:
        stop(str(error))
    imported = _imported(registry, options, out)
    for kind, said in (("left out", imported.left_out), ("look at", imported.notes)):
        for one in said:
            click.echo(f"{kind}: {one}", err=True)
    click.echo(f"{len(imported.views)} views: {', '.join(imported.views)}", err=True)


@features.command()
@CONFIG
@TARGET
@tls
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--view", help="The view of all ids in the file. Without it, each line names its own.")
@click.option("--timeout-s", default=10.0, show_default=True, help="How long a batch may take.")
@command
async def warm(
    *,
    config: Path,
    target: str,
    file: Path,
    view: str | None,
    timeout_s: float,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Warm a running gateway from a FILE of ids: text, CSV, JSON lines or Parquet.

    Exits with 1 when a line is wrong or an id could not be read. An id that has no row is no error.
    """
    from featureclient.warmup import IdFile
    from gateway.client import HeadraceClient
    from gateway.server.warming import BATCH_IDS_MAX, warm_gateway

    settings = settings_file.load(config)
    batch_ids = min(BATCH_IDS_MAX, settings.predict.rows_max)
    pieces = IdFile(file, Catalogue.load(settings.catalogue), view, piece_ids=batch_ids).pieces()
    async with HeadraceClient(target, credentials=credentials(ca, cert, key)) as client:
        with progress_bar() as progress:
            task = progress.add_task(f"warm {target}", total=None)
            warmed = await warm_gateway(
                client,
                pieces,
                batch_ids=batch_ids,
                timeout_s=timeout_s,
                progress=lambda done: progress.update(task, completed=done),
            )
            progress.update(task, total=warmed.ids)
    for bad in warmed.bad_lines:
        click.echo(f"bad {bad}", err=True)
    views = ", ".join(f"{ref} {count:,}" for ref, count in warmed.by_view.items())
    click.echo(f"{warmed.ids:,} ids: {warmed.there:,} have a row" + (f" ({views})" if len(warmed.by_view) > 1 else ""))
    if not warmed.complete:
        problems = [f"{warmed.bad_lines_total:,} bad lines"] if warmed.bad_lines_total else []
        problems += [f"{warmed.unread:,} ids could not be read in time"] if warmed.unread else []
        stop("; ".join([*problems, *([warmed.why] if warmed.why else [])]))


def _imported(registry: Path, options: ImportOptions, out: Path | None) -> Imported:
    """Import, see that the catalogue is one, and write it: to stdout where there is no file."""
    imported = import_registry(registry.read_bytes(), options, file=str(registry))
    Catalogue.parse(imported.catalogue, str(out or "features.yaml"))
    if out is None:
        click.echo(imported.catalogue, nl=False)
        return imported
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(imported.catalogue)
    except FileExistsError:
        stop(f"{out} is there already; import to another file and compare them: headrace features diff")
    return imported


def _is_view(text: str) -> bool:
    """`plane_stats@1`, where no file is called so."""
    return "@" in text and not Path(text).exists()


def _opened(config: Path) -> tuple[Settings, Catalogue, Pins]:
    settings = settings_file.load(config)
    return settings, Catalogue.load(settings.catalogue), pins_of(settings.models)


@asynccontextmanager
async def _store(settings: Settings, catalogue: Catalogue) -> "AsyncIterator[OnlineStore]":
    from gateway.server.stores import RefusalLog, open_rows

    store = open_rows(settings.store, catalogue, RefusalLog())
    try:
        yield store
    finally:
        await store.close()


async def _stored(
    settings: Settings, catalogue: Catalogue, old: Catalogue | None, rows_max: int
) -> tuple[dict[str, StoredRows], list[Finding]]:
    """What is stored of every view, by the layouts that are known of it before and after."""
    stored: dict[str, StoredRows] = {}
    async with _store(settings, catalogue) as store:
        try:
            for ref in dict.fromkeys([*catalogue.views, *(old.views if old is not None else ())]):
                view = catalogue.views.get(ref) or (old or catalogue).view(ref)
                if view.feast is None:
                    stored[ref] = await look_at_rows(store, view, rows_max)
        except (StoreError, CannotScan) as error:
            finding = Finding("note", "store", f"stored rows were not looked at: {error}", "run it where the store is")
            return stored, [finding]
    return stored, []


async def _models_compile(settings: Settings, catalogue: Catalogue) -> list[Finding]:
    """Compile every model against the catalogue, as a gateway that starts would."""
    from gateway.server.app import load_models  # onnxruntime; the other commands need none of it

    try:
        models = await load_models(settings, catalogue)
    except ConfigError as error:
        advice = "a gateway with this catalogue does not start; keep what the model reads, or change its manifest"
        return [Finding("breaking", "models", str(problem), advice) for problem in error.problems]
    models.close()
    return []


def _described(view: View, pins: Pins) -> dict[str, Any]:
    return {
        "view": view.ref,
        "columns": {column.name: {"dtype": str(column.dtype), "default": column.default} for column in view.columns},
        "models": {model: sorted(columns) for model, columns in pins.get(view.ref, {}).items()},
        "revisions": {f"{revision.fingerprint:08x}": said_columns(revision.columns) for revision in view.revisions},
        **{name: value for name, value in _facts(view, pins).items() if not name.startswith("revision ")},
    }


def _facts(view: View, pins: Pins) -> dict[str, str]:
    """What there is to know of a view beside its columns."""
    facts = {
        "entity": said_entity(view.entity),
        "fingerprint": f"{view.fingerprint:08x}",
        "row": f"{view.newest.stored.itemsize} bytes stored, {view.layout.block_dtype.itemsize} cached",
        "max_age": said_ms(view.max_age_ms),
        "ttl": said_ms(view.ttl_ms),
        "soft_age": said_ms(view.soft_age_ms),
        "hard_age": said_ms(view.hard_age_ms),
        "on_missing": view.on_missing,
        "compute": said_compute(view),
        "prefetch": ", ".join(view.prefetch) or "-",
        "combine": ", ".join(view.combine) or "-",
        "pinned by": ", ".join(pins.get(view.ref, {})) or "-",
    }
    for revision in view.revisions:
        facts[f"revision {revision.fingerprint:08x}"] = said_columns(revision.columns)
    return facts


def _counted(found: StoredRows) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "complete": found.complete,
        "fingerprints": {f"{fingerprint:08x}": rows for fingerprint, rows in found.fingerprints.items()},
        "invalid": dict(found.invalid),
    }


def _print_changes(changes: Iterable[Change]) -> None:
    table = Table("what", "where", "field", "before", "after")
    for change in changes:
        table.add_row(change.kind, change.subject, change.field, _plain(change.before), _plain(change.after))
    console().print(table)


def _print_stored(catalogue: Catalogue, stored: dict[str, StoredRows]) -> None:
    if not stored:
        return
    table = Table("view", "stored rows", "by fingerprint", "INVALID")
    for ref, found in stored.items():
        view = catalogue.views.get(ref)
        table.add_row(
            ref,
            f"{found.rows:,}" + ("" if found.complete else " looked at, there are more"),
            "\n".join(f"{rows:,} {_named(view, fingerprint)}" for fingerprint, rows in found.fingerprints.items())
            or "-",
            "\n".join(f"{rows:,} {reason}" for reason, rows in found.invalid.items()) or "-",
        )
    console().print(table)


def _named(view: View | None, fingerprint: int) -> str:
    """Which revision a fingerprint is, in words."""
    known = [] if view is None else [revision.fingerprint for revision in view.revisions]
    if view is not None and fingerprint == view.fingerprint:
        return f"{fingerprint:08x} (newest)"
    which = f"revision {known.index(fingerprint) + 1} of {len(known)}" if fingerprint in known else "unknown"
    return f"{fingerprint:08x} ({which})"


def _print_findings(findings: Sequence[Finding]) -> None:
    out = console()
    for finding in findings:
        out.print(f"[{_SAYS[finding.severity]}]{finding.severity}[/] ", end="")
        out.print(f"{finding.subject}: {finding.what}", markup=False, highlight=False)
        for line in finding.advice.splitlines():
            out.print(f"    {line}", markup=False, highlight=False)
    if not findings:
        click.echo("nothing would break")


def _plain(text: str) -> str:
    """Brackets of a dtype are no markup."""
    return text.replace("[", "\\[")
