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
    int64: a transform has to say what a model should see of it. Columns know no unsigned integers, so any integer may
    fill those; what one cannot hold is refused when it comes.
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
    return is_ranged(dtype, target) or np.can_cast(source, destination, "safe")


def is_ranged(dtype: DType, target: str) -> bool:
    """Whether the values of such a column have to be looked at before they are put into the input."""
    if dtype.kind in {"string", "timestamp"} or target == "string":
        return False
    return dtype.numpy.kind == "i" and np.dtype(target).kind == "u"


def advice(dtype: DType, target: str) -> str:
    """What to do about a column that may not fill a graph input of dtype `target`."""
    if target == "string":
        return "a transform has to make strings of it"
    if dtype.kind == "string":
        return "a transform has to make numbers of it"
    if dtype.kind == "timestamp":
        return "a derived column has to say what the model sees of a time"
    return f"derive a column of dtype {target} from it, which says what becomes of values that do not fit"


def array_dtype(dtype: DType) -> np.dtype[np.generic]:
    """The dtype of a column's array in a request or a transform: strings are objects of str."""
    return np.dtype(object) if dtype.kind == "string" else dtype.numpy
