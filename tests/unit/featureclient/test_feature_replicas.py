"""Which member a read goes to, and when a second one is asked."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from featureclient.store import StoreUnavailable
from featureclient.store.replicas import (
    BURST,
    EXPLORE_EVERY,
    SAMPLES,
    SAMPLES_MIN,
    Chooser,
    Hedge,
    ReadOptions,
    follows,
    hedged,
)


def test_replicas_take_turns_and_the_primary_helps_out() -> None:
    chooser = Chooser("replica", 3)
    assert Counter(chooser.pick([True, True, True]) for _ in range(10)) == {1: 5, 2: 5}
    assert {chooser.pick([True, False, True]) for _ in range(10)} == {2}
    assert {chooser.pick([True, False, False]) for _ in range(10)} == {0}
    assert {Chooser("replica", 1).pick([True]) for _ in range(3)} == {0}


def test_the_primary_alone_is_read_unless_somebody_wants_otherwise() -> None:
    chooser = Chooser("primary", 3)
    assert {chooser.pick([True, True, True]) for _ in range(200)} == {0}
    assert chooser.second(0, [True, True, True]) == 0


def test_the_nearest_is_who_answers_fastest_and_the_others_are_looked_at_now_and_then() -> None:
    chooser = Chooser("nearest", 3)
    for member, seconds in ((0, 0.003), (1, 0.001), (2, 0.002)):
        chooser.took(member, seconds)
    picks = Counter(chooser.pick([True, True, True]) for _ in range(6 * EXPLORE_EVERY))
    assert picks[1] >= 6 * (EXPLORE_EVERY - 1)
    assert set(picks) == {0, 1, 2}
    assert chooser.second(1, [True, True, True]) == 2
    assert chooser.second(1, [True, True, False]) == 0
    assert chooser.second(1, [False, True, False]) == 1
    for _ in range(100):
        chooser.took(1, 0.005)
    assert chooser.pick([True, True, True]) == 2
    assert chooser.pick([False, False, False]) == 0


def test_the_delay_of_a_hedge_is_what_most_of_the_last_reads_took() -> None:
    hedge = Hedge(ReadOptions(hedge=True, hedge_quantile=0.95, hedge_delay_min_s=0.0))
    for _ in range(SAMPLES_MIN - 1):
        hedge.took(1.0)
    assert hedge.delay_s() is None
    for i in range(SAMPLES):
        hedge.took((i * 37 % SAMPLES) / 1000)
    assert hedge.delay_s() == pytest.approx(0.95 * SAMPLES / 1000)
    assert Hedge(ReadOptions(hedge_delay_min_s=0.5)).delay_s() is None


def test_the_share_of_hedges_is_bounded_and_few_are_saved_up() -> None:
    hedge = Hedge(ReadOptions(hedge=True, hedge_share_max=0.05))
    assert not hedge.allows()
    for _ in range(1000):
        hedge.started()
    assert sum(hedge.allows() for _ in range(100)) == int(BURST)
    allowed = 0
    for _ in range(1000):
        hedge.started()
        allowed += hedge.allows()
    assert allowed == pytest.approx(50, abs=1)


@pytest.mark.parametrize(
    ("role", "yes"),
    [
        ([b"slave", b"127.0.0.1", 6379, b"connected", 99], True),
        ([b"slave", b"127.0.0.1", 6379, b"connecting", -1], False),
        ([b"slave", b"127.0.0.1", 6379, b"sync", -1], False),
        ([b"master", 99, []], False),
        (b"OK", False),
    ],
)
def test_only_a_replica_that_follows_is_read(role: object, yes: bool) -> None:
    assert follows(role) is yes


def ready(share_max: float = 1.0) -> Hedge:
    hedge = Hedge(ReadOptions(hedge=True, hedge_share_max=share_max, hedge_delay_min_s=0.01))
    for _ in range(SAMPLES_MIN):
        hedge.started()
        hedge.took(0.0)
    return hedge


async def answer(value: str, after: asyncio.Event | None = None) -> str:
    if after is not None:
        await after.wait()
    if value == "error":
        raise StoreUnavailable("no")
    return value


async def test_who_answers_first_is_believed_and_the_other_left_to_itself() -> None:
    left: set[asyncio.Task[Any]] = set()
    hedge, late = ready(), asyncio.Event()
    assert await hedged(hedge, lambda: answer("a"), lambda: answer("b"), left) == "a"
    assert (hedge.hedged, left) == (0, set())
    assert await hedged(hedge, lambda: answer("a", late), lambda: answer("b"), left) == "b"
    assert (hedge.hedged, len(left)) == (1, 1)
    # The second fails: the first may still answer.
    task = asyncio.create_task(hedged(hedge, lambda: answer("a", late), lambda: answer("error"), left))
    await asyncio.sleep(0.05)
    assert not task.done()
    late.set()
    assert await task == "a"
    late.clear()
    task = asyncio.create_task(hedged(hedge, lambda: answer("error", late), lambda: answer("error"), left))
    await asyncio.sleep(0.05)
    late.set()
    with pytest.raises(StoreUnavailable):
        await task
    await asyncio.gather(*left)


async def test_without_budget_nothing_is_hedged() -> None:
    left: set[asyncio.Task[Any]] = set()
    hedge, late = ready(0.01), asyncio.Event()
    task = asyncio.create_task(hedged(hedge, lambda: answer("a", late), lambda: answer("b"), left))
    await asyncio.sleep(0.05)
    assert not task.done()
    assert hedge.hedged == 0
    late.set()
    assert await task == "a"


async def test_a_caller_who_leaves_takes_no_read_with_him() -> None:
    left: set[asyncio.Task[Any]] = set()
    late = asyncio.Event()
    task = asyncio.create_task(hedged(ready(), lambda: answer("a", late), lambda: answer("b", late), left))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(left) == 2
    late.set()
    assert sorted(await asyncio.gather(*left)) == ["a", "b"]
    await asyncio.sleep(0)
    assert not left


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"read_from": "anywhere"}, "read_from"),
        ({"hedge_quantile": 1.0}, "hedge_quantile"),
        ({"hedge_share_max": 0.0}, "hedge_share_max"),
        ({"hedge_delay_min_s": -1.0}, "hedge_delay_min_s"),
    ],
)
def test_options_are_checked(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ReadOptions(**settings)
