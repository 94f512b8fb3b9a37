"""Which of several servers with the same rows a read goes to, and when a second one is asked as well.

    Chooser   which member: the primary, the replicas in turn, or whoever answers fastest
    Hedge     after what delay the read is asked of another member too, and whether there is budget for it
    hedged    the two reads: whoever answers first is believed

A replica is believed as far as it goes. It is asked only while it says, once a second, that it follows its primary; a
value of its is a value, perhaps a moment old; that it has none is not believed, but asked of the primary, because a row
may be on its way to it, or the slot to another node. Whoever watches watches every member, so a value that was old when
it was read is told of when it changes there.

The first two are pure: times are arguments.
"""

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

Answer = TypeVar("Answer")
ReadFrom = Literal["primary", "replica", "nearest"]

PRIMARY: Final = 0
"""The place of the primary among the members."""

EXPLORE_EVERY: Final = 64
"""One of so many reads goes to the next member in turn, so that it is known how fast that is now."""

WEIGHT: Final = 0.1
"""Of the newest read in the mean time of a member."""

REPLICA_EVERY_S: Final = 1.0
"""Between two questions whether a replica follows its primary."""

SAMPLES: Final = 200
"""Reads that the delay of a hedge is taken from."""

SAMPLES_MIN: Final = 20
"""Before so many are known nothing is hedged."""

ROLE_STATE: Final = 3
"""Where the state of the connection to the primary stands in a replica's answer to ROLE."""

BURST: Final = 5.0
"""Hedges that may be saved up."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Where reads go when there is more than one server with the same rows."""

    read_from: ReadFrom = "primary"
    """`primary`; `replica`: the replicas in turn, the primary when there is none; `nearest`: who answers fastest.
    Replicas are a moment behind their primary: a row that was just written may be read as it was before."""
    replica_urls: tuple[str, ...] = ()
    """The replicas of a `redis://` server. (Sentinel and a cluster tell theirs.)"""
    hedge: bool = False
    """Ask a second server, or the same one over another connection, when the first takes longer than most reads did."""
    hedge_quantile: float = 0.95
    """The part of the reads that are quicker than the delay of a hedge."""
    hedge_share_max: float = 0.05
    """The part of the reads that may be hedged: what hedging may cost a server that is slow because it is busy."""
    hedge_delay_min_s: float = 0.001
    """The delay is never shorter."""

    def __post_init__(self) -> None:
        if self.read_from not in {"primary", "replica", "nearest"}:
            raise ValueError(f"read_from: {self.read_from!r} is not one of primary, replica, nearest")
        if not (0 < self.hedge_quantile < 1 and 0 < self.hedge_share_max <= 1):
            raise ValueError("hedge_quantile and hedge_share_max must be between 0 and 1")
        if self.hedge_delay_min_s < 0:
            raise ValueError("hedge_delay_min_s must not be negative")


class Chooser:
    """Which member the next read goes to. Member 0 is the primary."""

    __slots__ = ("_means_s", "_picks", "_read_from")

    def __init__(self, read_from: ReadFrom, members: int) -> None:
        self._read_from = read_from
        self._means_s = [0.0] * members
        self._picks = 0

    def __repr__(self) -> str:
        means = ", ".join(f"{mean * 1000:.2f}" for mean in self._means_s)
        return f"<Chooser {self._read_from} picks={self._picks} means_ms=[{means}]>"

    def pick(self, usable: Sequence[bool]) -> int:
        """A member. Without a usable one it is the primary, which then says why it is not."""
        if self._read_from == "primary":
            return PRIMARY
        self._picks += 1
        if self._read_from == "replica":
            return self._next(usable, range(1, len(usable)))
        if self._picks % EXPLORE_EVERY == 0:
            return self._next(usable, range(len(usable)), self._picks // EXPLORE_EVERY)
        means = self._means_s
        return min((i for i, good in enumerate(usable) if good), key=means.__getitem__, default=PRIMARY)

    def second(self, first: int, usable: Sequence[bool]) -> int:
        """Who is asked as well: another member when there is one. Without replicas to read from, the same."""
        if self._read_from == "primary":
            return first
        others = [i for i, good in enumerate(usable) if good and i != first]
        return min(others, key=self._means_s.__getitem__, default=first)

    def took(self, member: int, seconds: float) -> None:
        """A read of a member was answered."""
        mean = self._means_s[member]
        self._means_s[member] = seconds if mean == 0.0 else mean + WEIGHT * (seconds - mean)

    def _next(self, usable: Sequence[bool], members: Sequence[int], turn: int | None = None) -> int:
        good = [i for i in members if usable[i]]
        return good[(self._picks if turn is None else turn) % len(good)] if good else PRIMARY


class Hedge:
    """When a read is asked a second time: after the time in which most of the last SAMPLES were answered."""

    __slots__ = ("_budget", "_delay_min_s", "_quantile", "_recent", "_share_max", "_sorted", "hedged", "reads")

    def __init__(self, options: ReadOptions) -> None:
        self._quantile = options.hedge_quantile
        self._share_max = options.hedge_share_max
        self._delay_min_s = options.hedge_delay_min_s
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._budget = 0.0
        self.reads = 0
        self.hedged = 0

    def __repr__(self) -> str:
        return f"<Hedge reads={self.reads} hedged={self.hedged} delay_s={self.delay_s()}>"

    def started(self) -> None:
        """A read goes; it earns its share of a hedge."""
        self.reads += 1
        self._budget = min(BURST, self._budget + self._share_max)

    def took(self, seconds: float) -> None:
        """The first answer to a read came after so long."""
        recent, ordered = self._recent, self._sorted
        if len(recent) == SAMPLES:
            ordered.remove(recent.popleft())
        recent.append(seconds)
        insort(ordered, seconds)

    def delay_s(self) -> float | None:
        """How long to wait before the second read; None while too little is known."""
        count = len(self._sorted)
        if count < SAMPLES_MIN:
            return None
        return max(self._delay_min_s, self._sorted[int(self._quantile * count)])

    def allows(self) -> bool:
        """There is budget for a second read, which is spent now."""
        if self._budget < 1.0:
            return False
        self._budget -= 1.0
        self.hedged += 1
        return True


def follows(role: Any) -> bool:
    """Whether a server that answers so to ROLE has all that its primary has, but for a moment."""
    return (
        isinstance(role, list) and len(role) > ROLE_STATE and role[0] == b"slave" and role[ROLE_STATE] == b"connected"
    )


async def hedged(
    hedge: Hedge,
    first: Callable[[], Coroutine[Any, Any, Answer]],
    second: Callable[[], Coroutine[Any, Any, Answer]],
    left_behind: set["asyncio.Task[Any]"],
) -> Answer:
    """The answer of the first read, or of the second, which starts when the first is late. Raises what the first raises
    when both fail.

    The read that lost goes on, within its own limits, in `left_behind`: its connection is in use by others.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    hedge.started()
    tasks = [loop.create_task(first())]
    try:
        await asyncio.wait(tasks, timeout=hedge.delay_s())
        if not tasks[0].done() and hedge.allows():
            tasks.append(loop.create_task(second()))
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            good = [task for task in done if task.exception() is None]
            if good:
                hedge.took(loop.time() - started)
                return good[0].result()
        return tasks[0].result()
    finally:
        for task in tasks:
            if not task.done():
                left_behind.add(task)
                task.add_done_callback(_forget_into(left_behind))


def _forget_into(left_behind: set["asyncio.Task[Any]"]) -> "Callable[[asyncio.Task[Any]], None]":
    def forget(task: "asyncio.Task[Any]") -> None:
        left_behind.discard(task)
        if not task.cancelled():
            # Asked for, so that nobody is told of an error that nobody waits for.
            task.exception()

    return forget
