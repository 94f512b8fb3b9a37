"""Moments that come again: a cron expression in a named time zone. Pure: `now` is an argument.

The expression has the five fields of cron: minute, hour, day of month, month, day of week. cronsim reads it, which does
what Debian's cron does: a moment that the spring's clock change skips comes right after it, and one that the autumn's
has twice comes once, if the expression names an hour.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_FIELDS = 5
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When something is to be done. Raises ValueError: it is no expression, no zone, or the moment never comes."""

    cron: str
    """For example `0 6 * * *`: every day at six."""
    zone: str = "UTC"
    """A name of the IANA data base, for example `Europe/Berlin`."""
    _zone: tzinfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_zone", zone_of(self.zone))
        if len(self.cron.split()) != _FIELDS:
            raise ValueError(
                f"{self.cron!r} is not a cron expression: it has five fields, minute, hour, day of month, month and"
                ' day of week; "0 6 * * *" is every day at six'
            )
        try:
            first = self.next_after(_EPOCH)
        except CronSimError as error:
            raise ValueError(f"{self.cron!r} is not a cron expression: {error}") from error
        if first is None:
            raise ValueError(f"{self.cron!r} never comes")

    def next_after(self, now: datetime) -> datetime | None:
        """The next moment after `now`, in UTC; None when there is none within fifty years. `now` has a time zone."""
        if now.tzinfo is None:
            raise ValueError("now has no time zone")
        moment = next(CronSim(self.cron, now.astimezone(self._zone)), None)
        return None if moment is None else moment.astimezone(UTC)


def zone_of(name: str) -> tzinfo:
    """The time zone of that name. Raises ValueError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"no time zone {name!r} on this machine; names are like Europe/Berlin, and where the system has no data"
            " base of them, `pip install tzdata` brings one"
        ) from error
