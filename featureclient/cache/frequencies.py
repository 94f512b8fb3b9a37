"""How often ids were asked for lately, about: a sketch of one byte a cell, which forgets at a steady pace.

Each id has two cells, and its count is the smaller. Counts halve once in `NOTES_PER_ENTRY` notes per entry of the map
that the sketch is for. The halving walks: a few cells every few notes, so that no note ever costs more than another.
"""

from collections.abc import Hashable

CELLS_PER_ENTRY = 16
"""Cells, which are bytes, for each entry of the map, before their number is rounded up to a power of two."""

NOTES_PER_ENTRY = 10
"""Notes for each entry of the map until a count has halved."""

_STRIDE = 64
_COUNT_MAX = 255
_HALF = bytes([count // 2 for count in range(_COUNT_MAX + 1)])


class Frequencies:
    """Counts of ids, for a map of `entries`."""

    __slots__ = ("_at", "_cells", "_mask", "_notes", "_pause")

    def __init__(self, entries: int) -> None:
        cells = max(_STRIDE, 1 << (entries * CELLS_PER_ENTRY - 1).bit_length())
        self._cells = bytearray(cells)
        self._mask = cells - 1
        self._pause = max(1, NOTES_PER_ENTRY * entries * _STRIDE // cells)
        self._notes = 0
        self._at = 0

    def __repr__(self) -> str:
        return f"<Frequencies cells={len(self._cells)}>"

    @property
    def bytes(self) -> int:
        """Memory."""
        return len(self._cells)

    def note(self, one: Hashable) -> None:
        """Count an id once more."""
        cells, mask = self._cells, self._mask
        # In a tuple, because the hash of an int is the int, and that of a tuple is mixed.
        mixed = hash((one,))
        first, second = mixed & mask, (mixed >> 32) & mask
        count, other = cells[first], cells[second]
        if count <= other:
            if count < _COUNT_MAX:
                cells[first] = count + 1
                if count == other:
                    cells[second] = count + 1
        else:
            cells[second] = other + 1
        self._notes += 1
        if self._notes >= self._pause:
            self._notes = 0
            at = self._at
            cells[at : at + _STRIDE] = cells[at : at + _STRIDE].translate(_HALF)
            self._at = (at + _STRIDE) & mask

    def estimate(self, one: Hashable) -> int:
        """The count of an id; more where it shares both of its cells."""
        cells, mask = self._cells, self._mask
        mixed = hash((one,))
        count, other = cells[mixed & mask], cells[(mixed >> 32) & mask]
        return min(count, other)
