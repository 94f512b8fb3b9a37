"""Is anything violated in a batch? Answered by as few array operations as the columns' places allow.

A probe looks at arrays that are there anyway: the model's filled inputs where a column fills one without losing
anything, else the run of a block or a context column. It may say yes where an exact look finds nothing (never the other
way round); the exact look is `ColumnCheck.kinds`, and only at the columns that a probe suspects.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from featureclient.schema import status
from gateway.plan.plan import Assembled
from gateway.validation.column_check import norms

Test: TypeAlias = Callable[[Assembled], bool]
Numbers: TypeAlias = npt.NDArray[Any]
Bools: TypeAlias = npt.NDArray[np.bool_]
Source: TypeAlias = Callable[[Assembled], Numbers]


class Probe(NamedTuple):
    """A look at one array, for one check or several."""

    violated: Test
    suspects: Callable[[Assembled], Sequence[int]]
    """The checks, by their index in `Violations.columns`, that may be violated."""


def one(index: int, test: Test) -> Probe:
    """The probe of a single check."""
    return Probe(test, lambda assembled: (index,) if test(assembled) else ())


TILE_ELEMENTS = 8192
"""Elements of a row's bounds, repeated."""
_count = np.count_nonzero


def of_input(name: str, width: int | None) -> Source:
    """The input `name` as [rows, width]; `width` None where it is so already."""
    if width is None:
        return lambda assembled: assembled.inputs[name]
    return lambda assembled: assembled.inputs[name].reshape(-1, width)


def of_run(binding: int, run: str) -> Source:
    """A run of a view's block, [rows, elements]."""
    return lambda assembled: assembled.blocks[binding][run]


def of_cells(binding: int, run: str, start: int, width: int | None) -> Source:
    """A stored column, [rows], or [rows, width]."""
    if width is None:
        return lambda assembled: assembled.blocks[binding][run][:, start]
    return lambda assembled: assembled.blocks[binding][run][:, start : start + width]


def of_context(index: int) -> Source:
    """A context column."""
    return lambda assembled: assembled.context[index]


class Bounds:
    """The bounds of every element of a row, repeated for many rows: two long arrays are compared at once, where a row
    against a matrix costs a loop for each row."""

    def __init__(self, low: Numbers, high: Numbers, refuse_nan: Bools) -> None:
        self.rows = max(1, TILE_ELEMENTS // len(low))
        self.low = np.tile(low, self.rows)
        self.high = np.tile(high, self.rows)
        self.refuse_nan = np.tile(refuse_nan, self.rows)
        self.some_nan = bool(refuse_nan.any())
        self.every_nan = bool(refuse_nan.all())

    def violated(self, values: Numbers) -> bool:
        """Whether any of [rows, elements] or [rows] is outside."""
        flat = values.ravel()
        size = flat.size
        tile = self.low.size
        if size <= tile:
            return self._outside(flat, self.low[:size], self.high[:size], self.refuse_nan[:size])
        even = size // tile * tile
        many, rest = flat[:even].reshape(-1, tile), size - even
        return self._outside(many, self.low, self.high, self.refuse_nan) or self._outside(
            flat[even:], self.low[:rest], self.high[:rest], self.refuse_nan[:rest]
        )

    def _outside(self, values: Numbers, low: Numbers, high: Numbers, refuse_nan: Bools) -> bool:
        if self.every_nan:  # what compares as false with both bounds is NaN
            return bool(_count(values >= low) != values.size or _count(values <= high) != values.size)
        if _count(values < low) or _count(values > high):
            return True
        if not self.some_nan:
            return False
        nan = values != values  # noqa: PLR0124 - only NaN is not itself
        return bool(_count(nan) and _count(nan & refuse_nan))


def in_range(source: Source, low: Numbers, high: Numbers, refuse_nan: Bools, owners: Sequence[int]) -> Probe:
    """Bounds of every element of a row; of those that have none, the dtype's own ends. `owners`: per element, whose."""
    bounds = Bounds(low, high, refuse_nan)

    def suspects(assembled: Assembled) -> Sequence[int]:
        values = source(assembled).reshape(-1, len(low))
        wrong = (values < low) | (values > high) | ((values != values) & refuse_nan)  # noqa: PLR0124 - NaN
        return [owners[element] for element in np.flatnonzero(wrong.any(axis=0)).tolist()]

    if len(low) > 1:
        return Probe(lambda assembled: bounds.violated(source(assembled)), suspects)
    least, most, nan_is_fine = low[0].item(), high[0].item(), not refuse_nan[0]

    def outside(assembled: Assembled) -> bool:
        values = source(assembled)
        if values.size != 1:
            return bounds.violated(values)
        value = values.item()  # one number is compared faster outside of arrays
        if value != value:  # noqa: PLR0124 - only NaN is not itself
            return not nan_is_fine
        return not least <= value <= most

    return Probe(outside, suspects)


def known(source: Source, categories: frozenset[Any]) -> Test:
    """Every value is a category. NaN is no violation of this check, and not looked up unless something is unknown."""

    def unknown(assembled: Assembled) -> bool:
        values = source(assembled).tolist()
        if categories.issuperset(values):
            return False
        return any(value not in categories and value == value for value in values)  # noqa: PLR0124 - NaN is not itself

    return unknown


def norm_in_range(source: Source, low: float | None, high: float | None) -> Test:
    """The norm of a vector column."""
    least, most = -np.inf if low is None else low, np.inf if high is None else high

    def outside(assembled: Assembled) -> bool:
        lengths = norms(source(assembled))
        return bool(_count(lengths < least) or _count(lengths > most))

    return outside


def no_nulls(binding: int, columns: int, bits_of: Mapping[int, tuple[int, int]], stand_ins: Bools) -> Probe:
    """No checked column of a view with so many columns is null in a row that is there.

    `bits_of`: check -> its (byte, bit) of the bitmap.
    """
    full = ((1 << columns) - 1).to_bytes((columns + 7) // 8, "little")

    def suspects(assembled: Assembled) -> Sequence[int]:
        bits = assembled.blocks[binding]["valid"]
        there = ~stand_ins[assembled.statuses[binding]]
        return [index for index, (byte, bit) in bits_of.items() if _count((bits[:, byte] & bit == 0) & there)]

    def null(assembled: Assembled) -> bool:
        bits = assembled.blocks[binding]["valid"]
        return bits.tobytes() != full * len(bits) and bool(suspects(assembled))

    return Probe(null, suspects)


def young(binding: int, age_max_ms: int) -> Test:
    """No event of a view is older."""

    def old(assembled: Assembled) -> bool:
        events = assembled.events_ms[binding]
        late = events < assembled.now_ms - age_max_ms
        return bool(_count(late) and _count(late & (events >= 0)))

    return old


def welcome(binding: int, refused: Bools) -> Test:
    """No row has an outcome that is refused, [256] by status byte."""
    good = bytes(np.flatnonzero(~refused).tolist())
    return lambda assembled: bool(assembled.statuses[binding].tobytes().translate(None, good))


def by_status(outcomes: Sequence[int]) -> Bools:
    """[256]: which status bytes have one of these outcomes."""
    have: Bools = np.isin(np.arange(256) & status.OUTCOME_MASK, outcomes)
    return have


def substitutes() -> Bools:
    """[256]: which status bytes are of rows that stand for one that is not there.

    A row that a caller overrode keeps its cause. A stale row of a store that is not reached has the same one as a
    default row then; it is taken for one that is not there.
    """
    codes = np.arange(256)
    causes = (status.ABSENT, status.INVALID, status.UNREACHED, status.TIMED_OUT)
    overridden = np.isin(codes & status.CAUSE_MASK, causes) & (codes & status.OUTCOME_MASK == status.OVERRIDDEN)
    stand_ins: Bools = by_status((status.DEFAULTED, status.MISSING)) | overridden
    return stand_ins
