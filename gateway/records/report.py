"""What happened, as data: the pipeline makes these records, `gateway.telemetry` counts them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.records.request import Request
from gateway.records.violations import Violations


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
    cpu_s: float = 0.0
    """CPU time that the model's runs took since its last report, those that failed too, seconds."""
    padded_rows: int = 0
    """Rows that were added to fill buckets, in the same runs."""
    taken: float = 0.0
    """When the model was free for the batch, between `ready` and `assembled`; 0 where nobody looked."""
    violations: Violations | None = None
    """Violated checks of the rows that were answered."""


class FailureReport(NamedTuple):
    """Requests that got an error. `model` is empty when the request named none that exists."""

    model: str
    code: str
    """The gRPC code in upper case, `INVALID_ARGUMENT`."""
    arrived: Sequence[float]
    ended: float
    version: int = 0
    """Of the model that was asked; 0 where the request had not got so far."""
    message: str = ""
    request_id: str = ""
    request: Request | None = None
    """None when the request could not be bound to a model."""
    bound: object = None
    """The model that `request` is bound to, which says whose ids it has."""
