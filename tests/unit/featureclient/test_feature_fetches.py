"""Who waits for which key: batches, sharing, ends, bounds. No loop, no store."""

import struct

from featureclient.client.fetches import Batch, Fetch, Pending, Want
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
        rows: list[bytes | None] = [None] * len(ids)
        fetch = Fetch(1.0, lambda: None)
        want = Want(self.tier, list(ids), [str(one).encode() for one in ids], rows, list(range(len(ids))))
        fetch.add(want)
        self.shed += self.pending.join(fetch, want)
        self.lists.append(rows)
        return fetch

    def settle(self, batches: list[Batch]) -> list[Fetch]:
        finished: list[Fetch] = []
        for batch in batches:
            self.pending.settle(batch, [LATER + str(one).encode() for one in batch.ids], finished)
        return finished

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
    assert rig.settle(batches) == [first, second, third]
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


def test_falling_back_fills_only_what_is_missing() -> None:
    rig = Rig()
    fetch = rig.fetch("a", "b")
    rig.lists[0][0] = b"kept"
    fetch.fall_back()
    assert rig.lists[0] == [b"kept", rig.tier.unreached_row]
    assert fetch.finish() is not None
    assert fetch.finish() is None


def test_times_come_in_order_and_the_heap_does_not_keep_what_ended() -> None:
    times = GiveUpTimes()
    fetches = [Fetch(float(i), lambda: None) for i in (3, 1, 2)]
    assert [times.push(fetch) for fetch in fetches] == [True, True, False]
    assert times.next() == 1.0
    fetches[1].cancel()
    assert times.next() == 2.0
    assert times.due(2.5) == [fetches[2]]
    assert times.due(2.5) == []
    for _ in range(10_000):
        ended = Fetch(100.0, lambda: None)
        times.push(ended)
        ended.cancel()
    assert len(times) < 1000
    assert times.next() == 3.0
