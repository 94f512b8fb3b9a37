"""The reference profile of a model version, in one pass over its training data.

    batches of Arrow -> rows as the gateway has them -> the transforms and inputs of the plan -> the graph
                     `-> accumulators of columns, groups and outputs -> Profile -> models/<name>/<version>/profile.json

The columns go through the serving plan: nulls get their columns' defaults, derived columns come from the same
transforms, and the outputs are those of the graph that serves. One batch is in memory at a time.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featureclient.schema import Catalogue, DType, document, status
from featureclient.wire.columns import ColumnError, Converted, convert, given
from gateway.inference.session import InferenceOptions, Session, SessionError
from gateway.plan import FeaturePlan, Manifest, PlanError, compile_plan
from gateway.plan.column import Context, Derived, PlanColumn, Stored
from gateway.plan.plan import Values
from gateway.plan.transform import Resolve, TransformError
from gateway.records.request import Array
from gateway.records.signature import TensorSpec
from gateway.training.tables import Table
from gateway.validation.accumulator import RANK_ERROR, ColumnAccumulator, GroupAccumulator
from gateway.validation.compiler import columns_read
from gateway.validation.profile import FILE, Profile

RUN_ROWS = 4096
"""Rows of one run of the graph."""
_OUTPUTS = {"uint8": "int16", "uint16": "int32", "uint32": "int64", "uint64": "float64"}
"""Outputs whose dtype no column can have, and the one in which they are counted."""


class ProfilingError(Exception):
    """A model or data that no profile can be made of. The message says what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The model version that is profiled."""

    folder: Path
    """Of the version."""
    version: int
    manifest: Manifest
    manifest_hash: str
    plan: FeaturePlan
    session: Session

    @classmethod
    def open(cls, models: Path, name: str, version: int | None, catalogue: Catalogue, resolve: Resolve) -> "Subject":
        """Load the graph and compile its plan; `version` None is the highest. Needs no profile that is there."""
        path = models / name / "model.yaml"
        if not path.is_file():
            known = ", ".join(sorted(one.parent.name for one in models.glob("*/model.yaml"))) or "none"
            raise ProfilingError(f"{models} has no model {name!r} with a model.yaml (there are: {known})")
        versions = sorted(int(one.parent.name) for one in path.parent.glob("*/model.onnx") if one.parent.name.isdigit())
        if not versions or (version is not None and version not in versions):
            raise ProfilingError(f"model {name} has no version {version or ''} (there are: {versions or 'none'})")
        chosen = versions[-1] if version is None else version
        manifest = document.load(path, Manifest)
        folder = path.parent / str(chosen)
        try:
            session = Session(folder / "model.onnx", InferenceOptions())
            plan = compile_plan(manifest, catalogue, session.signature, resolve)
        except (SessionError, PlanError) as error:
            raise ProfilingError(f"{folder}: {error}") from error
        return cls(folder, chosen, manifest, hashlib.sha256(path.read_bytes()).hexdigest(), plan, session)

    @property
    def path(self) -> Path:
        """Where the profile belongs."""
        return self.folder / FILE


class Profiler:
    """Takes batches, gives the profile of all of them."""

    def __init__(self, subject: Subject, available: Sequence[str]) -> None:
        self.subject = subject
        plan = subject.plan
        use = subject.manifest.validation
        groups = {} if use is None else {name: tuple(one.columns) for name, one in use.mahalanobis.items()}
        wanted = dict.fromkeys(columns_read(plan))
        if use is not None:
            wanted |= dict.fromkeys(name for name in use.columns if name in plan.columns)
            wanted |= dict.fromkeys(name for names in groups.values() for name in names if name in plan.columns)
        self.sources = _sources(plan, [*wanted], available)
        # In the plan's order, and with what the data has beyond the model's needs.
        self.names = [name for name in plan.columns if name in wanted or name in self.sources]
        self.columns = {name: ColumnAccumulator(plan.columns[name].dtype) for name in self.names}
        self.groups = {
            name: GroupAccumulator(names)
            for name, names in groups.items()
            if all(one in plan.columns and _is_number(plan.columns[one].dtype) for one in names)
        }
        self.outputs = {spec.name: ColumnAccumulator(_output_dtype(spec)) for spec in subject.session.signature.outputs}
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch that has the columns `sources`. Raises `ProfilingError` naming a column, and the row."""
        rows = batch.num_rows
        if not rows:
            return
        blocks, context, nulls = self._rows(batch)
        values = Values(self.subject.plan, blocks, context, rows)
        try:
            columns = {name: values(self.subject.plan.columns[name]) for name in self.names}
            inputs = {m.spec.name: m.fill(blocks, rows, values) for m in self.subject.plan.matrices}
        except TransformError as error:
            raise ProfilingError(str(error)) from error
        for name, accumulator in self.columns.items():
            accumulator.add(columns[name], nulls.get(name))
        for group in self.groups.values():
            group.add(columns)
        for start in range(0, rows, RUN_ROWS):
            self._run({name: array[start : start + RUN_ROWS] for name, array in inputs.items()})
        self.rows += rows

    def profile(self, created: datetime, source: str) -> Profile:
        """What has been seen so far."""
        plan = self.subject.plan
        if not self.rows:
            raise ProfilingError(f"{source} has no rows, so there is nothing to make a profile of")
        accumulators = [*self.columns.values(), *self.outputs.values()]
        return Profile(
            model=plan.model,
            version=self.subject.version,
            manifest_hash=self.subject.manifest_hash,
            views={binding.ref: binding.view.fingerprint for binding in plan.bindings},
            rows=self.rows,
            created=created.astimezone(UTC).isoformat(timespec="seconds"),
            source=source,
            columns={name: accumulator.profile() for name, accumulator in self.columns.items()},
            outputs={name: accumulator.profile() for name, accumulator in self.outputs.items()},
            groups={name: group.profile() for name, group in self.groups.items()},
            rank_error=0.0 if all(one.numbers.exact for one in accumulators) else RANK_ERROR,
        )

    def _rows(
        self, batch: pa.RecordBatch
    ) -> tuple[list[npt.NDArray[np.void]], list[Array], dict[str, npt.NDArray[np.bool_]]]:
        """The batch as blocks and context columns, as they are when the gateway has looked everything up."""
        plan, rows = self.subject.plan, batch.num_rows
        blocks = [np.zeros(rows, binding.view.layout.block_dtype) for binding in plan.bindings]
        context: list[Array] = [np.empty(0)] * len(plan.context)
        nulls: dict[str, npt.NDArray[np.bool_]] = {}
        for block in blocks:
            block["status"], block["event_ms"] = status.PRESENT, -1
        for name in self.sources:
            column = plan.columns[name]
            found = _converted(column, batch.column(name))
            source = column.source
            if isinstance(source, Stored):
                self._store(blocks[source.binding], column, source, found)
                if found.null is not None:
                    nulls[name] = found.null
            elif isinstance(source, Context):
                context[source.index] = _context(column, found)
        return blocks, context, nulls

    def _store(self, block: npt.NDArray[np.void], column: PlanColumn, source: Stored, found: Converted) -> None:
        cells = block[source.run][:, source.start : source.start + column.dtype.width]
        cells[:] = found.values.reshape(cells.shape)
        if found.null is not None:
            view = self.subject.plan.bindings[source.binding].view
            default = next(one.substitute for one in view.columns if one.name == column.name.partition(".")[2])
            cells[found.null] = default.encode() if isinstance(default, str) else default

    def _run(self, inputs: dict[str, Array]) -> None:
        try:
            outputs = self.subject.session.run(inputs)
        except Exception as error:
            raise ProfilingError(f"the graph fails on rows of the data: {error}") from error
        for name, output in zip(self.outputs, outputs, strict=True):
            flat = np.asarray(output).reshape(len(output), -1)
            accumulator = self._accumulator(name, flat.shape[1])
            accumulator.add(flat[:, 0] if accumulator.dtype.length is None else flat)

    def _accumulator(self, name: str, width: int) -> ColumnAccumulator:
        """Of an output; where the graph leaves the width of its rows open, the first run tells it."""
        known = self.outputs[name]
        if known.dtype.width == width:
            return known
        if known.count:
            raise ProfilingError(f"the rows of the output {name} have different sizes")
        self.outputs[name] = ColumnAccumulator(DType(known.dtype.kind, length=width))
        return self.outputs[name]


def profile_of(subject: Subject, table: Table, created: datetime) -> Iterator[tuple[int, Profile | None]]:
    """Yield the rows done after every batch, and at the end the profile."""
    profiler = Profiler(subject, table.columns)
    for batch in table.batches([*profiler.sources]):
        profiler.add(batch)
        yield profiler.rows, None
    yield profiler.rows, profiler.profile(created, table.what)


def write(profile: Profile, path: Path) -> None:
    """Write the file whole or not at all: a gateway may be reading it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(profile.to_json())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sources(plan: FeaturePlan, wanted: Sequence[str], available: Sequence[str]) -> list[str]:
    """The stored and context columns to read; those that the data has beyond what is wanted come along."""
    needed: dict[str, None] = {}

    def visit(name: str) -> None:
        source = plan.columns[name].source
        if isinstance(source, Derived):
            for parameter in plan.transforms[source.transform].parameters.values():
                visit(parameter)
        else:
            needed[name] = None

    for name in wanted:
        visit(name)
    missing = [name for name in needed if name not in available]
    if missing:
        raise ProfilingError(
            f"the data has no column {', '.join(missing)}; it needs the names of the manifest, alias.column and "
            f"context columns as they are (it has: {', '.join(available)})"
        )
    more = [name for name in available if name in plan.columns and not isinstance(plan.columns[name].source, Derived)]
    return [*dict.fromkeys([*needed, *more])]


def _converted(column: PlanColumn, values: Any) -> Converted:
    try:
        found = convert(column.dtype, given(values))
    except ColumnError as error:
        raise ProfilingError(f"column {column.name}: {error}") from error
    if found.bad:
        row, why = next(iter(found.bad.items()))
        raise ProfilingError(f"column {column.name}: {why} ({len(found.bad)} rows of a batch, the first is {row})")
    return found


def _context(column: PlanColumn, found: Converted) -> Array:
    """A context column, as a request would carry it."""
    values = found.values
    if found.null is not None and found.null.any():
        if not column.dtype.is_float:
            raise ProfilingError(f"column {column.name} has nulls, and a request cannot carry one of {column.dtype}")
        values = values.copy()
        values[found.null] = np.nan
    if column.dtype.kind == "string":
        texts = np.empty(len(values), object)
        texts[:] = [text.decode() for text in values.tolist()]
        return texts
    return values


def _is_number(dtype: DType) -> bool:
    return dtype.kind != "string" and dtype.length is None


def _output_dtype(spec: TensorSpec) -> DType:
    """An output as a column: a number a row, or a vector where a row has several."""
    if spec.dtype == "string":
        return DType("string", bytes_max=1)  # the size of a string plays no part here
    width = int(np.prod([size or 1 for size in spec.shape[1:]], dtype=np.int64))
    return DType(_OUTPUTS.get(spec.dtype, spec.dtype), length=width if width > 1 else None)
