"""Rows that are read ahead: who is asked for a row of view A will soon be asked for certain rows of view B.

    a model that binds A and B     its look-ups teach which ids come together    Together.seen
    a model that binds A alone     the companions of its ids are read            Together.ahead ──▶ client.read_ahead

A view says it in the catalogue (`prefetch`). What is known is kept here, one `Together` for A and B, for all models.

Bounds: a look at a batch of requests takes at most `LOOK_IDS_MAX` ids of it, and is paid for by the batches after it,
which are passed over until there was one for every `BATCH_IDS` ids looked at. An id costs one to two microseconds,
so a batch pays 3 to 5 on average, however large it is, and a lone request is looked at each time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from featureclient.schema import View
from featureclient.warmup import Together
from gateway.plan import Plan
from gateway.records.request import Id, Request

LOOK_IDS_MAX = 128
BATCH_IDS = 2
ID_LENGTH_MAX = 128
"""Characters of an id, or of a part of one, that is remembered."""


class Reads(Protocol):
    """Who reads ahead: `FeatureClient`."""

    def read_ahead(self, view: View, ids: Sequence[Id]) -> None:
        """Read what is not cached of these rows, in the background."""
        ...


class _Teaching(NamedTuple):
    """The ids of two bindings of one plan, by their index, are seen together."""

    a: int
    b: int
    together: Together


class _Asking(NamedTuple):
    """The companions of a binding's ids are read ahead."""

    a: int
    b: View
    together: Together


class ReadAhead:
    """What is known of ids that come together, of all models of a pipeline."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._together: dict[tuple[str, str], Together] = {}

    def __repr__(self) -> str:
        return f"<ReadAhead {self._together}>"

    def of(self, plan: Plan, views: Mapping[str, View]) -> "PlanAhead | None":
        """What to do with the look-ups of a plan; None where none of its views says so. `views` are the catalogue's."""
        bound = [binding.view for binding in plan.bindings]
        teaching: list[_Teaching] = []
        asking: list[_Asking] = []
        for a, view in enumerate(bound):
            for ref in view.prefetch:
                together = self._together.setdefault((view.ref, ref), Together())
                others = [b for b, other in enumerate(bound) if other.ref == ref]
                teaching += [_Teaching(a, b, together) for b in others]
                if not others:
                    asking.append(_Asking(a, views[ref], together))
        return PlanAhead(self._reads, teaching, asking) if teaching or asking else None


class PlanAhead:
    """Looks at some of the look-ups of one plan."""

    __slots__ = ("_asking", "_pass_over", "_reads", "_teaching", "_turn")

    def __init__(self, reads: Reads, teaching: Sequence[_Teaching], asking: Sequence[_Asking]) -> None:
        self._reads = reads
        self._teaching = teaching
        self._asking = asking
        self._pass_over = 0
        self._turn = 0

    def __repr__(self) -> str:
        return f"<PlanAhead teaching={len(self._teaching)} asking={len(self._asking)} pass_over={self._pass_over}>"

    def look(self, requests: Sequence[Request]) -> None:
        """These requests of the plan were looked up together."""
        if self._pass_over:
            self._pass_over -= 1
            return
        self._turn += 1
        looked_at = 0
        for a, b, together in self._teaching:
            for request, rows in self._some(requests):
                a_ids, b_ids = _ids(request, a, rows), _ids(request, b, rows)
                together.seen(a_ids, b_ids)
                looked_at += max(len(a_ids), len(b_ids))
        for a, view, together in self._asking:
            ids = [one for request, rows in self._some(requests) for one in _ids(request, a, rows)]
            looked_at += len(ids)
            companions = together.ahead(ids, LOOK_IDS_MAX)
            if companions:
                self._reads.read_ahead(view, companions)
        self._pass_over = looked_at // BATCH_IDS

    def _some(self, requests: Sequence[Request]) -> Iterator[tuple[Request, slice]]:
        """Requests, beginning with another one each time, and which of their rows; at most `LOOK_IDS_MAX` in all."""
        room = LOOK_IDS_MAX
        for i in range(len(requests)):
            request = requests[(self._turn + i) % len(requests)]
            stride = max(1, -(-request.rows // room))
            yield request, slice(self._turn % stride, None, stride)
            room -= -(-request.rows // stride)
            if room <= 0:
                return


def _ids(request: Request, index: int, rows: slice) -> Sequence[Id]:
    """The ids of one view for some rows of a request; a single one stands for all rows. None that is not short."""
    ids = request.ids[index]
    some = ids if len(ids) == 1 else ids[rows]
    return some if all(map(_short, some)) else ()


def _short(one: Id) -> bool:
    """Nothing is kept of long ids: a caller may send any, and the client may refuse them."""
    if isinstance(one, tuple):
        return all(map(_short, one))
    return isinstance(one, int) or len(one) <= ID_LENGTH_MAX
