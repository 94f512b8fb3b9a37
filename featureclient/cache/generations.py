"""A map that forgets what was not used, as three dicts: `young` has what was put or used lately, two others the rest.

    put       into young
    use       found in the others, an entry moves to young, so what is used survives
    adopt     into the middle one: an entry that has still to show that it is used
    evict     from leaving, what was put or used longest ago first; when it is empty, everything turns older

It is an approximation of least-recently-used. The usual hit costs one `dict.get` and changes nothing, and entries leave
one at a time, so no call ever frees a whole generation. What turns old is safe until the next turn: with two dicts the
hottest entries, which are the first to be put into young, would also be the first to leave after a turn, before anybody
had a chance to ask for them. For the same reason the owner calls `turn` once when it is half full.

Invariant: a key is in at most one of the three.
"""

from collections.abc import Hashable, Set
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_CHUNKS = 64
_CHUNK_MIN = 128


class Generations(Generic[Key, Value]):
    """The three dicts. `young` is public, because reading it is the fast path; only this class changes it."""

    __slots__ = ("_leaving", "_next_to_leave", "_old", "young")

    def __init__(self) -> None:
        self.young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}
        self._leaving: dict[Key, Value] = {}
        self._next_to_leave: list[Key] = []

    def __repr__(self) -> str:
        return f"<Generations young={len(self.young)} old={len(self._old)} leaving={len(self._leaving)}>"

    def __len__(self) -> int:
        return len(self.young) + len(self._old) + len(self._leaving)

    @property
    def all_young(self) -> bool:
        """There was no turn since the map was empty, or everything was used since."""
        return not self._old and not self._leaving

    @property
    def empty(self) -> bool:
        """There is nothing in it."""
        return not (self.young or self._old or self._leaving)

    def peek(self, key: Key) -> Value | None:
        """The value, without counting as a use."""
        for generation in (self.young, self._old, self._leaving):
            value = generation.get(key)
            if value is not None:
                return value
        return None

    def aged(self, keys: Set[Key]) -> set[Key]:
        """Those of the keys that have a value which is not young."""
        if self.all_young:
            return set()
        return (self._old.keys() & keys) | (self._leaving.keys() & keys)

    def use(self, key: Key) -> Value | None:
        """The value of an entry that is not young, which it becomes."""
        value = self._pop_aged(key)
        if value is not None:
            self.young[key] = value
        return value

    def put(self, key: Key, value: Value) -> Value | None:
        """Set an entry and return the one it replaces."""
        before = self.young.get(key)
        if before is None:
            before = self._pop_aged(key)
        self.young[key] = value
        return before

    def renew(self, key: Key, value: Value) -> Value | None:
        """Set an entry if there is one, and return the one it replaces."""
        before = self.young.get(key)
        if before is None:
            before = self._pop_aged(key)
        if before is not None:
            self.young[key] = value
        return before

    def adopt(self, key: Key, value: Value) -> None:
        """Set an entry that was in none of the dicts, in the middle of its life."""
        self._old[key] = value

    def pop(self, key: Key) -> Value | None:
        """Remove an entry and return it."""
        value = self.young.pop(key, None)
        return self._pop_aged(key) if value is None else value

    def pop_all(self, keys: Set[Key]) -> list[tuple[Key, Value]]:
        """Remove those entries that there are and return them. Costs little for keys that are not there."""
        return [
            (key, generation.pop(key))
            for generation in (self.young, self._old, self._leaving)
            if generation
            for key in generation.keys() & keys
        ]

    def turn(self) -> None:
        """Make everything a generation older. Only for when nothing is leaving."""
        self._leaving, self._old, self.young = self._old, self.young, {}
        self._next_to_leave = []

    def victim(self) -> Key:
        """The entry whose turn it is to leave. Raises KeyError when there is none."""
        while True:
            while self._next_to_leave:
                key = self._next_to_leave[-1]
                if key in self._leaving:
                    return key
                self._next_to_leave.pop()
            if not self._leaving:
                if not self._old and not self.young:
                    raise KeyError("nothing to evict")
                self.turn()
            # A dict remembers the holes at its front, so asking it for one first entry after the other is quadratic.
            # Asked for a sixty-fourth at a time it is not, and a chunk is quickly made.
            chunk = max(_CHUNK_MIN, len(self._leaving) // _CHUNKS)
            self._next_to_leave = list(islice(self._leaving, chunk))
            self._next_to_leave.reverse()

    def evict(self) -> tuple[Key, Value]:
        """Remove the victim. Raises KeyError when there is none."""
        key = self.victim()
        self._next_to_leave.pop()
        return key, self._leaving.pop(key)

    def clear(self) -> None:
        """Forget everything."""
        self.young, self._old, self._leaving, self._next_to_leave = {}, {}, {}, []

    def _pop_aged(self, key: Key) -> Value | None:
        value = self._old.pop(key, None)
        return self._leaving.pop(key, None) if value is None else value
