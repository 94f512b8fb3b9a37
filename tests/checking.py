"""A plan with a column of every kind, and batches for it: what the tests of checks and profiles share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featureclient.schema import Catalogue, status
from gateway.plan import Assembled, FeaturePlan, Manifest, compile_plan
from gateway.plan.column import Context, Stored
from gateway.plan.manifest import ValidationUse
from gateway.plan.plan import Values
from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec
from gateway.validation.checks import Checks
from gateway.validation.compiler import compile_checks
from gateway.validation.profile import Profile

NOW_MS = 10_000_000
CATALOGUE = Catalogue.parse(
    """
entities:
  plane: {tailnum: string}
  airport: {origin: string}
views:
  plane@1:
    entity: plane
    columns:
      speed: {dtype: float32, default: 1.0}
      seats: {dtype: int32, default: 5}
      maker: {dtype: "string[8]", default: none}
      late: float32
      vector: {dtype: "float32[3]", default: 0.5}
      exact: {dtype: float64, default: 2.0}
      old: {dtype: bool, default: false}
  weather@1: {entity: airport, columns: {temp: {dtype: float32, default: 20.0}}}
"""
)
MANIFEST = {
    "name": "m",
    "views": {"plane": {"view": "plane@1"}, "weather": {"view": "weather@1"}},
    "context": {"hour": "float32", "code": "int64", "tag": "string[4]"},
    "transforms": [{"function": "t:doubled", "inputs": {"value": "hour"}, "outputs": {"twice": "float32"}}],
    "derive": {"ratio": {"expression": "twice + plane.speed", "dtype": "float32"}},
    "inputs": {
        "x": ["plane.speed", "plane.seats", "plane.late", "plane.vector", "plane.exact", "plane.old", "hour", "ratio"],
        "w": ["weather.temp"],
        "s": ["plane.maker", "tag"],
        "c": ["code"],
    },
}
SIGNATURE = Signature(
    (
        TensorSpec("x", "float32", (None, 10)),
        TensorSpec("w", "float32", (None, 1)),
        TensorSpec("s", "string", (None, 2)),
        TensorSpec("c", "int64", (None, 1)),
    ),
    (
        TensorSpec("score", "float32", (None, 1)),
        TensorSpec("label", "int64", (None,)),
        TensorSpec("why", "string", (None,)),
    ),
)


def doubled(*, value: Array) -> dict[str, Array]:
    """The transform of the manifest."""
    return {"twice": value * np.float32(2)}


def resolve(reference: str) -> Callable[..., Mapping[str, Array]]:
    """Find the manifest's one function."""
    return {"t:doubled": doubled}[reference]


PLAN: FeaturePlan = compile_plan(Manifest.model_validate(MANIFEST), CATALOGUE, SIGNATURE, resolve)
USUAL: dict[str, Any] = {
    "plane.speed": 3.0,
    "plane.seats": 100,
    "plane.maker": b"boeing",
    "plane.late": 0.25,
    "plane.vector": (3.0, 4.0, 0.0),
    "plane.exact": 7.0,
    "plane.old": False,
    "weather.temp": 15.0,
    "hour": 12.0,
    "code": 7,
    "tag": "ab",
}


def checks(profile: Profile | None = None, /, **use: Any) -> Checks:
    """The compiled section `validation`."""
    made = compile_checks(PLAN, ValidationUse.model_validate(use), profile, SIGNATURE)
    assert made is not None
    return made


def batch(
    rows: Sequence[Mapping[str, Any]],
    nulls: Sequence[Sequence[str]] = (),
    codes: Sequence[int] = (),
    events_ms: Sequence[int] = (),
) -> Assembled:
    """What `PLAN.assemble` makes of these rows; a value that is not named is a usual one.

    Per row: the null columns, the status of its row of `plane`, and when that happened.
    """
    blocks = [np.zeros(len(rows), binding.view.layout.block_dtype) for binding in PLAN.bindings]
    for block in blocks:
        block["status"], block["event_ms"], block["valid"] = status.PRESENT, NOW_MS, 255
    blocks[0]["status"][: len(codes)] = codes
    absent = np.isin(blocks[0]["status"] & status.OUTCOME_MASK, (status.DEFAULTED, status.MISSING))
    blocks[0]["valid"][absent] = 0
    blocks[0]["event_ms"][: len(events_ms)] = events_ms
    for row, names in enumerate(nulls):
        for name in names:
            _set_null(blocks, row, name)
    context: list[Array] = []
    for name, usual in USUAL.items():
        column, values = PLAN.columns[name], [row.get(name, usual) for row in rows]
        source = column.source
        if isinstance(source, Stored):
            cells = blocks[source.binding][source.run][:, source.start : source.start + column.dtype.width]
            cells[:] = np.array(values, column.dtype.numpy).reshape(cells.shape)
        elif isinstance(source, Context):
            context.append(np.array(values, object if column.dtype.kind == "string" else column.dtype.numpy))
    for array in (*blocks, *context):
        array.setflags(write=False)
    return assembled(blocks, context)


def assembled(blocks: Sequence[npt.NDArray[np.void]], context: Sequence[Array]) -> Assembled:
    """What the plan makes of these rows."""
    rows = len(context[0])
    values = Values(PLAN, blocks, context, rows)
    return Assembled(
        {matrix.spec.name: matrix.fill(blocks, rows, values) for matrix in PLAN.matrices},
        tuple(block["status"] for block in blocks),
        tuple(block["event_ms"] for block in blocks),
        NOW_MS,
        None,
        tuple(blocks),
        tuple(context),
    )


def _set_null(blocks: Sequence[npt.NDArray[np.void]], row: int, name: str) -> None:
    alias, _, column = name.partition(".")
    binding = next(index for index, one in enumerate(PLAN.bindings) if one.alias == alias)
    byte, bit = divmod([one.name for one in PLAN.bindings[binding].view.columns].index(column), 8)
    blocks[binding]["valid"][row, byte] &= 255 ^ (1 << bit)


def column(batch: Assembled, name: str) -> Array:
    """The values of a column as the model's inputs were made from them."""
    values = Values(PLAN, batch.blocks, batch.context, len(batch.statuses[0]))
    return values(PLAN.columns[name])


def cells_of_x(batch: Assembled, name: str) -> Array:
    """The places of a column in the input `x`."""
    spans = {placed.name: span for placed, span in PLAN.matrices[0].columns}
    return batch.inputs["x"][:, spans[name]]
