"""The cache of a view: what it gives, what it forgets, and what it costs."""

import gc
import random
import struct
import tracemalloc

import pytest

from featureclient.cache import CacheOptions, Generations, ViewCache
from featureclient.schema import Id

ABSENT = struct.pack(">d", 0.0) + b"absent"


def row(fresh_until: float, text: str = "") -> bytes:
    return struct.pack(">d", fresh_until) + text.encode()


def cache_of(bytes_max: int = 1 << 20, **options: float) -> ViewCache:
    return ViewCache(CacheOptions(**options), bytes_max, ABSENT)  # type: ignore[arg-type]  # enabled is a bool below


def test_fresh_rows_are_found_in_order_with_duplicates() -> None:
    cache = cache_of()
    for name in "abc":
        cache.put(name, row(10, name))
    assert cache.lookup(["c", "a", "c", "b"], 9.9) == [row(10, "c"), row(10, "a"), row(10, "c"), row(10, "b")]
    assert cache.lookup(["a", "x"], 9.9) == [row(10, "a"), None]
    assert cache.lookup(["x"], 9.9) == [None]
    assert cache.lookup(["x", "y"], 9.9) == [None, None]
    assert cache.lookup([], 9.9) == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_row_ends_at_its_moment_and_stays_as_the_stale_one(count: int) -> None:
    cache = cache_of()
    ids: list[Id] = list(range(count))
    for one in ids:
        cache.put(one, row(10 if one == 0 else 20, str(one)))
    before = 9.999999
    assert None not in cache.lookup(ids, before)
    assert cache.lookup(ids, 10.0) == [None, *[row(20, str(one)) for one in ids[1:]]]
    assert cache.stale(0) == row(10, "0")
    cache.put(0, row(30, "new"))
    assert cache.lookup([0], 10.0) == [row(30, "new")]


def test_rows_that_never_end() -> None:
    cache = cache_of()
    cache.put("a", row(float("inf")))
    assert cache.lookup(["a"], 1e300) == [row(float("inf"))]


def test_absent_ids_share_one_row_and_have_an_age_of_their_own() -> None:
    cache = cache_of()
    cache.put("a", row(100, "a"))
    cache.put_absent("x", 5.0)
    found = cache.lookup(["x", "a", "x"], 4.9)
    assert found == [ABSENT, row(100, "a"), ABSENT]
    assert found[0] is found[2] is ABSENT
    assert cache.lookup(["x", "a"], 5.0) == [None, row(100, "a")]
    assert cache.stale("x") is None


def test_a_row_replaces_an_absence_and_an_absence_a_row() -> None:
    cache = cache_of()
    cache.put_absent("a", 5.0)
    cache.put("a", row(10, "a"))
    assert cache.lookup(["a"], 1.0) == [row(10, "a")]
    assert cache.snapshot().negatives == 0
    cache.put_absent("a", 5.0)
    assert cache.lookup(["a"], 1.0) == [ABSENT]
    assert cache.stale("a") is None
    assert cache.snapshot().entries == 0


def test_forgetting() -> None:
    cache = cache_of()
    cache.put("a", row(10))
    cache.put_absent("b", 10)
    for one in ("a", "b", "c"):
        cache.forget(one)
    assert cache.lookup(["a", "b"], 1.0) == [None, None]
    assert cache.snapshot().bytes == 0


def test_the_bound_holds_and_what_is_used_survives() -> None:
    cache = cache_of(bytes_max=50_000)
    for i in range(2000):
        cache.put(i, row(10, str(i)))
        cache.lookup([0, 1], 1.0)
        assert cache.snapshot().bytes <= 50_000
    assert None not in cache.lookup([0, 1, 1999], 1.0)
    assert cache.stale(5) is None
    assert cache.snapshot().evictions == 2000 - cache.snapshot().entries


def test_absent_ids_take_their_share_and_no_more() -> None:
    cache = cache_of(bytes_max=100_000, absent_share=0.1)
    for i in range(300):
        cache.put(i, row(10))
    rows = cache.snapshot().entries
    for i in range(10_000):
        cache.put_absent(f"unknown {i}", 10.0)
    after = cache.snapshot()
    assert after.entries == rows
    assert 0 < after.negatives * 112 <= 10_000
    assert after.bytes <= 100_000


def test_a_cache_that_is_off_or_too_small_keeps_nothing() -> None:
    for cache in (ViewCache(CacheOptions(enabled=False), 1 << 20, ABSENT), cache_of(bytes_max=10)):
        cache.put("a", row(10))
        cache.put_all(["b"], [row(10)])
        cache.put_absent("c", 10)
        assert cache.lookup(["a", "b", "c"], 1.0) == [None] * 3
        assert cache.snapshot().bytes == 0


def test_hits_and_misses_are_counted_per_id() -> None:
    cache = cache_of()
    cache.put("a", row(10))
    cache.put_absent("n", 10)
    cache.lookup(["a", "a", "b", "n"], 1.0)
    cache.lookup(["a"], 1.0)
    cache.lookup(["a"], 11.0)
    assert (cache.snapshot().hits, cache.snapshot().misses) == (4, 2)


@pytest.mark.parametrize("kind", ["str", "int", "tuple"])
def test_the_cost_of_an_entry_is_not_less_than_its_memory(kind: str) -> None:
    def make(i: int) -> Id:
        return f"N{i:06}" if kind == "str" else 10**12 + i if kind == "int" else (f"JFK{i}", 10**12 + i)

    gc.collect()
    tracemalloc.start()
    try:
        # Just behind the growth of a dict, where its slots are the emptiest: the dearest moment.
        cache = cache_of(bytes_max=1 << 30)
        before = tracemalloc.get_traced_memory()[0]
        for i in range(87_500):
            cache.put(make(i), bytes(217))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    snapshot = cache.snapshot()
    assert snapshot.entries == 87_500
    assert taken <= snapshot.bytes
    if kind != "tuple":
        assert taken / 87_500 <= 217 + 220


@pytest.mark.parametrize("kind", ["str", "int", "tuple"])
def test_a_full_cache_takes_no_more_memory_than_it_may(kind: str) -> None:
    """Rows come, move between the dicts, and leave; what is behind them in the dicts must not add up."""

    def make(i: int) -> Id:
        return f"N{i:06}" if kind == "str" else 10**12 + i if kind == "int" else (f"JFK{i}", 10**12 + i)

    chance = random.Random(1)
    asked = [int(8000 ** chance.random()) for _ in range(12_000)]
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache = cache_of(bytes_max=1 << 20)
        taken = []
        for start in range(0, len(asked), 100):
            for i in (*asked[start : start + 100], *range(10**6 + start, 10**6 + start + 30)):
                one = make(i)
                if cache.lookup([one], 1.0) == [None]:
                    cache.put(one, struct.pack(">d", 10.0) + bytes(209))
            if start % 500 == 0 and cache.snapshot().evictions:
                taken.append((tracemalloc.get_traced_memory()[0] - before, cache.snapshot()))
    finally:
        tracemalloc.stop()
    assert len(taken) > 10
    for size, snapshot in taken:
        # Beside the entries there is the list of those that leave next, of a fixed length.
        assert size <= snapshot.bytes_max + 16_384
        # The id is part of what a row costs, and one of several keys is several objects.
        assert size / snapshot.entries <= 217 + (360 if kind == "tuple" else 220)


def test_generations_evict_in_the_order_of_use() -> None:
    cache: Generations[int, str] = Generations()
    for i in range(4):
        cache.put(i, str(i))
    assert cache.evict() == (0, "0")
    cache.use(2)
    assert [cache.evict()[0] for _ in range(3)] == [1, 3, 2]
    with pytest.raises(KeyError):
        cache.evict()


def test_evicting_many_is_not_quadratic() -> None:
    cache: Generations[int, int] = Generations()
    for i in range(200_000):
        cache.put(i, i)
    assert [cache.evict()[0] for _ in range(200_000)] == list(range(200_000))


@pytest.mark.parametrize(
    "wrong", [{"bytes_max": -1}, {"expire_s": 0.0}, {"absent_expire_s": -1.0}, {"absent_share": 1.5}]
)
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"."):
        CacheOptions(**wrong)  # type: ignore[arg-type]  # numbers, all of them
