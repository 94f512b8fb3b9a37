"""Do something at the moments of a schedule, one run after the other."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from featureclient.warmup.schedule import Schedule

SLEEP_S_MAX = 60.0
"""The clock is looked at at least so often: it may be set, and machines are suspended."""
SKIPPED_MAX = 1000
"""Moments that are counted as skipped at a time."""


async def repeat(
    schedule: Schedule,
    run: Callable[[], Awaitable[object]],
    *,
    wall: Callable[[], datetime],
    sleep: Callable[[float], Awaitable[None]],
    on_skipped: Callable[[int], None],
) -> None:
    """Run at each moment, until there are no more. Moments that pass during a run, or a suspension, are left out.

    `on_skipped` gets their number. `wall` gives moments with a time zone; a clock that is set back repeats none.
    """
    moment = schedule.next_after(wall())
    while moment is not None:
        while (wait_s := (moment - wall()).total_seconds()) > 0:
            await sleep(min(wait_s, SLEEP_S_MAX))
        await run()
        ended = wall()
        following = schedule.next_after(moment)
        skipped = 0
        while following is not None and following <= ended and skipped < SKIPPED_MAX:
            skipped += 1
            following = schedule.next_after(following)
        if skipped:
            on_skipped(skipped)
            following = schedule.next_after(ended)
        moment = following
