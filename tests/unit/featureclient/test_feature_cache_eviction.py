"""What stays when there is too much: the sketch, the window, and a scan that must not empty the cache."""

from featureclient.cache import CacheOptions, ViewCache
from featureclient.cache.frequencies import NOTES_PER_ENTRY, Frequencies
from featureclient.cache.stamps import pack_stamp
from featureclient.schema import Id

ROW = pack_stamp(1e6) + bytes(92)


def ask(cache: ViewCache, ids: list[Id]) -> int:
    """Look up and put what was missing, as the client does. Returns the hits."""
    rows = cache.lookup(ids, 1.0)
    missing = list(dict.fromkeys(one for one, row in zip(ids, rows, strict=True) if row is None))
    cache.put_all(missing, [ROW] * len(missing))
    return len(rows) - rows.count(None)


def test_a_scan_leaves_what_is_hot() -> None:
    cache = ViewCache(CacheOptions(), 100_000, b"")
    hot: list[Id] = [f"hot{i}" for i in range(150)]
    for _ in range(5):
        ask(cache, hot)
    for start in range(0, 50_000, 50):
        ask(cache, [f"scan{i}" for i in range(start, start + 50)])
        if start % 1000 == 0:
            ask(cache, hot)
    assert ask(cache, hot) > 140


def test_what_becomes_hot_moves_in() -> None:
    cache = ViewCache(CacheOptions(), 100_000, b"")
    for number in range(4):
        hot: list[Id] = [f"hot{number}-{i}" for i in range(150)]
        for turn in range(40):
            ask(cache, hot)
            ask(cache, [f"scan{number}-{turn}-{i}" for i in range(50)])
        assert ask(cache, hot) > 140
        # Found in the first dict, where a lookup is cheapest.
        assert sum(one in cache._rows.main.young for one in hot) > 130


def test_a_row_is_replaced_wherever_it_is() -> None:
    cache = ViewCache(CacheOptions(), 20_000, b"")
    for i in range(1000):
        cache.put(i, ROW)
        cache.put(i // 2, ROW + b"new")
        assert cache.stale(i // 2) == ROW + b"new"
        assert cache.snapshot().bytes <= 20_000


def test_frequencies_count_and_forget() -> None:
    # Numbers, since the hashes of strings are others in each process.
    counts = Frequencies(1000)
    for i in range(50):
        for _ in range(i % 4 + 1):
            counts.note(i)
    assert [counts.estimate(i) for i in range(50)] == [i % 4 + 1 for i in range(50)]
    for i in range(NOTES_PER_ENTRY * 1000 * 4):
        counts.note(1000 + i % 10)
    assert max(counts.estimate(i) for i in range(50)) < 4


def test_a_count_has_a_most() -> None:
    counts = Frequencies(1)
    for _ in range(10_000):
        counts.note("a")
    assert 0 < counts.estimate("a") <= 255
