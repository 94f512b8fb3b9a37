"""The settings of a client."""

from dataclasses import dataclass, field

from featureclient.cache import CacheOptions


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Bounds and times of the tiers. Each is a limit with this name in errors and documents."""

    cache: CacheOptions = field(default_factory=CacheOptions)
    reads_in_flight_max: int = 2
    """Reads of the store at a time. Keys that arrive meanwhile form the next."""
    read_keys_max: int = 512
    """Keys in one read: Redis does nothing else meanwhile."""
    pending_keys_max: int = 65_536
    """Keys that are being read or wait for it. Beyond it newcomers are answered as unreached."""
    id_bytes_max: int = 512
    """The longest id, as it stands in a key."""
    clock_skew_max_ms: int = 60_000
    """How far the event of a row may be in the future: refused when it is written, invalid when it is read."""
    read_timeout_s: float = 0.25
    """How long `FeatureClient.read` waits for the store when it is not told."""
    breaker_failures: int = 3
    """Reads that fail in a row before the store is left alone."""
    breaker_open_s: float = 0.5
    """How long it is left alone; then one read at a time tries it again."""
    watch: bool = True
    """Have the store tell of changes, so that a row that was written is read anew at once, not when it has expired. It
    takes Redis 6 and the right to use CLIENT TRACKING; where there is none, cached rows live as long as their ages say.
    Without a cache there is nothing to watch for."""
    computing_ids_max: int = 65_536
    """Ids that are being computed or wait for it. Beyond it newcomers get defaults."""
    write_backs_max: int = 16
    """Batches of computed rows that are being stored. Beyond it computed rows are served, and not stored."""
    bad_rows_max: int = 20
    """Bad rows that an error names."""

    def __post_init__(self) -> None:
        counts = (self.reads_in_flight_max, self.read_keys_max, self.pending_keys_max, self.id_bytes_max)
        more = (self.breaker_failures, self.bad_rows_max, self.computing_ids_max, self.write_backs_max)
        if min(*counts, *more) < 1:
            raise ValueError("every *_max and breaker_failures must be at least 1")
        if self.clock_skew_max_ms < 0 or self.read_timeout_s <= 0 or self.breaker_open_s < 0:
            raise ValueError("clock_skew_max_ms, read_timeout_s and breaker_open_s must not be negative")
