"""What the feature client says, counted by telemetry and, where an operator wants to read it, logged."""

import logging
from collections.abc import Callable

from featureclient.events import ComputeUnavailable, ComputeWorkerLost, Event, Watched
from featureclient.warmup import CountsLoaded, CountsSaved, ScheduleSkipped, WarmingEnded, WarmupEvent

_log = logging.getLogger(__name__)


class FeatureEvents:
    """Takes the events of the client and the computer, which `count` counts, and the warmer's (`count_warmup`)."""

    def __init__(self, count: Callable[[Event], None], count_warmup: Callable[[WarmupEvent], None]) -> None:
        self._count = count
        self._count_warmup = count_warmup

    def __call__(self, event: Event) -> None:
        """An event of the client or of the computer."""
        self._count(event)
        match event:
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
                _log.info(
                    "warming from %s ended (%s): %s of %s ids cached in %.2f s, %s batches failed, %s bad lines",
                    *(event.source, event.why, event.cached, event.ids, event.seconds, event.failures, event.bad_lines),
                )
            case CountsSaved() | CountsLoaded() if event.error is not None:
                _log.warning("counts of hot ids could not be saved or loaded: %s", event.error)
            case ScheduleSkipped():
                _log.warning("warming by %s was left out %s times: it was still under way", event.cron, event.moments)
