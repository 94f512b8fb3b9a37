"""What every command of the CLI shares: its settings file, its event loop, and how it stops with a message."""

import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import click
import grpc
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featureclient.schema import FeatureError
from gateway.client import CallFailed

_PIPED_WIDTH = 160
_P = ParamSpec("_P")

CONFIG = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("headrace.yaml"),
    show_default=True,
    help="The settings file. examples/flights/headrace.yaml is one.",
)

TARGET = click.option(
    "--target", default="127.0.0.1:8500", show_default=True, help="The gateway: host:port or unix:/path."
)


def command(run: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Run a coroutine on uvloop; what a user can mend is one message, not a traceback."""

    @wraps(run)
    def started(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            uvloop.run(run(*args, **kwargs))
        except (FeatureError, CallFailed, OSError) as error:
            stop(str(error))
        except KeyboardInterrupt:
            sys.exit(130)

    return started


def stop(message: str) -> NoReturn:
    """End with a message and the exit status 1."""
    click.echo(f"headrace: {message}", err=True)
    sys.exit(1)


def console() -> Console:
    """Where tables go. Into a pipe they are as wide as they need to be."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)


def progress_bar() -> Progress:
    """The bar of long work, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def tls(command: Callable[_P, None]) -> Callable[_P, None]:
    """The options of a client of a gateway with TLS."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for name, help_text in (
        ("--key", "PEM: the key of --cert."),
        ("--cert", "PEM: who we are, where the gateway asks for it."),
        ("--ca", "PEM: who signed the gateway's certificate. Turns TLS on."),
    ):
        command = click.option(name, type=file, help=help_text)(command)
    return command


def credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    """What `tls` has read; None without TLS."""
    if ca is None:
        return None
    read = [None if path is None else path.read_bytes() for path in (ca, key, cert)]
    return grpc.ssl_channel_credentials(*read)
