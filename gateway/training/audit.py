"""Whether the model would say the same again: a window of the journal through the pinned model and its transforms.

    journaled stored and context columns -> blocks -> transforms -> inputs -> the graph, in this process
                                                     |               `-> outputs against the journaled, within `rtol`
                                                     `-> derived columns against the journaled, bit for bit

The journal has what the model saw, so a value that a check changed before the transforms is replayed as it was changed.
A derived cell that a check changed is taken from the journal, and so is what follows from it. Outputs that a check
replaced (a rejected row's, a fallback's constant) are not the graph's: they are counted and not compared.

Invariants
- The audit never compares two models: rows of another manifest, graph, transform source or revision of a view are
  refused before the first row is replayed, and rows of other versions are left out and counted.
- Blocks, context and inputs are built as serving builds them, by the same code.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featureclient.schema import status
from gateway.journal.schema import JournalColumn, JournalSchema
from gateway.plan.column import Context, Derived, Stored
from gateway.plan.plan import Values
from gateway.plan.transform import TransformError
from gateway.records.errors import HeadraceError
from gateway.records.request import Array
from gateway.training.pinned import PinnedModel
from gateway.training.window import Part, Window

RUN_ROWS = 4096
"""Rows of one run of the graph."""
RTOL = 1e-5
ATOL = 1e-7
"""Outputs closer than this are equal whatever their size: near zero nothing is left of relative precision."""
EXAMPLES_MAX = 5
"""Rows that the report names for each column."""


class AuditError(Exception):
    """A window that cannot be replayed through this model. The message says why and what to do."""


class Example(NamedTuple):
    """One cell that differs."""

    prediction_id: str
    row: int
    served: Any
    replayed: Any


@dataclass(slots=True)
class ColumnSkew:
    """What was found of one column. `kind` is `derived` or `output`."""

    name: str
    kind: str
    rows: int = 0
    """Rows that were compared."""
    differ: int = 0
    largest: float = 0.0
    """The largest absolute difference; infinite where one of both is no number, 0 for strings."""
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class Audit:
    """The report. Nothing differs where `skewed` is false."""

    model: str
    version: int
    rows: int = 0
    """Rows that were replayed."""
    differ: int = 0
    """Rows with a difference in any column."""
    columns: list[ColumnSkew] = field(default_factory=list)
    other_versions: int = 0
    as_tensors: int = 0
    """Rows whose callers sent the graph's inputs: nothing is derived there."""
    replaced: int = 0
    """Rows whose outputs a check replaced; their features were compared."""
    changed_cells: int = 0
    """Derived cells that a check had changed, taken as they were journaled."""
    unverified: list[str] = field(default_factory=list)
    """What the journal does not tell, so that it was not compared with this model's."""
    notes: list[str] = field(default_factory=list)

    @property
    def skewed(self) -> bool:
        """Something differs."""
        return self.differ > 0


def audit(
    model: PinnedModel, window: Window, *, limit: int | None = None, rtol: float = RTOL, atol: float = ATOL
) -> Iterator[Audit]:
    """Yield the report after every batch, each time the same object; `limit` bounds the rows. Raises AuditError."""
    found = Audit(model.plan.model, model.version, notes=[*window.notes])
    parts = [part for part in window.parts if part.schema.version == model.version]
    if not parts:
        raise AuditError(
            f"the journal has no rows of version {model.version} of {found.model} (it has: "
            f"{', '.join(map(str, window.versions))}); name another with --version"
        )
    found.unverified = [*dict.fromkeys(what for part in parts for what in _verified(model, part))]
    replay = Replay(model, found, rtol, atol)
    left = math.inf if limit is None else limit
    for part, batch in window.batches():
        if part not in parts:
            found.other_versions += batch.num_rows
        elif not part.schema.bindings and model.plan.bindings:
            found.as_tensors += batch.num_rows
        elif left > 0:
            kept = batch.slice(0, int(min(left, batch.num_rows)))
            left -= kept.num_rows
            replay.add(part, kept)
        yield found
    if not found.rows:
        raise AuditError("the window has no rows to replay; widen --since and --until")


def _verified(model: PinnedModel, part: Part) -> Iterator[str]:
    """Refuse what another model wrote; yield what cannot be told."""
    own, served = model.schema, part.schema
    if not served.bindings and model.plan.bindings:
        return
    where = f"{len(part.paths)} files of the journal"
    for what, before, here in _pins(own, served):
        if not before:
            yield what
        elif before != here:
            raise AuditError(
                f"{where} were served with another {what} (SHA-256 {before[:12]}…, here {here[:12]}…): check that one "
                "out, or choose a window that was served with this one"
            )
    known = {binding.alias: binding.fingerprint for binding in served.bindings}
    for binding in model.plan.bindings:
        if known.get(binding.alias) != binding.view.fingerprint:
            raise AuditError(f"{where} were served with another revision of {binding.ref}; check out its catalogue")
    _check_columns(own, part)


def _pins(own: JournalSchema, served: JournalSchema) -> Iterator[tuple[str, str, str]]:
    """What has to be the same, as the journal has it and as it is here."""
    yield "model.yaml", served.manifest_hash, own.manifest_hash
    yield f"graph of version {own.version}", served.graph_hash, own.graph_hash
    for module, digest in own.sources.items():
        yield f"source of {module}", served.sources.get(module, ""), digest


def _check_columns(own: JournalSchema, part: Part) -> None:
    there = {column.name: column for column in part.schema.columns}
    for column in own.columns:
        if there.get(column.name) is None or there[column.name].element != column.element:
            raise AuditError(f"the journal has no column {column.name} of {column.dtype}: another plan wrote it")
        if part.policy(column.name) is not None:
            raise AuditError(
                f"column {column.name} is not in the journal as the model saw it (pii: {part.policy(column.name)}), "
                "so nothing can be replayed"
            )


class Replay:
    """Takes batches of the journal, and adds what differs to the report."""

    def __init__(self, model: PinnedModel, found: Audit, rtol: float, atol: float) -> None:
        self.model = model
        self.found = found
        self.rtol, self.atol = rtol, atol
        self.columns = {
            column.name: ColumnSkew(column.name, "derived")
            for column in model.schema.columns
            if column.kind == "derived"
        }
        self.outputs = {spec.name: ColumnSkew(spec.name, "output") for spec in model.schema.outputs}
        found.columns = [*self.columns.values(), *self.outputs.values()]
        use = model.manifest.validation
        self._constants = {} if use is None or use.fallback is None else use.fallback.constant or {}
        self._replaces = use is not None and (bool(self._constants) or use.reject == "row")

    def add(self, part: Part, batch: pa.RecordBatch) -> None:
        """Replay a batch. Raises AuditError where the transforms or the graph fail on it."""
        plan, rows = self.model.plan, batch.num_rows
        seen = _Seen(self.model, part.schema, batch)
        values = _Replayed(plan, seen.blocks, seen.context, rows, seen.patches)
        try:
            inputs = {one.spec.name: one.fill(seen.blocks, rows, values) for one in plan.matrices}
        except (TransformError, HeadraceError) as error:
            raise AuditError(f"the transforms fail on rows of the journal: {error}") from error
        differ = np.zeros(rows, np.bool_)
        for column in self.model.schema.columns:
            if column.kind == "derived":
                replayed = inputs[column.where.run].reshape(rows, -1)
                replayed = replayed[:, column.where.start : column.where.start + column.where.width]
                served = elements(batch.column(f"f.{column.name}"), column.element, column.where.width)
                differ |= self._compare(
                    self.columns[column.name], batch, served, replayed, ~_same_bits(served, replayed)
                )
        differ |= self._run(batch, inputs)
        self.found.rows += rows
        self.found.differ += int(differ.sum())
        self.found.changed_cells += sum(len(at) for at, _ in seen.patches.values())

    def _run(self, batch: pa.RecordBatch, inputs: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
        pieces: list[Sequence[Array]] = []
        for start in range(0, batch.num_rows, RUN_ROWS):
            try:
                pieces.append(self.model.session.run({k: one[start : start + RUN_ROWS] for k, one in inputs.items()}))
            except Exception as error:
                raise AuditError(f"the graph fails on rows of the journal: {error}") from error
        served, replayed = {}, {}
        for index, spec in enumerate(self.model.schema.outputs):
            whole = np.concatenate([np.asarray(piece[index]) for piece in pieces])
            replayed[spec.name] = whole.reshape(len(whole), -1)
            width = replayed[spec.name].shape[1]
            served[spec.name] = elements(batch.column(f"out.{spec.name}"), spec.dtype, width)
        replaced = self._replaced(batch, served)
        self.found.replaced += int(replaced.sum())
        differ = np.zeros(batch.num_rows, np.bool_)
        for name, skew in self.outputs.items():
            wrong = ~close(served[name], replayed[name], self.rtol, self.atol) & ~replaced
            differ |= self._compare(skew, batch, served[name], replayed[name], wrong)
        return differ

    def _replaced(self, batch: pa.RecordBatch, outputs: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
        """Rows with violations, whose outputs are exactly those that a check puts there."""
        violated: npt.NDArray[np.bool_] = batch.column("violations").to_numpy() > 0
        if not self._replaces or not violated.any():
            return np.zeros(batch.num_rows, np.bool_)
        constant = violated if self._constants else np.zeros_like(violated)
        empty = violated
        for name, cells in outputs.items():
            if name in self._constants:
                constant = constant & (cells == np.array(self._constants[name], cells.dtype)).all(axis=1)
            empty = empty & (np.isnan(cells) if cells.dtype.kind == "f" else cells == _empty(cells.dtype)).all(axis=1)
        return constant | empty

    def _compare(
        self, skew: ColumnSkew, batch: pa.RecordBatch, served: Array, replayed: Array, wrong: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        skew.rows += len(served)
        rows = np.flatnonzero(wrong)
        skew.differ += len(rows)
        if len(rows):
            skew.largest = max(skew.largest, _distance(served[rows], replayed[rows]))
        for row in rows[: EXAMPLES_MAX - len(skew.examples)].tolist():
            predicted = batch.column("prediction_id")[row].as_py().hex()
            number = batch.column("row")[row].as_py()
            skew.examples.append(Example(predicted, number, _shown(served[row]), _shown(replayed[row])))
        return wrong


def outputs_of(model: PinnedModel, batch: pa.RecordBatch) -> list[Array]:
    """What the model says to rows of the journal: its outputs, [rows, …] each. The batch has `f.…` of every column that
    is not derived, and `changed`. Raises AuditError where the transforms or the graph fail."""
    rows = batch.num_rows
    seen = _Seen(model, model.schema, batch)
    values = _Replayed(model.plan, seen.blocks, seen.context, rows, seen.patches)
    pieces: list[Sequence[Array]] = []
    try:
        inputs = {one.spec.name: one.fill(seen.blocks, rows, values) for one in model.plan.matrices}
        starts = range(0, rows, RUN_ROWS)
        pieces += [model.session.run({k: v[at : at + RUN_ROWS] for k, v in inputs.items()}) for at in starts]
    except Exception as error:
        raise AuditError(f"rows of the journal cannot be replayed: {error}") from error
    return [np.concatenate([np.asarray(piece[index]) for piece in pieces]) for index in range(len(pieces[0]))]


_Patches = dict[str, tuple[npt.NDArray[np.intp], Array]]
"""Derived column -> the rows that a check changed, and what the model saw in them."""


class _Replayed(Values):
    """The columns of a batch, with the derived cells that a check changed as they were journaled."""

    def __init__(
        self,
        plan: Any,
        blocks: Sequence[npt.NDArray[np.void]],
        context: Sequence[Array],
        rows: int,
        patches: _Patches,
    ) -> None:
        super().__init__(plan, blocks, context, rows)
        self._patches = patches

    def __call__(self, column: Any) -> Array:
        values = super().__call__(column)
        patch = self._patches.get(column.name)
        if patch is None:
            return values
        source = column.source
        values = values.copy()
        values[patch[0]] = patch[1]
        self.derived[source.transform] = {**self.derived[source.transform], source.output: values}
        return values


class _Seen:
    """A batch of the journal as the blocks and the context that it was made of."""

    def __init__(self, model: PinnedModel, schema: JournalSchema, batch: pa.RecordBatch) -> None:
        plan, rows = model.plan, batch.num_rows
        self.blocks: list[npt.NDArray[np.void]] = [np.zeros(rows, one.view.layout.block_dtype) for one in plan.bindings]
        self.context: list[Array] = [_filler(column.dtype, rows) for column in plan.context]
        self.patches: _Patches = {}
        for block in self.blocks:
            block["status"], block["event_ms"] = status.PRESENT, -1
        for one in model.schema.columns:
            column = plan.columns[one.name]
            source = column.source
            if isinstance(source, Derived):
                continue
            cells = elements(batch.column(f"f.{one.name}"), one.element, one.where.width)
            if isinstance(source, Stored):
                if one.element == "string":
                    cells = np.array([text.encode() for text in cells.ravel().tolist()], column.dtype.numpy)
                self.blocks[source.binding][source.run][:, source.start : source.start + column.dtype.width] = (
                    cells.reshape(rows, -1)
                )
            elif isinstance(source, Context):
                self.context[source.index] = cells if column.dtype.length else cells[:, 0]
        for array in (*self.blocks, *self.context):
            array.setflags(write=False)  # as in serving
        self._patch(model, schema, batch)

    def _patch(self, model: PinnedModel, schema: JournalSchema, batch: pa.RecordBatch) -> None:
        changed = batch.column("changed")
        if not len(changed.flatten()):
            return
        lengths = np.diff(changed.offsets.to_numpy())
        at = np.repeat(np.arange(batch.num_rows), lengths)
        which = changed.flatten().field("column").to_numpy()
        journaled = {column.name: column for column in model.schema.columns}
        for number in np.unique(which).tolist():
            name = schema.checked[number] if 0 <= number < len(schema.checked) else ""
            column = model.plan.columns.get(name)
            if column is None or not isinstance(column.source, Derived):
                continue
            if name not in journaled:
                raise AuditError(
                    f"a check changed {name}, which fills no input and so is not in the journal; what follows from it "
                    "cannot be replayed. Choose a window without such rows"
                )
            rows = np.unique(at[which == number])
            one: JournalColumn = journaled[name]
            cells = elements(batch.column(f"f.{name}"), one.element, one.where.width)[rows]
            self.patches[name] = (rows, cells if column.dtype.length else cells[:, 0])


def elements(values: pa.Array, element: str, width: int) -> Array:
    """A column of the journal as [rows, width] in its own dtype, bit for bit; strings as objects."""
    rows = len(values)
    if pa.types.is_nested(values.type):
        values = values.flatten()
    if element == "string":
        cells: Array = np.empty(len(values), object)
        cells[:] = values.to_pylist()
    elif values.null_count:
        raise AuditError("a column of the journal has nulls where the model saw a value: it was masked, or is damaged")
    else:
        cells = values.to_numpy(zero_copy_only=False)
    if cells.size != rows * width:
        raise AuditError(f"the journal has {cells.size} values for {rows} rows of {width}")
    return cells.reshape(rows, width)


def close(served: Array, replayed: Array, rtol: float, atol: float) -> npt.NDArray[np.bool_]:
    """Rows [rows] in which every element is the same: to `rtol` of the larger (or the dtype's precision, where that is
    less), or to `atol`; NaN is NaN. What is no float has to be equal."""
    if served.dtype.kind != "f":
        return np.asarray((served == replayed).all(axis=1), np.bool_)
    rtol = max(rtol, 4 * float(np.finfo(served.dtype.name).eps))
    one, other = served.astype(np.float64), replayed.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(one - other) <= np.maximum(atol, rtol * np.maximum(np.abs(one), np.abs(other)))
        finite = np.isfinite(one) & np.isfinite(other)
        fits: npt.NDArray[np.bool_] = ((near & finite) | (one == other) | (np.isnan(one) & np.isnan(other))).all(axis=1)
    return fits


def _same_bits(served: Array, replayed: Array) -> npt.NDArray[np.bool_]:
    if served.dtype.hasobject:
        return np.asarray((served == replayed).all(axis=1), np.bool_)
    raw = [np.ascontiguousarray(one).view(np.uint8).reshape(len(one), -1) for one in (served, replayed)]
    return np.asarray((raw[0] == raw[1]).all(axis=1), np.bool_)


def _distance(served: Array, replayed: Array) -> float:
    if served.dtype.hasobject:
        return 0.0
    with np.errstate(invalid="ignore"):
        away = np.abs(served.astype(np.float64) - replayed.astype(np.float64))
    return float(np.where(np.isnan(away), np.inf, away).max(initial=0.0))


def _filler(dtype: Any, rows: int) -> Array:
    """A context column that nothing reads."""
    shape = (rows, dtype.width) if dtype.length else (rows,)
    return np.full(shape, "", object) if dtype.kind == "string" else np.zeros(shape, dtype.numpy)


def _empty(dtype: np.dtype[Any]) -> Any:
    return "" if dtype.hasobject else 0


def _shown(cells: Array) -> Any:
    listed = cells.tolist()
    return listed[0] if len(listed) == 1 else listed
