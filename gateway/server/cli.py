"""The command `headrace`. Each command says what is wrong in one or a few lines and exits with 1; tracebacks are for
bugs."""

import asyncio
import contextlib
import logging
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from gateway.client import HeadraceClient, Prediction
from gateway.server import settings as settings_file
from gateway.server.audit_cli import audit
from gateway.server.command import CONFIG, TARGET, command, credentials, progress_bar, stop, tls
from gateway.server.dataset_cli import dataset
from gateway.server.drift_cli import drift
from gateway.server.experiment_cli import experiment
from gateway.server.features_cli import features
from gateway.server.journal_cli import journal
from gateway.server.models_cli import models
from gateway.server.profile_cli import profile

if TYPE_CHECKING:
    from gateway.server.app import Gateway

_FEATURE_ROWS_SHOWN = 6


@click.group()
@click.version_option(package_name="headrace")
def main() -> None:
    """Headrace: entity ids in, predictions out, over gRPC."""


main.add_command(audit)
main.add_command(drift)
main.add_command(dataset)
main.add_command(experiment)
main.add_command(features)
main.add_command(journal)
main.add_command(profile)
main.add_command(models)


@main.command()
@CONFIG
@click.option("--transport", type=click.Choice(["fast", "grpcio"]), help="Override the setting `transport`.")
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="How much to say.",
)
@command
async def serve(config: Path, transport: str | None, log_level: str) -> None:
    """Serve predictions until SIGTERM or Ctrl-C."""
    from gateway.server.app import Gateway  # the other commands need none of the server

    # A connection is a file; the soft limit is often 1,024 where the hard one is a million.
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = settings_file.load(config, {"transport": transport} if transport else None)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await _until(stopping, Gateway(settings))


async def _until(stopping: asyncio.Event, gateway: "Gateway") -> None:
    """Serve until `stopping`. A start that is under way then is given up."""
    stop = asyncio.create_task(stopping.wait())
    async with contextlib.AsyncExitStack() as stack:
        start = asyncio.create_task(stack.enter_async_context(gateway))
        await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            await start
            await stop
        logging.getLogger(__name__).info("stopping")
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start


@main.command()
@CONFIG
@click.option("--view", required=True, help="The view, as plane_stats@1.")
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Parquet, CSV or Arrow file whose columns are the join keys, the features and, if known, event_time_ms.",
)
@click.option(
    "--on-bad-row",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="A row that cannot be written: stop, or name it and load the rest.",
)
@click.option("--resume/--restart", default=True, show_default=True, help="Go on where an interrupted load stopped.")
@command
async def load(config: Path, view: str, source: Path, on_bad_row: str, resume: bool) -> None:
    """Load rows of a feature view into the store."""
    from featureclient.client import FeatureClient
    from featureclient.load import load_file
    from featureclient.schema import Catalogue
    from gateway.server.stores import RefusalLog, open_rows

    settings = settings_file.load(config)
    catalogue = Catalogue.load(settings.catalogue)
    store = open_rows(settings.store, catalogue, RefusalLog())
    async with FeatureClient(catalogue, store, settings.features) as client:
        with progress_bar() as progress:
            task = progress.add_task(view, total=None)
            report = await load_file(
                client,
                view,
                source,
                on_bad_row="skip" if on_bad_row == "skip" else "stop",
                resume=resume,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    for bad in report.bad_rows:
        click.echo(f"bad {bad}", err=True)
    click.echo(
        f"{report.rows:,} rows: {report.written:,} written, {report.superseded:,} superseded by newer stored rows, "
        f"{report.bad:,} bad" + (f" (resumed at row {report.resumed_at:,})" if report.resumed_at else "")
    )
    if report.stopped:
        stop("stopped at a bad row; mend the file and run again, or load the rest with --on-bad-row skip")


@main.command()
@TARGET
@tls
@click.argument("model")
@click.option("--entity", "-e", "entities", multiple=True, metavar="NAME=ID,ID", help="Ids of a request column.")
@click.option(
    "--context", "-c", "context", multiple=True, metavar="NAME=VALUE,VALUE", help="Values of a context column."
)
@click.option(
    "--override", "-o", "overrides", multiple=True, metavar="ALIAS.COLUMN=VALUE", help="Replace a stored value."
)
@click.option("--version", "version", type=int, help="A version; the default is the server's.")
@click.option("--features", is_flag=True, help="Show the inputs as the model saw them.")
@click.option("--timeout-s", default=10.0, show_default=True, help="The deadline.")
@command
async def predict(
    *,
    target: str,
    model: str,
    entities: tuple[str, ...],
    context: tuple[str, ...],
    overrides: tuple[str, ...],
    version: int | None,
    features: bool,
    timeout_s: float,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Ask a running gateway for predictions and print a table.

    An id that is a decimal number is sent as an int64; write NAME=:ID for a string of digits.
    """
    async with HeadraceClient(target, credentials=credentials(ca, cert, key)) as client:
        prediction = await client.predict(
            model,
            dict(_pair(text, _ids) for text in entities),
            dict(_pair(text, _numbers) for text in context),
            overrides=dict(_pair(text, _numbers) for text in overrides),
            version=version,
            return_features=features,
            timeout_s=timeout_s,
        )
    _print(prediction)


@main.command()
@TARGET
@tls
@click.option("--timeout-s", default=3.0, show_default=True, help="How long to wait.")
def health(target: str, timeout_s: float, ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Exit with 0 when the gateway is ready to serve."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    given = credentials(ca, cert, key)
    with grpc.secure_channel(target, given) if given else grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # the stubs package leaves it out
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as error:
            stop(f"{target}: {error.details()}")
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    sys.exit(0 if serving else 1)


@main.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.pass_context
def demo(context: click.Context) -> None:
    """Predict real flights: starts Redis, loads features, serves, and sends requests. See `headrace demo --help`."""
    try:
        from examples.flights.demo import main as run
    except ImportError as error:
        stop(f"the demo runs in a checkout of the repository with `pip install -e '.[demo]'` ({error})")
    run(context.args)


def _pair(text: str, read: Callable[[str], Any]) -> tuple[str, Any]:
    name, equals, values = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, read(values)


def _ids(text: str) -> list[int] | list[str]:
    values = text.split(",")
    if "" in values:
        raise click.BadParameter(f"there is an empty id in {text!r}")
    if all(value.removeprefix("-").isdecimal() for value in values):
        return [int(value) for value in values]
    return [value.removeprefix(":") for value in values]


def _numbers(text: str) -> list[float] | list[int] | list[str]:
    values = text.split(",")
    for kind in (int, float):
        try:
            return [kind(value) for value in values]
        except ValueError:
            continue
    return values


def _print(prediction: Prediction) -> None:
    from featureclient.schema import status

    title = f"{prediction.model}/{prediction.version} {prediction.request_id}"
    answers = Table("row", *prediction.outputs, "features that are not PRESENT", title=title)
    rows = len(next(iter(prediction.outputs.values())))
    for row in range(rows):
        others = [
            f"{alias} {status.describe(int(found.status[row]))}"
            for alias, found in prediction.views.items()
            if found.status[row] != status.PRESENT
        ]
        values = [_shown(output[row]) for output in prediction.outputs.values()]
        answers.add_row(str(row), *values, "\n".join(others) or "-")
    Console().print(answers)
    if prediction.features:
        shown = range(min(rows, _FEATURE_ROWS_SHOWN))
        features = Table("feature", *(f"row {row}" for row in shown), title="as the model saw them")
        for name, column in prediction.features.items():
            features.add_row(name, *(_shown(column[row]) for row in shown))
        Console().print(features)
    for warning in prediction.warnings:
        click.echo(f"warning: {warning}", err=True)


def _shown(value: Any) -> str:
    """A value of one row, with as many digits as a float32 has."""
    flat = [f"{one:.7g}" if isinstance(one, float) else str(one) for one in np.ravel(value).tolist()]
    return flat[0] if len(flat) == 1 else f"[{', '.join(flat)}]"


if __name__ == "__main__":
    main()
