"""A window against its reference: one verdict a column.

    Profile ─▶ references ┐
    panes   ─▶ Window    ─┴▶ judge ─▶ WindowDrift: per column PSI, distances, shares, corrected p-value, verdict

Invariants
- A verdict needs both: a difference that is large enough to matter (PSI less what sampling alone gives; a share of
  nulls or of unknown categories) and one that is hardly by chance, corrected for all tests of the window.
- Fewer than `rows_min` rows, or than `panes_min` panes, give no verdict at all.
- Nothing is raised for a column that is constant, null throughout, infinite or of one category.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from gateway.records.drift import ColumnDrift, Verdict, WindowDrift
from gateway.validation import statistics
from gateway.validation.histogram import Binning, Histogram
from gateway.validation.options import DriftOptions
from gateway.validation.profile import ColumnProfile, Profile
from gateway.validation.windows import Window

Kind = Literal["feature", "output", "age", "status"]

OUTPUT = "out."
AGE = "age_ms."
STATUS = "status."
_PANES_MIN = 2
"""With one pane alone nobody knows how alike neighbouring rows are."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a column looked like: its bins and their counts."""

    kind: Kind
    binning: Binning
    histogram: Histogram

    @classmethod
    def of(cls, kind: Kind, column: ColumnProfile) -> "Reference":
        """Return the reference that a profile's column is."""
        values = column.count - column.nulls - column.nans - column.infinities
        if column.edges:
            binning = Binning.numeric(column.edges)
            counts = binning.spread(column.edges, column.shares, values)
        elif column.categories:
            binning = Binning.named(column.categories)
            held = np.array([*column.categories.values(), column.other])
            counts = np.rint(held * values).astype(np.int64)
        else:
            binning = Binning.between(())
            counts = np.array([values], np.int64)
        finite = values if column.mean is not None else 0
        total = (column.mean or 0.0) * finite
        return cls(kind, binning, Histogram(counts, column.count - values, total, finite))


def references(profile: Profile) -> dict[str, Reference]:
    """Return the references of a profile: features by their name, outputs as `out.<name>`."""
    found = {name: Reference.of("feature", column) for name, column in profile.columns.items()}
    found |= {OUTPUT + name: Reference.of("output", column) for name, column in profile.outputs.items()}
    return found


@dataclass(slots=True)
class _Measured:
    """One column, before its p-values are corrected."""

    column: dict[str, Any]
    excess: float
    nulls: float
    unknown: float
    tests: dict[str, float]


def judge(window: Window, known: Mapping[str, Reference], options: DriftOptions) -> WindowDrift:
    """Compare a window with the references of its columns. Columns without a reference are left out."""
    measured = [
        _measure(name, window, reference, options)
        for name, reference in known.items()
        if name in window.whole.columns and len(window.whole.columns[name].counts) == len(reference.binning)
    ]
    raw = np.array([value for one in measured for value in one.tests.values()])
    corrected = iter(statistics.adjusted(raw, options.correction).tolist())
    few = window.whole.rows < options.rows_min or len(window.panes) < _PANES_MIN
    columns = []
    for one in measured:
        values = {test: next(corrected) for test in one.tests}
        verdict, reasons = ("few", ()) if few else _verdict(one, values, options)
        columns.append(
            ColumnDrift(**one.column, pvalue=min(values.values(), default=1.0), verdict=verdict, reasons=reasons)
        )
    whole = window.whole
    return WindowDrift(window.kind, whole.start_ms, whole.end_ms, whole.rows, len(window.panes), tuple(columns))


def _measure(name: str, window: Window, reference: Reference, options: DriftOptions) -> _Measured:
    live, known = window.whole.columns[name], reference.histogram
    n, m, bins = live.count, known.count, len(reference.binning)
    factor = statistics.dispersion(window.series(name)) if len(window.panes) >= _PANES_MIN else 1.0
    numeric = not reference.binning.categories and reference.kind != "status"
    tests: dict[str, float] = {}
    psi, excess, distance, ks, psi_p, ks_p = 0.0, 0.0, 0.0, 0.0, 1.0, 1.0
    if min(n, m) >= options.rows_min and bins > 1:
        psi = statistics.psi(live.counts, known.counts)
        distance = statistics.jensen_shannon(live.counts, known.counts)
        occupied = int(((live.counts + known.counts) > 0).sum())
        excess = psi - statistics.psi_noise(occupied, n, m, factor)
        fewer, fewer_known = statistics.pooled(live.counts, known.counts, options.expected_min)
        if numeric:
            psi_p = statistics.psi_pvalue(statistics.psi(fewer, fewer_known), len(fewer), n, m, factor)
            ks = statistics.kolmogorov_smirnov(live.counts, known.counts)
            ks_p = tests["ks"] = statistics.kolmogorov_smirnov_pvalue(ks, n, m, factor)
        else:
            psi_p = statistics.chi_square(fewer, fewer_known, factor)[1]
        tests["psi"] = psi_p
    nulls, tests["nulls"] = statistics.share_shift(live.nulls, n + live.nulls, known.nulls, m + known.nulls, factor)
    unknown = 0.0
    if reference.binning.categories:
        others, others_known = int(live.counts[-1]), int(known.counts[-1])
        unknown, tests["unknown"] = statistics.share_shift(others, n, others_known, m, factor)
    column = {
        "column": name,
        "kind": reference.kind,
        "rows": n + live.nulls,
        "psi": psi,
        "psi_excess": excess,
        "psi_pvalue": psi_p,
        "jensen_shannon": distance,
        "ks": ks,
        "ks_pvalue": ks_p,
        "null_share": live.null_share,
        "null_share_reference": known.null_share,
        "unknown_shift": unknown,
        "mean": live.mean,
        "mean_reference": known.mean,
        "dispersion": factor,
    }
    return _Measured(column, excess, abs(nulls), abs(unknown), tests)


def _verdict(one: _Measured, corrected: Mapping[str, float], options: DriftOptions) -> tuple[Verdict, tuple[str, ...]]:
    sure = {test for test, value in corrected.items() if value <= options.level}
    found = [
        (reason, size >= drifted)
        for reason, tests, size, shifted, drifted in (
            ("distribution", {"psi", "ks"}, one.excess, options.psi_shifted, options.psi_drifted),
            ("nulls", {"nulls"}, one.nulls, options.share_shifted, options.share_drifted),
            ("unknown categories", {"unknown"}, one.unknown, options.share_shifted, options.share_drifted),
        )
        if size >= shifted and tests & sure
    ]
    verdict: Verdict = "stable"
    if found:
        verdict = "drifted" if any(far for _, far in found) else "shifted"
    return verdict, tuple(reason for reason, _ in found)


def plain(drift: WindowDrift) -> dict[str, Any]:
    """Return it as what JSON can hold; NaN, which JSON has not, as None."""
    given = asdict(drift)
    for column in given["columns"]:
        for name, value in column.items():
            if isinstance(value, float) and not np.isfinite(value):
                column[name] = None
    return given
