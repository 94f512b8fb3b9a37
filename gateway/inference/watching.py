"""Watches the folder of a repository and has it refreshed when something changed there.

    watchfiles (inotify), or a look every watch_poll_s ─▶ one refresh at a time ─▶ what came meanwhile is the next one

A flood of changes is one refresh for each debounce. A refresh looks at every model's stamps, so what was missed while
the watch was down is found by the next one. The watch outlives the folder: it waits until it is there again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NoReturn

from watchfiles import awatch

from gateway.inference.repository import RepositoryOptions

_RETRY_S = 2.0
"""How long after a watch that failed the next one begins."""
_STEP_MS = 200
"""How long a quiet time ends a series of changes."""
_log = logging.getLogger(__name__)


async def watch(
    root: Path, options: RepositoryOptions, refresh: Callable[[], Awaitable[object]], *, recursive: bool = True
) -> NoReturn:
    """Call `refresh` after each series of changes in `root`, or anywhere below it, for ever."""
    while True:
        try:
            async for _ in _changes(root, options, recursive=recursive):
                await refresh()
        except Exception as error:  # noqa: BLE001 - whatever ends a watch, models have to be swapped after it
            _log.warning("watching %s ended (%s); looking again in %g s", root, error, _RETRY_S)
        else:
            _log.warning("%s is gone; what serves goes on, and it is watched when it is there again", root)
        await asyncio.sleep(_RETRY_S)
        try:
            await refresh()  # what happened meanwhile told nobody
        except Exception:  # noqa: BLE001 - the same
            _log.exception("refreshing the models failed")


async def repeat(every_s: float, refresh: Callable[[], Awaitable[object]]) -> NoReturn:
    """Call `refresh` every so many seconds, for ever: an object store tells nobody of changes."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await refresh()
        except Exception:  # noqa: BLE001 - the next one may find what this one did not
            _log.exception("refreshing the models failed")


async def _changes(root: Path, options: RepositoryOptions, *, recursive: bool) -> AsyncIterator[object]:
    """One item for each series of changes. Ends when the folder itself is gone."""
    if options.watch_poll_s > 0:
        while True:
            await asyncio.sleep(options.watch_poll_s)
            yield None
    async for changes in awatch(
        root,
        debounce=options.watch_debounce_ms,
        step=min(_STEP_MS, options.watch_debounce_ms),
        watch_filter=None,
        recursive=recursive,
    ):
        yield changes
        if not root.is_dir():  # noqa: ASYNC240 - one stat of a folder that was just looked at
            return
