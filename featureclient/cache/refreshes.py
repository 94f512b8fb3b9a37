"""Which ids are due to be read again in the background: each is told once, and again when nothing came of it.

    tell ──▶ due ──▶ take        an id is due until somebody takes it
      └────▶ told                and not told again until it was `settled`, or a time has passed

Ids that were told are in two sets, which change places every `retry_s`: so an id is told again after that at the
earliest and after twice that at the latest, and nothing is kept of each one's time.

Invariants: what is due was told, and is not settled. At most `keys_max` ids were told and are not settled.
"""

from collections.abc import Iterable

from featureclient.schema import Id


class Refreshes:
    """The ids that are due. `due` is public, because looking whether there are any is on the fast path."""

    __slots__ = ("_keys_max", "_retry_s", "_told", "_told_before", "_turn_at", "due", "told_total")

    def __init__(self, keys_max: int, retry_s: float) -> None:
        self._keys_max = keys_max
        self._retry_s = retry_s
        self._told: set[Id] = set()
        self._told_before: set[Id] = set()
        self._turn_at = 0.0
        self.due: dict[Id, None] = {}
        self.told_total = 0

    def __repr__(self) -> str:
        return f"<Refreshes due={len(self.due)} told={self.told}>"

    @property
    def told(self) -> int:
        """Ids that were told and are not settled."""
        return len(self._told) + len(self._told_before)

    def has_room(self, now: float) -> bool:
        """Something could be told now."""
        # Not while some are due: what nobody took was not tried.
        if now >= self._turn_at and not self.due:
            lately = now < self._turn_at + self._retry_s
            self._told_before, self._told = self._told if lately else set(), set()
            self._turn_at = now + self._retry_s
        return self.told < self._keys_max

    def tell(self, ids: Iterable[Id], now: float) -> None:
        """These are due, unless they were told already or there are too many."""
        if not self.has_room(now):
            return
        told, before = self._told, self._told_before
        for one in ids:
            if one not in told and one not in before:
                told.add(one)
                self.due[one] = None
                self.told_total += 1
                if self.told == self._keys_max:
                    return

    def take(self) -> list[Id]:
        """The ids that are due, which is then none."""
        taken = list(self.due)
        self.due = {}
        return taken

    def settle(self, one: Id) -> None:
        """An id was read again."""
        if self._told or self._told_before:
            self._told.discard(one)
            self._told_before.discard(one)
            self.due.pop(one, None)

    def clear(self) -> None:
        """Nothing is due, nothing was told."""
        self._told, self._told_before, self.due = set(), set(), {}
