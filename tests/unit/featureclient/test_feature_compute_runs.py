"""Who waits for which id, how ids become runs, and how the id that is to blame is found."""

from typing import Any

import numpy as np

from featureclient.compute.answers import Answer, Values
from featureclient.compute.errors import ComputeFailed, ComputeShed
from featureclient.compute.postgres_program import numbered
from featureclient.compute.runs import Ask, Run, Waiting
from featureclient.schema import Catalogue

CATALOGUE = Catalogue.parse("entities: {e: {k: string}}\nviews:\n  v@1: {entity: e, columns: {a: int64, b: int64}}\n")
VIEW = CATALOGUE.view("v@1")


class Caller:
    """Asks, and notes that it was answered."""

    def __init__(self, waiting: Waiting, *ids: str) -> None:
        self.answers = 0
        self.ask = Ask(VIEW)
        self.ask.expect(list(ids), self._done)
        waiting.add(self.ask)

    def _done(self) -> None:
        self.answers += 1

    @property
    def table(self) -> dict[str, Any]:
        computed = self.ask.computed().table
        return dict(zip(computed["k"], np.asarray(computed["a"]).tolist(), strict=True)) if "a" in computed else {}


def waiting(rows_max: int = 10, isolating: int = 16) -> Waiting:
    return Waiting(VIEW, rows_max, isolating)


def answer(run: Run, without: str = "") -> Answer:
    """The number in each id, for all of them but one; rows in reverse order."""
    ids = list(run.wants)
    places = [position for position in reversed(range(len(ids))) if ids[position] != without]
    values = np.array([int(ids[position][1:]) for position in places], np.int64)
    return Answer(np.array(places, np.intp), {"a": Values(values, None)}, {}, 0)


def take(queue: Waiting) -> Run:
    run = queue.take()
    assert run is not None
    return run


def test_callers_share_ids_and_get_their_own() -> None:
    queue = waiting()
    first, second = Caller(queue, "k1", "k2"), Caller(queue, "k2", "k3")
    run = take(queue)
    assert list(run.wants) == ["k1", "k2", "k3"]
    assert len(queue) == 0
    run.settle(answer(run, without="k3"))
    assert (first.table, second.table) == ({"k1": 1, "k2": 2}, {"k2": 2})
    assert (first.answers, second.answers) == (1, 1)


def test_ids_are_cut_into_runs_and_the_parts_are_joined() -> None:
    queue = waiting(rows_max=2)
    caller = Caller(queue, "k1", "k2", "k3", "k4", "k5")
    sizes = []
    while (run := queue.take()) is not None:
        assert not caller.answers
        sizes.append(len(run))
        run.settle(answer(run))
    assert sizes == [2, 2, 1]
    assert caller.answers == 1
    assert caller.table == {f"k{n}": n for n in range(1, 6)}


def test_a_column_that_one_run_left_out_is_null_there() -> None:
    queue = waiting(rows_max=1)
    caller = Caller(queue, "k1", "k2")
    one, two = take(queue), take(queue)
    one.settle(answer(one))
    two.settle(Answer(np.array([0]), {"b": Values(np.array([9]), None)}, {}, 0))
    table = caller.ask.computed().table
    assert table["k"] == ["k1", "k2"]
    assert table["a"].tolist() == [1, None]
    assert table["b"].tolist() == [None, 9]


def test_who_left_costs_nothing_more() -> None:
    queue = waiting()
    first, second = Caller(queue, "k1", "k2"), Caller(queue, "k2")
    queue.leave(first.ask)
    assert len(queue) == 1
    run = take(queue)
    assert list(run.wants) == ["k2"]
    run.settle(answer(run))
    assert (first.answers, second.answers) == (0, 1)
    queue.leave(Caller(queue, "k9").ask)
    assert queue.take() is None


def test_halves_find_the_one_to_blame_and_the_others_get_their_rows() -> None:
    queue = waiting()
    caller = Caller(queue, *(f"k{n}" for n in range(8)))
    runs = 0
    while (run := queue.take()) is not None:
        runs += 1
        if "k5" not in run.wants:
            run.settle(answer(run))
        elif not queue.halve(run):
            run.fail(ComputeFailed("v@1", "function", "k5"))
    assert runs == 7
    assert caller.answers == 1
    assert caller.table == {f"k{n}": n for n in range(8) if n != 5}
    assert list(caller.ask.failed) == ["k5"]


def test_a_lineage_makes_no_more_runs_than_it_may() -> None:
    queue = waiting(rows_max=1000, isolating=6)
    caller = Caller(queue, *(f"k{n}" for n in range(1000)))
    runs = 0
    while (run := queue.take()) is not None:
        runs += 1
        if not queue.halve(run):
            run.fail(ComputeFailed("v@1", "function", "always"))
    assert runs == 7
    assert caller.answers == 1
    assert len(caller.ask.failed) == 1000


def test_all_who_wait_can_be_told() -> None:
    queue = waiting()
    first = Caller(queue, "k1", "k2")
    run = take(queue)
    assert queue.halve(run)
    second = Caller(queue, "k3")
    assert queue.fail_all(ComputeShed("v@1", "later")) == 3
    assert (first.answers, second.answers, len(queue)) == (1, 1, 0)
    assert set(first.ask.failed) == {"k1", "k2"}


def test_giving_up_fails_what_is_not_settled() -> None:
    queue = waiting(rows_max=1)
    caller = Caller(queue, "k1", "k2")
    run = take(queue)
    run.settle(answer(run))
    caller.ask.give_up(ComputeShed("v@1", "late"))
    assert list(caller.ask.failed) == ["k2"]
    assert caller.table == {"k1": 1}
    assert caller.answers == 0


def test_names_become_numbers_and_text_stays_text() -> None:
    sql = """SELECT '$ids', "$ids", $$ $ids $$, $t$ $ids $t$ -- $ids
    /* $ids */ FROM x WHERE a = ANY($hour) AND b = ANY($origin::text[]) AND c = ANY($hour)"""
    text, names = numbered(sql)
    assert names == ["hour", "origin"]
    assert text == sql.replace("$hour", "$1").replace("$origin", "$2")
