"""What every command of the CLI shares: its settings file, its event loop, and how it stops with a message."""

import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import click
import uvloop

from featureclient.schema import FeatureError
from gateway.client import CallFailed

_P = ParamSpec("_P")

CONFIG = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("headrace.yaml"),
    show_default=True,
    help="The settings file. examples/flights/headrace.yaml is one.",
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
