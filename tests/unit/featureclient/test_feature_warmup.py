"""The pure parts of warming: counts of hot ids, the sample, the order of prefetching, companions, schedules."""

import random
import zlib
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from featureclient.schema import Id
from featureclient.warmup import (
    HotKeys,
    HotKeysInvalid,
    Sampler,
    Schedule,
    ScheduledWarming,
    Together,
    WarmupOptions,
)
from featureclient.warmup.hotkeys import HELD_MAX, SLICE, Steps
from featureclient.warmup.plan import Errand, errands
from featureclient.warmup.sampler import EVERY_MAX

VIEW = "plane_stats@1"


def zipf(ids: int, draws: int, seed: int = 1) -> list[str]:
    weights = [1 / rank for rank in range(1, ids + 1)]
    return [f"N{i}" for i in random.Random(seed).choices(range(ids), weights, k=draws)]


def offer_all(hot: HotKeys, ids: list[str], batch: int = 200) -> None:
    for start in range(0, len(ids), batch):
        hot.offer(VIEW, ids[start : start + batch])


def finish(steps: Steps[list[Errand]]) -> list[Errand]:
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return list(ended.value)


# ── HotKeys ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_hottest_come_first_and_views_are_apart() -> None:
    hot = HotKeys(10)
    hot.offer(VIEW, ["a", "b", "a", "c", "a", "b"])
    hot.offer("weather@1", [("JFK", 5), ("JFK", 5), ("EWR", 6)])
    assert hot.hottest(VIEW, 2) == ["a", "b"]
    assert hot.hottest("weather@1", 9) == [("JFK", 5), ("EWR", 6)]
    assert hot.hottest("never@1", 9) == []
    assert (hot.count(VIEW, "a"), hot.count(VIEW, "z"), hot.missed(VIEW)) == (3, 0, 0)
    assert len(hot) == 5


def test_the_hottest_of_many_more_ids_than_are_held() -> None:
    hot = HotKeys(500)
    ids = zipf(50_000, 200_000)
    offer_all(hot, ids)
    assert len(hot) <= HELD_MAX * 500
    found = hot.hottest(VIEW, 500)
    # The ids are numbered by rank: what share of all lookups would the 500 best have, and what share have these?
    best = sum(1 / rank for rank in range(1, 501))
    assert sum(1 / (int(one[1:]) + 1) for one in found) / best > 0.9
    assert set(found) > {f"N{i}" for i in range(100)}


def test_a_scan_neither_grows_the_counts_nor_displaces_what_is_hot() -> None:
    hot = HotKeys(100)
    held = 0
    for start in range(0, 100_000, 200):
        hot.offer(VIEW, [f"scan{i}" for i in range(start, start + 200)] + ["hot1", "hot2"])
        held = max(held, len(hot))
    assert held <= HELD_MAX * 100
    assert set(hot.hottest(VIEW, 2)) == {"hot1", "hot2"}
    hot.offer(VIEW, [f"once{i}" for i in range(10_000)])
    assert len(hot) <= HELD_MAX * 100
    assert set(hot.hottest(VIEW, 2)) == {"hot1", "hot2"}


def test_decay_makes_room_for_what_is_hot_now() -> None:
    hot = HotKeys(10)
    hot.offer(VIEW, ["old"] * 100)
    for _ in range(5):
        hot.decay(0.5)
    hot.offer(VIEW, ["new"] * 10)
    assert hot.hottest(VIEW, 2) == ["new", "old"]
    assert hot.count(VIEW, "old") == pytest.approx(100 / 32)
    for _ in range(10):
        hot.decay(0.5)
    assert len(hot) == 0
    with pytest.raises(ValueError, match="from 0 to 1"):
        hot.decay(1.5)


def test_counts_survive_a_round_trip() -> None:
    hot = HotKeys(1000)
    ids: list[Id] = ["N1", "é{}|%", 5, -(2**63), 2**63 - 1, ("JFK", 5), ""]
    for n, one in enumerate(ids):
        hot.offer(VIEW, [one] * (n + 1))
    hot.offer("weather@1", list(range(1000 + 3 * SLICE)))
    back = HotKeys.from_bytes(hot.to_bytes(), 1000)
    assert back.ranked(VIEW, 99) == hot.ranked(VIEW, 99)
    assert back.views == [VIEW, "weather@1"]
    assert 1000 <= len(back.hottest("weather@1", 10**6)) <= HELD_MAX * 1000
    assert HotKeys.from_bytes(HotKeys(5).to_bytes(), 5).views == []


def test_saved_bytes_have_a_bound_and_what_is_seen_least_is_left_out() -> None:
    hot = HotKeys(20_000)
    hot.offer(VIEW, [f"{i:040d}" for i in range(20_000)])
    hot.offer(VIEW, ["hot"] * 5)
    whole = len(hot.to_bytes())
    packed = hot.to_bytes(bytes_max=whole // 3)
    assert len(packed) <= whole // 3
    back = HotKeys.from_bytes(packed, 20_000)
    assert back.count(VIEW, "hot") == 5
    assert back.missed(VIEW) >= 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "do not start with HRHOT"),
        (b"\x00" * 100, "do not start with HRHOT"),
        (b"HRHOT\x02\x00\x00\x00\x00", "format 2"),
        (b"HRHOT\x01\xff\xff\xff\xff", "frames"),
        (b"HRHOT\x01\x01\x00\x00\x00", "end within frame 0 of 1"),
        (b"HRHOT\x01\x01\x00\x00\x00\x04\x00\x00\x00abcd", "frame 0 .* cannot be read"),
        (b"HRHOT\x01\x00\x00\x00\x00more", "4 bytes behind"),
    ],
)
def test_garbage_is_refused_with_its_reason(data: bytes, says: str) -> None:
    with pytest.raises(HotKeysInvalid, match=says):
        HotKeys.from_bytes(data, 10)


@pytest.mark.parametrize(
    "text",
    ["{}", "[1, 2, 3, 4]", '["v@1", 0, ["a"], []]', '["v@1", 0, [1.5], [1]]', '["v@1", 0, [true], [1]]', "[" * 10_000,
     '["v@1", 0, [[]], [1]]', '["v@1", 0, ["a"], [-1]]', '["v@1", 0, ["a"], [NaN]]', '["v@1", 0, [1e999], [1]]',
     '["v@1", 0, [9223372036854775808], [1]]', '["v@1", 0, [null], [1]]', '["v@1", 0, [["a", ["b"]]], [1]]',
     '["v@1", 0, [' + "1" * 5000 + "], [1]]", " " * 5_000_000],
    ids=range(15),
)  # fmt: skip
def test_a_frame_that_is_not_one_is_refused(text: str) -> None:
    frame = zlib.compress(text.encode())
    data = b"HRHOT\x01\x01\x00\x00\x00" + len(frame).to_bytes(4, "little") + frame
    with pytest.raises(HotKeysInvalid, match="frame 0 of the saved counts cannot be read"):
        HotKeys.from_bytes(data, 10)


def test_every_cut_of_saved_counts_is_refused() -> None:
    hot = HotKeys(10)
    hot.offer(VIEW, ["a", "b"])
    whole = hot.to_bytes()
    for end in range(len(whole)):
        with pytest.raises(HotKeysInvalid):
            HotKeys.from_bytes(whole[:end], 10)


# ── The sample ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_batch_in_so_many_is_counted_at_changing_distances() -> None:
    sampler = Sampler(10)
    chosen = [n for n in range(100_000) if sampler.due()]
    assert 9_000 < len(chosen) < 11_000
    gaps = {after - before for before, after in pairwise(chosen)}
    assert gaps == set(range(1, 20))
    # A client that comes every tenth batch is neither always nor never counted.
    assert 500 < sum(n % 10 == 0 for n in chosen) < 1_500


def test_an_idle_server_counts_all_and_a_busy_one_a_bounded_share() -> None:
    sampler = Sampler(1, ids_per_s_max=1000)
    assert all(sampler.due() for _ in range(100))
    for _ in range(5):
        counted = 0
        for _ in range(10_000):  # 10 s of 1000 batches of 64 a second
            if sampler.due():
                counted += len(sampler.thin(range(64)))
        sampler.adapt(10.0)
    assert 60 <= sampler.every <= 70
    assert counted <= 12_000
    sampler.adapt(10.0)
    assert sampler.every == 1


def test_a_sudden_load_is_met_before_the_period_ends() -> None:
    sampler = Sampler(1, ids_per_s_max=1000)
    counted = 0
    for _ in range(100_000):
        if sampler.due():
            counted += len(sampler.thin(range(100)))
    assert counted < 60_000
    assert 1 < sampler.every <= EVERY_MAX


def test_a_large_batch_is_thinned() -> None:
    sampler = Sampler(1, batch_ids_max=100)
    ids = sampler.thin(range(1000))
    assert len(ids) == 100
    assert len({after - before for before, after in pairwise(ids)}) == 1


# ── The order of prefetching ─────────────────────────────────────────────────────────────────────────────────────────


def test_batches_are_of_one_view_and_the_hottest_come_first() -> None:
    hot = HotKeys(4)
    hot.offer("a@1", ["a1"] * 50 + ["a2"] * 40 + ["a3"] * 2 + ["a4"])
    hot.offer("b@1", ["b1"] * 10 + ["b2"] * 9)
    hot.offer("gone@1", ["x"] * 99)
    planned = finish(errands(hot, {"a@1", "b@1"}, 2))
    assert [(errand.view, set(errand.ids)) for errand in planned] == [
        ("a@1", {"a1", "a2"}),
        ("b@1", {"b1", "b2"}),
        ("a@1", {"a3", "a4"}),
    ]


def test_no_more_than_keys_max_ids_of_a_view_are_prefetched_and_none_twice() -> None:
    hot = HotKeys(1000)
    offer_all(hot, zipf(20_000, 50_000))
    planned = finish(errands(hot, {VIEW}, 64))
    ids = [one for errand in planned for one in errand.ids]
    assert len(ids) == len(set(ids)) == 1000
    counts = [hot.count(VIEW, one) for one in ids]
    assert all(before * 1.21 >= after for before, after in pairwise(counts))


# ── Companions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_companions_that_come_again_are_read_ahead() -> None:
    together = Together()
    together.seen(["N1", "N2", "N1"], ["JFK-LAX", "EWR-SFO", "JFK-LAX"])
    assert together.ahead(["N1", "N2", "N3"]) == ["JFK-LAX"]
    together.seen(["N2", "N2"], ["EWR-SFO", "EWR-ORD"])
    assert together.ahead(["N2", "N1", "N1"]) == ["EWR-SFO", "JFK-LAX"]
    assert together.ahead(["N2", "N1"], ids_max=1) == ["EWR-SFO"]


def test_one_id_stands_for_all_rows() -> None:
    together = Together(seen_min=1)
    together.seen(["N1"], ["a", "b"])
    assert set(together.ahead(["N1"])) == {"a", "b"}
    together.seen([], ["a"])
    with pytest.raises(ValueError, match="2 ids cannot be paired with 3"):
        together.seen(["N1", "N2"], ["a", "b", "c"])


def test_companions_are_bounded_and_frequent_ones_stay() -> None:
    together = Together(ids_max=100, companions_max=2)
    for i in range(1000):
        together.seen(["hub", f"x{i}"], ["often", "y"])
        together.seen(["hub"], [f"rare{i}"])
    assert len(together) <= 100
    assert together.ahead(["hub"]) == ["often"]


# ── Schedules and options ────────────────────────────────────────────────────────────────────────────────────────────


def moments(schedule: Schedule, start: datetime, n: int) -> list[str]:
    found = []
    now: datetime | None = start
    for _ in range(n):
        assert now is not None
        now = schedule.next_after(now)
        assert now is not None
        found.append(now.isoformat())
    return found


def test_every_morning_at_six_where_the_users_are() -> None:
    schedule = Schedule("0 6 * * *", "Europe/Berlin")
    assert moments(schedule, datetime(2026, 3, 27, 12, tzinfo=UTC), 3) == [
        "2026-03-28T05:00:00+00:00",
        "2026-03-29T04:00:00+00:00",  # summer time has begun
        "2026-03-30T04:00:00+00:00",
    ]
    # The moment itself is not after itself, wherever `now` comes from.
    assert moments(schedule, datetime(2026, 6, 1, 6, tzinfo=ZoneInfo("Europe/Berlin")), 1) == [
        "2026-06-02T04:00:00+00:00"
    ]


def test_clock_changes_neither_lose_nor_repeat_a_moment() -> None:
    schedule = Schedule("30 2 * * *", "Europe/Berlin")
    # 02:30 does not exist on that day: it comes when the clock has jumped.
    assert moments(schedule, datetime(2026, 3, 28, 12, tzinfo=UTC), 2) == [
        "2026-03-29T01:00:00+00:00",
        "2026-03-30T00:30:00+00:00",
    ]
    # 02:30 exists twice on that day: it comes once.
    assert moments(schedule, datetime(2026, 10, 24, 12, tzinfo=UTC), 2) == [
        "2026-10-25T00:30:00+00:00",
        "2026-10-26T01:30:00+00:00",
    ]


@pytest.mark.parametrize("cron", ["", "6", "* * * * * *", "61 * * * *", "0 0 30 2 *", "@daily", "0 6 * * FOO"])
def test_what_is_no_cron_expression_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="is not a cron expression"):
        Schedule(cron)


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../etc/passwd", "Europe"])
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        ScheduledWarming("0 6 * * *", zone)


def test_a_naive_now_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Schedule("0 6 * * *").next_after(datetime(2026, 1, 1))  # noqa: DTZ001  # that is the point


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget_s": 0},
        {"keys_max": 0},
        {"sample_every": 0},
        {"replica": "a b"},
        {"half_life_s": -1},
        {"replicas_max": 0},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WarmupOptions(**wrong)  # type: ignore[arg-type]
