"""Columns of a plan: where each comes from, and into which dtypes it may go."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from featureclient.schema import DType


@dataclass(frozen=True, slots=True)
class Stored:
    """A column of the view at `binding`, at `start` of the run `run` of its block."""

    binding: int
    run: str
    start: int


@dataclass(frozen=True, slots=True)
class Context:
    """The context column at `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class Derived:
    """The output `output` of the transform at `transform`."""

    transform: int
    output: str


Source: TypeAlias = Stored | Context | Derived


@dataclass(frozen=True, slots=True)
class PlanColumn:
    """A named column of `dtype`, which has `dtype.width` elements a row."""

    name: str
    dtype: DType
    source: Source


def may_fill(dtype: DType, target: str) -> bool:
    """Whether a column may be put into a graph input of dtype `target` without losing its meaning.

    Integers and bools may become floats (that is what a training matrix did to them), a float may change its width,
    an integer may only widen. A float never becomes an integer, a string never a number, and a timestamp stays an
    int64: a transform has to say what a model should see of it.
    """
    if dtype.kind == "string" or target == "string":
        return dtype.kind == target
    if dtype.kind == "timestamp":
        return target == "int64"
    source, destination = dtype.numpy, np.dtype(target)
    if source.kind in "iub" and destination.kind == "f":
        return True
    if source.kind == destination.kind == "f":
        return True
    return np.can_cast(source, destination, "safe")


def array_dtype(dtype: DType) -> np.dtype[np.generic]:
    """The dtype of a column's array in a request or a transform: strings are objects of str."""
    return np.dtype(object) if dtype.kind == "string" else dtype.numpy
