"""The derived columns of a manifest for a training table: by the code that serves, on the same dtypes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from featureclient.schema import Catalogue
from gateway.plan.column import Derived, PlanColumn
from gateway.plan.compiler import compile_columns
from gateway.plan.conform import conform
from gateway.plan.manifest import Manifest
from gateway.plan.transform import Resolve, Transform, resolver
from gateway.records.errors import InvalidRequest
from gateway.records.request import Array


def derive(
    manifest: Manifest, catalogue: Catalogue, table: Mapping[str, Any], resolve: Resolve | None = None
) -> dict[str, Array]:
    """Every output of the manifest's transforms, and every derived column, for the rows of `table`.

    `table` has arrays [rows], or [rows, length] for vectors, under the names of the manifest: `alias.column` for stored
    columns, context columns as they are. Those that nothing reads may be left out. They are cast to the dtypes that the
    gateway sees, by the rules of a request, and as there a null has to be its column's default already. `resolve`
    finds the functions of transforms, `gateway.plan.transform.resolver(modules)`; expressions need none.

    Raises `PlanError` for a manifest that does not fit the catalogue, `InvalidRequest` for a column of the table that
    is missing or cannot be cast.
    """
    columns, transforms = compile_columns(manifest, catalogue, resolve or resolver(()))
    given = {name: _given(columns[name], table) for name in _read(columns, transforms)}
    lengths = {name: len(array) for name, array in given.items()}
    if len({*lengths.values()}) > 1:
        raise InvalidRequest(f"the columns have different lengths: {lengths}", field="table")
    rows = next(iter(lengths.values()), 0)
    derived: dict[str, Array] = {}
    for transform in transforms:
        values = {**given, **derived}
        found = transform.run({name: values[column] for name, column in transform.parameters.items()}, rows)
        derived |= {name: found[name] for name in transform.outputs}
    return derived


def _read(columns: Mapping[str, PlanColumn], transforms: tuple[Transform, ...]) -> Iterator[str]:
    """The columns of the table that transforms and expressions read."""
    names = dict.fromkeys(name for transform in transforms for name in transform.parameters.values())
    return (name for name in names if not isinstance(columns[name].source, Derived))


def _given(column: PlanColumn, table: Mapping[str, Any]) -> Array:
    if column.name not in table:
        raise InvalidRequest(f"the table has no column {column.name!r} ({column.dtype})", field=column.name)
    array = np.asarray(table[column.name])
    return conform(column.name, array.astype(object) if array.dtype.kind == "U" else array, column.dtype)
