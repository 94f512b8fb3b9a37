"""One run of a model on its way, and who keeps what came of it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.pipeline.batch import Batch
from gateway.pipeline.lane import Answers, Lane
from gateway.plan import Assembled
from gateway.records.errors import HeadraceError
from gateway.records.request import Request
from gateway.records.served import Moments
from gateway.validation.checks import Checked

Done = Callable[[Sequence[int], HeadraceError | None], None]
"""Told which requests of a run, by their numbers from 0, may be answered, or are refused with an error."""


class Run(NamedTuple):
    """A batch that has been handed to the model. Moments are seconds of `time.monotonic()`."""

    lane: Lane
    batch: Batch
    assembled: Assembled
    checked: Checked | None
    taken: float
    """When the model was free for it."""
    assembled_at: float


class Keeping(NamedTuple):
    """How answers are kept. None, and they are not; with `commit` they wait until they are on the disk."""

    offer: Callable[[Answers, Moments], None] | None = None
    commit: Callable[[Answers, Moments, Done], None] | None = None


NOT_KEPT = Keeping()


class Apart(NamedTuple):
    """What becomes of each request of a batch after its checks; requests by their numbers, from 0."""

    refused: list[tuple[int, slice]]
    """With the rows of the batch that are theirs."""
    moved: list[int]
    rest: list[int]
    gone: npt.NDArray[np.bool_]
    """[rows]: those of the refused and the moved."""


def set_apart(requests: Sequence[Request], checked: Checked) -> Apart:
    """Who is refused, who goes to the fallback model, and who goes on. One such row decides for its whole request."""
    refused: list[tuple[int, slice]] = []
    moved: list[int] = []
    rest: list[int] = []
    gone = np.zeros(sum([request.rows for request in requests]), np.bool_)
    start = 0
    for number, request in enumerate(requests):
        span = slice(start, start + request.rows)
        start = span.stop
        if checked.refused is not None and checked.refused[span].any():
            refused.append((number, span))
        elif checked.elsewhere is not None and checked.elsewhere[span].any():
            moved.append(number)
        else:
            rest.append(number)
            continue
        gone[span] = True
    return Apart(refused, moved, rest, gone)
