"""What the benchmark measures: a fixed list of works, each one server against another under the same load. Pure."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.workload import RANKED_ROWS


@dataclass(frozen=True, slots=True)
class Measure:
    """One server under one load. `rows` is how many entities a call asks about, 0 for an echo."""

    server: str
    rows: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Work:
    """One line of the result."""

    name: str
    headrace: Measure
    baseline: Measure


@dataclass(frozen=True, slots=True)
class Pace:
    """How long each run is. The rounds stay five in the quick one: a median needs them more than length."""

    seconds: float
    warmup_s: float
    rounds: int = 5


FULL = Pace(seconds=2.0, warmup_s=0.5)
QUICK = Pace(seconds=0.5, warmup_s=0.1)


def all_works() -> list[Work]:
    """The fixed list. The hand-written server has no cache, so its run is the baseline of warm and cold alike."""
    works = [
        Work(f"predict/{rows}/{cache}/{n}", Measure(cache, rows, n), Measure("baseline", rows, n))
        for rows, in_flights in ((1, (1, 16, 64)), (RANKED_ROWS, (1, 4, 16)))
        for n in in_flights
        for cache in ("warm", "cold")
    ]
    works += [Work(f"echo/{n}", Measure("echo", 0, n), Measure("echo-direct", 0, n)) for n in (1, 64)]
    works.append(Work("echo-tls/64", Measure("echo-tls", 0, 64), Measure("echo-tls-direct", 0, 64)))
    return works


def choose_works(works: Sequence[Work], patterns: Sequence[str]) -> list[Work]:
    """Those whose name matches one of the shell patterns, in the fixed order; all when there is none."""
    if not patterns:
        return list(works)
    return [work for work in works if any(fnmatch.fnmatchcase(work.name, pattern) for pattern in patterns)]


def group_by_baseline(works: Iterable[Work]) -> dict[Measure, list[Work]]:
    """Works that are compared with the same run, which is then made once."""
    groups: dict[Measure, list[Work]] = {}
    for work in works:
        groups.setdefault(work.baseline, []).append(work)
    return groups
