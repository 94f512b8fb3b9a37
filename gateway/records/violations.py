"""What the checks before the model found in one batch, as data: the journal keeps it, telemetry counts it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

OK = 0
FLAGGED = 1
"""A check is violated and nothing was changed."""
CHANGED = 2
"""A value was replaced before the model saw it."""
FALLBACK = 3
"""The row's outputs are not the model's."""
REJECTED = 4
"""The row has no outputs, or its request was refused."""

VERDICTS = ("ok", "flagged", "changed", "fallback", "rejected")

LOW = 0x01
HIGH = 0x02
NULL = 0x04
NAN = 0x08
INFINITE = 0x10
CATEGORY = 0x20
AGE = 0x40
STATUS = 0x80

KINDS = {
    LOW: "below its range",
    HIGH: "above its range",
    NULL: "null",
    NAN: "not a number",
    INFINITE: "infinite",
    CATEGORY: "no known category",
    AGE: "too old",
    STATUS: "an unwanted status",
}


def said(kinds: int) -> list[str]:
    """What is wrong with a cell, in words."""
    return [text for kind, text in KINDS.items() if kinds & kind]


class Changed(NamedTuple):
    """The cells of one column that a policy replaced, and what they held before."""

    column: int
    """The position in `Violations.columns`."""
    rows: npt.NDArray[np.intp]
    raw: npt.NDArray[np.generic]
    """[rows] or, for a vector, [rows, length], in the column's dtype; a string is an object."""


class Violations(NamedTuple):
    """The violated checks of a batch; there is none when nothing is violated.

    `columns` are the checked columns of the model, then `age(view alias)`, `status(view alias)` and
    `mahalanobis(name)` where those are checked. `mask`, `kinds`: [rows, columns]; `verdicts`: [rows].
    """

    columns: Sequence[str]
    mask: npt.NDArray[np.bool_]
    changed: Sequence[Changed]
    kinds: npt.NDArray[np.uint8]
    """Bits of LOW … STATUS: what is wrong with the cell."""
    verdicts: npt.NDArray[np.uint8]
    """The worst of OK … REJECTED that became of the row."""

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many columns each row violates."""
        counts: npt.NDArray[np.int64] = self.mask.sum(axis=1)
        return counts

    def only(self, kept: npt.NDArray[np.bool_]) -> "Violations":
        """The rows that `kept` marks."""
        place = np.cumsum(kept) - 1
        changed = []
        for column, rows, raw in self.changed:
            here = kept[rows]
            if here.any():
                changed.append(Changed(column, place[rows[here]], raw[here]))
        return Violations(self.columns, self.mask[kept], changed, self.kinds[kept], self.verdicts[kept])
