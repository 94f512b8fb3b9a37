"""How much shadows may take, what becomes of a row, and what they have done. Values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

COMPARED = "compared"
RESULTS = (
    COMPARED,
    "busy",
    "queue",
    "age",
    "unread",
    "refused",
    "failed",
    "hung",
    "broken",
    "removed",
    "closed",
    "unsupported",
)
"""What becomes of a row.

Dropped before any work: `busy` (the loop had other work), `queue` (no room), `age` (it waited too long), `broken` (the
variant failed too often), `removed` (a model went), `closed` (the server stops), `unsupported` (a graph without rows).

After some: `unread` (the store did not answer in time, or a row would have to be computed), `refused` (by the variant's
checks or views), `failed` (it raised, or gave other shapes), `hung`.
"""


@dataclass(frozen=True, slots=True)
class ShadowOptions:
    """What answering once more may take. All of it comes after the requests that somebody waits for."""

    queue_rows_max: int = 8192
    """Rows held for one variant, from the copy to the comparison, and rows that are noted and not copied yet. Beyond it
    the newest are dropped."""
    slice_us: int = 200
    """For how long the loop is taken at a time, microseconds. A model that takes longer runs in a thread."""
    cpu_share: float = 0.15
    """CPU time of all variants together, on the loop and in threads, as a share of one CPU."""
    load_max: float = 0.6
    """The share of the loop's time that requests may take; beyond it nothing is copied."""
    linger_ms: int = 20
    """How long a copy waits for others, so that they share a slice, milliseconds."""
    wait_max_s: float = 5.0
    """A copy that has waited longer is dropped, seconds."""
    fetch_rows_max: int = 512
    """Rows of one variant that wait for the store. Beyond it the others stay in the queue."""
    fetch_timeout_ms: int = 200
    """How long a copy waits for the store, milliseconds. Then it is dropped: its defaults would be compared with
    features."""
    run_timeout_s: float = 10.0
    """A run in a thread that takes longer is given up, seconds, and the variant is left alone until it ends."""
    breaker_failures: int = 5
    """Runs of a variant that fail in a row before it is left alone."""
    breaker_open_s: float = 10.0
    """How long it is left alone; then one run tries it again."""
    cache_bytes_max: int = 64 * 1024 * 1024
    """Memory for rows of views that only variants read; all views have equal shares of it."""

    def __post_init__(self) -> None:
        for name in ("queue_rows_max", "slice_us", "fetch_rows_max", "fetch_timeout_ms", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("linger_ms", "breaker_open_s", "cache_bytes_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if not 0 < self.cpu_share <= 1 or not 0 < self.load_max <= 1:
            raise ValueError("cpu_share and load_max must be above 0, and at most 1")
        if self.wait_max_s <= 0 or self.run_timeout_s <= 0:
            raise ValueError("wait_max_s and run_timeout_s must be positive")


class ShadowState(NamedTuple):
    """What shadows have done. Keys are experiment and variant."""

    rows: Mapping[tuple[str, str], Mapping[str, int]]
    """By result, every one of `RESULTS`."""
    violated_rows: Mapping[tuple[str, str], int]
    """Rows with a violated check."""
    queued_rows: int
    fetching_rows: int
    cpu_s: float
    slices: int
    slices_over: int
    """Slices that took more than twice what they may."""
    load: float
    """The share of the loop's time that everything else took last."""
    broken: Sequence[tuple[str, str]]
    """Variants that are left alone."""
