"""Maps from a label's value to what is counted under it, with a bound on how many values there may be.

Label values come from loaded models, the catalogue and our own constants, never from a request. The bound is the
insurance: whatever feeds this room, the number of time series stays bounded.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

OTHER = "other"
"""Collects what arrives under a value beyond the bound."""

T = TypeVar("T")


class Labelled(dict[str, T], Generic[T]):
    """A dict that makes what is missing, up to `values_max` values; the rest share the entry `other`.

    One thread looks up; others iterate over a `copy()`, which is a single C call.
    """

    def __init__(self, make: Callable[[], T], values_max: int) -> None:
        super().__init__()
        self._make = make
        self._values_max = values_max

    def __missing__(self, value: str) -> T:
        """Make the entry, or give the shared one."""
        if len(self) >= self._values_max and value != OTHER:
            return self[OTHER]
        self[value] = entry = self._make()
        return entry
