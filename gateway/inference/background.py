"""Threads for loads beside a loop that serves: nobody waits for them at the end, and they give way to the loop.

    in_thread    awaited on the loop: the load itself. Its niceness is low, because it takes the GIL now and then, and
                 whoever waits for the GIL waits for the thread that holds it.
    aside        called by a load: work that computes long and hardly takes the GIL. Its niceness is high.

On Linux a thread has a niceness of its own; elsewhere they are threads like any other.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

_LOADING_NICENESS = 5
ASIDE_NICENESS = 15
"""With 5, whatever computes has a third of the loop's weight, and the loop waits for the end of its time slices."""
_Result = TypeVar("_Result")


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """Run `work` in a thread of its own, which nobody waits for when the process ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def tell(result: _Result | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # without an error there is a result
        else:
            future.set_exception(error)

    def run() -> None:
        step_back(_LOADING_NICENESS, threading.get_native_id())
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=run, name="headrace-load", daemon=True).start()
    return await future


def aside(work: Callable[[], _Result]) -> _Result:
    """Run `work` in a thread that steps back further, and wait for it. Call it in a thread."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        step_back(ASIDE_NICENESS, threading.get_native_id())
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="headrace-load-aside", daemon=True)
    thread.start()
    thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # the traceback holds this frame, and this frame must not hold the traceback
    return results[0]


def step_back(niceness: int, who: int) -> None:
    """Give a thread or a process at least this niceness. Only the privileged may take niceness away again."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, who) < niceness:
                os.setpriority(os.PRIO_PROCESS, who, niceness)
