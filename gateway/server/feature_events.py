"""What the feature client says, counted by telemetry and, where an operator wants to read it, logged."""

import logging
import time
from collections.abc import Callable

from featureclient.events import ComputeUnavailable, ComputeWorkerLost, Event, StoreRead, StoreWrite, Watched
from featureclient.warmup import CountsLoaded, CountsSaved, ScheduleSkipped, WarmingEnded, WarmupEvent

TEXTS_MAX = 10
"""Different failures that are remembered; beyond them, one is logged when another's minute is over."""
PERIOD_S = 60.0
_log = logging.getLogger(__name__)


class FailureLog:
    """Logs each failure at most once in `PERIOD_S`, with how often it happened since it was logged last.

    A store that is away fails hundreds of reads a second. All are counted in metrics; the lines say why.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._said: dict[str, tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"<FailureLog texts={len(self._said)}>"

    def __call__(self, text: str) -> None:
        """This has failed."""
        now = self._monotonic()
        until, left_out = self._said.get(text, (now, 0))
        if now < until:
            self._said[text] = (until, left_out + 1)
            return
        if text not in self._said and len(self._said) >= TEXTS_MAX:
            self._said = {said: entry for said, entry in self._said.items() if now < entry[0]}
            if len(self._said) >= TEXTS_MAX:
                return
        self._said[text] = (now + PERIOD_S, 0)
        _log.warning("%s%s", text, f" (and {left_out:,} times more since this was logged)" if left_out else "")


class FeatureEvents:
    """Takes the events of the client and the computer, which `count` counts, and the warmer's (`count_warmup`)."""

    def __init__(self, count: Callable[[Event], None], count_warmup: Callable[[WarmupEvent], None]) -> None:
        self._count = count
        self._count_warmup = count_warmup
        self._failed = FailureLog()

    def __call__(self, event: Event) -> None:
        """An event of the client or of the computer."""
        self._count(event)
        match event:
            case StoreRead(error=None) | StoreWrite(error=None):
                pass
            case StoreRead():
                self._failed(f"a read of the feature store failed: {_said(event.error, event.why)}")
            case StoreWrite():
                self._failed(f"a write to the feature store failed: {_said(event.error, event.why)}")
            case Watched(on=True):
                _log.info("the feature store tells of changed rows")
            case Watched():
                _log.warning("changed rows are not told of, cached ones live as long as their ages say: %s", event.why)
            case ComputeUnavailable():
                _log.warning("rows of %s cannot be computed for now: %s", event.view, event.why)
            case ComputeWorkerLost():
                _log.warning("a compute worker was lost and is replaced: %s", event.why)

    def warmed(self, event: WarmupEvent) -> None:
        """An event of the warmer."""
        self._count_warmup(event)
        match event:
            case WarmingEnded(why="off"):
                pass
            case WarmingEnded():
                _log.log(
                    logging.WARNING if event.why == "failed" or event.problem else logging.INFO,
                    "warming from %s ended (%s%s): %s of %s ids cached in %.2f s, %s batches failed, %s bad lines",
                    *(event.source, event.why, f": {event.problem}" if event.problem else ""),
                    *(event.cached, event.ids, event.seconds, event.failures, event.bad_lines),
                )
            case CountsSaved() if event.error is not None:
                self._failed(f"counts of hot ids could not be saved: {_said(event.error, event.why)}")
            case CountsLoaded() if event.error is not None:
                self._failed(f"counts of hot ids could not be loaded: {_said(event.error, event.why)}")
            case ScheduleSkipped():
                _log.warning("warming by %s was left out %s times: it was still under way", event.cron, event.moments)


def _said(error: str | None, why: str) -> str:
    return f"{error}: {why}" if why else str(error)
