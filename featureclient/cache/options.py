"""The settings of a cache."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """How much to keep, and for how long."""

    enabled: bool = True
    bytes_max: int = 256 * 1024 * 1024
    """Memory of all views together; each has an equal share."""
    soft_age_s: float = 0.0
    """From this age on a row is read again in the background when it is asked for, and served meanwhile. 0: never; then
    a caller waits for the read once in `expire_s`."""
    expire_s: float = 60.0
    """The hard age: how long a row is served. After it a row is read again before it is served, and kept for when the
    store does not answer."""
    absent_expire_s: float = 5.0
    """How long an id that the store has no row of is served as absent."""
    absent_share: float = 0.1
    """How much of a view's memory such ids may take."""
    refresh_keys_max: int = 1024
    """Rows of a view that may be on their way to be read again in the background."""
    refresh_retry_s: float = 1.0
    """After so long without an answer a row may be read again in the background once more, at twice this the latest."""

    def __post_init__(self) -> None:
        if self.bytes_max < 0 or self.expire_s <= 0 or self.absent_expire_s <= 0:
            raise ValueError("bytes_max must not be negative; expire_s and absent_expire_s must be above 0")
        if not 0 <= self.soft_age_s < self.expire_s:
            raise ValueError("soft_age_s must be below expire_s, and not negative; 0 turns reading ahead off")
        if not 0 <= self.absent_share <= 1:
            raise ValueError("absent_share is a share, from 0 to 1")
        if self.refresh_keys_max < 1 or self.refresh_retry_s <= 0:
            raise ValueError("refresh_keys_max must be at least 1, and refresh_retry_s above 0")
