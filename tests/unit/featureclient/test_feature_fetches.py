"""Who waits for which key: batches, sharing, ends, bounds. No loop, no store."""

import struct

from featureclient.client.fetches import Batch, Fetch, Pending, Settled, Waiter, Want
from featureclient.client.options import ClientOptions
from featureclient.client.tier import Tier
from featureclient.client.timers import GiveUpTimes
from featureclient.schema import Catalogue, Id, status

VIEW = Catalogue.parse(
    "entities: {e: {k: string}}\nviews: {v@1: {entity: e, columns: {a: {dtype: int8, default: 0}}}}\n"
).view("v@1")
LATER = struct.pack(">d", 10.0)


class Rig:
    """One view, its pending keys, and callers that note when they are called."""

    def __init__(self, keys_max: int = 1000, read_keys_max: int = 100) -> None:
        self.tier = Tier(VIEW, ClientOptions(), 1 << 20)
        self.pending = Pending(keys_max, read_keys_max)
        self.lists: list[list[bytes | None]] = []
        self.shed = 0

    def fetch(self, *ids: Id) -> Fetch:
        return self.fetch_for([0] * len(ids), *ids)

    def fetch_for(self, callers: list[int], *ids: Id) -> Fetch:
        """A fetch of several callers: `callers[i]` wants `ids[i]`."""
        rows: list[bytes | None] = [None] * len(ids)
        fetch = Fetch(1.0, lambda _: None, max(callers) + 1)
        want = Want(self.tier, list(ids), [str(one).encode() for one in ids], rows, list(range(len(ids))), callers)
        fetch.ask([want])
        settled = Settled()
        for i in self.pending.join(fetch, want):
            self.shed += 1
            row = self.tier.stale(ids[i]) or self.tier.substitutes[status.UNREACHED]
            settled.give(Waiter(fetch, rows, i, callers[i]), row)
        assert settled.ready() == []
        self.lists.append(rows)
        return fetch

    def settle_for(self, batches: list[Batch]) -> list[tuple[Fetch, list[int]]]:
        settled = Settled()
        for batch in batches:
            self.pending.settle(batch, [LATER + str(one).encode() for one in batch.ids], settled)
        return [(fetch, list(callers)) for fetch, callers in settled.ready()]

    def settle(self, batches: list[Batch]) -> list[Fetch]:
        return [fetch for fetch, _ in self.settle_for(batches)]

    def got(self, which: int) -> list[str | None]:
        return [row and row[8:].decode() for row in self.lists[which]]


def ids_of(batches: list[Batch]) -> list[list[Id]]:
    return [list(batch.ids) for batch in batches]


def test_keys_that_are_read_already_are_shared() -> None:
    rig = Rig()
    first, second = rig.fetch("a", "b"), rig.fetch("b", "c", "c")
    batches = rig.pending.take()
    assert ids_of(batches) == [["a", "b"], ["c"]]
    third = rig.fetch("a", "c")
    assert not rig.pending.queued
    assert len(rig.pending) == 3
    assert set(rig.settle(batches)) == {first, second, third}
    assert [rig.got(i) for i in range(3)] == [["a", "b"], ["b", "c", "c"], ["a", "c"]]
    assert len(rig.pending) == 0
    assert not rig.tier.pending


def test_a_fetch_finishes_with_its_own_last_key() -> None:
    rig = Rig()
    first = rig.fetch("a")
    one = rig.pending.take()
    second = rig.fetch("a", "b")
    two = rig.pending.take()
    assert rig.settle(one) == [first]
    assert rig.got(1) == ["a", None]
    assert rig.settle(two) == [second]


def test_reads_are_cut_at_their_size() -> None:
    rig = Rig(read_keys_max=3)
    rig.fetch(*"abcdefg")
    rig.fetch("h")
    assert ids_of(rig.pending.take()) == [["a", "b", "c"]]
    assert ids_of(rig.pending.take()) == [["d", "e", "f"]]
    assert ids_of(rig.pending.take()) == [["g"], ["h"]]
    assert rig.pending.take() == []


def test_a_fetch_that_left_is_not_touched_and_harms_nobody() -> None:
    rig = Rig()
    first, second = rig.fetch("a", "b"), rig.fetch("a")
    batches = rig.pending.take()
    first.cancel()
    assert rig.settle(batches) == [second]
    assert rig.got(0) == [None, None]
    assert rig.got(1) == ["a"]


def test_what_nobody_waits_for_is_not_read_unless_it_is_read_already() -> None:
    rig = Rig()
    first, second, third = rig.fetch("a"), rig.fetch("b"), rig.fetch("a")
    first.cancel()
    second.cancel()
    assert ids_of(rig.pending.take()) == [["a"]]
    third.cancel()
    assert len(rig.pending) == 1
    # Now that it is read, who comes later still shares it.
    fourth = rig.fetch("a")
    assert not rig.pending.queued
    assert "b" not in rig.tier.pending
    assert rig.settle([rig.tier.pending["a"]]) == [fourth]


def test_a_write_makes_later_callers_read_again() -> None:
    rig = Rig()
    first = rig.fetch("a", "b")
    before = rig.pending.take()
    rig.tier.written(["a", "x"])
    assert set(before[0].dirty) == {"a"}
    second = rig.fetch("a", "b")
    after = rig.pending.take()
    assert ids_of(after) == [["a"]]
    rig.tier.written(["a"])
    third = rig.fetch("a")
    last = rig.pending.take()
    assert rig.settle(before) == [first]
    assert rig.tier.pending["a"] is last[0]
    assert rig.settle(after) == [second]
    assert rig.settle(last) == [third]
    assert not rig.tier.pending
    assert len(rig.pending) == 0


def test_a_write_does_not_touch_what_was_not_sent() -> None:
    rig = Rig()
    rig.fetch("a")
    rig.tier.written(["a"])
    rig.fetch("a")
    batches = rig.pending.take()
    assert ids_of(batches) == [["a"]]
    assert not batches[0].dirty


def test_keys_beyond_the_bound_fall_back_at_once() -> None:
    rig = Rig(keys_max=3)
    rig.tier.cache.put("d", LATER + b"12345678" + b"\1" + b"\0\0")
    first, second = rig.fetch("a", "b"), rig.fetch("b", "c", "d", "e", "e", "a")
    assert rig.shed == 3
    assert len(rig.pending) == 3
    rows = rig.lists[1]
    assert [row and row[16] for row in rows] == [
        None,
        None,
        status.STALE | status.UNREACHED,
        status.DEFAULTED | status.UNREACHED,
        status.DEFAULTED | status.UNREACHED,
        None,
    ]
    assert rig.settle(rig.pending.take()) == [first, second]
    assert None not in rows


def test_callers_of_one_fetch_are_told_each_with_its_own_last_row() -> None:
    rig = Rig(read_keys_max=2)
    fetch = rig.fetch_for([0, 0, 1, 2, 2], "a", "b", "b", "c", "a")
    first, second = rig.pending.take(), rig.pending.take()
    assert ids_of(first) == [["a", "b"]]
    assert rig.settle_for(first) == [(fetch, [0, 1])]
    assert fetch.finish(2) is not None
    assert rig.settle_for(second) == [(fetch, [2])]
    assert fetch.finish(1) is not None
    assert not fetch.live


def test_callers_who_get_all_their_rows_at_once_are_told_at_once() -> None:
    rig = Rig()
    fetch = rig.fetch_for([0, 1, 1, 2], *"abcd")
    assert rig.settle_for(rig.pending.take()) == [(fetch, [0, 1, 2])]


def test_a_place_that_was_filled_is_not_filled_again() -> None:
    rig = Rig()
    fetch = rig.fetch_for([0, 1], "a", "b")
    early = Settled()
    early.give(Waiter(fetch, rig.lists[0], 0, 0), b"computed meanwhile")
    assert early.ready() == [(fetch, [0])]
    fetch.late = True
    assert rig.settle_for(rig.pending.take()) == [(fetch, [1])]
    assert rig.lists[0] == [b"computed meanwhile", LATER + b"b"]


def test_rows_that_are_to_be_computed_are_left_to_those_who_wait() -> None:
    rig = Rig()
    fetch, other = rig.fetch("a", "b"), rig.fetch("b")
    batches = rig.pending.take()
    settled = Settled()
    rig.pending.settle(batches[0], [LATER, None], settled)
    assert settled.ready() == []
    assert [waiter.fetch for waiter in batches[0].waiters(1)] == [fetch, other]
    for waiter in batches[0].waiters(1):
        settled.give(waiter, LATER + b"b")
    assert [(of, list(callers)) for of, callers in settled.ready()] == [(fetch, [0]), (other, [0])]


def test_times_come_in_order_and_the_heap_does_not_keep_what_ended() -> None:
    times = GiveUpTimes()
    fetches = [Fetch(float(i), lambda _: None) for i in (3, 1, 2)]
    assert [times.push(fetch) for fetch in fetches] == [True, True, False]
    assert times.next() == 1.0
    fetches[1].cancel()
    assert times.next() == 2.0
    assert times.due(2.5) == [fetches[2]]
    assert times.due(2.5) == []
    for _ in range(10_000):
        ended = Fetch(100.0, lambda _: None)
        times.push(ended)
        ended.cancel()
    assert len(times) < 1000
    assert times.next() == 3.0
