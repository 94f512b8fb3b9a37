"""The cache beside a dict that forgets nothing: never a wrong row, never too much of them, never past their end."""

import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from featureclient.cache import CacheOptions, ViewCache

ABSENT = b"\0" * 8 + b"absent"
BYTES_MAX = 3000
ids = st.integers(0, 30).map(lambda i: f"id{i}")


class CacheMachine(RuleBasedStateMachine):
    """`known` has the last thing that was told of each id: its row and end, or None and the end of its absence."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ViewCache(CacheOptions(absent_share=0.2), BYTES_MAX, ABSENT)
        self.known: dict[str, tuple[bytes | None, float]] = {}
        self.now = 0.0
        self.made = 0

    @rule(one=ids, life=st.integers(1, 5), size=st.integers(0, 400))
    def put(self, one: str, life: int, size: int) -> None:
        self.made += 1
        end = self.now + life
        row = struct.pack(">dI", end, self.made) + bytes(size)
        self.cache.put(one, row)
        self.known[one] = (row, end)

    @rule(one=ids, life=st.integers(1, 5))
    def put_absent(self, one: str, life: int) -> None:
        end = self.now + life
        self.cache.put_absent(one, end)
        self.known[one] = (None, end)

    @rule(one=ids)
    def forget(self, one: str) -> None:
        self.cache.forget(one)
        self.known.pop(one, None)

    @rule(step=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(wanted=st.lists(ids, max_size=8))
    def look_up(self, wanted: list[str]) -> None:
        found = self.cache.lookup(wanted, self.now)
        assert len(found) == len(wanted)
        for one, row in zip(wanted, found, strict=True):
            if row is None:
                continue
            last, end = self.known[one]
            assert self.now < end
            assert row == (ABSENT if last is None else last)

    @rule(one=ids)
    def look_at_the_stale_row(self, one: str) -> None:
        row = self.cache.stale(one)
        assert row is None or row == self.known[one][0]

    @rule(one=ids)
    @precondition(lambda self: self.cache.snapshot().bytes < BYTES_MAX // 2)
    def a_put_with_room_is_found(self, one: str) -> None:
        row = struct.pack(">dI", self.now + 1, 0)
        self.cache.put(one, row)
        self.known[one] = (row, self.now + 1)
        assert self.cache.lookup([one], self.now) == [row]

    @invariant()
    def the_bounds_hold(self) -> None:
        snapshot = self.cache.snapshot()
        assert 0 <= snapshot.bytes <= BYTES_MAX
        assert snapshot.negatives * 112 <= BYTES_MAX * 0.2
        assert (snapshot.bytes == 0) == (snapshot.entries + snapshot.negatives == 0)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(stateful_step_count=60, deadline=None)
