"""What was answered, as it is handed to those who keep it: one run of a model, or one request that failed.

Nothing is copied to make these records: they hold the arrays and the requests of the run itself.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gateway.records.request import Array, Request


class Inputs(Protocol):
    """The part of `gateway.plan.Assembled` that is kept."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """The graph's inputs by name."""
        ...

    @property
    def statuses(self) -> Sequence[npt.NDArray[np.uint8]]:
        """Per view, the status byte of every row."""
        ...

    @property
    def events_ms(self) -> Sequence[npt.NDArray[np.int64]]:
        """Per view, when the events behind the rows were; -1 where it is unknown."""
        ...

    @property
    def now_ms(self) -> int:
        """What the ages of the rows are counted from."""
        ...

    @property
    def blocks(self) -> Sequence[npt.NDArray[np.void]]:
        """Per view, the rows that the stored columns were taken from."""
        ...

    @property
    def context(self) -> Sequence[Array]:
        """Per context column, its values."""
        ...


class Broken(Protocol):
    """What a check found, as `gateway.validation.Violations` has it."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns of `mask`."""
        ...

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """[rows, columns]: where a rule is broken."""
        ...

    @property
    def verdicts(self) -> npt.NDArray[np.uint8]:
        """[rows]: what became of each, `OK` to `REJECTED` of `gateway.records.violations`."""
        ...

    @property
    def changed(self) -> Sequence[tuple[int, Array, Array]]:
        """(index in `columns`, rows, their values before a policy changed them)."""
        ...


class Moments(NamedTuple):
    """When what happened, seconds of `time.monotonic()`: one `arrived` per request, the rest of the whole run."""

    arrived: Sequence[float]
    ready: float
    assembled: float
    computed: float
    answered: float


class Served(NamedTuple):
    """One run of a model that was answered. Every array has the rows of all requests, in order."""

    model: str
    version: int
    variant: str
    requests: Sequence[Request]
    prediction_ids: tuple[bytes, npt.NDArray[np.uint64]]
    """The 8 bytes that all ids begin with, and one counter per request."""
    at_ms: int
    """When it was answered, milliseconds since the epoch."""
    assembled: Inputs
    outputs: Sequence[Array]
    violations: Broken | None
    moments: Moments


class Failed(NamedTuple):
    """One request that got an error."""

    at_ms: int
    model: str
    """Empty when the request named none that exists."""
    code: str
    """The gRPC code in upper case, `INVALID_ARGUMENT`."""
    message: str
    request_id: str
    request: Request | None
    """None when the request could not be bound to a model."""
    version: int = 0
    """0 where the request had not got so far."""
    variant: str = ""
