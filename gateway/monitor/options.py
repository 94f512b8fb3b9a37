"""What can be set of the second process."""

from dataclasses import dataclass, field

from gateway.validation.options import DriftOptions, WindowOptions

_NICE_MAX = 19


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """The second process: live drift, and the journal's chores. It needs the journal."""

    enabled: bool = True
    """Run it, where there is a journal."""
    windows: WindowOptions = field(default_factory=WindowOptions)
    drift: DriftOptions = field(default_factory=DriftOptions)
    cpu_share: float = 0.1
    """The share of one core that drift may use. Above it rows are sampled, evenly. Compaction is not counted."""
    nice: int = 10
    """By how much the process yields to others, 0 to 19."""
    poll_s: float = 0.5
    """How often the journal is looked at."""
    verdict_s: float = 1.0
    """The least time between two verdicts on a stream; of the windows that end in between, the last one counts."""
    bytes_behind_max: int = 256 * 1024 * 1024
    """How much of the journal may wait to be read. What is beyond is skipped, oldest first, and counted."""
    streams_max: int = 64
    """How many variants of model versions are watched. Further ones are counted as problems."""
    columns_max: int = 500
    """How many columns of a model are watched, in the profile's order, and shown to Prometheus."""
    compact_s: float = 60.0
    """How often closed segments of the journal become Parquet, and old files go."""
    checkpoint_s: float = 10.0
    """How often the windows are saved, so that a restart loses none."""
    silence_s: float = 60.0
    """A process that says nothing for so long is ended and started again."""
    restart_wait_s: float = 1.0
    """The wait before the first restart. It doubles with each, up to `restart_wait_max_s`."""
    restart_wait_max_s: float = 60.0
    """The longest wait before a restart."""
    restarts_max: int = 20
    """Restarts in a row, none of which ran for `restart_wait_max_s`, after which it is given up."""

    def __post_init__(self) -> None:
        if not 0 < self.cpu_share <= 1:
            raise ValueError("cpu_share must be above 0 and at most 1")
        if not 0 <= self.nice <= _NICE_MAX:
            raise ValueError("nice must be between 0 and 19")
        for name in ("poll_s", "compact_s", "checkpoint_s", "silence_s", "restart_wait_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.verdict_s < 0:
            raise ValueError("verdict_s must not be negative")
        if self.restart_wait_max_s < self.restart_wait_s:
            raise ValueError("restart_wait_max_s must be at least restart_wait_s")
        if min(self.bytes_behind_max, self.streams_max, self.columns_max, self.restarts_max) < 1:
            raise ValueError("bytes_behind_max, streams_max, columns_max and restarts_max must be positive")
