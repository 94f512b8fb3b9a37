"""Which batches of lookups are counted, so that counting costs a bounded share of the time. Pure: no clock, no chance.

    due ──▶ yes for one batch in `every`, on average         thin ──▶ the ids of it to offer, at most `batch_ids_max`
    adapt ──▶ `every` follows the load, so that at most `ids_per_s_max` ids a second are counted

An idle server counts everything; a busy one a sample, which is as good, for what is hot shows in any sample. The gaps
between the batches vary, by a small generator of pseudo-random numbers, because traffic has rhythms of its own.
"""

from collections.abc import Sequence

from featureclient.schema import Id

EVERY_MAX = 4096
PERIOD_S = 5.0
"""How often `adapt` is meant to be called. More ids than a period may have double `every` at once."""

_MULTIPLIER = 1_664_525
_INCREMENT = 1_013_904_223
_MODULUS = 2**32


class Sampler:
    """Chooses batches by count. `seed` is any number; replicas may all have the same."""

    __slots__ = ("_allowance", "_batch_ids_max", "_counted", "_every_min", "_ids_per_s_max", "_left", "_seen", "_state",
                 "every")  # fmt: skip

    def __init__(
        self, every_min: int = 1, ids_per_s_max: int = 5_000, batch_ids_max: int = 512, *, seed: int = 0
    ) -> None:
        if min(every_min, ids_per_s_max, batch_ids_max) < 1 or every_min > EVERY_MAX:
            raise ValueError(f"every_min is from 1 to {EVERY_MAX}; ids_per_s_max and batch_ids_max are at least 1")
        self.every = every_min
        """One batch in so many is counted now."""
        self._every_min = every_min
        self._ids_per_s_max = ids_per_s_max
        self._batch_ids_max = batch_ids_max
        self._allowance = ids_per_s_max * PERIOD_S
        self._state = seed % _MODULUS
        self._left = 1
        self._counted = 0.0
        self._seen = 0.0

    def __repr__(self) -> str:
        return f"<Sampler every={self.every}>"

    def due(self) -> bool:
        """To be asked once for each batch: is it one of those that are counted?"""
        self._left -= 1
        if self._left:
            return False
        if self.every == 1:
            self._left = 1
        else:
            # From 1 to 2 x every - 1, so `every` on average. The upper bits are the better ones.
            self._state = (_MULTIPLIER * self._state + _INCREMENT) % _MODULUS
            self._left = 1 + (self._state >> 8) % (2 * self.every - 1)
        return True

    def thin(self, ids: Sequence[Id]) -> Sequence[Id]:
        """What to offer of the ids of a batch that is due: all, or of a large batch every so-manieth."""
        count = len(ids)
        self._seen += count * self.every
        if count > self._batch_ids_max:
            stride = -(-count // self._batch_ids_max)
            ids = ids[self._state % stride :: stride]
        self._counted += len(ids)
        if self._counted > self._allowance:
            self._counted = 0.0
            self.every = min(2 * self.every, EVERY_MAX)
        return ids

    def adapt(self, elapsed_s: float) -> None:
        """Set `every` by the load since the last call, which was `elapsed_s` ago."""
        if elapsed_s > 0:
            wanted = -(-self._seen // (elapsed_s * self._ids_per_s_max))
            self.every = int(min(max(wanted, self._every_min), EVERY_MAX))
        self._seen = self._counted = 0.0
        self._left = min(self._left, 2 * self.every - 1)
