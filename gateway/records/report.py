"""What happened, as data: the pipeline makes these records, `gateway.telemetry` counts them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class BatchReport(NamedTuple):
    """One run of a model and the answers that it gave. Times are seconds of `time.monotonic()`.

    `arrived` has one entry per request; the others are moments that all requests of the batch share, in the order
    `ready <= assembled <= computed <= answered`. A request that was not parked was ready when its batch was.
    """

    model: str
    version: int
    variant: str
    arrived: Sequence[float]
    rows: int
    parked: int
    """How many of the requests waited for the store."""
    threaded: bool
    """The model ran in its worker thread rather than on the loop."""
    ready: float
    assembled: float
    computed: float
    answered: float
    statuses: Mapping[str, npt.NDArray[np.uint8]]
    """Per view (`plane_stats@1`), the status byte of every row."""


class FailureReport(NamedTuple):
    """Requests that got an error. `model` is empty when the request named none that exists."""

    model: str
    code: str
    """The gRPC code in upper case, `INVALID_ARGUMENT`."""
    arrived: Sequence[float]
    ended: float
