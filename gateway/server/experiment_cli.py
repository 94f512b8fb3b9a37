"""`headrace experiment …`: how experiments stand, what they have come to, and what an operator does to them."""

import json
import math
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from featureclient.schema import Catalogue, ConfigError
from gateway.plan.transform import resolver
from gateway.server import settings as settings_file
from gateway.server.command import CONFIG, console, stop
from gateway.server.dataset_cli import FILE, JOURNAL, JSON, ZONE, journal_of, length, span, told, utc

if TYPE_CHECKING:
    from gateway.experiments.editing import Action
    from gateway.experiments.experiment import Experiment
    from gateway.experiments.form import CompareForm
    from gateway.server.settings import Settings
    from gateway.training.dataset import DatasetOptions
    from gateway.training.experiment import Comparison, Opens

_COLOURS = {"promote": "bold green", "keep running": "yellow", "roll back": "bold red"}
_STATES = {"running": "green", "decided": "green", "stopped": "dim", "suspended": "bold red", "rolled back": "bold red"}
_STATUS_TIMEOUT_S = 10.0
_COLUMNS_SHOWN = 5
_ROLL_BACK = 3
"""The exit status of a report whose verdict is to roll back."""
_FILE = click.option("--experiments", "file", type=FILE, help="The experiments.yaml, if not the settings'.")


@click.group()
def experiment() -> None:
    """Splits, canaries and shadows: how they stand, and what they have come to."""


# ── Status ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@experiment.command()
@CONFIG
@click.option("--url", help="The gateway's HTTP endpoint, if not the settings': http://127.0.0.1:8501.")
@JSON
def status(*, config: Path, url: str | None, as_json: bool) -> None:
    """How the experiments of a running gateway stand."""
    told_by = (url or f"http://{settings_file.load(config).http.listen}").rstrip("/") + "/experiments"
    if not told_by.startswith(("http://", "https://")):
        stop(f"{told_by}: is no address of HTTP")
    try:
        with urllib.request.urlopen(told_by, timeout=_STATUS_TIMEOUT_S) as answer:  # noqa: S310 - http or https
            page = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        stop(f"{told_by}: {error}; does the gateway run, and is its HTTP endpoint there?")
    if as_json:
        click.echo(json.dumps(page, indent=2))
    else:
        _print_status(page)


def _print_status(page: dict[str, Any]) -> None:
    heads = ("experiment", "model", "kind", "state", "variant", "share", "requests", "errors", "violations",
             "mean score", "p99")  # fmt: skip
    table = Table(*heads, title=str(page.get("file") or "no experiments.yaml"))
    for one in page["experiments"]:
        state = one["state"]
        said = f"[{_STATES.get(state, 'yellow')}]{state}[/]"
        first = (one["name"], one["model"], one["kind"], said)
        for number, arm in enumerate(one["arms"]):
            table.add_row(*(first if not number else ("",) * 4), *_arm(arm))
    console().print(table)
    for one in page["experiments"]:
        for why in filter(None, (one.get("why"), *one.get("warnings", ()))):
            click.echo(f"{one['name']}: {why}")
        for variant, figures in (one.get("comparisons") or {}).items():
            click.echo(f"{one['name']}.{variant}: {_compared(figures)}")
    for what in ("failure", "store_trouble"):
        if page.get(what):
            click.echo(f"{what.replace('_', ' ')}: {page[what]}", err=True)


def _arm(arm: dict[str, Any]) -> tuple[str, ...]:
    share = f"{arm['share']:g} %"
    seen = arm.get("seen_by_all") or arm.get("seen")
    if seen is None:
        return arm["name"], share, "", "", "", "", ""
    mean = seen["scores"]["mean"]
    return (
        arm["name"],
        share,
        f"{seen['requests']:,}",
        f"{seen['errors']:,}",
        f"{seen['violations']:,}",
        "" if mean is None else f"{mean:.4g}",
        f"{seen['p99_s'] * 1e3:.3g} ms",
    )


def _compared(figures: dict[str, Any]) -> str:
    """What comparing live has come to: counts, then each output's figures, then the columns that changed most."""
    said = [_numbers(figures)]
    said += [f"{name}: {_numbers(found)}" for name, found in (figures.get("outputs") or {}).items()]
    columns = (figures.get("columns") or {}).items()
    changed = sorted(columns, key=lambda one: -float(one[1].get("share_changed", 0)))[:_COLUMNS_SHOWN]
    said += [f"{name}: {_numbers(found)}" for name, found in changed if found.get("share_changed")]
    return "\n  ".join(said)


def _numbers(figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )


# ── What an operator does ───────────────────────────────────────────────────────────────────────────────────────────


def _acts(action: "Action", told_as: str) -> Callable[..., None]:
    def act(*, config: Path, file: Path | None, name: str, variant: str | None = None) -> None:
        from gateway.experiments.editing import EditError, edited
        from gateway.server.experiment_files import edit, path_of

        settings = settings_file.load(config)
        try:
            path = path_of(settings, file)
            edit(settings, path, lambda text, form: edited(text, form, name, action, variant))
        except (ConfigError, EditError, OSError) as error:
            stop(str(error))
        click.echo(f"{name} {told_as} in {path}; a gateway that follows the file takes it up by itself")

    return act


for _action, _help, _told in (
    (
        "start",
        "Let an experiment run, from its beginning; a canary that was stopped or rolled back starts anew.",
        "runs",
    ),
    ("stop", "End an experiment: everybody gets the model as it is served.", "is stopped"),
    ("rollback", "Give everybody the baseline; a shadow is stopped.", "is rolled back"),
):
    _command = click.argument("name")(_FILE(CONFIG(_acts(_action, _told))))  # type: ignore[arg-type]  # the names are Actions
    experiment.command(_action, help=_help)(_command)
experiment.command("promote", help="Give everybody the candidate, or the VARIANT that is named.")(
    click.argument("name")(click.argument("variant", required=False)(_FILE(CONFIG(_acts("promote", "is promoted")))))
)


# ── Report ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@experiment.command()
@click.argument("name")
@CONFIG
@_FILE
@JOURNAL
@span
@click.option("--labels", type=FILE, help="What came of the requests: a Parquet, CSV or Arrow file.")
@click.option("--on", type=click.Choice(["prediction_id", "request_id", "entity"]), default="prediction_id",
              show_default=True, help="What labels are joined by, as in `headrace dataset build`.")  # fmt: skip
@click.option("--entity", "entities", multiple=True, help="With --on entity: a request column; else all.")
@click.option("--label-time", help="The column that says when a label was.")
@click.option("--window", help="How long after the prediction a label may be: 90s, 15m, 3h, 2d.")
@ZONE
@click.option("--duplicates", type=click.Choice(["last", "first", "refuse"]), default="last", show_default=True)
@click.option("--label", help="The column of 0 and 1; else the first that has nothing else.")
@click.option("--metric", help="auc, log_loss or a column of the labels, in place of the experiment's compare.metric.")
@click.option(
    "--by", help="The request column whose rows belong together; else the experiment's, or the model's first."
)
@click.option("--replay/--no-replay", default=True, show_default=True,
              help="Of a shadow: find what makes scores differ, by swapping one view at a time.")  # fmt: skip
@click.option("--html", type=FILE, help="Write a report with plots to this file.")
@JSON
@told
def report(*, name: str, config: Path, file: Path | None, as_json: bool, html: Path | None, **how: Any) -> None:
    """Compare the variants of an experiment by the journal, and say what to do.

    Exits with 3 where the verdict is to roll back.
    """
    from gateway.experiments.editing import EditError
    from gateway.server.experiment_files import path_of, read
    from gateway.training.experiment_rows import ExperimentRowsError

    settings = settings_file.load(config)
    try:
        found = {one.name: one for one in read(settings, path_of(settings, file))}
        if name not in found:
            stop(f"no experiment {name!r} (there are: {', '.join(found) or 'none'})")
        comparisons = _compare(settings, found[name], how)
    except (EditError, ExperimentRowsError, ValueError) as error:
        stop(str(error))
    if html is not None:
        _write(html, comparisons)
    if as_json:
        click.echo(json.dumps([_plain(one.plain()) for one in comparisons], indent=2))
    else:
        for one in comparisons:
            _print(one)
    if any(one.verdict.action == "roll back" for one in comparisons):
        sys.exit(_ROLL_BACK)


def _compare(settings: "Settings", found: "Experiment", how: dict[str, Any]) -> "list[Comparison]":
    from gateway.training.experiment import compare
    from gateway.training.experiment_rows import Asked
    from gateway.training.experiment_rows import opened as rows_of
    from gateway.training.window import opened

    options: CompareForm = found.form.compare
    if how["metric"] is not None:
        options = options.model_copy(update={"metric": how["metric"]})
    by = how["by"] or found.by
    asked = Asked(found.name, options.output, options.position, by, _labels(settings, how))
    folder = journal_of(settings, how["journal"])
    opens = _opens(settings, found) if how["replay"] else None
    with (
        opened(folder, found.model, utc(how["since"]), utc(how["until"])) as window,
        rows_of(window, asked) as rows,
    ):
        return [*compare(found, rows, options, label=how["label"], opens=opens)]


def _labels(settings: "Settings", how: dict[str, Any]) -> "DatasetOptions | None":
    from gateway.training.dataset import DatasetOptions

    if how["labels"] is None:
        return None
    names = ("labels", "on", "entities", "label_time", "zone", "duplicates")
    kept = {name: how[name] for name in names}
    return DatasetOptions(window=length(how["window"]), salt=settings.journal.pii_salt.encode(), **kept)


def _opens(settings: "Settings", found: "Experiment") -> "Opens":
    """Opens the model as the variants of the experiment have it."""
    from gateway.experiments.experiment import Change
    from gateway.inference.variants import changed
    from gateway.training.experiment_swaps import SwapsError
    from gateway.training.pinned import PinnedModel, PinnedModelError

    if settings.transform_path is not None and str(settings.transform_path) not in sys.path:
        sys.path.insert(0, str(settings.transform_path))
    catalogue = Catalogue.load(settings.catalogue)
    resolve = resolver(settings.transform_modules)

    def opens(version: int, variant: str | None) -> PinnedModel:
        change = Change() if variant is None else found.variants[variant]
        try:
            return PinnedModel.open(
                settings.models, found.model, version, catalogue, resolve, changed=lambda one: changed(one, change)
            )
        except PinnedModelError as error:
            raise SwapsError(str(error)) from error

    return opens


def _write(html: Path, comparisons: "list[Comparison]") -> None:
    try:
        from gateway.training.experiment_report import render
    except ImportError as error:
        stop(f"the report needs {error.name}: pip install 'headrace[monitor]'")
    html.write_text(render(comparisons, datetime.fromtimestamp(time.time(), UTC)), encoding="utf-8")
    click.echo(f"wrote {html}", err=True)


def _print(one: "Comparison") -> None:
    title = f"{one.experiment} ({one.kind} on {one.model}): {one.candidate.name} against {one.baseline.name}"
    table = Table("variant", "rows", "entities", "mean score", "not finite", "violated", "p99", title=title)
    for side in (one.baseline, one.candidate):
        table.add_row(side.name, f"{side.rows:,}", f"{side.units:,}", f"{side.mean_score:.4g}",
                      f"{side.not_finite:.2%}", f"{side.violated:.2%}", f"{side.p99_us / 1e3:.3g} ms")  # fmt: skip
    console().print(table)
    if one.mismatch is not None:
        click.echo(f"entities split as planned: p = {one.mismatch.p:.3g}")
    if one.lifts or one.shift is not None:
        table = Table("metric", "baseline", "candidate", "difference", "from", "to", "p", "detectable")
        for lift in one.lifts:
            row = lift.interval
            table.add_row(lift.metric, f"{lift.baseline.value:.4g}", f"{lift.candidate.value:.4g}",
                          f"{row.estimate:+.3g}", f"{row.low:+.3g}", f"{row.high:+.3g}", f"{row.p:.3g}",
                          f"{lift.detectable:.3g}")  # fmt: skip
        if one.shift is not None:
            row, sides = one.shift, (one.baseline.mean_score, one.candidate.mean_score)
            ends = (f"{row.estimate:+.3g}", f"{row.low:+.3g}", f"{row.high:+.3g}", f"{row.p:.3g}", "")
            table.add_row("mean score", *(f"{mean:.4g}" for mean in sides), *ends)
        console().print(table)
    _print_paired(one)
    for note in one.notes:
        click.echo(f"note: {note}")
    colour = _COLOURS[one.verdict.action]
    console().print(f"[{colour}]{one.verdict.action}[/{colour}]")
    for why in one.verdict.why:
        click.echo(f"  {why}")


def _print_paired(one: "Comparison") -> None:
    if one.paired is not None:
        click.echo(
            f"{one.paired['share_beyond_tolerance']:.2%} of the scores differ; in a request Spearman "
            f"{one.paired['spearman_in_request']:.3f}, Kendall {one.paired['kendall_in_request']:.3f}; decisions that "
            f"flip {one.paired['decision_flips']:.2%}"
        )
    if one.swaps is not None:
        table = Table("swapped alone", "kind", "mean change", "mean absolute", "explained",
                      title=f"what makes the scores differ, by {one.swaps.rows:,} pairs")  # fmt: skip
        for part in one.swaps.parts:
            table.add_row(
                part.name, part.kind, f"{part.mean:+.4g}", f"{part.mean_absolute:.4g}", f"{part.explained:.1%}"
            )
        console().print(table)
    changed = [] if one.columns is None else one.columns.ranked()
    if changed:
        table = Table("column", "views", "changed", "mean, baseline", "candidate", "shift in std")
        for column in changed:
            refs = " → ".join(dict.fromkeys((column.baseline_ref, column.candidate_ref)))
            table.add_row(column.name, refs, f"{column.share_changed:.1%}", f"{column.baseline.mean:.4g}",
                          f"{column.candidate.mean:.4g}", f"{column.shift:+.3g}")  # fmt: skip
        console().print(table)


def _plain(value: Any) -> Any:
    """As JSON has it: no number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
