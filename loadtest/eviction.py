"""What a cache should keep: ways of eviction compared, by hit rate and by time.

    python -m loadtest.eviction [--json] [--quick]

The work: ids are asked for in batches of 200, as a gateway does, with Zipf popularity; some of the requests are for ids
that nobody asks for again (a scan); `shift` draws the popularity anew halfway. What a batch does not find is put. Hit
rates are of the requests that are not part of the scan, in the second half. All caches may keep the same number of
rows; Headrace's is bounded by bytes, out of which it pays for its own sketch.

The times, on a cache that has done the work with one scan request in four: a lookup of 200 ids that are all there and
hot, and a put of an id that nobody has asked for, into a full cache. The best of some rounds; nothing else runs.

No server is started, and nothing is random from run to run but the times. Progress goes to stderr, the table or the
JSON to stdout. Needs the extra `bench`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import cachebox
import numpy as np
import numpy.typing as npt
import theine
from rich.console import Console
from rich.table import Table

from featureclient.cache import CacheOptions, Generations, ViewCache
from featureclient.cache.stamps import pack_stamp

BATCH = 200
SEED = 1
UNIVERSE = 100_000
SCANNED_FROM = 10**9
ROUNDS = 300
ROW = pack_stamp(1e6) + bytes(217)
"""A row of 50 float32."""


class Policy(Protocol):
    """A cache under test."""

    def lookup(self, ids: Sequence[str]) -> Sequence[object | None]:
        """What is cached, None where nothing is."""

    def put(self, one: str) -> None:
        """Cache the row of an id."""


class TwoGenerations:
    """Young and old: what is found in old moves to young; when young is full it becomes the old one."""

    def __init__(self, entries: int) -> None:
        self._half = entries // 2
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}

    def lookup(self, ids: Sequence[str]) -> Sequence[object | None]:
        """What is cached."""
        rows = list(map(self._young.get, ids))
        if None in rows:
            for position, row in enumerate(rows):
                if row is None and (found := self._old.pop(ids[position], None)) is not None:
                    rows[position] = found
                    self.put(ids[position])
        return rows

    def put(self, one: str) -> None:
        """Cache a row."""
        self._young[one] = ROW
        if len(self._young) >= self._half:
            self._young, self._old = {}, self._young


class ThreeGenerations:
    """`Generations` alone, an approximate LRU: every row that is put is taken in."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._map: Generations[str, bytes] = Generations()

    def lookup(self, ids: Sequence[str]) -> Sequence[object | None]:
        """What is cached."""
        rows = list(map(self._map.young.get, ids))
        if None in rows:
            for position, row in enumerate(rows):
                if row is None:
                    rows[position] = self._map.use(ids[position])
        return rows

    def put(self, one: str) -> None:
        """Cache a row."""
        self._map.put(one, ROW)
        if len(self._map) > self._entries:
            self._map.evict()
        elif len(self._map) * 2 > self._entries and self._map.all_young:
            self._map.turn()


class Lru:
    """The LRU of cachebox, in Rust."""

    def __init__(self, entries: int) -> None:
        self._cache: Any = cachebox.LRUCache(entries)

    def lookup(self, ids: Sequence[str]) -> Sequence[object | None]:
        """What is cached."""
        return list(map(self._cache.get, ids))

    def put(self, one: str) -> None:
        """Cache a row."""
        self._cache.insert(one, ROW)


class TinyLfu:
    """The W-TinyLFU of theine, in Rust and Python."""

    def __init__(self, entries: int) -> None:
        self._cache: Any = theine.Cache(entries)

    def lookup(self, ids: Sequence[str]) -> Sequence[object | None]:
        """What is cached."""
        get = self._cache.get
        return [get(one)[0] for one in ids]

    def put(self, one: str) -> None:
        """Cache a row."""
        self._cache.set(one, ROW)

    def close(self) -> None:
        """End its thread."""
        self._cache.close()


class Headrace:
    """The cache of a view, as the client has it."""

    def __init__(self, entries: int) -> None:
        one = ViewCache(CacheOptions(), 1 << 20, ROW)
        one.put("u00000", ROW)
        self._cache = ViewCache(CacheOptions(), entries * one.snapshot().bytes, ROW)

    def lookup(self, ids: Sequence[str]) -> Sequence[object | None]:
        """What is cached, and fresh."""
        return self._cache.lookup(ids, 1.0)

    def put(self, one: str) -> None:
        """Cache a row."""
        self._cache.put(one, ROW)


POLICIES: Mapping[str, Callable[[int], Policy]] = {
    "Headrace": Headrace,
    "three generations": ThreeGenerations,
    "two generations": TwoGenerations,
    "cachebox LRU": Lru,
    "theine W-TinyLFU": TinyLfu,
}


@dataclass(frozen=True, slots=True)
class Work:
    """`scan` is the share of the requests that are for ids that nobody asks for again."""

    zipf: float
    scan: float
    shift: bool = False

    @property
    def name(self) -> str:
        """Short, for a column's head."""
        scanned = f" scan 1/{round(1 / self.scan)}" if self.scan else ""
        return f"Zipf {self.zipf}{scanned}{' shift' if self.shift else ''}"


WORKS = (
    *(Work(zipf, scan) for zipf in (1.0, 0.8) for scan in (0.0, 0.25, 0.5)),
    Work(1.0, 0.25, shift=True),
)
TIMED = Work(1.0, 0.25)
SHARES = (0.02, 0.1, 0.3)
"""Rows that fit, as a share of the ids."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cache of one size: hit rates by work, and times in nanoseconds: of an id of a lookup, and of a put."""

    policy: str
    entries: int
    hit_rates: Mapping[str, float]
    lookup_ns: float
    put_ns: float
    request_ns: float
    """A request of the timed work, whether it hits or misses and puts."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and show."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.eviction", description="Ways of eviction compared.")
    parser.add_argument("--json", action="store_true", help="write the numbers as JSON")
    parser.add_argument("--quick", action="store_true", help="a fifth of the requests: an idea, not a result")
    options = parser.parse_args(arguments)
    outcomes = compare(80_000 if options.quick else 400_000)
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        show(outcomes)


def compare(requests: int) -> list[Outcome]:
    """All caches in all sizes, with so many requests each."""
    asked = {work: requests_of(work, requests) for work in WORKS}
    outcomes = []
    for share in SHARES:
        entries = int(UNIVERSE * share)
        for name, make in POLICIES.items():
            print(f"{name}, {entries:,} rows", file=sys.stderr, flush=True)
            outcomes.append(measure(name, make, entries, asked))
    return outcomes


def requests_of(work: Work, count: int) -> list[list[str]]:
    """Batches of ids; those of a scan begin with s."""
    chance = np.random.default_rng(SEED)
    popular = _zipf(chance, work.zipf, count)
    if work.shift:
        popular[count // 2 :] = _zipf(chance, work.zipf, count - count // 2)
    scanned = chance.random(count) < work.scan
    ids = [f"s{i:07}" if scan else f"u{one:05}" for i, (one, scan) in enumerate(zip(popular, scanned, strict=True))]
    return [ids[start : start + BATCH] for start in range(0, count, BATCH)]


def _zipf(chance: np.random.Generator, exponent: float, count: int) -> npt.NDArray[np.int64]:
    weights = np.cumsum(1 / np.arange(1, UNIVERSE + 1) ** exponent)
    ranks = np.searchsorted(weights / weights[-1], chance.random(count))
    return chance.permutation(UNIVERSE)[ranks]


def measure(name: str, make: Callable[[int], Policy], entries: int, asked: Mapping[Work, list[list[str]]]) -> Outcome:
    """One line of the table."""
    hit_rates = {}
    lookup_ns = put_ns = request_ns = 0.0
    for work, batches in asked.items():
        policy = make(entries)
        began = time.perf_counter()
        hits, requests = replay(policy, batches)
        seconds = time.perf_counter() - began
        hit_rates[work.name] = round(hits / requests, 4)
        if work == TIMED:
            request_ns = seconds / len(batches) / BATCH * 1e9
            lookup_ns, put_ns = time_lookups(policy, batches), time_puts(policy)
        if isinstance(policy, TinyLfu):
            policy.close()
    return Outcome(name, entries, hit_rates, round(lookup_ns, 1), round(put_ns), round(request_ns))


def replay(policy: Policy, batches: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Hits and requests of the second half, those of the scan left out."""
    hits = requests = 0
    for number, batch in enumerate(batches):
        rows = policy.lookup(batch)
        if number * 2 >= len(batches):
            popular = [row for one, row in zip(batch, rows, strict=True) if one[0] == "u"]
            requests += len(popular)
            hits += len(popular) - popular.count(None)
        for one in {one for one, row in zip(batch, rows, strict=True) if row is None}:
            policy.put(one)
    return hits, requests


def time_lookups(policy: Policy, batches: Sequence[Sequence[str]]) -> float:
    """Nanoseconds an id, of a batch that is all there."""
    ids = [one for batch in batches[-50:] for one in batch]
    there = [one for one, row in zip(ids, policy.lookup(ids), strict=True) if row is not None]
    hot = [one for one, row in zip(there, policy.lookup(there), strict=True) if row is not None][:BATCH]
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        policy.lookup(hot)
        best = min(best, time.perf_counter() - began)
    return best / len(hot) * 1e9


def time_puts(policy: Policy) -> float:
    """Nanoseconds a put of an id that was never asked for."""
    ids = [f"s{SCANNED_FROM + i}" for i in range(20 * BATCH)]
    best = float("inf")
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        began = time.perf_counter()
        for one in some:
            policy.put(one)
        best = min(best, time.perf_counter() - began)
    return best / BATCH * 1e9


def show(outcomes: Sequence[Outcome]) -> None:
    """The table."""
    table = Table(title=f"hit rate in percent; {UNIVERSE:,} ids, batches of {BATCH}", title_justify="left")
    for head in ("rows", "cache", *(work.name for work in WORKS), "ns an id", "ns a put", "ns a request"):
        table.add_column(head, justify="left" if head == "cache" else "right")
    for number, outcome in enumerate(outcomes):
        rates = [f"{outcome.hit_rates[work.name] * 100:.1f}" for work in WORKS]
        times = [f"{outcome.lookup_ns:.0f}", f"{outcome.put_ns:,.0f}", f"{outcome.request_ns:,.0f}"]
        last = (number + 1) % len(POLICIES) == 0
        table.add_row(f"{outcome.entries:,}", outcome.policy, *rates, *times, end_section=last)
    Console(width=None if sys.stdout.isatty() else 180).print(table)


if __name__ == "__main__":
    main()
