"""A map that forgets what was not used, as two dicts: `young` has what was put or used lately, `old` the rest.

    put       into young
    get       from young; found in old, it moves to young, so what is used survives
    evict     the entry of old that was put or used longest ago; when old is empty, young becomes old

That is the second-chance approximation of least-recently-used. The usual hit costs one `dict.get` and changes nothing,
and entries leave one at a time, so no call ever frees a whole generation.
"""

from collections.abc import Hashable
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_CHUNKS = 64
_CHUNK_MIN = 1024


class Generations(Generic[Key, Value]):
    """The two dicts. `young` is public, because reading it is the fast path; only this class changes it."""

    __slots__ = ("_leaving", "_old", "young")

    def __init__(self) -> None:
        self.young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}
        self._leaving: list[Key] = []

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def peek(self, key: Key) -> Value | None:
        """The value, without counting as a use."""
        value = self.young.get(key)
        return self._old.get(key) if value is None else value

    def use(self, key: Key) -> None:
        """Keep an entry from being the next to leave."""
        value = self._old.pop(key, None)
        if value is not None:
            self.young[key] = value

    def put(self, key: Key, value: Value) -> Value | None:
        """Set an entry and return the one it replaces."""
        before = self._old.pop(key, None)
        if before is None:
            before = self.young.get(key)
        self.young[key] = value
        return before

    def pop(self, key: Key) -> Value | None:
        """Remove an entry and return it."""
        value = self.young.pop(key, None)
        return self._old.pop(key, None) if value is None else value

    def evict(self) -> tuple[Key, Value]:
        """Remove the entry whose turn it is. Raises KeyError when there is none."""
        while True:
            while self._leaving:
                key = self._leaving.pop()
                value = self._old.pop(key, None)
                if value is not None:
                    return key, value
            if not self._old:
                if not self.young:
                    raise KeyError("nothing to evict")
                self.young, self._old = {}, self.young
            # A dict remembers the holes at its front, so asking it for one first entry after the other is quadratic.
            # Asked for a sixty-fourth at a time it is not, and a chunk is quickly made.
            chunk = max(_CHUNK_MIN, len(self._old) // _CHUNKS)
            self._leaving = list(islice(self._old, chunk))
            self._leaving.reverse()

    def clear(self) -> None:
        """Forget everything."""
        self.young, self._old, self._leaving = {}, {}, []
