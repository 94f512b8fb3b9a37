"""What happened, as data. The warmer hands these to its `on_event`; whoever runs it counts them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Ended: TypeAlias = Literal["done", "budget", "full", "failed", "off"]
"""Why a warming ended: everything was read; the time was over; the caches had no more room; batch after batch
failed or brought nothing; it is switched off."""


@dataclass(frozen=True, slots=True)
class CountsSaved:
    """The counts of this replica were saved, or not. `error` is None or the kind of trouble, and `why` what it says."""

    bytes: int
    seconds: float
    error: str | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class CountsLoaded:
    """The counts of all replicas were read and merged; `invalid` could not be used. `error` and `why` as above."""

    replicas: int
    invalid: int
    ids: int
    seconds: float
    error: str | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class WarmingAdvanced:
    """A batch was read. `source` is `hot` or a file's name; the sums are those of this warming so far."""

    source: str
    view: str
    ids: int
    cached: int


@dataclass(frozen=True, slots=True)
class WarmingEnded:
    """A warming is over. `failures` are the batches that failed or had no row, `bad_lines` those of a file.

    `problem` says why a file could not be used.
    """

    source: str
    why: Ended
    ids: int
    cached: int
    failures: int
    bad_lines: int
    seconds: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleSkipped:
    """Moments of a schedule passed while its run, or another one, was still under way."""

    cron: str
    moments: int


WarmupEvent: TypeAlias = CountsSaved | CountsLoaded | WarmingAdvanced | WarmingEnded | ScheduleSkipped
