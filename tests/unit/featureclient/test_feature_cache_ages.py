"""Soft and hard ages, what is due, and a cache whose invalidations were lost."""

import itertools

import pytest

from featureclient.cache import CacheOptions, ViewCache
from featureclient.cache.refreshes import Refreshes
from featureclient.cache.stamps import EPOCH_S, EPOCHS_MAX, JITTER_SHARE, Epochs, pack_stamp, stamp_of
from featureclient.cache.view_cache import REFRESH_SPREAD_S
from featureclient.schema import Id

ABSENT = pack_stamp(0.0) + b"absent"
AGES = CacheOptions(soft_age_s=10.0, expire_s=60.0, absent_expire_s=5.0, refresh_keys_max=4, refresh_retry_s=1.0)


def cache_of(options: CacheOptions = AGES) -> ViewCache:
    return ViewCache(options, 1 << 20, ABSENT)


def put(cache: ViewCache, one: Id, read_at: float, jitter: float = 0.0) -> bytes:
    row = pack_stamp(cache.stamp(read_at, jitter)) + str((one, read_at)).encode()
    cache.put(one, row)
    return row


def test_a_row_is_served_until_its_hard_age_and_due_from_its_soft_age_on() -> None:
    cache = cache_of()
    row = put(cache, "a", 100.0)
    assert cache.lookup(["a"], 109.9) == [row]
    assert not cache.any_due
    assert cache.lookup(["a"], 110.0) == [row]
    assert cache.any_due
    assert cache.take_due() == ["a"]
    assert cache.lookup(["a"], 159.9) == [row]
    assert cache.lookup(["a"], 160.0) == [None]
    assert cache.stale("a") == row
    assert (cache.snapshot().hits, cache.snapshot().misses, cache.snapshot().refreshes) == (3, 1, 2)


def test_what_is_beyond_its_hard_age_is_not_due_but_missing() -> None:
    cache = cache_of()
    put(cache, "a", 0.0)
    put(cache, "b", 30.0)
    assert cache.lookup(["a", "b"], 65.0)[0] is None
    assert cache.take_due() == ["b"]


def test_without_a_soft_age_nothing_is_due() -> None:
    cache = cache_of(CacheOptions(expire_s=60.0))
    row = put(cache, "a", 0.0)
    assert cache.lookup(["a"], 59.9) == [row]
    assert cache.lookup(["a"], 60.0) == [None]
    assert cache.take_due() == []


def test_a_view_may_have_ages_of_its_own() -> None:
    cache = ViewCache(AGES, 1 << 20, ABSENT, soft_age_s=0.0, expire_s=1.0)
    put(cache, "a", 0.0)
    assert cache.lookup(["a"], 1.0) == [None]
    with pytest.raises(ValueError, match=r"soft_age_s \(10\.0\) must be below expire_s \(5\.0\)"):
        ViewCache(AGES, 1 << 20, ABSENT, expire_s=5.0)


def test_jitter_brings_the_end_forward_and_never_back() -> None:
    cache = cache_of()
    ends = [cache.stamp(100.0, jitter) for jitter in (0.0, 0.5, 1.0)]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == 110.0
    assert ends[2] == pytest.approx(110.0 - 10.0 * JITTER_SHARE)
    assert cache.absent_stamp(100.0, 0.0) == 105.0


def test_an_id_is_due_once_until_it_was_put_or_the_time_of_the_next_attempt_has_come() -> None:
    cache = cache_of()
    put(cache, "a", 0.0)
    cache.lookup(["a", "a"], 11.0)
    cache.lookup(["a"], 11.1)
    assert cache.take_due() == ["a"]
    cache.lookup(["a"], 11.9)
    assert cache.take_due() == []
    told_again = []
    for tenth in range(120, 140):
        cache.lookup(["a"], tenth / 10)
        told_again += [tenth / 10 for _ in cache.take_due()]
    assert len(told_again) == 1
    assert 12.0 <= told_again[0] <= 13.0
    # It was read again at last, and is due again when its new soft age is over.
    put(cache, "a", 14.0)
    cache.lookup(["a"], 23.9)
    assert not cache.any_due
    cache.lookup(["a"], 24.0)
    assert cache.take_due() == ["a"]


def test_what_was_put_or_found_absent_meanwhile_is_no_longer_due() -> None:
    cache = cache_of()
    put(cache, "a", 0.0)
    put(cache, "b", 0.0)
    cache.lookup(["a", "b"], 11.0)
    put(cache, "a", 11.0)
    cache.put_absent("b", cache.absent_stamp(11.0, 0.0))
    assert cache.take_due() == []


def test_the_number_of_ids_on_their_way_is_bounded() -> None:
    cache = cache_of()
    ids: list[Id] = list(range(10))
    for one in ids:
        put(cache, one, 0.0)
    assert None not in cache.lookup(ids, 11.0)
    first = cache.take_due()
    assert first == [0, 1, 2, 3]
    cache.lookup(ids, 11.1)
    assert cache.take_due() == []
    cache.put_all(first[:2], [pack_stamp(cache.stamp(11.1, 0.0))] * 2)
    cache.lookup(ids, 11.2)
    assert cache.take_due() == [4, 5]


def test_what_nobody_takes_stays_due_and_is_not_told_again() -> None:
    refreshes = Refreshes(keys_max=4, retry_s=1.0)
    for now in range(100):
        refreshes.tell([now % 2], float(now))
    assert refreshes.take() == [0, 1]
    assert refreshes.told_total == 2


def test_an_id_that_was_not_asked_for_in_a_while_is_due_at_once() -> None:
    refreshes = Refreshes(keys_max=4, retry_s=1.0)
    refreshes.tell(["a"], 0.0)
    refreshes.take()
    refreshes.tell(["a"], 50.0)
    assert refreshes.take() == ["a"]


def test_after_expire_all_old_rows_are_served_and_due_and_new_ones_fresh() -> None:
    cache = cache_of()
    old = put(cache, "old", 100.0)
    cache.expire_all(103.0)
    new = put(cache, "new", 103.0)
    late = 103.0 + REFRESH_SPREAD_S
    assert cache.lookup(["old", "new"], late) == [old, new]
    assert cache.take_due() == ["old"]
    # The hard age is what it was.
    assert cache.lookup(["old"], 159.9) == [old]
    assert cache.lookup(["old", "new"], 160.0) == [None, new]
    assert cache.lookup(["new"], 163.0) == [None]


def test_a_row_whose_read_began_before_expire_all_is_due_although_it_is_put_later() -> None:
    cache = cache_of()
    cache.expire_all(103.0)
    row = put(cache, "a", 102.9)
    assert cache.lookup(["a"], 105.0) == [row]
    assert cache.take_due() == ["a"]


def test_of_two_epochs_the_later_row_may_be_the_first_to_end() -> None:
    cache = cache_of()
    old = put(cache, "old", 102.9, jitter=0.0)
    cache.expire_all(103.0)
    new = put(cache, "new", 103.0, jitter=1.0)
    assert cache.lookup(["old", "new"], 161.9) == [old, new]
    assert cache.lookup(["old", "new"], 162.1) == [old, None]


def test_without_a_soft_age_expire_all_makes_rows_due_all_the_same() -> None:
    cache = cache_of(CacheOptions(expire_s=60.0))
    row = put(cache, "a", 0.0)
    cache.expire_all(10.0)
    assert cache.lookup(["a"], 20.0) == [row]
    assert cache.take_due() == ["a"]
    assert cache.lookup(["a"], 60.0) == [None]


def test_what_expire_all_made_due_becomes_so_over_a_while_in_an_order_that_jitter_turns() -> None:
    ids: list[Id] = list(range(400))
    orders = []
    for jitter in (0.0, 0.5):
        cache = cache_of(CacheOptions(soft_age_s=10.0))
        for one in ids:
            put(cache, one, 0.0)
        cache.expire_all(5.0, jitter)
        order = []
        for step in range(5):
            assert None not in cache.lookup(ids, 5.0 + step * REFRESH_SPREAD_S / 4)
            order.append(cache.take_due())
        assert sorted(itertools.chain(*order)) == ids  # type: ignore[type-var]  # numbers, all of them
        assert all(60 < len(part) < 140 for part in order[1:])
        orders.append(order)
    assert orders[0] != orders[1]


def test_absent_ids_have_their_own_age_and_are_due_after_expire_all() -> None:
    cache = cache_of()
    cache.put_absent("x", cache.absent_stamp(0.0, 0.0))
    cache.lookup(["x"], 3.0)
    assert not cache.any_due
    cache.expire_all(3.0)
    assert cache.lookup(["x"], 4.9) == [ABSENT]
    assert cache.lookup(["x"], 5.0) == [None]
    cache.put_absent("y", cache.absent_stamp(5.0, 0.0))
    cache.expire_all(6.0)
    assert cache.lookup(["y"], 6.0 + REFRESH_SPREAD_S) == [ABSENT]
    assert "y" in cache.take_due()


def test_losing_everything_again_and_again_while_nothing_is_read_takes_no_epochs() -> None:
    epochs = Epochs()
    for now in range(5):
        epochs.begin(float(now))
    assert epochs.base == EPOCH_S
    assert epochs.stamp(3.9, 10.0, 0.0) < epochs.base < epochs.stamp(4.0, 10.0, 0.0)


def test_after_too_many_epochs_the_cache_begins_anew() -> None:
    cache = cache_of()
    for now in range(EPOCHS_MAX - 1):
        put(cache, "a", float(now))
        cache.expire_all(float(now))
    now = float(EPOCHS_MAX)
    row = put(cache, "a", now)
    assert cache.lookup(["a"], now + 9.999) == [row]
    assert not cache.any_due
    cache.expire_all(now + 1)
    assert cache.snapshot().entries == 0
    assert cache.lookup(["a"], now + 1) == [None]
    row = put(cache, "a", now + 1)
    assert stamp_of(row) < EPOCH_S
    assert cache.lookup(["a"], now + 2) == [row]
    # A read that began before that is not served as if it was fresh.
    put(cache, "b", now)
    assert cache.lookup(["b"], now + 2) == [None]


def test_a_flood_of_writes_is_forgotten() -> None:
    cache = cache_of()
    ids: list[Id] = [f"u{i}" for i in range(100)]
    for one in ids:
        put(cache, one, 0.0)
    cache.put_absent("x", 5.0)
    cache.put_absent("y", 5.0)
    cache.forget_all(iter(["x", *ids[:90], *[f"unknown{i}" for i in range(1000)]]))
    found = cache.lookup([*ids, "x", "y"], 1.0)
    assert found[:90] == [None] * 90
    assert None not in found[90:100]
    assert found[100:] == [None, ABSENT]
    cache.forget_all(["y", *ids])
    assert cache.snapshot().bytes == 0


@pytest.mark.parametrize(
    "wrong", [{"soft_age_s": -1.0}, {"soft_age_s": 60.0}, {"refresh_keys_max": 0}, {"refresh_retry_s": 0.0}]
)
def test_options_of_ages_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"."):
        CacheOptions(**wrong)  # type: ignore[arg-type]  # numbers, all of them
