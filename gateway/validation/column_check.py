"""One column against its bounds: what is wrong with each cell, and what the policy puts in its place. Pure functions.

These are exact and run only when a probe has found something; `gateway.validation.probe` is what a batch without
violations pays for. Bounds are of the column's own dtype, so nothing is compared after a rounding that it has not had.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gateway.plan.column import PlanColumn
from gateway.plan.manifest import Policy
from gateway.records.request import Array
from gateway.records.violations import CATEGORY, HIGH, INFINITE, LOW, NAN, NULL

Kinds: TypeAlias = npt.NDArray[np.uint8]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NullBit:
    """Where the validity bit of a stored column is."""

    byte: int
    mask: int


@dataclass(frozen=True, slots=True, eq=False)
class ColumnCheck:
    """The check of one column. A bound that is None is none."""

    column: PlanColumn
    index: int
    """The position in `Violations.columns`."""
    policy: Policy
    low: Any = None
    high: Any = None
    norm_low: float | None = None
    norm_high: float | None = None
    categories: frozenset[Any] | None = None
    null: NullBit | None = None
    """Set where nulls are refused."""
    refuse_nan: bool = False
    refuse_infinite: bool = False
    default: Any = None
    """In the column's dtype, for the policies `default` and `clip`."""
    known: Array | None = field(default=None)
    """`categories` as an array, for numbers."""

    def kinds(self, cells: Array, null: Bools | None) -> Kinds:
        """What is wrong with each row of [rows] or [rows, length]; 0 where nothing is. `null` marks null rows."""
        kinds = np.zeros(len(cells), np.uint8)
        if null is not None:
            kinds[null] = NULL
        if self.low is not None:
            kinds |= _rows(cells < self.low) * np.uint8(LOW)
        if self.high is not None:
            kinds |= _rows(cells > self.high) * np.uint8(HIGH)
        if cells.dtype.kind == "f":
            if self.refuse_nan:
                kinds |= _rows(np.isnan(cells)) * np.uint8(NAN)
            if self.refuse_infinite:
                kinds |= _rows(np.isinf(cells)) * np.uint8(INFINITE)
        if self.norm_low is not None or self.norm_high is not None:
            kinds |= self._norm_kinds(norms(cells))
        if self.categories is not None:
            kinds |= self.strangers(cells) * np.uint8(CATEGORY)
        if null is not None:
            kinds[null] = NULL  # the value that stands for a null is nobody's mistake
        return kinds

    def strangers(self, cells: Array) -> Bools:
        """The rows whose value is no category. NaN is none of this check's business."""
        assert self.categories is not None
        if self.known is None:
            known = self.categories
            return np.fromiter((cell not in known for cell in cells.tolist()), np.bool_, len(cells))
        strange = ~np.isin(cells, self.known)
        return strange & ~np.isnan(cells) if cells.dtype.kind == "f" else strange

    def repaired(self, cells: Array, kinds: Kinds) -> Array:
        """A copy of the cells in which `clip` or `default` has replaced those that are violated."""
        made = cells.copy()
        rows = np.flatnonzero(kinds)
        if self.policy == "default":
            made[rows] = self.default
            return made
        made[rows] = self._clipped(cells[rows])
        # What cannot be clipped: there is no nearest number to a null, a NaN or a strange category.
        left = (kinds[rows] & (NULL | NAN | CATEGORY)) != 0
        if cells.dtype.kind == "f":
            left |= _rows(~np.isfinite(made[rows])) & ~_rows(np.isnan(cells[rows]))
        if left.any():
            made[rows[left]] = self.default
        return made

    def _clipped(self, cells: Array) -> Array:
        made: npt.NDArray[Any] = cells
        if self.low is not None or self.high is not None:
            made = np.clip(cells, self.low, self.high)
        if self.norm_low is None and self.norm_high is None:
            return made
        lengths = norms(made)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.clip(lengths, self.norm_low, self.norm_high) / lengths
            factor = np.where(np.isfinite(factor), factor, 1.0)  # a vector of zeros has no direction to grow in
            return np.asarray((made * factor[:, None]).astype(cells.dtype))

    def _norm_kinds(self, lengths: npt.NDArray[np.float64]) -> Kinds:
        kinds = np.zeros(len(lengths), np.uint8)
        if self.norm_low is not None:
            kinds |= (lengths < self.norm_low) * np.uint8(LOW)
        if self.norm_high is not None:
            kinds |= (lengths > self.norm_high) * np.uint8(HIGH)
        return kinds


def norms(vectors: Array) -> npt.NDArray[np.float64]:
    """The Euclidean norm of each row of [rows, length], in float64."""
    wide = vectors.astype(np.float64, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return lengths


def _rows(marks: Bools) -> Bools:
    return marks if marks.ndim == 1 else np.asarray(marks.any(axis=1))


def null_rows(block: npt.NDArray[np.void], codes: npt.NDArray[np.uint8], bit: NullBit, substitutes: Bools) -> Bools:
    """The rows of a block whose value is null. A row that stands for one that is not there has no nulls.

    `substitutes` tells, by status byte, which rows those are.
    """
    null: Bools = (block["valid"][:, bit.byte] & bit.mask) == 0
    return null & ~substitutes[codes]
