"""A Python function as a program.

    def plane_stats(tailnum):                  one argument for each join key of the entity, by its name
        return {"tailnum": tailnum,            the join keys again: they say whose each row is
                "flights": ...}                and the columns of the view, as arrays or lists of the same length

A string key comes as a numpy array of `str` objects, an int64 key as one of int64. An id that has no row is left out;
so may be a column, which is null then. `event_time_ms` may say when the rows became true. The function may be `async`;
its loop lives as long as the worker process, so it may keep connections. It is called with different ids in different
processes, in batches of any size up to `batch_rows_max`, and must give each id the same row in any company.
"""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Collection, Sequence
from inspect import isawaitable
from typing import Any

import numpy as np

from featureclient.compute.programs import RunFailed, Unfit, key_columns
from featureclient.schema import Id, PythonCompute, View
from featureclient.schema.reference import BadReference, resolve


class PythonProgram:
    """Calls the function. Construction imports its module."""

    def __init__(self, view: View, compute: PythonCompute, allowed: Collection[str]) -> None:
        self._view = view
        self._function = resolved(compute.function, allowed)

    def check(self) -> None:
        """A function says nothing of what it gives before it is called."""

    def run(self, ids: Sequence[Id]) -> Any | Awaitable[Any]:
        """Call it."""
        arguments = {}
        for key, values in zip(self._view.entity.join_keys, key_columns(self._view, ids).values(), strict=True):
            arguments[key.name] = np.array(values, np.int64 if key.dtype == "int64" else object)
        try:
            table = self._function(**arguments)
        except BaseException as error:  # also a SystemExit, which would end the worker
            raise RunFailed("function", _said(error)) from error
        return _awaited(table) if isawaitable(table) else table


async def _awaited(table: Awaitable[Any]) -> Any:
    try:
        return await table
    except GeneratorExit:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # its time is over
        raise RunFailed("function", _said(error)) from error


def resolved(reference: str, allowed: Collection[str]) -> Callable[..., Any]:
    """The function `module:name`, found in a module of the setting `compute_modules`. Raises Unfit."""
    try:
        return resolve(reference, allowed, "compute_modules")
    except BadReference as error:
        raise Unfit(str(error)) from error
    except BaseException as error:  # importing a module runs it, and it may even end the process
        module_name = reference.partition(":")[0]
        raise Unfit(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error


def _said(error: BaseException) -> str:
    """An error of somebody else's code, with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
