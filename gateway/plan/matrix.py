"""One input of the graph, filled from columns by as few array operations as the columns' places allow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gateway.plan.column import PlanColumn, Stored
from gateway.records.request import Array
from gateway.records.signature import TensorSpec

Index: TypeAlias = "slice | npt.NDArray[np.intp]"
SLICES_MAX = 8
"""Places of one run are copied as so many slices at most, each a tenth of the price of a copy by an index array."""
Blocks: TypeAlias = "Sequence[npt.NDArray[np.void]]"


@dataclass(frozen=True, slots=True)
class _Copy:
    """Values of one run of one view's block that go into the matrix together."""

    binding: int
    run: str
    source: Index
    target: Index


@dataclass(frozen=True, slots=True)
class _Fill:
    """A column that is not stored: context, or the output of a transform."""

    column: PlanColumn
    target: slice


@dataclass(frozen=True, slots=True)
class Matrix:
    """The graph input `spec`: its columns, their places in a row, and the copies that fill it."""

    spec: TensorSpec
    columns: tuple[tuple[PlanColumn, slice], ...]
    width: int
    dtype: np.dtype[np.generic]
    row_shape: tuple[int, ...]
    copies: tuple[_Copy, ...]
    fills: tuple[_Fill, ...]
    whole: _Copy | None
    """Set when the matrix is one slice of one run as it stands."""

    @classmethod
    def compile(cls, spec: TensorSpec, columns: Sequence[PlanColumn]) -> "Matrix":
        """Lay the columns side by side; stored columns of one run are gathered into one copy."""
        placed: list[tuple[PlanColumn, slice]] = []
        runs: dict[tuple[int, str], tuple[list[int], list[int]]] = {}
        fills: list[_Fill] = []
        start = 0
        for column in columns:
            span = slice(start, start + column.dtype.width)
            placed.append((column, span))
            if isinstance(column.source, Stored):
                source, target = runs.setdefault((column.source.binding, column.source.run), ([], []))
                source += range(column.source.start, column.source.start + column.dtype.width)
                target += range(span.start, span.stop)
            else:
                fills.append(_Fill(column, span))
            start = span.stop
        copies = [
            _Copy(binding, run, source, target)
            for (binding, run), (ins, outs) in runs.items()
            for source, target in _indices(ins, outs)
        ]
        dtype = np.dtype(object) if spec.dtype == "string" else np.dtype(spec.dtype)
        rest = spec.shape[1:]
        row_shape = (start,) if len(rest) == 1 else tuple(1 if size is None else size for size in rest)
        plain = len(copies) == 1 and not fills and not dtype.hasobject and isinstance(copies[0].source, slice)
        whole = copies[0] if plain and copies[0].target == slice(0, start, 1) else None
        return cls(spec, tuple(placed), start, dtype, row_shape, tuple(copies), tuple(fills), whole)

    def fill(self, blocks: Blocks, rows: int, value: Callable[[PlanColumn], Array]) -> Array:
        """Return the input array for `rows` rows. `value` gives the columns that are not stored."""
        if self.whole is not None:
            matrix: Array = blocks[self.whole.binding][self.whole.run][:, self.whole.source].astype(self.dtype, "C")
            return matrix if self.row_shape == (self.width,) else matrix.reshape(rows, *self.row_shape)
        matrix = np.empty((rows, self.width), self.dtype)
        strings = self.dtype.hasobject
        for copy in self.copies:
            values = blocks[copy.binding][copy.run][:, copy.source]
            matrix[:, copy.target] = texts(values) if strings else values
        for fill in self.fills:
            values = value(fill.column)
            matrix[:, fill.target] = values if values.ndim == 2 else values[:, None]  # noqa: PLR2004 - [rows, length]
        return matrix if self.row_shape == (self.width,) else matrix.reshape(rows, *self.row_shape)


def texts(values: Array) -> Array:
    """Stored strings (`S` arrays of UTF-8) as an object array of str, of the same shape."""
    decoded = np.empty(values.size, object)
    decoded[:] = [*map(bytes.decode, values.ravel().tolist())]  # the reader has seen that they are UTF-8
    return decoded.reshape(values.shape)


def _indices(ins: list[int], outs: list[int]) -> list[tuple[Index, Index]]:
    """Places of a run and of the matrix as few pairs of slices, or as one pair of index arrays where it takes many."""
    slices: list[tuple[Index, Index]] = []
    start = 0
    while start < len(ins) and len(slices) <= SLICES_MAX:
        end = start + 1
        steps = (1, 1)
        if end < len(ins):
            steps = (ins[end] - ins[start], outs[end] - outs[start])
            if min(steps) < 1:
                steps = (1, 1)
            while end < len(ins) and (ins[end] - ins[end - 1], outs[end] - outs[end - 1]) == steps:
                end += 1
        slices.append((slice(ins[start], ins[end - 1] + 1, steps[0]), slice(outs[start], outs[end - 1] + 1, steps[1])))
        start = end
    if len(slices) <= SLICES_MAX:
        return slices
    return [(np.array(ins, dtype=np.intp), np.array(outs, dtype=np.intp))]
