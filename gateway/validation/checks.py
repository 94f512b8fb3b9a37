"""The checks before the model, compiled for one plan.

    apply -> a probe finds something? --no--> the batch as it is
                 `yes-> the suspects exactly -> policies -> transforms and inputs again -> Checked

A batch without a violation pays for the probes alone. Otherwise the columns are looked at in the plan's order: stored
and context columns first, then what transforms and expressions make of them. A derived column is judged as it is after
the policies on what it is made of, so one wrong value is one violation and not several.

Invariants
- Nothing that came in is written to: a policy makes new arrays, and `Violations.changed` has what was there before.
- A policy changes the violated cells of its column and nothing else; what is derived from them is derived again.
- Rows do not see each other: a row's violations and values are those that it would have alone.
- The number of rows stays. Who is refused is said, and the pipeline refuses them after the run, as it does for views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featureclient.schema import ages_ms
from gateway.plan.column import Context, Derived, Stored
from gateway.plan.plan import Assembled, FeaturePlan, Values
from gateway.records.request import Array
from gateway.records.violations import (
    AGE,
    CHANGED,
    FALLBACK,
    FLAGGED,
    HIGH,
    OK,
    REJECTED,
    STATUS,
    Changed,
    Violations,
    said,
)
from gateway.validation.column_check import Bools, ColumnCheck, Kinds, null_rows
from gateway.validation.probe import Probe, substitutes

VERDICT = {"flag": FLAGGED, "clip": CHANGED, "default": CHANGED, "fallback": FALLBACK, "reject": REJECTED}
_NAMED_MAX = 5
"""Violated columns that the message of a refused request names."""
_SUBSTITUTES = substitutes()


@dataclass(frozen=True, slots=True, eq=False)
class ViewCheck:
    """The rows of one view: how old they may be, and which outcomes are refused ([256] by status byte)."""

    binding: int
    age_index: int | None
    age_max_ms: int
    status_index: int | None
    refused: Bools
    verdict: int


@dataclass(frozen=True, slots=True, eq=False)
class DistanceCheck:
    """The Mahalanobis distance of some columns. `whiten` [n, n] times its transpose is the inverse covariance."""

    name: str
    index: int
    columns: tuple[str, ...]
    mean: npt.NDArray[np.float64]
    whiten: npt.NDArray[np.float64]
    limit: float
    verdict: int

    def far(self, columns: Sequence[Array]) -> Bools:
        """The rows beyond the limit. A row with a value that is not finite has no distance and is not far."""
        values = np.stack([column.astype(np.float64) for column in columns], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            away = (values - self.mean) @ self.whiten
            far: Bools = np.einsum("ij,ij->i", away, away) > self.limit * self.limit
        return far & np.isfinite(values).all(axis=1)


class Checked(NamedTuple):
    """A batch after its checks. Each mask is [rows], and None where no row is marked."""

    assembled: Assembled
    """What the model is to see. The very object that came in where no value was changed."""
    violations: Violations | None
    refused: Bools | None = None
    """Rows whose requests are refused."""
    emptied: Bools | None = None
    """Rows that are rejected alone: they get empty outputs, their neighbours of the same request do not."""
    constant: Bools | None = None
    """Rows whose outputs are the constants of the fallback."""
    elsewhere: Bools | None = None
    """Rows whose requests the fallback model answers."""

    @property
    def replaced(self) -> bool:
        """`Checks.answers` has something to do."""
        return self.emptied is not None or self.constant is not None


class Checks:
    """Everything that is checked of one model's batches."""

    def __init__(  # noqa: PLR0917 - the compiler's, and nobody else's
        self,
        plan: FeaturePlan,
        names: tuple[str, ...],
        columns: tuple[ColumnCheck, ...],
        views: tuple[ViewCheck, ...],
        distances: tuple[DistanceCheck, ...],
        probes: tuple[Probe, ...],
        *,
        violations_max: int | None,
        rows_verdict: int,
        reject_rows: bool,
        constants: tuple[Any, ...] | None,
        fallback_model: str | None,
    ) -> None:
        self.plan = plan
        self.names = names
        """The columns of `Violations`."""
        self.columns = columns
        """Stored and context columns first, then derived ones in the order of their transforms."""
        self.views = views
        self.distances = distances
        self.probes = probes
        self._tests = tuple(probe.violated for probe in probes)
        self.violations_max = violations_max
        self.rows_verdict = rows_verdict
        self.reject_rows = reject_rows
        self.constants = constants
        """Per output of the plan, the value of a row that falls back; None where the fallback is no constant."""
        self.fallback_model = fallback_model

    def __repr__(self) -> str:
        return f"<Checks of {self.plan.model}: {', '.join(self.names)}>"

    def apply(self, assembled: Assembled) -> Checked:
        """Check a batch and apply the policies."""
        for violated in self._tests:
            if violated(assembled):
                return self._examined(assembled)
        return Checked(assembled, None)

    def shown(self, checked: Checked) -> dict[str, Array]:
        """The inputs of the run: rows whose outputs are not to be the model's are blank, as those of a trial run are.

        So nothing in them can make the run fail, and their neighbours with it. Call it where `checked.replaced`.
        """
        unseen = [rows for rows in (checked.emptied, checked.constant) if rows is not None]
        away = np.logical_or.reduce(unseen)
        shown = {}
        for name, blank in self.plan.blank(1).items():
            array = checked.assembled.inputs[name].copy()
            array[away] = blank
            shown[name] = array
        return shown

    def answers(self, checked: Checked, outputs: Sequence[Array]) -> list[Array]:
        """The outputs with the rows that are not the model's replaced; call it where `checked.replaced`."""
        answered = []
        for index, output in enumerate(outputs):
            made = np.array(output)
            if checked.emptied is not None:
                made[checked.emptied] = _empty(made.dtype)
            if checked.constant is not None and self.constants is not None:
                made[checked.constant] = self.constants[index]
            answered.append(made)
        return answered

    def why(self, checked: Checked, span: slice) -> str:
        """Why the request whose rows are `span` of the batch is refused: its first refused row, and what is wrong."""
        violations, refused = checked.violations, checked.refused
        assert violations is not None
        assert refused is not None
        rows = np.flatnonzero(refused[span])
        row = span.start + int(rows[0])
        found = np.flatnonzero(violations.mask[row])
        wrong = [
            f"{self.names[index]} is {' and '.join(said(int(violations.kinds[row, index])))}"
            for index in found[:_NAMED_MAX]
        ]
        more = f" and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
        return f"row {rows[0]} is refused: {', '.join(wrong)}{more} ({len(rows)} rows in all)"

    def _examined(self, assembled: Assembled) -> Checked:
        suspects = {index for probe in self.probes for index in probe.suspects(assembled)}
        look = _Look(self, assembled)
        for check in self.columns:
            # What is derived from a changed value is another value than the one that was probed.
            if check.index in suspects or (look.changed and isinstance(check.column.source, Derived)):
                look.column(check)
        for view in self.views:
            if view.age_index in suspects or view.status_index in suspects:
                look.view(view)
        for distance in self.distances:
            if look.changed or distance.index in suspects:
                look.distance(distance)
        return look.checked()


class _Look:
    """An exact look at one batch: what the checks find, and the arrays as the policies leave them."""

    def __init__(self, checks: Checks, assembled: Assembled) -> None:
        self.checks = checks
        self.assembled = assembled
        self.blocks = list(assembled.blocks)
        self.context = list(assembled.context)
        self.rows = len(next(iter(assembled.inputs.values())))
        self.values = Values(checks.plan, self.blocks, self.context, self.rows)
        self.kinds: Kinds = np.zeros((self.rows, len(checks.names)), np.uint8)
        self.mask: Bools = np.zeros(self.kinds.shape, np.bool_)
        self.verdicts = np.full(self.rows, OK, np.uint8)
        self.changed: list[Changed] = []

    def column(self, check: ColumnCheck) -> None:
        cells = self.values(check.column)
        null = None
        source = check.column.source
        if check.null is not None and isinstance(source, Stored):
            codes = self.assembled.statuses[source.binding]
            null = null_rows(self.blocks[source.binding], codes, check.null, _SUBSTITUTES)
        kinds = check.kinds(cells, null)
        if not kinds.any():
            return
        self._found(check.index, kinds, VERDICT[check.policy])
        if check.policy in {"clip", "default"}:
            rows = np.flatnonzero(kinds)
            self.changed.append(Changed(check.index, rows, cells[rows]))
            self._put(check, check.repaired(cells, kinds))

    def view(self, check: ViewCheck) -> None:
        if check.age_index is not None:
            ages = ages_ms(self.assembled.events_ms[check.binding], self.assembled.now_ms)
            self._found(check.age_index, (ages > check.age_max_ms) * np.uint8(AGE), check.verdict)
        if check.status_index is not None:
            refused = check.refused[self.assembled.statuses[check.binding]]
            self._found(check.status_index, refused * np.uint8(STATUS), check.verdict)

    def distance(self, check: DistanceCheck) -> None:
        far = check.far([self.values(self.checks.plan.columns[name]) for name in check.columns])
        self._found(check.index, far * np.uint8(HIGH), check.verdict)

    def checked(self) -> Checked:
        checks = self.checks
        if not self.mask.any():
            return Checked(self.assembled, None)  # a probe was too careful
        if checks.violations_max is not None:
            self._verdict(self.mask.sum(axis=1) > checks.violations_max, checks.rows_verdict)
        violations = Violations(checks.names, self.mask, self.changed, self.kinds, self.verdicts)
        rejected = _marked(self.verdicts == REJECTED)
        fallen = _marked(self.verdicts == FALLBACK)
        return Checked(
            self._reassembled() if self.changed else self.assembled,
            violations,
            refused=None if checks.reject_rows else rejected,
            emptied=rejected if checks.reject_rows else None,
            constant=fallen if checks.constants is not None else None,
            elsewhere=fallen if checks.fallback_model is not None else None,
        )

    def _found(self, index: int, kinds: Kinds, verdict: int) -> None:
        violated = kinds != 0
        self.kinds[:, index] = kinds
        self.mask[:, index] = violated
        self._verdict(violated, verdict)

    def _verdict(self, violated: Bools, verdict: int) -> None:
        np.maximum(self.verdicts, violated * np.uint8(verdict), out=self.verdicts)

    def _put(self, check: ColumnCheck, cells: Array) -> None:
        """Make the column's later readers see `cells`."""
        source = check.column.source
        if isinstance(source, Context):
            cells.setflags(write=False)
            self.context[source.index] = cells
        elif isinstance(source, Stored):
            block = self.blocks[source.binding].copy()
            width = check.column.dtype.width
            if check.column.dtype.kind == "string":
                cells = np.array([text.encode() for text in cells.tolist()], check.column.dtype.numpy)
            block[source.run][:, source.start : source.start + width] = cells.reshape(self.rows, width)
            block.setflags(write=False)
            self.blocks[source.binding] = block
        else:
            derived = self.values.derived
            derived[source.transform] = {**derived[source.transform], source.output: cells}

    def _reassembled(self) -> Assembled:
        inputs = {
            matrix.spec.name: matrix.fill(self.blocks, self.rows, self.values) for matrix in self.checks.plan.matrices
        }
        return self.assembled._replace(inputs=inputs, blocks=tuple(self.blocks), context=tuple(self.context))


def _marked(rows: Bools) -> Bools | None:
    return rows if rows.any() else None


def _empty(dtype: np.dtype[Any]) -> Any:
    """What a row has that got no answer: NaN, the empty string, or zero where a dtype knows no better."""
    if dtype.kind == "f":
        return np.nan
    return "" if dtype.hasobject or dtype.kind in "US" else 0
