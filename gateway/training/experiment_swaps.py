"""Which part of a variant makes the score change: one thing at a time is swapped into the baseline, and replayed.

    pairs of the journal ─▶ the baseline's values, but for one view (or one column, or the graph): the candidate's
                         ─▶ the baseline's transforms and graph, in this process ─▶ how far the score moves

This is not a Shapley value: nothing is averaged over orders. A swap says what that part does alone; what only several
do together is `together`, the change that the single swaps do not add up to.

`explained` of a swap is 1 - sum((change - moved)²) / sum(change²): 1 where it makes all of the change row by row, 0
where it makes none, below 0 where it moves scores away from the candidate's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gateway.journal.schema import CHANGED, JournalColumn, JournalSchema
from gateway.training.audit import AuditError, outputs_of
from gateway.training.experiment_rows import Rows
from gateway.training.pinned import PinnedModel

ROWS_MAX = 20_000
"""Pairs that are replayed, a fixed sample of all."""
COLUMNS_MAX = 24
"""Columns of swapped views that are swapped one by one too."""
_REPLAY_TOLERANCE = 1e-4
"""The baseline, replayed, has to give what it gave then; a sample beyond is not explained."""

Floats = npt.NDArray[np.float64]


class SwapsError(Exception):
    """A change that cannot be explained by replay. The message says why."""


@dataclass(slots=True)
class Swap:
    """One part, swapped alone."""

    name: str
    kind: str
    """`view`, `column`, `transforms` or `graph`."""
    mean: float
    """How far the mean score moves."""
    mean_absolute: float
    explained: float


@dataclass(slots=True)
class Swaps:
    """What was found; the parts of each kind with the largest `explained` first."""

    rows: int
    change: float
    """The mean score change of the sample, candidate minus baseline."""
    change_absolute: float
    parts: list[Swap] = field(default_factory=list)
    together: float = 0.0
    """Mean absolute change that the views, transforms and graph, each alone, do not add up to."""
    replayed: float = 0.0
    """The largest difference between what the baseline said then and what it says in this process."""


def check(model: PinnedModel, served: JournalSchema) -> None:
    """Raise SwapsError unless the journal's rows were served by this model."""
    known = {one.alias: one.fingerprint for one in served.bindings}
    wrong = [one.ref for one in model.plan.bindings if known.get(one.alias) != one.view.fingerprint]
    if wrong:
        raise SwapsError(f"the journal was served with other revisions of {', '.join(wrong)} than the catalogue has")
    if served.graph_hash != model.schema.graph_hash:
        raise SwapsError(f"the journal was served with another graph of version {model.version} than there is here")
    changed = [one for one, digest in model.schema.sources.items() if served.sources.get(one) != digest]
    if changed:
        raise SwapsError(f"the journal was served with another source of {', '.join(changed)}")
    columns = {one.name: one.element for one in served.columns}
    if any(columns.get(one.name) != one.element for one in model.schema.columns):
        raise SwapsError("the journal has not all of the columns that the model reads")


def explain(rows: Rows, arm: str, baseline: PinnedModel, candidate: PinnedModel, *, limit: int = ROWS_MAX) -> Swaps:
    """Replay a sample of pairs. Raises SwapsError; both models have been checked."""
    replay = _Sample(rows, arm, baseline, candidate, limit)
    change = replay.served[1] - replay.served[0]
    found = Swaps(
        len(change),
        float(change.mean()),
        float(np.abs(change).mean()),
        replayed=float(np.abs(replay.base - replay.served[0]).max()),
    )
    if found.replayed > _REPLAY_TOLERANCE * max(1.0, float(np.abs(replay.served[0]).max())):
        raise SwapsError(
            f"the baseline, replayed, is off by up to {found.replayed:.3g} from what the journal has: "
            "`headrace audit skew` says where"
        )
    left = change.copy()
    columns: list[Swap] = []
    for name, kind, moved in replay.swaps():
        if kind == "column":
            columns.append(_swap(name, kind, moved, change))
        else:
            found.parts.append(_swap(name, kind, moved, change))
            left -= moved
    found.parts.sort(key=lambda one: -one.explained)
    found.parts += sorted(columns, key=lambda one: -one.explained)
    found.together = float(np.abs(left).mean())
    return found


def _swap(name: str, kind: str, moved: Floats, change: Floats) -> Swap:
    whole = float(np.square(change).sum())
    explained = 1 - float(np.square(change - moved).sum()) / whole if whole else 0.0
    return Swap(name, kind, float(moved.mean()), float(np.abs(moved).mean()), explained)


class _Sample:
    """Pairs without violations, and the score of the baseline for them."""

    def __init__(self, rows: Rows, arm: str, baseline: PinnedModel, candidate: PinnedModel, limit: int) -> None:
        self.rows = rows
        self.models = (baseline, candidate)
        names = [f"f.{column.name}" for column in baseline.schema.columns if column.kind != "derived"]
        theirs = {f"f.{column.name}" for column in candidate.schema.columns}
        if not set(names) <= theirs:
            raise SwapsError(f"the candidate does not read {', '.join(sorted(set(names) - theirs))}")
        out = f"out.{rows.output.name}"
        where = 's."violations" = 0 AND t."violations" = 0'
        sides = [*rows.values(arm, [*names, out], limit, where)]
        if not sides:
            raise SwapsError("there are no pairs without violated checks")
        self.first, self.second = (pa.Table.from_batches([one[side] for one in sides]) for side in (0, 1))
        self.served = tuple(_score(one.column(out), rows.asked.position) for one in (self.first, self.second))
        finite = np.isfinite(self.served[0]) & np.isfinite(self.served[1])
        if not finite.any():
            raise SwapsError("no pair has two finite scores")
        self.first, self.second = (one.filter(pa.array(finite)) for one in (self.first, self.second))
        self.served = (self.served[0][finite], self.served[1][finite])
        self.names = names
        self.kinds = _kinds(baseline)
        self.base = self._run(baseline, {})

    def swaps(self) -> Iterator[tuple[str, str, Floats]]:
        """Every part that differs, and how far it moves the scores."""
        baseline, candidate = self.models
        aliases = {one.alias: one for one in baseline.plan.bindings}
        differing: list[str] = []
        for other in candidate.plan.bindings:
            one = aliases[other.alias]
            changed = [name for name in self._of(one.alias) if self._differs(name)]
            if one.ref != other.ref or changed:
                differing += changed
                told = other.ref if one.ref == other.ref else f"{one.ref} → {other.ref}"
                yield f"{one.alias}: {told}", "view", self._moved(baseline, changed)
        if _transforms(baseline) != _transforms(candidate):
            yield "transforms", "transforms", self._transformed()
        if baseline.schema.graph_hash != candidate.schema.graph_hash:
            yield f"version {baseline.version} → {candidate.version}", "graph", self._other_graph()
        for name in differing[:COLUMNS_MAX]:
            yield name.removeprefix("f."), "column", self._moved(baseline, [name])

    def _differs(self, name: str) -> bool:
        """Whether the column does, in the type that the baseline reads it in."""
        return not self._typed(self.first.column(name), name).equals(self._typed(self.second.column(name), name))

    def _typed(self, values: pa.ChunkedArray, name: str) -> pa.Array:
        return _as(values.combine_chunks(), self.kinds[name])

    def _of(self, alias: str) -> list[str]:
        return [name for name in self.names if name.startswith(f"f.{alias}.")]

    def _moved(self, model: PinnedModel, names: Sequence[str]) -> Floats:
        swapped = {name: self.second.column(name) for name in names}
        return self._run(model, swapped) - self.base

    def _transformed(self) -> Floats:
        """The candidate's transforms with the baseline's values and graph."""
        baseline, candidate = self.models
        mixed = PinnedModel(candidate.version, candidate.manifest, candidate.plan, baseline.session, candidate.schema)
        return self._run(mixed, {}) - self.base

    def _other_graph(self) -> Floats:
        baseline, candidate = self.models
        mixed = PinnedModel(baseline.version, baseline.manifest, baseline.plan, candidate.session, baseline.schema)
        return self._run(mixed, {}) - self.base

    def _run(self, model: PinnedModel, swapped: Mapping[str, pa.ChunkedArray]) -> Floats:
        table = self.first
        kinds = _kinds(model)
        columns = {
            name: _as(swapped.get(name, table.column(name)).combine_chunks(), kinds[name]) for name in self.names
        }
        columns["changed"] = pa.array([[]] * table.num_rows, CHANGED)
        batch = pa.RecordBatch.from_arrays([*columns.values()], [*columns])
        try:
            outputs = outputs_of(model, batch)
        except AuditError as error:
            raise SwapsError(f"{error}") from error
        names = [spec.name for spec in model.schema.outputs]
        scores = np.asarray(outputs[names.index(self.rows.output.name)], np.float64)
        return scores.reshape(len(scores), -1)[:, self.rows.asked.position]


def _transforms(model: PinnedModel) -> list[object]:
    return [one.model_dump() for one in model.manifest.transforms]


def _kinds(model: PinnedModel) -> dict[str, JournalColumn]:
    return {f"f.{one.name}": one for one in model.schema.columns}


def _as(values: pa.Array, column: JournalColumn) -> pa.Array:
    """A column in the type that the model reads it in: another version of a view may have a wider one."""
    kind = pa.string() if column.element == "string" else pa.from_numpy_dtype(np.dtype(column.element))
    width = column.where.width
    if pa.types.is_nested(values.type):
        return pa.FixedSizeListArray.from_arrays(values.flatten().cast(kind, safe=False), width)
    if column.dtype.length is not None:
        return pa.FixedSizeListArray.from_arrays(values.cast(kind, safe=False), width)
    return values.cast(kind, safe=False)


def _score(values: pa.ChunkedArray, position: int) -> Floats:
    array = values.combine_chunks()
    if pa.types.is_nested(array.type):
        flat = array.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
        return flat.reshape(len(array), -1)[:, position]  # type: ignore[no-any-return]  # pyarrow is untyped
    return array.cast(pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # pyarrow is untyped
