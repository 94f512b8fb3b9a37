"""Compile a manifest against a catalogue and a graph. Every problem is found and reported at once.

Names are looked up in this order: views -> context -> transforms -> derived columns (each may use what came before) ->
graph inputs. What comes out has no names left to look up: only places in blocks, slices of arrays, and functions.
"""

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from featureclient.schema import Catalogue, DType, UnknownView
from gateway.plan.column import Context, Derived, PlanColumn, Stored, advice, may_fill
from gateway.plan.expression import Expression, ExpressionError
from gateway.plan.manifest import Manifest
from gateway.plan.matrix import Matrix, row_shape
from gateway.plan.plan import Binding, ContextColumn, FeaturePlan
from gateway.plan.transform import Resolve, Transform, TransformError, derivation
from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec

Location: TypeAlias = tuple[str | int, ...]


class PlanError(Exception):
    """A manifest that does not fit. `problems` are (path in the manifest, message)."""

    def __init__(self, problems: list[tuple[Location, str]]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, where))}: {message}" for where, message in problems))
        self.problems = problems


def compile_plan(manifest: Manifest, catalogue: Catalogue, signature: Signature, resolve: Resolve) -> FeaturePlan:
    """Return the plan of `manifest` for a graph with this signature, or raise `PlanError`."""
    return _Compiler(manifest, catalogue, signature, resolve).plan()


def compile_columns(
    manifest: Manifest, catalogue: Catalogue, resolve: Resolve
) -> tuple[Mapping[str, PlanColumn], tuple[Transform, ...]]:
    """The columns of a manifest and what derives them, without a graph. Raises `PlanError`."""
    compiler = _Compiler(manifest, catalogue, Signature((), ()), resolve)
    return compiler.derivation()


class _Compiler:
    def __init__(self, manifest: Manifest, catalogue: Catalogue, signature: Signature, resolve: Resolve) -> None:
        self.manifest = manifest
        self.catalogue = catalogue
        self.signature = signature
        self.resolve = resolve
        self.problems: list[tuple[Location, str]] = []
        self.columns: dict[str, PlanColumn] = {}
        self.entities: dict[str, str] = {}

    def plan(self) -> FeaturePlan:
        bindings = self._bindings()
        context = self._context()
        transforms = self._all_transforms()
        matrices = self._matrices()
        if self.problems:
            raise PlanError(self.problems)
        return FeaturePlan(
            model=self.manifest.name,
            bindings=bindings,
            entities=self.entities,
            context=context,
            columns=self.columns,
            transforms=transforms,
            matrices=matrices,
            outputs=tuple(spec.name for spec in self.signature.outputs),
        )

    def derivation(self) -> tuple[Mapping[str, PlanColumn], tuple[Transform, ...]]:
        self._bindings()
        self._context()
        transforms = self._all_transforms()
        if self.problems:
            raise PlanError(self.problems)
        return self.columns, transforms

    def _all_transforms(self) -> tuple[Transform, ...]:
        transforms = self._transforms()
        return transforms + self._derived(len(transforms))

    def _wrong(self, where: Location, message: str) -> None:
        self.problems.append((where, message))

    def _bindings(self) -> tuple[Binding, ...]:
        bindings: list[Binding] = []
        for alias, use in self.manifest.views.items():
            try:
                view = self.catalogue.view(use.view)
            except UnknownView as error:
                self._wrong(("views", alias, "view"), str(error))
                continue
            names = [key.name for key in view.entity.join_keys]
            for unknown in sorted(set(use.keys) - set(names)):
                self._wrong(
                    ("views", alias, "keys", unknown),
                    f"entity {view.entity.name} has no join key {unknown!r} (it has: {', '.join(names)})",
                )
            keys = tuple(use.keys.get(name, name) for name in names)
            for column, key in zip(keys, view.entity.join_keys, strict=True):
                if self.entities.setdefault(column, key.dtype) != key.dtype:
                    self._wrong(
                        ("views", alias, "keys"),
                        f"request column {column!r} is {self.entities[column]} for another view and {key.dtype} here",
                    )
            for stored in view.columns:
                place = view.layout.places[stored.name]
                source = Stored(len(bindings), place.run, place.start)
                self.columns[f"{alias}.{stored.name}"] = PlanColumn(f"{alias}.{stored.name}", stored.dtype, source)
            bindings.append(Binding(alias, view, keys, view.ref))
        return tuple(bindings)

    def _dtype(self, where: Location, text: str) -> DType | None:
        try:
            return DType.parse(text)
        except ValueError as error:
            self._wrong(where, str(error))
            return None

    def _add(self, where: Location, column: PlanColumn) -> None:
        if "." in column.name:
            self._wrong(where, f"{column.name!r}: only stored columns have a dot in their name")
        elif column.name in self.columns or column.name in self.entities:
            self._wrong(where, f"the name {column.name!r} is taken")
        else:
            self.columns[column.name] = column

    def _context(self) -> tuple[ContextColumn, ...]:
        context: list[ContextColumn] = []
        for name, text in self.manifest.context.items():
            dtype = self._dtype(("context", name), text)
            if dtype is not None:
                self._add(("context", name), PlanColumn(name, dtype, Context(len(context))))
                context.append(ContextColumn(name, dtype))
        return tuple(context)

    def _transforms(self) -> tuple[Transform, ...]:
        transforms: list[Transform] = []
        for index, use in enumerate(self.manifest.transforms):
            where: Location = ("transforms", index)
            parameters = {
                parameter: column
                for parameter, name in use.inputs.items()
                if (column := self._column((*where, "inputs", parameter), name)) is not None
            }
            outputs = {
                name: dtype
                for name, text in use.outputs.items()
                if (dtype := self._dtype((*where, "outputs", name), text)) is not None
            }
            try:
                function = self.resolve(use.function)
            except TransformError as error:
                self._wrong((*where, "function"), str(error))
                continue
            if len(parameters) == len(use.inputs) and len(outputs) == len(use.outputs):
                names = {parameter: column.name for parameter, column in parameters.items()}
                transform = Transform(use.function, function, names, outputs)
                try:
                    transform.try_out({parameter: _sample(column.dtype) for parameter, column in parameters.items()})
                except TransformError as error:
                    self._wrong((*where, "function"), str(error))
                transforms.append(transform)
            for name, dtype in outputs.items():
                self._add((*where, "outputs", name), PlanColumn(name, dtype, Derived(len(transforms) - 1, name)))
        return tuple(transforms)

    def _derived(self, before: int) -> tuple[Transform, ...]:
        """Expressions run as transforms do, with one output each."""
        derived: list[Transform] = []
        for name, use in self.manifest.derive.items():
            where: Location = ("derive", name)
            dtype = self._dtype((*where, "dtype"), use.dtype)
            if dtype is None:
                continue
            known = {column: found.dtype for column, found in self.columns.items()}
            try:
                expression = Expression.compile(use.expression, dtype, known)
            except ExpressionError as error:
                self._wrong((*where, "expression"), str(error))
                continue
            self._add(where, PlanColumn(name, dtype, Derived(before + len(derived), name)))
            derived.append(derivation(name, expression))
        return tuple(derived)

    def _column(self, where: Location, name: str) -> PlanColumn | None:
        column = self.columns.get(name)
        if column is None:
            known = ", ".join(self.columns) or "none"
            self._wrong(where, f"no column {name!r} (there are: {known})")
        return column

    def _matrices(self) -> tuple[Matrix, ...]:
        specs = {spec.name: spec for spec in self.signature.inputs}
        for name in self.manifest.inputs.keys() - specs.keys():
            self._wrong(("inputs", name), f"the graph has no input {name!r} (it has: {_listed(specs)})")
        for name in specs.keys() - self.manifest.inputs.keys():
            self._wrong(("inputs",), f"nothing fills the graph's input {specs[name]}")
        self._check_rows()
        matrices = (
            self._matrix(specs[name], columns) for name, columns in self.manifest.inputs.items() if name in specs
        )
        return tuple(matrix for matrix in matrices if matrix is not None)

    def _check_rows(self) -> None:
        """The first dimension of every input is the rows: free in all of them, or the same number in all."""
        firsts: set[int | None] = set()
        for spec in self.signature.inputs:
            if spec.shape:
                firsts.add(spec.shape[0])
                continue
            self._wrong(
                ("inputs", spec.name),
                f"the graph's input {spec} has no dimension for the rows: it is a scalar, or its shape is not told; "
                "export the model with a first dimension that is the rows",
            )
        if 0 in firsts or len(firsts) > 1:
            self._wrong(
                ("inputs",),
                f"the first dimension of the graph's inputs is the rows, and these have different ones: "
                f"{_listed({spec.name: spec for spec in self.signature.inputs})}; "
                "export the model with a dynamic batch dimension in each",
            )

    def _matrix(self, spec: TensorSpec, names: list[str]) -> Matrix | None:
        where: Location = ("inputs", spec.name)
        before = len(self.problems)
        columns: list[PlanColumn] = []
        for index, name in enumerate(names):
            column = self._column((*where, index), name)
            if column is None:
                continue
            columns.append(column)
            if not may_fill(column.dtype, spec.dtype):
                self._wrong(
                    (*where, index),
                    f"column {name} is {column.dtype}, the graph's input is {spec}; {advice(column.dtype, spec.dtype)}",
                )
        width = sum(column.dtype.width for column in columns)
        if spec.shape and len(columns) == len(names) and row_shape(spec, width) is None:
            given = ", ".join(f"{column.name} {column.dtype}" for column in columns)
            wanted = _row_width(spec)
            self._wrong(
                where, f"the columns have {width} values a row ({given}), the graph's input {spec} takes {wanted}"
            )
        if len(self.problems) > before or not spec.shape:
            return None
        return Matrix.compile(spec, columns)


def _row_width(spec: TensorSpec) -> str:
    """How many values of a row the input takes, in words."""
    row = spec.shape[1:]
    fixed = math.prod(size for size in row if size is not None)
    if not fixed:
        return "none: a dimension is 0, so export the model without it"
    return f"a multiple of {fixed}" if row.count(None) == 1 else f"{fixed}"


def _sample(dtype: DType) -> Array:
    """Three different rows of a dtype, to try a transform on: zero, one, and 23, which is a legal hour."""
    shape = (3, dtype.width) if dtype.length else (3,)
    if dtype.kind == "string":
        sample: Array = np.array(["", "a", "zz"], dtype=object)
    else:
        values = np.array([0, 1, 23]).reshape(3, *([1] * (len(shape) - 1)))
        sample = np.broadcast_to(values, shape).astype(dtype.numpy)
    sample.setflags(write=False)  # as the arrays of a batch are
    return sample


def _listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(str(spec) for spec in specs.values())
