"""The feature values that two variants saw for the same rows: how far they are apart, and whether scores follow them.

Batches go by one at a time; what is kept of a column are counts, moments and a histogram of differences.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gateway.experiments.paired import QUANTILES, binned, quantiles_of
from gateway.experiments.sequential import Moments
from gateway.journal.schema import JournalSchema

PREFIX = "f."


@dataclass(slots=True)
class ColumnDifference:
    """One column. Vectors count by element, strings are only compared."""

    name: str
    baseline_ref: str
    """The view of the baseline that it is of; empty where it is of none."""
    candidate_ref: str
    cells: int = 0
    changed: int = 0
    baseline: Moments = field(default_factory=Moments)
    candidate: Moments = field(default_factory=Moments)
    difference: Moments = field(default_factory=Moments)
    bins: npt.NDArray[np.int64] | None = None

    @property
    def share_changed(self) -> float:
        """Share of the cells that differ."""
        return self.changed / self.cells if self.cells else 0.0

    @property
    def shift(self) -> float:
        """The mean difference in standard deviations of the baseline; 0.0 where it does not vary."""
        spread = math.sqrt(self.baseline.variance) if self.baseline.count > 1 else 0.0
        return self.difference.mean / spread if spread else 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        quantiles = quantiles_of(self.bins, QUANTILES) if self.bins is not None else []
        return {
            "name": self.name,
            "baseline_view": self.baseline_ref,
            "candidate_view": self.candidate_ref,
            "cells": self.cells,
            "share_changed": self.share_changed,
            "baseline_mean": self.baseline.mean if self.baseline.count else None,
            "candidate_mean": self.candidate.mean if self.candidate.count else None,
            "mean_difference": self.difference.mean if self.difference.count else None,
            "shift": self.shift,
            "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=False)),
        }

    def add(self, first: pa.Array, second: pa.Array) -> None:
        """Take a batch of the column on both sides."""
        if pa.types.is_nested(first.type):
            first, second = first.flatten(), second.flatten()
        if len(first) != len(second):  # a vector of another length: all of it is another
            self.cells += len(first)
            self.changed += len(first)
            return
        self.cells += len(first)
        if pa.types.is_string(first.type) or pa.types.is_string(second.type):
            self.changed += sum(one != other for one, other in zip(first.to_pylist(), second.to_pylist(), strict=True))
            return
        one, other = (side.cast(pa.float64()).to_numpy(zero_copy_only=False) for side in (first, second))
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        self.changed += int(np.count_nonzero(~same))
        finite = np.isfinite(one) & np.isfinite(other)
        one, other = one[finite], other[finite]
        self.baseline += Moments.of(one)
        self.candidate += Moments.of(other)
        self.difference += Moments.of(other - one)
        counts = binned(other - one)
        self.bins = counts if self.bins is None else self.bins + counts


@dataclass(slots=True)
class ColumnDifferences:
    """Every column that both variants have in the journal."""

    columns: dict[str, ColumnDifference] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Columns that one of both does not have, or has redacted."""

    @classmethod
    def of(cls, baseline: JournalSchema, candidate: JournalSchema, kept: Mapping[str, bool]) -> "ColumnDifferences":
        """Of two schemas; `kept` says of the journal's columns which are there as the model saw them."""
        made = cls()
        theirs = {column.name: column for column in candidate.columns}
        for column in baseline.columns:
            if column.name not in theirs or not kept.get(column.name, False):
                made.left_out.append(column.name)
                continue
            one, two = (_ref(schema, column.name) for schema in (baseline, candidate))
            made.columns[column.name] = ColumnDifference(column.name, one, two)
        return made

    def add(self, first: pa.RecordBatch, second: pa.RecordBatch) -> None:
        """Take the columns of some pairs."""
        for name, column in self.columns.items():
            column.add(first.column(PREFIX + name), second.column(PREFIX + name))

    def ranked(self) -> list[ColumnDifference]:
        """Those that differ at all, or are of another view: the most changed first."""
        shown: Iterable[ColumnDifference] = (
            one for one in self.columns.values() if one.changed or one.baseline_ref != one.candidate_ref
        )
        return sorted(shown, key=lambda one: (-abs(one.shift), -one.share_changed, one.name))


def _ref(schema: JournalSchema, column: str) -> str:
    alias = column.partition(".")[0] if "." in column else ""
    return next((binding.ref for binding in schema.bindings if binding.alias == alias), "")
