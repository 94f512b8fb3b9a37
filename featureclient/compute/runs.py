"""Which ids wait for which run, and who waits for them. Pure: no clock, no process; `Computer` does the running.

    Waiting.add(ask)      ids join the queue of their view; an id that is there already is shared
    Waiting.take()        the next run of the view: its oldest ids, at most `batch_rows_max`
    Run.settle(answer)    every ask gets its rows; asks that have all of theirs are done
    Run.fail(error)       the same without rows
    Waiting.halve(run)    or: try again with halves, to find the id that is to blame

Invariants
- An id is in one run at a time, unless somebody asks for it while it is computed (the client above sees to that).
- An ask that has left costs nothing from then on: ids that nobody else waits for are not computed.
- A run is halved only as long as its lineage has runs left; a lineage makes `isolating_runs_max` more runs at most.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from featureclient.compute.answers import Answer, Values
from featureclient.compute.errors import ComputeError, ComputeFailed
from featureclient.compute.programs import key_columns
from featureclient.schema import Id, View


@dataclass(frozen=True, slots=True)
class Computed:
    """What became of the ids of one call.

    `table` has the join keys and the columns of the ids that have a row, as `FeatureClient.encode` takes it. `failed`
    tells why others have none. An id in neither of them has no row.
    """

    table: Mapping[str, Any]
    failed: Mapping[Id, ComputeError]


class Ask:
    """One call that waits for ids, for all of them or for one piece after the other."""

    __slots__ = ("_done", "_missing", "_parts", "_settled", "failed", "ids", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self.ids: Sequence[Id] = ()
        self.failed: dict[Id, ComputeError] = {}
        self._parts: list[tuple[list[Id], Mapping[str, Values]]] = []
        self._missing = 0
        self._settled: list[Sequence[Id]] = []
        self._done: Callable[[], None] | None = None

    def expect(self, ids: Sequence[Id], done: Callable[[], None]) -> None:
        """Wait for these ids, each of them once. `done` is called when all of them are settled."""
        self.ids = ids
        self._missing = len(ids)
        self._settled = []
        self._done = done

    @property
    def live(self) -> bool:
        """The caller still waits."""
        return self._done is not None

    def leave(self) -> None:
        """The caller has left."""
        self._done = None

    def add(self, ids: list[Id], columns: Mapping[str, Values]) -> None:
        """Take the rows of some ids."""
        self._parts.append((ids, columns))

    def settle(self, ids: Sequence[Id]) -> None:
        """These ids have got what they will get."""
        self._settled.append(ids)
        self._missing -= len(ids)
        if not self._missing and self._done is not None:
            done, self._done = self._done, None
            done()

    def give_up(self, error: ComputeError) -> None:
        """What is not settled has failed."""
        self.leave()
        settled = set().union(*self._settled)
        self.failed.update({one: error for one in self.ids if one not in settled})

    def computed(self) -> Computed:
        """All that came."""
        ids = [one for part, _ in self._parts for one in part]
        table: dict[str, Any] = dict(key_columns(self.view, ids))
        if self._parts:
            for name in dict.fromkeys(name for _, columns in self._parts for name in columns):
                table[name] = _joined([(columns.get(name), len(part)) for part, columns in self._parts])
        return Computed(table, self.failed)


def _joined(parts: Sequence[tuple[Values | None, int]]) -> Any:
    """One column of several runs. A run that left it out has nulls there."""
    like = next(values for values, _ in parts if values is not None).values
    filled = [
        Values(np.zeros((count, *like.shape[1:]), like.dtype), np.ones(count, np.bool_)) if values is None else values
        for values, count in parts
    ]
    values = filled[0].values if len(filled) == 1 else np.concatenate([one.values for one in filled])
    if all(one.null is None for one in filled):
        return values
    null = np.concatenate([np.zeros(len(one.values), np.bool_) if one.null is None else one.null for one in filled])
    return np.ma.MaskedArray(values, np.broadcast_to(null.reshape(-1, *[1] * (values.ndim - 1)), values.shape))


class Run:
    """Some ids of a view, computed together. `spare` is how many more runs its lineage may make."""

    __slots__ = ("isolating", "settled", "spare", "view", "wants")

    def __init__(self, view: View, wants: Mapping[Id, list[Ask]], spare: list[int], isolating: bool) -> None:
        self.view = view
        self.wants = wants
        self.spare = spare
        self.isolating = isolating
        self.settled = False

    def __len__(self) -> int:
        return len(self.wants)

    def settle(self, answer: Answer) -> None:
        """Give everybody the rows of the answer."""
        self.settled = True
        ids = list(self.wants)
        rows = {ids[position]: row for row, position in enumerate(answer.positions.tolist())}
        wrong = {ids[position]: ComputeFailed(self.view.ref, "answer", why) for position, why in answer.wrong.items()}
        groups = _groups(self.wants)
        for asks, mine in groups:
            columns, found = answer.columns, list(rows)
            if len(groups) > 1:
                found = [one for one in mine if one in rows]
                which = np.fromiter((rows[one] for one in found), np.intp, len(found))
                columns = {name: values.take(which) for name, values in answer.columns.items()}
            for ask in asks:
                if ask.live and found:
                    ask.add(found, columns)
                ask.failed.update({one: wrong[one] for one in mine if one in wrong} if wrong else {})
                ask.settle(mine)

    def fail(self, error: ComputeError) -> None:
        """Give everybody the error."""
        self.settled = True
        _fail(self.wants, error)


class Waiting:
    """The ids of one view that wait for a run."""

    def __init__(self, view: View, rows_max: int, isolating_runs_max: int) -> None:
        self._view = view
        self._rows_max = rows_max
        self._isolating_runs_max = isolating_runs_max
        self._wanted: dict[Id, list[Ask]] = {}
        self._halves: deque[Run] = deque()

    def __len__(self) -> int:
        return len(self._wanted) + sum(map(len, self._halves))

    def add(self, ask: Ask) -> None:
        """Have an ask wait for all of its ids."""
        alone = [ask]
        for one in ask.ids:
            asks = self._wanted.get(one)
            self._wanted[one] = alone if asks is None else [*asks, ask]

    def leave(self, ask: Ask) -> None:
        """An ask has left: forget the ids that only it waited for."""
        ask.leave()
        for one in ask.ids:
            asks = self._wanted.get(one)
            if asks is not None and not any(other.live for other in asks):
                del self._wanted[one]

    def take(self) -> Run | None:
        """The next run; None when nobody waits."""
        while self._halves:
            half = self._halves.popleft()
            wants = {one: asks for one, asks in half.wants.items() if any(ask.live for ask in asks)}
            if wants:
                return Run(self._view, wants, half.spare, isolating=True)
        ids = list(islice(self._wanted, self._rows_max))
        if not ids:
            return None
        return Run(self._view, {one: self._wanted.pop(one) for one in ids}, [self._isolating_runs_max], isolating=False)

    def halve(self, run: Run) -> bool:
        """Try the ids of a run that failed again, in two halves. False when its lineage may make no more runs."""
        if len(run) < 2 or run.spare[0] < 2:  # noqa: PLR2004  # a half each
            return False
        run.settled = True
        run.spare[0] -= 2
        wants = list(run.wants.items())
        middle = len(wants) // 2
        for half in (wants[:middle], wants[middle:]):
            self._halves.append(Run(self._view, dict(half), run.spare, isolating=True))
        return True

    def fail_all(self, error: ComputeError) -> int:
        """Give everybody who waits the error; returns how many ids it were."""
        count = 0
        for wants in self._drain():
            count += len(wants)
            _fail(wants, error)
        return count

    def _drain(self) -> Iterator[Mapping[Id, list[Ask]]]:
        halves, self._halves = self._halves, deque()
        wanted, self._wanted = self._wanted, {}
        yield from (half.wants for half in halves)
        yield wanted


def _fail(wants: Mapping[Id, list[Ask]], error: ComputeError) -> None:
    for asks, ids in _groups(wants):
        for ask in asks:
            ask.failed.update(dict.fromkeys(ids, error))
            ask.settle(ids)


def _groups(wants: Mapping[Id, list[Ask]]) -> list[tuple[list[Ask], list[Id]]]:
    """The ids by who waits for them. Ids that came with one call share one list, so most runs are one group."""
    lists = {id(asks): asks for asks in wants.values()}
    if len(lists) == 1:
        return [(next(iter(lists.values())), list(wants))]
    groups: dict[int, tuple[list[Ask], list[Id]]] = {key: (asks, []) for key, asks in lists.items()}
    for one, asks in wants.items():
        groups[id(asks)][1].append(one)
    return list(groups.values())
