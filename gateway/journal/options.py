"""The settings of the journal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gateway.journal.policy import Policy, Redaction
from gateway.journal.sinks import SinkOptions, check_names

POLICIES = ("hash", "drop", "mask")
SALT_BYTES = (8, 64)
"""The least and the most bytes of a salt: BLAKE2b takes a key of 64."""


@dataclass(frozen=True, slots=True)
class JournalOptions:
    """What is kept of every prediction, where, and how much of the disk it may take."""

    enabled: bool = False
    """Keep predictions. Needs the extra `journal`."""
    path: Path = Path("journal")
    """The folder. One host's gateways may share it; a network file system without locks cannot hold it."""
    durability: Literal["interval", "sync"] = "interval"
    """`interval`: answers do not wait for the journal, and a process that is killed loses `interval_ms` at most.
    `sync`: an answer waits until its record is on the disk, and is UNAVAILABLE when it cannot be written."""
    interval_ms: int = 100
    """How often what was served is written, milliseconds."""
    buffer_bytes_max: int = 256 * 1024 * 1024
    """Memory of what was served and is not written yet. Beyond it records are dropped and counted; with `sync` the
    request is refused."""
    segment_bytes_max: int = 64 * 1024 * 1024
    """A segment of this size is closed, and can be compacted from then on."""
    segment_age_max_s: float = 60.0
    """The same for a segment of this age, seconds."""
    sample_share: float = 1.0
    """The share of the entities whose rows are kept. Of one entity all rows are kept, or none."""
    sample_by: str = ""
    """The request column that `sample_share` goes by. Empty, or not of a model: the model's first."""
    failures: bool = True
    """Keep requests that got an error too, in a stream of their own."""
    pii: Mapping[str, Policy] = field(default_factory=dict)
    """Columns with personal data, by request column (`user`) or feature (`user.email`, or `email` of any view): `hash`
    (salted), `mask` or `drop`. Done before anything is written; messages of failures are then left out."""
    pii_salt: str = field(default="", repr=False)
    """The secret that hashes are made with, 8 to 64 bytes. The same salt gives the same hashes."""
    keep_days: int = 30
    """Days after which Parquet files are deleted, by the day of their rows and by when they were written; 0 keeps them
    until the disk's bounds are reached."""
    disk_bytes_max: int = 20 * 1024 * 1024 * 1024
    """Size of the whole folder. The oldest files are deleted before it is reached; when that is not enough, records are
    dropped and counted."""
    free_bytes_min: int = 1024 * 1024 * 1024
    """Bytes of the disk that the journal leaves free for others. The oldest files are deleted before it is reached."""
    sinks: Mapping[str, SinkOptions] = field(default_factory=dict)
    """Where closed segments are delivered besides, by a name of your choice. The second process does it."""

    def __post_init__(self) -> None:
        for name in ("interval_ms", "buffer_bytes_max", "segment_bytes_max", "disk_bytes_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.segment_age_max_s <= 0:
            raise ValueError("segment_age_max_s must be above 0")
        if not 0 < self.sample_share <= 1:
            raise ValueError("sample_share is a share, above 0 and up to 1; enabled: false keeps nothing")
        if self.keep_days < 0 or self.free_bytes_min < 0:
            raise ValueError("keep_days and free_bytes_min must not be negative")
        check_names(self.sinks)
        if sum(sink.spill_bytes_max for sink in self.sinks.values()) >= self.disk_bytes_max:
            raise ValueError("disk_bytes_max must be more than all sinks' spill_bytes_max together")
        for name, policy in self.pii.items():
            if policy not in POLICIES:
                raise ValueError(f"pii: {name} is {policy!r}; there are: {', '.join(POLICIES)}")
        least, most = SALT_BYTES
        if "hash" in self.pii.values() and not least <= len(self.pii_salt.encode()) <= most:
            raise ValueError(f"pii_salt must be {least} to {most} bytes where a column is hashed")

    @property
    def reserve_bytes(self) -> int:
        """What the compactor keeps free below `disk_bytes_max` and above `free_bytes_min` for what is written next."""
        wanted = max(2 * self.segment_bytes_max, self.disk_bytes_max // 20)
        return min(wanted, self.disk_bytes_max // 4)

    @property
    def redaction(self) -> Redaction:
        """`pii` and its salt."""
        return Redaction(dict(self.pii), self.pii_salt.encode())
