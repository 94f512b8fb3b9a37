"""The settings of warming."""

import re
from dataclasses import dataclass

from featureclient.warmup.sampler import EVERY_MAX
from featureclient.warmup.schedule import Schedule

_REPLICA = re.compile(r"[A-Za-z0-9._:@-]{0,128}")


@dataclass(frozen=True, slots=True)
class ScheduledWarming:
    """Warm at certain moments."""

    cron: str
    """When, as a cron expression of five fields: `0 6 * * *` is every day at six."""
    zone: str = "UTC"
    """The time zone of `cron`, by its IANA name: `Europe/Berlin`."""
    file: str = ""
    """A file of ids to warm. Empty: the hottest ids, as at start."""
    view: str = ""
    """The view of all ids in the file. Empty: each line names its own."""

    def __post_init__(self) -> None:
        Schedule(self.cron, self.zone)

    @property
    def schedule(self) -> Schedule:
        """The moments."""
        return Schedule(self.cron, self.zone)


@dataclass(frozen=True, slots=True)
class WarmupOptions:
    """What is known about hot ids, and what is read ahead of the first request."""

    enabled: bool = True
    """Count hot ids, keep the counts in the store, and prefetch the hottest before the server says that it serves."""
    budget_s: float = 5.0
    """How long a start waits for its caches to be warmed, files included. Serving begins then, warm or not."""
    run_budget_s: float = 60.0
    """The same for a scheduled warming, which nobody waits for."""
    keys_max: int = 20_000
    """Ids of each view that are kept and prefetched, the hottest. As many as the cache holds is best. While counting,
    up to four times as many are held, at about 150 bytes each."""
    batch_ids: int = 512
    """Ids that are read at a time."""
    sample_every: int = 1
    """At least so many batches of lookups for one that is counted; more when `sample_ids_per_s_max` asks for it."""
    sample_ids_per_s_max: int = 5_000
    """Ids that are counted a second, about; a busy server counts a sample. Five thousand cost 2 to 4 ms."""
    save_every_s: float = 60.0
    """How often the counts are saved. A crash loses what was counted since."""
    half_life_s: float = 86_400.0
    """After so long without being seen, an id counts half. A day keeps what is hot at other hours of the day."""
    keep_s: float = 7 * 86_400.0
    """How long the counts of a replica are used after it has saved last."""
    replicas_max: int = 32
    """Replicas whose counts are merged, those that saved last. All of them have to read what each has saved."""
    replica: str = ""
    """The name under which this process saves. It must be unique, and is best the same after a restart. Empty: the
    host's name; a gateway adds the first address that it listens on."""
    files: tuple[str, ...] = ()
    """Files of ids that are warmed at start, before the hottest: text, CSV, JSON lines or Parquet."""
    schedule: tuple[ScheduledWarming, ...] = ()
    """Warming at certain moments. One run at a time; a moment that comes during a run of its own is left out."""

    def __post_init__(self) -> None:
        times = (self.budget_s, self.run_budget_s, self.save_every_s, self.half_life_s, self.keep_s)
        if min(times) <= 0:
            raise ValueError("budget_s, run_budget_s, save_every_s, half_life_s and keep_s must be above 0")
        if min(self.keys_max, self.batch_ids, self.sample_ids_per_s_max, self.replicas_max) < 1:
            raise ValueError("keys_max, batch_ids, sample_ids_per_s_max and replicas_max must be at least 1")
        if not 1 <= self.sample_every <= EVERY_MAX:
            raise ValueError(f"sample_every is from 1 to {EVERY_MAX}")
        if not _REPLICA.fullmatch(self.replica):
            raise ValueError("replica has letters, digits and . _ : @ - only, at most 128 of them")
