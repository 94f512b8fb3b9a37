"""What a shadow gets of the requests that were answered, how it is cut into slices, and put together again. Pure.

    Copied ──split──▶ runs of whole requests          a request that is larger than a slice ──pieces──▶ its rows
                                                       pieces, run one by one ──Whole──▶ the request's answer

Invariants
- Each request is in one part, in order; a piece has the rows, ids and context of its rows and no others.
- The primary's arrays are not copied: parts are views of them.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from gateway.inference import Model
from gateway.pipeline.batch import Batch
from gateway.pipeline.lane import Answers
from gateway.plan import Assembled
from gateway.records.request import Array, Request
from gateway.records.violations import FALLBACK, Changed, Violations

_Scalar = TypeVar("_Scalar", bound=np.generic)
AGES_APART_MAX_MS = 100
"""Answers of moments so far apart may share a slice, and count ages from the first of them."""
PARTS_MAX = 16
"""Parts that a batch is cut into at a time; the rest of it stays whole."""


class Copied(NamedTuple):
    """Requests that a primary has answered, and what it answered."""

    requests: Sequence[Request]
    stored: Sequence[Sequence[bytes]]
    """Per view of the plan, the rows that the primary was given."""
    rows: int
    outputs: Sequence[Array]
    numbers: npt.NDArray[np.uint64]
    """The counters of the prediction ids, one per request."""
    arrived: Sequence[float]
    answered: npt.NDArray[np.bool_] | None
    """Rows that the primary's graph answered; None: all. The others were replaced after their checks."""
    now_ms: int
    """What the primary counted ages from."""
    offered: float
    piece: "tuple[Whole, int] | None" = None
    """Of what request this is a piece, and which, from 0."""


class Compared(NamedTuple):
    """Requests that primary and shadow have both answered."""

    experiment: str
    primary: Model
    shadow: Answers
    """Of the variant, with the prediction ids of the primary's answers."""
    outputs: Sequence[Array]
    """The primary's, in the order of its signature. Each has the rows of the shadow's."""
    blocks: dict[int, npt.NDArray[np.void]]
    """The primary's rows of the views that differ, by the number of the view."""
    answered: npt.NDArray[np.bool_] | None
    """Rows that both graphs answered; None: all."""


class Part(NamedTuple):
    """What the shadow made of a `Copied`. Every array has as many rows."""

    assembled: Assembled
    outputs: Sequence[Array]
    violations: Violations | None
    answered: npt.NDArray[np.bool_] | None


class Whole:
    """A request in pieces."""

    __slots__ = ("_left", "_parts", "copied", "lost")

    def __init__(self, copied: Copied, pieces: int) -> None:
        self.copied = copied
        self.lost = False
        """A piece of it will never come."""
        self._parts: list[Part | None] = [None] * pieces
        self._left = pieces

    def put(self, number: int, part: Part) -> Part | None:
        """Take a piece. The last one gives the whole."""
        self._parts[number] = part
        self._left -= 1
        return None if self._left else _joined([one for one in self._parts if one is not None])


def copied_of(batch: Batch, answers: Answers, arrived: Sequence[float], now: float) -> Copied:
    """The copy of a run's answers; some requests of the batch may have been refused."""
    requests = answers.requests
    stored: Sequence[Sequence[bytes]] = batch.stored
    if len(requests) != len(batch.requests):
        answered = {id(request) for request in requests}
        stored = batch.pick([number for number, one in enumerate(batch.requests) if id(one) in answered]).stored
    kept = None
    if answers.violations is not None:
        verdicts = answers.violations.verdicts
        kept = verdicts < FALLBACK if (verdicts >= FALLBACK).any() else None
    return Copied(
        requests,
        stored,
        sum([request.rows for request in requests]),
        answers.outputs,
        answers.numbers,
        arrived,
        kept,
        answers.assembled.now_ms,
        now,
    )


def split(copied: Copied, rows_max: int) -> list[Copied]:
    """Cut between requests, into parts of at most `rows_max` rows or of one request; the last has what is left."""
    parts: list[Copied] = []
    requests = copied.requests
    views = range(len(copied.stored))
    at = row = 0
    ends = [0] * len(copied.stored)
    while at < len(requests):
        start, row_start, starts = at, row, ends
        rows = 0
        if len(parts) + 1 == PARTS_MAX:
            at, rows = len(requests), copied.rows - row_start
            ends = [len(stored) for stored in copied.stored]
        else:
            while at < len(requests) and (at == start or rows + requests[at].rows <= rows_max):
                rows += requests[at].rows
                at += 1
            some = requests[start:at]
            ends = [starts[view] + sum([len(request.ids[view]) for request in some]) for view in views]
        row = row_start + rows
        span = slice(row_start, row)
        parts.append(
            copied._replace(
                requests=requests[start:at],
                stored=[copied.stored[view][starts[view] : ends[view]] for view in views],
                rows=rows,
                outputs=[output[span] for output in copied.outputs],
                numbers=copied.numbers[start:at],
                arrived=copied.arrived[start:at],
                answered=None if copied.answered is None else copied.answered[span],
            )
        )
    return parts


def pieces(copied: Copied, rows_max: int) -> Iterator[Copied]:
    """Cut the one request of a copy by its rows. Made one by one: all of them at once would take a slice."""
    (request,) = copied.requests
    starts = range(0, request.rows, rows_max)
    whole = Whole(copied, len(starts))
    for number, start in enumerate(starts):
        stop = min(start + rows_max, request.rows)
        yield copied._replace(
            requests=[_piece(request, start, stop)],
            stored=[rows if len(rows) == 1 else rows[start:stop] for rows in copied.stored],
            rows=stop - start,
            piece=(whole, number),
        )


def _piece(request: Request, start: int, stop: int) -> Request:
    context: list[bytes | list[str]] = []
    for column in request.context:
        size = len(column) // request.rows  # bytes, or strings, of a row
        context.append(column[start * size : stop * size])
    return request._replace(
        rows=stop - start,
        ids=tuple([ids if len(ids) == 1 else ids[start:stop] for ids in request.ids]),
        context=tuple(context),
        overrides=tuple([one._replace(values=one.values[start:stop]) for one in request.overrides]),
    )


def fits_with(first: Copied, other: Copied) -> bool:
    """Both may share a run: their requests are of one shape, and their ages are counted from about the same moment."""
    apart_ms = abs(other.now_ms - first.now_ms)
    return apart_ms <= AGES_APART_MAX_MS and other.requests[0].shape == first.requests[0].shape


def gathered(copies: Sequence[Copied]) -> Copied:
    """Several copies as one."""
    if len(copies) == 1:
        return copies[0]
    first = copies[0]
    answered = None
    if any(copied.answered is not None for copied in copies):
        answered = np.concatenate(
            [np.ones(copied.rows, np.bool_) if copied.answered is None else copied.answered for copied in copies]
        )
    return first._replace(
        requests=[*chain.from_iterable([copied.requests for copied in copies])],
        stored=[[*chain.from_iterable(rows)] for rows in zip(*[copied.stored for copied in copies], strict=True)],
        rows=sum([copied.rows for copied in copies]),
        outputs=[np.concatenate(same) for same in zip(*[copied.outputs for copied in copies], strict=True)],
        numbers=np.concatenate([copied.numbers for copied in copies]),
        arrived=[*chain.from_iterable([copied.arrived for copied in copies])],
        answered=answered,
    )


def without(copied: Copied, gone: npt.NDArray[np.bool_]) -> tuple[Copied, npt.NDArray[np.bool_]]:
    """The requests none of whose rows is `gone`, and which rows these are."""
    sizes = [request.rows for request in copied.requests]
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    return pick(copied, np.flatnonzero(~np.logical_or.reduceat(gone, starts)).tolist())


def pick(copied: Copied, numbers: Sequence[int]) -> tuple[Copied, npt.NDArray[np.bool_]]:
    """The requests with these numbers, from 0 and ascending, and which rows these are."""
    kept = np.zeros(len(copied.requests), np.bool_)
    kept[list(numbers)] = True
    rows = np.repeat(kept, [request.rows for request in copied.requests])
    batch = Batch([*copied.requests], [[*one] for one in copied.stored], copied.rows, 0, 0.0).pick(numbers)
    left = copied._replace(
        requests=batch.requests,
        stored=batch.stored,
        rows=batch.rows,
        outputs=[output[rows] for output in copied.outputs],
        numbers=copied.numbers[kept],
        arrived=[copied.arrived[number] for number in numbers],
        answered=None if copied.answered is None else copied.answered[rows],
    )
    return left, rows


def both(one: npt.NDArray[np.bool_] | None, other: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    """Rows that are marked in both; None marks all."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _joined(parts: Sequence[Part]) -> Part:
    assembled = [part.assembled for part in parts]
    first = assembled[0]
    answered = None
    if any(part.answered is not None for part in parts):
        answered = np.concatenate(
            [np.ones(len(part.outputs[0]), np.bool_) if part.answered is None else part.answered for part in parts]
        )
    return Part(
        Assembled(
            {name: np.concatenate([one.inputs[name] for one in assembled]) for name in first.inputs},
            _columns([one.statuses for one in assembled]),
            _columns([one.events_ms for one in assembled]),
            first.now_ms,
            None,
            tuple([stacked(same) for same in zip(*[one.blocks for one in assembled], strict=True)]),
            _columns([one.context for one in assembled]),
        ),
        _columns([part.outputs for part in parts]),
        _violations(parts),
        answered,
    )


def block_of(copied: Copied, index: int, layout: npt.DTypeLike) -> npt.NDArray[np.void]:
    """The rows of a view that the primary was given, a row for each row of the requests."""
    block: npt.NDArray[np.void] = np.frombuffer(b"".join(copied.stored[index]), layout)
    if len(block) != copied.rows:
        repeats = [[one.rows] if len(one.ids[index]) == 1 else [1] * one.rows for one in copied.requests]
        block = np.repeat(block, [*chain.from_iterable(repeats)])
    return block


def stacked(blocks: Sequence[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """One after the other. numpy compares the fields of every two, which takes longer than all the rest."""
    return np.frombuffer(b"".join([block.tobytes() for block in blocks]), blocks[0].dtype)


def _columns(parts: Sequence[Sequence[npt.NDArray[_Scalar]]]) -> tuple[npt.NDArray[_Scalar], ...]:
    return tuple([np.concatenate(same) for same in zip(*parts, strict=True)])


def _violations(parts: Sequence[Part]) -> Violations | None:
    found = next((part.violations for part in parts if part.violations is not None), None)
    if found is None:
        return None
    columns = len(found.columns)
    masks, kinds, verdicts, changed = [], [], [], []
    start = 0
    for part in parts:
        rows = len(part.outputs[0])
        one = part.violations
        masks.append(np.zeros((rows, columns), np.bool_) if one is None else one.mask)
        kinds.append(np.zeros((rows, columns), np.uint8) if one is None else one.kinds)
        verdicts.append(np.zeros(rows, np.uint8) if one is None else one.verdicts)
        changed += [] if one is None else [Changed(each.column, each.rows + start, each.raw) for each in one.changed]
        start += rows
    return Violations(found.columns, np.concatenate(masks), changed, np.concatenate(kinds), np.concatenate(verdicts))
