"""Which ids of one view are looked up together with which of another, so that they can be read ahead. Pure, bounded.

    seen(a_ids, b_ids) ──▶ for each id of A, counts of its few most frequent companions in B
    ahead(a_ids) ──▶ those companions, to be read before anybody asks for them

A companion that is new takes a free place, or one off the count of every other: so one that is frequent stays, and who
was frequent leaves (Misra and Gries again, with a handful of counts).

Invariants: at most `ids_max` ids of A, `companions_max` of B for each; at most `PAIRS_MAX` pairs of a call are counted
and at most `ids_max` of `ahead` are returned.
"""

from collections.abc import Sequence

from featureclient.schema import Id

PAIRS_MAX = 256
"""Pairs that are counted of one call: of a larger one every so-manieth. A pair costs about 0.3 us."""


class Together:
    """Companions in B of ids in A. Ids of A that were not seen for long make room: there are two generations."""

    __slots__ = ("_companions_max", "_generation_max", "_old", "_seen_min", "_young")

    def __init__(self, ids_max: int = 20_000, companions_max: int = 4, seen_min: int = 2) -> None:
        if ids_max < 2 or companions_max < 1 or seen_min < 1:  # noqa: PLR2004  # two generations of at least one
            raise ValueError("ids_max must be at least 2, companions_max and seen_min at least 1")
        self._generation_max = ids_max // 2
        self._companions_max = companions_max
        self._seen_min = seen_min
        self._young: dict[Id, dict[Id, int]] = {}
        self._old: dict[Id, dict[Id, int]] = {}

    def __repr__(self) -> str:
        return f"<Together ids={len(self)}>"

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def seen(self, a_ids: Sequence[Id], b_ids: Sequence[Id]) -> None:
        """Row by row, these were looked up together. A single id stands for all rows. Raises ValueError otherwise."""
        rows = max(len(a_ids), len(b_ids)) if a_ids and b_ids else 0
        if rows and not {len(a_ids), len(b_ids)} <= {1, rows}:
            raise ValueError(f"{len(a_ids)} ids cannot be paired with {len(b_ids)}")
        stride = max(1, -(-rows // PAIRS_MAX))
        one_a, one_b = len(a_ids) == 1, len(b_ids) == 1
        for row in range(0, rows, stride):
            self._pair(a_ids[0 if one_a else row], b_ids[0 if one_b else row])

    def ahead(self, a_ids: Sequence[Id], ids_max: int = PAIRS_MAX) -> list[Id]:
        """The companions of `a_ids` that were seen at least `seen_min` times, each once, at most `ids_max`."""
        found: dict[Id, None] = {}
        for one in dict.fromkeys(a_ids):
            companions = self._young.get(one) or self._old.get(one)
            if companions:
                for companion in sorted(companions, key=companions.__getitem__, reverse=True):
                    if companions[companion] < self._seen_min:
                        break
                    found[companion] = None
                if len(found) >= ids_max:
                    break
        return list(found)[:ids_max]

    def _pair(self, a: Id, b: Id) -> None:
        companions = self._young.get(a)
        if companions is None:
            if len(self._young) >= self._generation_max:
                self._old, self._young = self._young, {}
            companions = self._young[a] = self._old.pop(a, {})
        if b in companions:
            companions[b] += 1
        elif len(companions) < self._companions_max:
            companions[b] = 1
        else:
            for other in list(companions):
                companions[other] -= 1
                if not companions[other]:
                    del companions[other]
