"""Functions that the tests of computed rows name in their catalogues. They run in worker processes."""

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def lengths(tailnum: Any) -> dict[str, Any]:
    """How long each id is. Ids that begin with `-` have no row."""
    kept = np.array([one for one in tailnum if not one.startswith("-")], object)
    return {"tailnum": kept, "a": np.array([len(one) for one in kept], np.int64)}


async def slow_lengths(tailnum: Any) -> dict[str, Any]:
    """The same, after a wait that does nothing."""
    await asyncio.sleep(0.01)
    return lengths(tailnum)


def backwards(tailnum: Any) -> dict[str, Any]:
    """Rows in another order than the ids', and one that nobody asked for."""
    ids = [*reversed(tailnum.tolist()), "stranger"]
    return {"tailnum": ids, "a": [len(one) for one in ids]}


def twice(tailnum: Any) -> dict[str, Any]:
    """Two rows of an id that is called `twice`."""
    ids = [*tailnum, *(one for one in tailnum if one == "twice")]
    return {"tailnum": ids, "a": [1] * len(ids)}


def picky(tailnum: Any) -> dict[str, Any]:
    """Raises when `poison` is among the ids."""
    if "poison" in tailnum.tolist():
        raise KeyError("poison")
    return lengths(tailnum)


def who(tailnum: Any) -> dict[str, Any]:
    """The process, and how many ids it was asked for."""
    count = len(tailnum)
    return {"tailnum": tailnum, "a": np.full(count, os.getpid()), "b": np.full(count, count)}


def sleeps(tailnum: Any) -> dict[str, Any]:
    """Sleeps for the seconds that its first id says."""
    time.sleep(float(tailnum[0].split(":")[0]))
    return who(tailnum)


def takes_1_ms_an_id(tailnum: Any) -> dict[str, Any]:
    """Sleeps for a millisecond an id."""
    time.sleep(0.001 * len(tailnum))
    return lengths(tailnum)


def spins(tailnum: Any) -> dict[str, Any]:
    """Holds the GIL of its process for 0.3 s, in pure Python."""
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    return lengths(tailnum)


def dies(tailnum: Any) -> dict[str, Any]:
    """Ends its process."""
    os._exit(7)


def leaves(tailnum: Any) -> dict[str, Any]:
    """Raises what is meant to end a process, as its first id says."""
    if tailnum[0] in _ENDS:
        raise _ENDS[tailnum[0]]("enough")
    return who(tailnum)


async def leaves_later(tailnum: Any) -> dict[str, Any]:
    """The same, of an async function."""
    await asyncio.sleep(0)
    return leaves(tailnum)


_ENDS = {"exit": SystemExit, "interrupt": KeyboardInterrupt, "cancel": asyncio.CancelledError}


def prints(tailnum: Any) -> dict[str, Any]:
    """Says something."""
    print("said by a function", flush=True)
    return lengths(tailnum)


def broken(tailnum: Any) -> dict[str, Any]:
    """Forgets to say whose the rows are, and makes up a column."""
    return {"a": [1] * len(tailnum), "c": [1] * len(tailnum)}


def by_route(origin: Any, hour: Any) -> dict[str, Any]:
    """Of two join keys, one of them a number."""
    assert hour.dtype == np.int64
    return {"origin": origin, "hour": hour, "a": hour * 2}


def gated(tailnum: Any) -> dict[str, Any]:
    """Waits until there are the files that its ids name before their last colon."""
    give_up_at = time.monotonic() + 20
    for one in tailnum:
        while not os.path.exists(one.rpartition(":")[0]) and time.monotonic() < give_up_at:
            time.sleep(0.002)
    return {"tailnum": tailnum, "a": np.full(len(tailnum), 7)}


def clock(tailnum: Any) -> dict[str, Any]:
    """When it was computed, in nanoseconds."""
    return {"tailnum": tailnum, "a": np.full(len(tailnum), time.time_ns())}


def early(tailnum: Any) -> dict[str, Any]:
    """The row of the id `tomorrow` becomes true in a year."""
    made = lengths(tailnum)
    year_ms = 365 * 86_400_000
    now_ms = time.time_ns() // 1_000_000
    return {**made, "event_time_ms": now_ms + np.where(made["tailnum"] == "tomorrow", year_ms, 0)}


@dataclass(frozen=True)
class Gate:
    """Ids that it makes are computed by `gated` when it is open."""

    path: Path

    def id(self, name: str) -> str:
        """One that waits."""
        return f"{self.path}:{name}"

    def open(self) -> None:
        """Let all be computed."""
        self.path.touch()
