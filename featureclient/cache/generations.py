"""A map that forgets what was not used, as three dicts: `young` has what was put or used lately, two others the rest.

    put       into young
    get       from young; found in the others, it moves to young, so what is used survives
    evict     from leaving, what was put or used longest ago first; when it is empty, everything turns older

It is an approximation of least-recently-used. The usual hit costs one `dict.get` and changes nothing, and entries leave
one at a time, so no call ever frees a whole generation. What turns old is safe until the next turn: with two dicts the
hottest entries, which are the first to be put into young, would also be the first to leave after a turn, before anybody
had a chance to ask for them. For the same reason the owner calls `turn` once when it is half full.
"""

from collections.abc import Hashable
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_CHUNKS = 64
_CHUNK_MIN = 1024


class Generations(Generic[Key, Value]):
    """The three dicts. `young` is public, because reading it is the fast path; only this class changes it."""

    __slots__ = ("_leaving", "_next_to_leave", "_old", "young")

    def __init__(self) -> None:
        self.young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}
        self._leaving: dict[Key, Value] = {}
        self._next_to_leave: list[Key] = []

    def __len__(self) -> int:
        return len(self.young) + len(self._old) + len(self._leaving)

    @property
    def all_young(self) -> bool:
        """There was no turn since the map was empty, or everything was used since."""
        return not self._old and not self._leaving

    def peek(self, key: Key) -> Value | None:
        """The value, without counting as a use."""
        for generation in (self.young, self._old, self._leaving):
            value = generation.get(key)
            if value is not None:
                return value
        return None

    def use(self, key: Key) -> None:
        """Keep an entry from leaving soon."""
        value = self._pop_aged(key)
        if value is not None:
            self.young[key] = value

    def put(self, key: Key, value: Value) -> Value | None:
        """Set an entry and return the one it replaces."""
        before = self.young.get(key)
        if before is None:
            before = self._pop_aged(key)
        self.young[key] = value
        return before

    def pop(self, key: Key) -> Value | None:
        """Remove an entry and return it."""
        value = self.young.pop(key, None)
        return self._pop_aged(key) if value is None else value

    def turn(self) -> None:
        """Make everything a generation older. Only for when nothing is leaving."""
        self._leaving, self._old, self.young = self._old, self.young, {}
        self._next_to_leave = []

    def evict(self) -> tuple[Key, Value]:
        """Remove the entry whose turn it is. Raises KeyError when there is none."""
        while True:
            while self._next_to_leave:
                key = self._next_to_leave.pop()
                value = self._leaving.pop(key, None)
                if value is not None:
                    return key, value
            if not self._leaving:
                if not self._old and not self.young:
                    raise KeyError("nothing to evict")
                self.turn()
            # A dict remembers the holes at its front, so asking it for one first entry after the other is quadratic.
            # Asked for a sixty-fourth at a time it is not, and a chunk is quickly made.
            chunk = max(_CHUNK_MIN, len(self._leaving) // _CHUNKS)
            self._next_to_leave = list(islice(self._leaving, chunk))
            self._next_to_leave.reverse()

    def clear(self) -> None:
        """Forget everything."""
        self.young, self._old, self._leaving, self._next_to_leave = {}, {}, {}, []

    def _pop_aged(self, key: Key) -> Value | None:
        value = self._old.pop(key, None)
        return self._leaving.pop(key, None) if value is None else value
