"""Rows by id, bounded by bytes, and not to be emptied by a scan: who asks once for everything pushes out nothing hot.

    while there is room     put ──▶ main
    from then on            put ──▶ window ──▶ main, if it is asked for more often than what would have to leave
                                       └─────▶ out, otherwise; or out of main, what is asked for less often

It is W-TinyLFU with a difference: what is asked for is counted only where a lookup does not find it in `main.young`. A
row that is hot costs a count each time it has grown old, and nothing in between. What is at the border, and has to be
compared, is what grows old: there the counts are whole.

Invariants
- An id is in the main map or in the window, never in both.
- `bytes` is the sum of the costs of all rows and the memory of the sketch. After `shrink` it is at most what was asked,
  or nothing but the sketch is left.
- The row that was put last is there, if it fits beside the sketch.
"""

from collections import OrderedDict
from collections.abc import Callable, Set
from itertools import chain, islice

from featureclient.cache.frequencies import Frequencies
from featureclient.cache.generations import Generations
from featureclient.schema import Id

WINDOW_SHARE = 0.02
"""Of the bytes, for rows that were put lately. One row is always allowed."""


class RowMap:
    """The two maps. `main` is public, because reading `main.young` is the fast path; only this class changes it."""

    __slots__ = ("_cost", "_frequencies", "_window", "_window_bytes", "bytes", "evictions", "main")

    def __init__(self, cost: Callable[[Id, bytes], int]) -> None:
        self._cost = cost
        self.main: Generations[Id, bytes] = Generations()
        self._window: OrderedDict[Id, bytes] = OrderedDict()
        self._window_bytes = 0
        self._frequencies: Frequencies | None = None
        self.bytes = 0
        self.evictions = 0

    def __repr__(self) -> str:
        return f"<RowMap bytes={self.bytes} window={len(self._window)} {self.main} {self._frequencies}>"

    def __len__(self) -> int:
        return len(self.main) + len(self._window)

    def some_ids(self, limit: int) -> list[Id]:
        """Some of the ids, at most so many."""
        return [*islice(chain(self.main.young, self._window), limit)]

    def peek(self, one: Id) -> bytes | None:
        """The row of an id, without counting as a use."""
        row = self.main.peek(one)
        return self._window.get(one) if row is None else row

    def aged(self, ids: Set[Id]) -> set[Id]:
        """Those of the ids that have a row which is not young, for `use`."""
        found = self.main.aged(ids)
        return found | (self._window.keys() & ids) if self._window else found

    def use(self, one: Id) -> bytes | None:
        """The row of an id, which is kept from leaving soon."""
        row = self.main.young.get(one)
        if row is not None:
            return row
        row = self.main.use(one)
        if row is not None:
            if self._frequencies is not None:
                self._frequencies.note(one)
            return row
        row = self._window.get(one)
        if row is not None and self._frequencies is not None:
            self._frequencies.note(one)
            if self._frequencies.estimate(one) > self._bar(self._frequencies):
                # It has shown what it is, and is found faster where it goes.
                self._leave_window(one)
                self.main.put(one, row)
            else:
                self._window.move_to_end(one)
        return row

    def put(self, one: Id, row: bytes, bytes_max: int) -> None:
        """Keep a row, unless it alone costs more than `bytes_max`. The owner calls `shrink` after one or more."""
        cost = self._cost(one, row)
        if cost > bytes_max:
            return
        self.bytes += cost
        if self._frequencies is None:
            before = self.main.put(one, row)
            if before is not None:
                self.bytes -= self._cost(one, before)
            if self.bytes * 2 > bytes_max and self.main.all_young:
                self.main.turn()
        elif (before := self.main.renew(one, row)) is not None:
            self.bytes -= self._cost(one, before)
        else:
            if one in self._window:
                self.bytes -= self._leave_window(one)
            self._frequencies.note(one)
            self._window[one] = row
            self._window_bytes += cost

    def pop_all(self, ids: Set[Id]) -> None:
        """Drop rows. Costs little for ids that have none."""
        for one, row in self.main.pop_all(ids):
            self.bytes -= self._cost(one, row)
        for one in self._window.keys() & ids if self._window else ():
            self.bytes -= self._leave_window(one)

    def pop(self, one: Id) -> None:
        """Drop a row."""
        row = self.main.pop(one)
        if row is not None:
            self.bytes -= self._cost(one, row)
        elif one in self._window:
            self.bytes -= self._leave_window(one)

    def shrink(self, bytes_max: int) -> None:
        """Let rows leave until they and the sketch take no more than `bytes_max`."""
        if self.bytes <= bytes_max:
            return
        frequencies = self._frequencies
        if frequencies is None:
            frequencies = self._frequencies = Frequencies(len(self))
            self.bytes += frequencies.bytes
        main, window, window_bytes_max = self.main, self._window, bytes_max * WINDOW_SHARE
        bar = None
        while self.bytes > bytes_max:
            if self._window_bytes > window_bytes_max and len(window) > 1:
                one, row = window.popitem(last=False)
                cost = self._cost(one, row)
                self._window_bytes -= cost
                if bar is None:
                    bar = self._bar(frequencies)
                if frequencies.estimate(one) > bar:
                    main.adopt(one, row)
                    bar = None
                    continue
                self.bytes -= cost
            elif not main.empty:
                self.bytes -= self._cost(*main.evict())
                bar = None
            elif window:
                self.bytes -= self._leave_window(next(iter(window)))
            else:
                return
            self.evictions += 1

    def clear(self) -> None:
        """Drop everything, and start to count anew."""
        self.main.clear()
        self._window.clear()
        self._frequencies = None
        self._window_bytes = self.bytes = 0

    def _bar(self, frequencies: Frequencies) -> int:
        """How often the row is asked for that would have to leave the main map. What enters is asked for more."""
        return -1 if self.main.empty else frequencies.estimate(self.main.victim())

    def _leave_window(self, one: Id) -> int:
        cost = self._cost(one, self._window.pop(one))
        self._window_bytes -= cost
        return cost
