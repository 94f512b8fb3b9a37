"""One input of the graph, filled from columns by as few array operations as the columns' places allow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gateway.plan.column import PlanColumn, Stored, is_ranged
from gateway.records.errors import RowRejected
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
    ranged: tuple[PlanColumn, ...] = ()
    """Columns with values that the input may not be able to hold."""
    narrows: bool = False
    """A float may be too large for the input, and then becomes infinite, as it did where the model was trained."""

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
        shape = row_shape(spec, start)
        assert shape is not None, "the compiler has seen that they fit"
        plain = len(copies) == 1 and not fills and not dtype.hasobject and isinstance(copies[0].source, slice)
        whole = copies[0] if plain and copies[0].target == slice(0, start, 1) else None
        ranged = tuple(column for column in columns if is_ranged(column.dtype, spec.dtype))
        narrows = any(_narrows(column, dtype) for column in columns)
        return cls(spec, tuple(placed), start, dtype, shape, tuple(copies), tuple(fills), whole, ranged, narrows)

    def fill(self, blocks: Blocks, rows: int, value: Callable[[PlanColumn], Array], *, checked: bool = False) -> Array:
        """Return the input array for `rows` rows. `value` gives the columns that are not stored.

        Raises `RowRejected` for an integer that the input's dtype cannot hold.
        """
        if (self.narrows or self.ranged) and not checked:
            self._check(value)
            with np.errstate(over="ignore"):
                return self.fill(blocks, rows, value, checked=True)
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

    def _check(self, value: Callable[[PlanColumn], Array]) -> None:
        top = np.iinfo(self.spec.dtype).max if self.ranged else 0
        for column in self.ranged:
            values = value(column)
            low, high = int(values.min()), int(values.max())
            if low < 0 or high > top:
                raise RowRejected(
                    f"column {column.name} ({column.dtype}) has the value {low if low < 0 else high}, "
                    f"which the graph's input {self.spec} cannot hold"
                )


def row_shape(spec: TensorSpec, width: int) -> tuple[int, ...] | None:
    """The shape of a row of the input when the columns give it `width` values; None where that cannot be.

    One free dimension takes what the others leave; several are 1 each.
    """
    row = spec.shape[1:]
    fixed = math.prod(size for size in row if size is not None)
    free = 1
    if row.count(None) == 1 and fixed:
        free = width // fixed
    shape = tuple(free if size is None else size for size in row)
    return shape if width and math.prod(shape) == width else None


def _narrows(column: PlanColumn, target: np.dtype[np.generic]) -> bool:
    """Whether a value may overflow the floats of the target."""
    if target.kind != "f" or column.dtype.kind == "string":
        return False
    return not np.can_cast(column.dtype.numpy, target, "safe") and (
        target.itemsize == 2 or column.dtype.numpy.kind == "f"  # noqa: PLR2004 - float16, which ends at 65504
    )


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
