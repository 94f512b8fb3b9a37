"""A prediction on its way: what the caller sent (`Asked`), and the same bound to a model's plan (`Request`)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.generic]
Id: TypeAlias = "str | int | tuple[str | int, ...]"


class Caller(Protocol):
    """Who waits for the answer. The pipeline reads this and hands the caller back with the answer."""

    @property
    def cancelled(self) -> bool:
        """The caller has left."""
        ...


class Asked(NamedTuple):
    """A decoded request, before its names are bound to a model: columns by name.

    Tensors are arrays of shape [1 or rows] or [1 or rows, length]; strings are object arrays of str. Ids are lists of
    str or of int.
    """

    entities: Mapping[str, Sequence[str] | Sequence[int]]
    context: Mapping[str, Array]
    overrides: Mapping[str, Array]
    outputs: Sequence[str]
    return_features: bool


class Override(NamedTuple):
    """Values that replace a stored column: [rows] or [rows, length], in the column's dtype."""

    binding: int
    column: str
    values: Array


class Request(NamedTuple):
    """One request, bound to the plan of the model that answers it.

    `ids` has one sequence per view of the plan and `context` one entry per context column, both of `rows` entries;
    a sequence of one id stands for every row. `context` is the column's little-endian bytes, or a list of str.

    Where the caller sends the graph's own inputs, `context` has one entry per input and `shape` the shape of a row of
    each (of the whole array where the graph has no rows, and then `rows` is 1); else `shape` is empty. `priority` is
    the level in the model's queue, 1 is served first and 0 is the model's default. `pinned` requests name a version, a
    label or a variant, so no experiment has a say in who answers them.
    """

    caller: Caller
    model: str
    request_id: str
    arrived: float
    deadline: float
    rows: int
    ids: tuple[Sequence[Id], ...]
    context: tuple[bytes | list[str], ...]
    overrides: tuple[Override, ...]
    outputs: tuple[int, ...]
    return_features: bool
    shape: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    return_violations: bool = False
    pinned: bool = False
