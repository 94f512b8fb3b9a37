"""Who answers a request that leaves it to the server: the arms that its ids were put into, and what those count.

    requests for a model ─▶ Route.assign ─▶ (way, some of them) … ─▶ pipeline.accept(way.model, some, way.sink(inner))

Invariants
- Every request comes out once. One that is pinned, or in no experiment, comes out without a way: the model answers.
- A request of many rows is assigned whole, by the id of its first row.
- Counting happens after the answers were sent, in a later turn of the loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.experiments.health import ArmCounts
from gateway.experiments.layer import Layer
from gateway.inference import Model
from gateway.inference.variants import IdsAt, without_unknown
from gateway.pipeline import Answers
from gateway.pipeline.lane import Sink
from gateway.records.errors import DeadlinePassed, HeadraceError, RowRejected, ServerError
from gateway.records.request import Request

_log = logging.getLogger(__name__)
_pinned_of = itemgetter(Request._fields.index("pinned"))
_overrides_of = itemgetter(Request._fields.index("overrides"))
_rows_of = itemgetter(Request._fields.index("rows"))
_arrived_of = itemgetter(Request._fields.index("arrived"))


class Feed(NamedTuple):
    """What is counted of an arm, and which score."""

    counts: ArmCounts
    output: int | None
    """The output that has the score; None where none of the model's has numbers."""
    position: int
    counted: Callable[[], None] | None = None
    """Told after each counting, so that a canary is not late."""


class Way:
    """A variant that requests are assigned to, and the arms that this stands for: one for each experiment."""

    def __init__(self, model: Model, feeds: Sequence[Feed], overridable: frozenset[tuple[int, str]] | None) -> None:
        """`overridable`: the columns that a request may override here too; None where that is all of them."""
        self.model = model
        self.feeds = tuple(feeds)
        self._overridable = overridable
        self._sinks: dict[int, CountingSink] = {}

    def __repr__(self) -> str:
        return f"<Way {self.model!r}>"

    def sink(self, inner: Sink) -> "CountingSink":
        """The handler's sink, with counting."""
        found = self._sinks.get(id(inner))
        if found is None:  # it holds the inner one, so that no other can have the same id
            found = self._sinks[id(inner)] = CountingSink(inner, self.model.name, self.model.variant, self.feeds)
        return found

    def fitted(self, requests: list[Request]) -> list[Request]:
        """The requests as the variant takes them."""
        known = self._overridable
        if known is None or not any(map(_overrides_of, requests)):
            return requests
        return [without_unknown(request, known) if request.overrides else request for request in requests]


class CountingSink:
    """Hands answers on, and counts them for the arms."""

    __slots__ = ("_feeds", "_inner", "_name", "_variant")

    def __init__(self, inner: Sink, name: str, variant: str, feeds: tuple[Feed, ...]) -> None:
        self._inner = inner
        self._name = name
        self._variant = variant
        self._feeds = feeds

    def __repr__(self) -> str:
        return f"<CountingSink {self._name} {self._variant}>"

    def answer(self, answers: Answers) -> None:
        """Answer every request."""
        self._inner.answer(answers)
        asyncio.get_running_loop().call_soon(self._count, answers, time.monotonic())

    def refuse(self, request: Request, error: HeadraceError, model: Model) -> None:
        """End one request with an error; those that the caller made or left count for no arm."""
        self._inner.refuse(request, error, model)
        if isinstance(error, (ServerError, DeadlinePassed, RowRejected)):
            for feed in self._feeds:
                feed.counts.failed()
                if feed.counted is not None:
                    feed.counted()

    def _count(self, answers: Answers, answered: float) -> None:
        try:
            rows = [*map(_rows_of, answers.requests)]
            seconds = [answered - arrived for arrived in map(_arrived_of, answers.requests)]
            # The fallback of a check answers under its own name.
            ours = answers.model.name == self._name and answers.model.plan.batched
            violated = _violated(answers) if ours else np.ones(sum(rows), np.bool_)
            for feed in self._feeds:
                feed.counts.answered(rows, seconds, _scores(answers, feed) if ours else None, violated)
                if feed.counted is not None:
                    feed.counted()
        except Exception:  # noqa: BLE001 - a bug of ours: the answers have been sent, and the next ones are to be
            _log.exception("counting answers of %s %s failed", self._name, self._variant)


class Route:
    """How the requests for one model are dealt out."""

    def __init__(self, layers: Sequence[tuple[IdsAt, Layer]], ways: Mapping[tuple[int, ...], Way]) -> None:
        """`ways` by the choice in each layer; no entry is the model as it is served."""
        self._layers = tuple(layers)
        self._ways = ways
        self._by_choice = {choices[0]: way for choices, way in ways.items()} if len(layers) == 1 else {}

    def __repr__(self) -> str:
        return f"<Route {list(self._ways.values())}>"

    def assign(self, requests: list[Request]) -> Iterator[tuple[Way | None, list[Request]]]:
        """Deal the requests out, in their order."""
        if any(map(_pinned_of, requests)):
            yield None, [request for request in requests if request.pinned]
            requests = [request for request in requests if not request.pinned]
            if not requests:
                return
        try:
            groups = self._grouped(requests)
        except Exception:  # noqa: BLE001 - a bug of ours is no reason to harm anybody
            _log.exception("assigning requests of %s failed; the model as it is served answers", requests[0].model)
            groups = [(None, requests)]
        yield from groups

    def _grouped(self, requests: list[Request]) -> list[tuple[Way | None, list[Request]]]:
        if len(self._layers) == 1:
            (at, layer), ways = self._layers[0], self._by_choice
            choices = layer.choose(at.first(requests))
            first = choices[0]
            if choices.count(first) == len(choices):
                return [_fitted(ways.get(first), requests)]
            groups: dict[int, list[Request]] = {}
            for request, choice in zip(requests, choices, strict=True):
                if choice in groups:
                    groups[choice].append(request)
                else:
                    groups[choice] = [request]
            return [_fitted(ways.get(choice), some) for choice, some in groups.items()]
        chosen = zip(*[layer.choose(at.first(requests)) for at, layer in self._layers], strict=True)
        mixed: dict[tuple[int, ...], list[Request]] = {}
        for request, several in zip(requests, chosen, strict=True):
            mixed.setdefault(several, []).append(request)
        return [_fitted(self._ways.get(several), some) for several, some in mixed.items()]


def _fitted(way: Way | None, requests: list[Request]) -> tuple[Way | None, list[Request]]:
    return (None, requests) if way is None else (way, way.fitted(requests))


def score_output(model: Model, wanted: str | None) -> int | None:
    """The output that has the score: the one of that name, or the first of numbers. Raises KeyError for no such one."""
    outputs = model.signature.outputs
    if wanted is not None:
        found = [index for index, spec in enumerate(outputs) if spec.name == wanted and spec.dtype != "string"]
        if not found:
            raise KeyError(wanted)
        return found[0]
    return next((index for index, spec in enumerate(outputs) if spec.dtype not in {"string", "bool"}), None)


def _scores(answers: Answers, feed: Feed) -> npt.NDArray[np.float64] | None:
    if feed.output is None:
        return None
    values = np.asarray(answers.outputs[feed.output])
    if values.ndim > 1:
        values = values.reshape(len(values), -1)[:, feed.position]
    return values.astype(np.float64)


def _violated(answers: Answers) -> npt.NDArray[np.bool_] | None:
    if answers.violations is None:
        return None
    return np.asarray(answers.violations.mask.any(axis=1))


def deal(
    by_model: Mapping[Model, list[Request]], routes: Mapping[Model, Route]
) -> Iterator[tuple[Model, list[Request], Way | None]]:
    """What is to be accepted: the requests of each model, dealt out where there is a route."""
    for model, requests in by_model.items():
        route = routes.get(model)
        if route is None:
            yield model, requests, None
            continue
        for way, some in route.assign(requests):
            yield (model if way is None else way.model), some, way
