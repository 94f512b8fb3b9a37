"""Computed rows reach who asked for them: any overlap of calls, any cut into runs, failures and departures between."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featureclient.compute.answers import checked
from featureclient.compute.errors import ComputeFailed
from featureclient.compute.runs import Ask, Waiting
from featureclient.schema import Catalogue

CATALOGUE = Catalogue.parse("entities: {e: {k: int64}}\nviews:\n  v@1: {entity: e, columns: {a: int64}}\n")
VIEW = CATALOGUE.view("v@1")
NUMBERS = st.integers(0, 30)


@given(
    calls=st.lists(st.lists(NUMBERS, min_size=1, unique=True), max_size=8),
    leaving=st.sets(st.integers(0, 7)),
    absent=st.sets(NUMBERS),
    poison=st.sets(NUMBERS, max_size=2),
    rows_max=st.integers(1, 12),
    spare=st.integers(0, 12),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_call_gets_the_rows_of_its_ids_once(
    calls: list[list[int]],
    leaving: set[int],
    absent: set[int],
    poison: set[int],
    rows_max: int,
    spare: int,
    shuffle: Any,
) -> None:
    queue = Waiting(VIEW, rows_max, spare)
    answers = [0] * len(calls)
    asks = [Ask(VIEW) for _ in calls]

    def count(place: int) -> None:
        answers[place] += 1

    for place, (ask, ids) in enumerate(zip(asks, calls, strict=True)):
        ask.expect(ids, lambda place=place: count(place))
        queue.add(ask)
    runs = 0
    while (run := queue.take()) is not None:
        runs += 1
        assert len(run) <= rows_max
        for place in leaving & set(range(len(asks))) if runs == 2 else ():
            queue.leave(asks[place])
        if poison & set(run.wants):
            if not queue.halve(run):
                run.fail(ComputeFailed("v@1", "function", "poison"))
            continue
        there = [one for one in run.wants if one not in absent]
        shuffle.shuffle(there)
        table = {"k": [*there, 99], "a": np.array([*there, 99]) * 10}
        run.settle(checked(VIEW, list(run.wants), table))
    left = leaving if runs >= 2 else set()
    for place, ask in enumerate(asks):
        if place not in left or answers[place]:
            assert answers[place] == 1
            check(ask, set(calls[place]), absent, poison)
    assert len(queue) == 0


def check(ask: Ask, ids: set[int], absent: set[int], poison: set[int]) -> None:
    computed = ask.computed()
    table = dict(zip(computed.table["k"], computed.table.get("a", np.empty(0)).tolist(), strict=True))
    assert all(value == one * 10 for one, value in table.items())
    assert set(table) | set(computed.failed) | (absent & ids) == ids
    assert not set(table) & (set(computed.failed) | absent)
    assert poison or not computed.failed
