"""The first eight bytes of a cached row: an epoch and a moment in one number, so that one compare asks for both.

    stamp = epoch * EPOCH_S + the monotonic second until which the row is fresh

`expire_all` begins a new epoch. Whatever was read before has a smaller epoch, hence a smaller stamp than anything that
is still fresh, however long it had to live; no row is touched for that. Stamps are big-endian doubles: they compare as
bytes as they do as numbers.

Pure: `now` is an argument. Moments are monotonic seconds from 0 on, and are held below EPOCH_S.
"""

import struct
from bisect import bisect_right

EPOCH_S = 2.0**28
"""Eight years, which no machine stays up. It leaves a stamp a resolution of half a millisecond in the last epoch."""

EPOCHS_MAX = 8192
"""After so many epochs the cache is emptied and begins with the first."""

JITTER_SHARE = 0.1
"""Rows that were read at one moment end spread over this share of their age, and never later than it says."""

pack_stamp = struct.Struct(">d").pack
_unpack = struct.Struct(">d").unpack_from


def stamp_of(row: bytes) -> float:
    """The stamp of a cached row."""
    stamp: float = _unpack(row)[0]
    return stamp


class Epochs:
    """The epoch now, and since when each has been. `base` is public: the hot path adds it to `now`."""

    __slots__ = ("_starts", "_used", "base", "since")

    def __init__(self) -> None:
        self.base = 0.0
        self.since = float("-inf")
        self._starts = [0.0]
        self._used = False

    def __repr__(self) -> str:
        return f"<Epochs {len(self._starts) - 1} since={self.since}>"

    def begin(self, now: float) -> bool:
        """Begin the next epoch; False when there were too many, and they begin anew.

        While nothing was stamped in the epoch there is nothing in it that could end, so it only begins later.
        """
        self.since = now
        if not self._used and self.base:
            return True
        self._used = False
        if len(self._starts) == EPOCHS_MAX:
            self.base = 0.0
            self._starts = [now]
            return False
        self._starts.append(now)
        self.base += EPOCH_S
        return True

    def stamp(self, read_at: float, age_s: float, jitter: float) -> float:
        """The stamp of what a read found that began at `read_at`. `jitter` is from 0 to 1."""
        moment = min(read_at + age_s * (1 - JITTER_SHARE * jitter), EPOCH_S - 1)
        if read_at >= self.since:
            self._used = True
            return self.base + moment
        # What was read before may be no longer so.
        epoch = min(bisect_right(self._starts, read_at), len(self._starts) - 1) - 1
        return epoch * EPOCH_S + moment if epoch >= 0 else 0.0

    def is_current(self, stamp: float) -> bool:
        """The stamp was given in the epoch now."""
        return stamp >= self.base

    def moment(self, stamp: float) -> float:
        """Until when what has this stamp is fresh, if no new epoch had begun."""
        return stamp % EPOCH_S

    def all_served(self, first: float, after_s: float, age_s: float, now: float) -> bool:
        """Whether all whose stamps are not below `first` is still served: each until `after_s` behind its moment.

        What is of the same epoch ends later than it. What is of a later one lives for `age_s` from that one's beginning
        at the least, less the jitter.
        """
        epoch, moment = divmod(first, EPOCH_S)
        following = int(epoch) + 1
        if now >= moment + after_s:
            return False
        if following >= len(self._starts):
            return True
        return now < self._starts[following] + age_s * (1 - JITTER_SHARE) + after_s
