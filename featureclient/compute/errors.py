"""What can go wrong when rows are computed, grouped by what the caller may do about it."""

from typing import Literal, TypeAlias

from featureclient.schema import FeatureError

Fault: TypeAlias = Literal["function", "query", "answer", "source", "worker"]
"""Whose: the Python function's, the SQL's, of what either of them gave, of where the SQL runs, of the process."""


class ComputeError(FeatureError):
    """A view's rows were not computed. `view` is its reference."""

    def __init__(self, view: str, why: str) -> None:
        self.view = view
        self.why = why
        super().__init__(f"{view}: {why}")


class ComputeFailed(ComputeError):
    """The run failed, and will again until somebody mends what `fault` names."""

    def __init__(self, view: str, fault: Fault, why: str) -> None:
        self.fault = fault
        super().__init__(view, f"{_SAID[fault]}: {why}")


class ComputeTimedOut(ComputeError):
    """The run took longer than the view's `timeout_ms`, or than the caller would wait."""


class ComputeShed(ComputeError):
    """Nothing was run: the view's runs have failed in a row, or too many ids wait already. Try again later."""


_SAID: dict[Fault, str] = {
    "function": "the compute function failed",
    "query": "the query failed",
    "answer": "what was computed is not what the view declares",
    "source": "the source of the query does not answer",
    "worker": "the worker process was lost",
}
