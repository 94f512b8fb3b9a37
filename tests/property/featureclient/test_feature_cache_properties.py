"""The cache beside a dict that forgets nothing: never a wrong row, never too much of them, never past their end."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from featureclient.cache import CacheOptions, ViewCache
from featureclient.cache.stamps import JITTER_SHARE, pack_stamp
from featureclient.cache.view_cache import REFRESH_SPREAD_S

ABSENT = b"\0" * 8 + b"absent"
BYTES_MAX = 3000
SOFT_S, HARD_S, ABSENT_S = 3.0, 6.0, 2.0
OPTIONS = CacheOptions(
    absent_share=0.2,
    soft_age_s=SOFT_S,
    expire_s=HARD_S,
    absent_expire_s=ABSENT_S,
    refresh_keys_max=5,
    refresh_retry_s=1.0,
)
ids = st.integers(0, 30).map(lambda i: f"id{i}")
jitters = st.sampled_from([0.0, 0.5, 1.0])


class CacheMachine(RuleBasedStateMachine):
    """`known` has the last thing that was told of each id: its row (None: absent), when it was read, and the jitter."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ViewCache(OPTIONS, BYTES_MAX, ABSENT)
        self.known: dict[str, tuple[bytes | None, float, float]] = {}
        self.now = 10.0
        self.made = 0
        self.lost_at = 0.0

    @rule(one=ids, jitter=jitters, took=st.sampled_from([0.0, 0.5, 2.0]), size=st.integers(0, 400))
    def put(self, one: str, jitter: float, took: float, size: int) -> None:
        self.made += 1
        read_at = self.now - took
        row = pack_stamp(self.cache.stamp(read_at, jitter)) + self.made.to_bytes(4, "big") + bytes(size)
        self.cache.put(one, row)
        self.known[one] = (row, read_at, jitter)

    @rule(some=st.lists(ids, max_size=8, unique=True), jitter=jitters)
    def put_all(self, some: list[str], jitter: float) -> None:
        stamp = pack_stamp(self.cache.stamp(self.now, jitter))
        self.made += 1
        rows = [stamp + self.made.to_bytes(4, "big") + one.encode() for one in some]
        self.cache.put_all(some, rows)
        for one, row in zip(some, rows, strict=True):
            self.known[one] = (row, self.now, jitter)

    @rule(one=ids, jitter=jitters)
    def put_absent(self, one: str, jitter: float) -> None:
        self.cache.put_absent(one, self.cache.absent_stamp(self.now, jitter))
        self.known[one] = (None, self.now, jitter)

    @rule(one=ids)
    def forget(self, one: str) -> None:
        self.cache.forget(one)
        self.known.pop(one, None)

    @rule(some=st.lists(ids, max_size=8))
    def forget_all(self, some: list[str]) -> None:
        self.cache.forget_all(some)
        for one in some:
            self.known.pop(one, None)

    @rule(jitter=jitters)
    def expire_all(self, jitter: float) -> None:
        self.cache.expire_all(self.now, jitter)
        self.lost_at = self.now

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.known.clear()

    @rule(step=st.sampled_from([0.25, 0.5, 1.0, 3.0]))
    def wait(self, step: float) -> None:
        self.now += step

    def soft_end(self, one: str) -> float:
        """The first moment at which an id may be due."""
        row, read_at, jitter = self.known[one]
        # One that was read at that very moment may have been put before or after it.
        if read_at <= self.lost_at:
            return 0.0
        return read_at + (ABSENT_S if row is None else SOFT_S) * (1 - JITTER_SHARE * jitter)

    def hard_end(self, one: str) -> float:
        """From when on an id is not served."""
        row, read_at, jitter = self.known[one]
        age_s, after_s = (ABSENT_S, 0.0) if row is None else (SOFT_S, HARD_S - SOFT_S)
        return read_at + age_s * (1 - JITTER_SHARE * jitter) + after_s

    @rule(wanted=st.lists(ids, max_size=8))
    def look_up(self, wanted: list[str]) -> None:
        before = self.cache.snapshot()
        found = self.cache.lookup(wanted, self.now)
        after = self.cache.snapshot()
        assert len(found) == len(wanted)
        assert after.misses - before.misses == found.count(None)
        assert after.hits - before.hits == len(found) - found.count(None)
        for one, row in zip(wanted, found, strict=True):
            if row is not None:
                assert self.now < self.hard_end(one)
                assert row == (ABSENT if self.known[one][0] is None else self.known[one][0])

    @rule(wanted=st.lists(ids, max_size=8, unique=True))
    def look_up_and_take_what_is_due(self, wanted: list[str]) -> None:
        self.cache.take_due()
        found = dict(zip(wanted, self.cache.lookup(wanted, self.now), strict=True))
        for one in self.cache.take_due():
            assert found[one] is not None
            assert self.now >= self.soft_end(one)

    @rule(one=ids)
    def what_is_due_is_told_once_in_a_while(self, one: str) -> None:
        self.cache.take_due()
        self.cache.lookup([one], self.now)
        told = self.cache.take_due()
        assert told in ([], [one])
        self.cache.lookup([one, one], self.now)
        assert self.cache.take_due() == []

    @rule(one=ids)
    @precondition(lambda self: self.cache.snapshot().bytes < BYTES_MAX // 2)
    def in_the_end_a_served_row_is_told(self, one: str) -> None:
        self.put(one, 0.0, 0.0, 0)
        self.cache.take_due()
        # After two times without a lookup, everything that was told before may be told again.
        self.now += max(SOFT_S, REFRESH_SPREAD_S, 2 * OPTIONS.refresh_retry_s)
        assert self.cache.lookup([one], self.now) == [self.known[one][0]]
        assert self.cache.take_due() == [one]

    @rule(one=ids)
    def look_at_the_stale_row(self, one: str) -> None:
        row = self.cache.stale(one)
        assert row is None or row == self.known[one][0]

    @rule(one=ids)
    @precondition(lambda self: self.cache.snapshot().bytes < BYTES_MAX // 2)
    def a_put_with_room_is_found(self, one: str) -> None:
        self.put(one, 0.0, 0.0, 0)
        assert self.cache.lookup([one], self.now) == [self.known[one][0]]

    @invariant()
    def the_bounds_hold(self) -> None:
        snapshot = self.cache.snapshot()
        assert 0 <= snapshot.bytes <= BYTES_MAX
        assert snapshot.negatives * 112 <= BYTES_MAX * 0.2
        assert self.cache._refreshes.told <= OPTIONS.refresh_keys_max

    @invariant()
    def an_id_is_in_one_place(self) -> None:
        rows, absent = self.cache._rows, self.cache._absent
        places = [
            *(rows.main.young, rows.main._old, rows.main._leaving, rows._window),
            *(absent.young, absent._old, absent._leaving),
        ]
        there = [one for place in places for one in place]
        assert len(set(there)) == len(there)

    @invariant()
    def the_bytes_are_those_of_the_rows(self) -> None:
        rows = self.cache._rows
        places = (rows.main.young, rows.main._old, rows.main._leaving, rows._window)
        costs = [rows._cost(one, row) for place in places for one, row in place.items()]
        sketch = rows._frequencies.bytes if rows._frequencies is not None else 0
        assert rows.bytes == sum(costs) + sketch
        assert rows._window_bytes == sum(rows._cost(one, row) for one, row in rows._window.items())


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(stateful_step_count=60, deadline=None)
