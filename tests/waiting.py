"""Waiting for what has no event, with a bound that fails the test."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from featureclient.store import StoreUnavailable

Result = TypeVar("Result")


async def soon(condition: Callable[[], bool], wait_s: float) -> None:
    """Return when it has come true, which it must within `wait_s`."""
    give_up_at = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come true in time"
        await asyncio.sleep(0.002)


def soon_blocking(condition: Callable[[], bool], wait_s: float) -> None:
    """The same without a loop."""
    give_up_at = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come true in time"
        time.sleep(0.01)


async def until_available(attempt: Callable[[], Awaitable[Result]], wait_s: float) -> Result:
    """Try until the store is there again. Trying is all it takes."""
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            return await attempt()
        except StoreUnavailable:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)


def eventually(look: Callable[[], Result | None], wait_s: float = 20.0) -> Result:
    """What `look` gives as soon as it is true."""
    give_up_at = time.monotonic() + wait_s
    while not (found := look()):
        assert time.monotonic() < give_up_at, f"it did not come true in time: {found!r}"
        time.sleep(0.02)
    return found
