"""Rows that are computed when the store has none: a Python function, or SQL on DuckDB or PostgreSQL, in processes."""

from featureclient.compute.computer import Computer
from featureclient.compute.errors import ComputeError, ComputeFailed, ComputeShed, ComputeTimedOut
from featureclient.compute.frames import Trouble
from featureclient.compute.options import ComputeOptions
from featureclient.compute.runs import Computed

__all__ = [
    "ComputeError",
    "ComputeFailed",
    "ComputeOptions",
    "ComputeShed",
    "ComputeTimedOut",
    "Computed",
    "Computer",
    "Trouble",
]
