"""`headrace journal …`: what is in a journal, SQL over it, and compacting it by hand."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click
from rich.table import Table

from featureclient.schema import ConfigError
from gateway.server import settings as settings_file
from gateway.server.command import console, progress_bar, stop

if TYPE_CHECKING:
    from gateway.journal.options import JournalOptions
    from gateway.journal.query import Query

_P = ParamSpec("_P")
_SHOWN_MAX = 200
_PIECE_ROWS = 1000


@click.group()
def journal() -> None:
    """What the models saw and answered."""


def _where(run: Callable[_P, None]) -> Callable[_P, None]:
    """The options that say which journal, and one message for what a user can mend."""

    @click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="The settings file, whose section `journal` says where it is. The default is headrace.yaml here.",
    )
    @click.option("--journal", "path", type=click.Path(file_okay=False, path_type=Path), help="The journal's folder.")
    @wraps(run)
    def started(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            run(*args, **kwargs)
        except ImportError as error:
            stop(f"{error.name} is not there; pip install 'headrace[journal]'")
        except (ConfigError, OSError) as error:
            stop(str(error))

    return started


@journal.command()
@_where
@click.argument("sql")
@click.option("--format", "shape", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write .parquet, .csv or .json.")
def query(*, config: Path | None, path: Path | None, sql: str, shape: str, out: Path | None) -> None:
    """Run SQL (DuckDB) over the journal.

    Views: journal (all models), one of each model's name, and failures. Features are "f.<column>", ids "entity.<name>",
    outputs "out.<name>".
    """
    from gateway.journal.query import BadQuery, opened

    try:
        with opened(_options(config, path).path) as found:
            _say(found)
            if out is not None:
                _write(found.connection.sql(sql), out)
            else:
                _print(found.connection.execute(sql), shape)
    except BadQuery as error:
        stop(str(error))


@journal.command()
@_where
@click.option("--model", help="Of one model only.")
@click.option("--request-id", help="Of one request only.")
@click.option("--prediction-id", help="Of one prediction only: 32 hexadecimal digits.")
@click.option(
    "--rows", default=5, show_default=True, type=click.IntRange(1, _SHOWN_MAX), help="How many, newest first."
)
def show(
    *,
    config: Path | None,
    path: Path | None,
    model: str | None,
    request_id: str | None,
    prediction_id: str | None,
    rows: int,
) -> None:
    """Show predictions whole, one column of a table each."""
    from gateway.journal.query import opened

    with opened(_options(config, path).path, [model] if model else []) as found:
        _say(found)
        if not found.models or (model and model not in found.models):
            stop(f"nothing is kept{f' of {model}' if model else ''} (there are: {', '.join(found.models) or 'none'})")
        conditions, values = ["true"], []
        for name, value in (("request_id", request_id), ("lower(hex(prediction_id))", prediction_id)):
            if value:
                conditions.append(f"{name} = ?")
                values.append(value.lower() if "hex" in name else value)
        view = '"' + model.replace('"', '""') + '"' if model else "journal"
        sql = f'SELECT * FROM {view} WHERE {" AND ".join(conditions)} ORDER BY "time" DESC, "row" LIMIT {rows}'  # noqa: S608 - the view's name is quoted
        answer = found.connection.execute(sql, values)
        names = [one[0] for one in answer.description or ()]
        kept = answer.fetchall()
    if not kept:
        stop("no such prediction is kept")
    table = Table("column", *(f"{number + 1}" for number in range(len(kept))))
    for position, name in enumerate(names):
        cells = [one[position] for one in kept]
        if any(cell is not None for cell in cells):
            table.add_row(name.replace("[", "\\["), *map(_shown, cells))
    console().print(table)


@journal.command()
@_where
def stats(*, config: Path | None, path: Path | None) -> None:
    """Rows, days and bytes of each model, and how much of the disk's bounds is used."""
    from gateway.journal.query import opened
    from gateway.journal.reader import failures, segments, size_of
    from gateway.journal.streams import used_bytes

    options = _options(config, path)
    root = options.path
    table = Table("model", "version", "variant", "rows", "from", "to", "violations", title=str(root))
    with opened(root) as found:
        _say(found)
        if found.models:
            rows = found.connection.execute(
                'SELECT model, version, variant, count(*), min("time"), max("time"), sum(violations) '
                "FROM journal GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            for row in rows:
                table.add_row(*map(_shown, row[:3]), f"{row[3]:,}", *map(_shown, row[4:]))
    console().print(table)
    waiting = [*segments(root), *failures(root)]
    click.echo(f"{len(waiting)} segments, {sum(map(size_of, waiting)):,} bytes, are not compacted yet")
    click.echo(f"{used_bytes(root):,} of {options.disk_bytes_max:,} bytes are used (disk_bytes_max)")


@journal.command()
@_where
def compact(*, config: Path | None, path: Path | None) -> None:
    """Make Parquet files of closed segments and delete what is too old, as the monitor process does."""
    from gateway.journal.compaction import compact as compact_journal

    options = _options(config, path)
    if not options.path.is_dir():
        stop(f"no journal in {options.path}")
    with progress_bar() as progress:
        task = progress.add_task("compact", total=None)
        done = compact_journal(
            options,
            now_s=time.time(),
            progress=lambda segments, total: progress.update(task, completed=segments, total=total),
        )
        progress.update(task, total=done.segments)
    click.echo(
        f"{done.segments} segments, {done.rows:,} rows: {done.files} Parquet files of {done.bytes:,} bytes; "
        f"{done.deleted_files} old files deleted"
    )
    if done.lost_bytes:
        click.echo(f"{done.lost_bytes:,} bytes of half-written batches were left out", err=True)
    for bad in done.bad:
        click.echo(f"put aside under bad/: {bad}", err=True)
    if done.stopped:
        stop({"busy": "another process compacts it"}.get(done.stopped, f"not all was compacted: {done.stopped}"))


def _options(config: Path | None, path: Path | None) -> "JournalOptions":
    """The journal of the settings; with a path, that one."""
    from dataclasses import replace

    from gateway.journal.options import JournalOptions

    default = Path("headrace.yaml")
    if config is None and default.is_file():
        config = default
    options = settings_file.load(config).journal if config is not None else JournalOptions()
    return options if path is None else replace(options, path=path)


def _say(found: "Query") -> None:
    for note in found.notes:
        click.echo(f"note: {note}", err=True)


def _write(result: Any, out: Path) -> None:
    if result is None:
        stop("this SQL gives no rows to write")
    if out.suffix == ".parquet":
        result.write_parquet(str(out))
    elif out.suffix == ".csv":
        result.write_csv(str(out))
    elif out.suffix == ".json":
        out.write_text(_json(result.columns, result.fetchall()))
    else:
        stop(f"{out}: the name has to end with .parquet, .csv or .json")


def _print(answer: Any, shape: str) -> None:
    """`answer` is a connection that has executed something."""
    names = [one[0] for one in answer.description or ()]
    if shape == "json":
        click.echo(_json(names, answer.fetchall()))
    elif shape == "csv":
        import csv

        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        while rows := answer.fetchmany(_PIECE_ROWS):
            writer.writerows([[_shown(cell) for cell in row] for row in rows])
    else:
        table = Table(*(name.replace("[", "\\[") for name in names))
        rows = answer.fetchmany(_SHOWN_MAX + 1)
        for row in rows[:_SHOWN_MAX]:
            table.add_row(*map(_shown, row))
        console().print(table)
        if len(rows) > _SHOWN_MAX:
            click.echo(f"the first {_SHOWN_MAX} rows; use --format csv, or -o, for all of them", err=True)


def _json(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    import json

    return json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2, default=_shown)


def _shown(value: Any) -> str:
    """A value of one cell: ids in hexadecimal digits."""
    if isinstance(value, bytes):
        return value.hex()
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value).replace("[", "\\[") if isinstance(value, list) else str(value)
