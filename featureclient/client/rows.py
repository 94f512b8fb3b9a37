"""Rows as a reader sees them: columns as arrays, with where they came from and how old they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featureclient.schema import Column, Id, View, ages_ms, apply_age


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of some ids, in their order. Arrays are read-only where they are views of the block.

    `status` (uint8 [rows]) and `age_ms` (int64 [rows], -1 unknown) are explained in `featureclient.schema.status`.
    `columns` has an array for each column: [rows], or [rows, length] for a vector; strings are an object array of str,
    timestamps datetime64[ms]. `valid` (bool [rows] each) is False where the value is null, and in a row that is not
    there. `block` is the structured array of `View.layout`.
    """

    view: View
    ids: Sequence[Id]
    status: npt.NDArray[np.uint8]
    age_ms: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[Any]]
    valid: Mapping[str, npt.NDArray[np.bool_]]
    block: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)


def rows_of(view: View, ids: Sequence[Id], rows: Sequence[bytes], now_ms: int) -> Rows:
    """Decode cached rows."""
    block = np.frombuffer(b"".join(rows), view.layout.block_dtype)
    bits = np.unpackbits(block["valid"], axis=1, count=len(view.columns), bitorder="little").astype(np.bool_)
    return Rows(
        view,
        ids,
        apply_age(view, block, now_ms),
        ages_ms(block["event_ms"], now_ms),
        {column.name: _values(view, column, block) for column in view.columns},
        {column.name: bits[:, i] for i, column in enumerate(view.columns)},
        block,
    )


def _values(view: View, column: Column, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    run, start, width = view.layout.places[column.name]
    values: npt.NDArray[Any] = block[run][:, start : start + width]
    if column.dtype.length is None:
        values = values[:, 0]
    if column.dtype.kind == "timestamp":
        return values.astype("datetime64[ms]")
    if column.dtype.kind == "string":
        texts = np.empty(len(values), object)
        texts[:] = [text.decode() for text in values.tolist()]
        return texts
    return values
