"""Which arm of an experiment an entity gets: always the same one, here and in every other process.

    id ──xxh3(id, seed of the layer)──▶ a place on the layer ──▶ the experiment that owns the place, or none
    id ──xxh3(id, seed of the salt)───▶ a place on the experiment ──▶ its arm

A place is a number of 64 bits. Arms own stretches of them in the order of their declaration, as long as their weights.
Two seeds give places that have nothing to do with each other, so experiments in different layers are independent; those
of one layer own different stretches of it, so no entity is in two of them. (A CRC with another start value would not
do: the two values of an id differ by a constant.)

Invariants
- An id's place depends on its text and the salt alone: `7` and `"7"` are the same entity.
- When the weights change, an entity changes its arm only where the border between two arms has moved over it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from xxhash import xxh3_64_intdigest

PLACES = 1 << 64

EntityId: TypeAlias = "str | int"


@dataclass(frozen=True, slots=True)
class Stretches:
    """Named, adjoining stretches of the places that an id can have under one salt.

    `borders` has the first place after each stretch; what is beyond the last border belongs to nobody.
    """

    seed: int
    names: tuple[str, ...]
    borders: tuple[int, ...]

    @classmethod
    def of(cls, salt: str, weights: Mapping[str, float]) -> "Stretches":
        """Lay out `weights`, percentages of all entities, in their order. Raises ValueError for impossible ones."""
        for name, weight in weights.items():
            if not 0 <= weight <= 100:  # noqa: PLR2004 - percent
                raise ValueError(f"{name} has the weight {weight}; a weight is a percentage from 0 to 100")
        total = sum(weights.values())
        if total > 100 + 1e-6:
            raise ValueError(f"the weights add up to {total:g} percent, which is more than all")
        borders = [min(round(end / 100 * PLACES), PLACES) for end in accumulate(weights.values())]
        if borders and abs(total - 100) <= 1e-6:  # noqa: PLR2004 - 100 percent is everybody, whatever rounding did
            borders[-1] = PLACES
        return cls(seed_of(salt), tuple(weights), tuple(borders))

    def find(self, ids: Iterable[EntityId], first: int = 0) -> list[int]:
        """The number of each id's stretch, counted from `first`; the one after the last for an id that is in none."""
        seed, borders = self.seed, self.borders
        return [first + bisect_right(borders, xxh3_64_intdigest(str(one).encode(), seed)) for one in ids]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One experiment: the share of its layer that it owns, its arms, and who was put into an arm by name."""

    arms: Stretches
    layer: Stretches | None = None
    """Every experiment of the layer; None when the experiment is alone and everybody is in it."""
    in_layer: int = 0
    """The number of this experiment among the layer's stretches."""
    overrides: Mapping[str, int] | None = None
    """Text of an id -> number of the arm."""

    @property
    def nobody(self) -> int:
        """The number that stands for "not in this experiment"."""
        return len(self.arms.names)

    def assign(self, ids: Sequence[EntityId]) -> list[int]:
        """The number of the arm that each id gets; `nobody` for those that are not in the experiment."""
        found = self.arms.find(ids)
        if self.layer is not None:
            nobody = self.nobody
            places = self.layer.find(ids)
            found = [arm if place == self.in_layer else nobody for arm, place in zip(found, places, strict=True)]
        if self.overrides:
            named = self.overrides
            found = [named.get(str(one), arm) for one, arm in zip(ids, found, strict=True)]
        return found


def seed_of(salt: str) -> int:
    """The seed of a salt: its own hash, so that salts that are nearly alike have seeds that are not."""
    return xxh3_64_intdigest(salt.encode())
