"""Runs to be kept, for tests of the journal: real plans, real blocks, no gateway around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featureclient.schema import Catalogue
from gateway.journal.schema import JournalSchema, schema_of
from gateway.plan import FeaturePlan, Manifest, compile_plan
from gateway.records.request import Array, Request
from gateway.records.served import Moments, Served
from gateway.records.signature import Signature, TensorSpec

NOW_MS = 1_780_000_000_000
SCORE = TensorSpec("score", "float32", (None, 1))


class Waiting:
    """A caller that stays."""

    cancelled = False


@dataclass(frozen=True)
class Model:
    """A plan with the schema that the journal has of it."""

    plan: FeaturePlan
    signature: Signature
    schema: JournalSchema


def model_of(
    columns: Mapping[str, str], *, context: Mapping[str, str] | None = None, name: str = "ranker", **manifest: Any
) -> Model:
    """A model that reads every number of a view of users as one float64 matrix."""
    catalogue = Catalogue.parse(
        "entities: {user: {user: string}, item: {item: int64}}\nviews:\n  stats@1: {entity: user, columns: {"
        + ", ".join(f'{column}: "{dtype}"' for column, dtype in columns.items())
        + '}}\n  items@1: {entity: item, columns: {price: "float32"}}\n'
    )
    names = {f"u.{column}": dtype for column, dtype in columns.items()} | {"i.price": "float32"} | dict(context or {})
    inputs: dict[str, list[str]] = {}
    for column, dtype in names.items():
        kind = dtype.partition("[")[0]
        inputs.setdefault({"string": "words", "timestamp": "times"}.get(kind, "x"), []).append(column)
    kinds = {"words": "string", "times": "int64", "x": "float64"}
    signature = Signature(tuple(TensorSpec(one, kinds[one], (None, None)) for one in inputs), (SCORE,))
    plan = compile_plan(
        Manifest.model_validate(
            {
                "name": name,
                "views": {"u": {"view": "stats@1"}, "i": {"view": "items@1"}},
                "context": dict(context or {}),
                "inputs": inputs,
                **manifest,
            }
        ),
        catalogue,
        signature,
        lambda reference: (_ for _ in ()).throw(AssertionError(reference)),
    )
    return Model(plan, signature, schema_of(name, 1, plan, signature, manifest_hash="abc"))


def block_of(model: Model, binding: int, rows: int, seed: int) -> np.ndarray[Any, Any]:
    """Random cached rows: every bit pattern of the numbers, some nulls."""
    rng = np.random.default_rng(seed)
    view = model.plan.bindings[binding].view
    dtype = view.layout.block_dtype
    block = np.frombuffer(rng.bytes(rows * dtype.itemsize), dtype).copy()
    block["fresh_until"], block["status"] = 1e9, 1
    block["event_ms"] = NOW_MS - rng.integers(0, 100_000, rows)
    for column in view.columns:
        place = view.layout.places[column.name]
        cells = block[place.run][:, place.start : place.start + place.width]
        if column.dtype.kind == "string":
            size = column.dtype.numpy.itemsize
            for row in range(rows):
                cells[row, 0] = ("é" * (size // 2) + "z" * size).encode()[: rng.integers(0, size // 2 + 1) * 2]
        elif column.dtype.kind == "bool":
            cells[:] = rng.integers(0, 2, cells.shape)
    return block


def served_of(
    model: Model,
    sizes: Sequence[int],
    *,
    seed: int = 0,
    first: int = 0,
    at_ms: int = NOW_MS,
    request_ids: bool = True,
    deadline: float = float("inf"),
) -> Served:
    """One run of requests with so many rows each. The item of every second request is one for all of its rows."""
    rng = np.random.default_rng(seed + 1000)
    rows = sum(sizes)
    requests: list[Request] = []
    for number, size in enumerate(sizes):
        broadcast = number % 2 == 1
        context = tuple(
            [f"wört{row}" for row in range(size)]
            if column.dtype.kind == "string"
            else rng.integers(0, 2, size * column.dtype.width).astype(column.dtype.numpy).tobytes()
            for column in model.plan.context
        )
        users = tuple(f"u{first + number}.{row}" for row in range(size))
        items = (number,) if broadcast else tuple(range(size))
        named = f"r{first + number}" if request_ids else ""
        requests.append(
            Request(Waiting(), model.schema.model, named, 1.0, deadline, size, (users, items), context, (), (), False)
        )
    items_block = block_of(model, 1, sum(len(request.ids[1]) for request in requests), seed + 1)
    blocks = [block_of(model, 0, rows, seed), items_block]
    stored = [[row.tobytes() for row in block] for block in blocks]
    with np.errstate(all="ignore"):
        assembled = model.plan.assemble(requests, stored, NOW_MS)
    return Served(
        model.schema.model,
        model.schema.version,
        model.schema.variant,
        requests,
        (b"prefix__", np.arange(first, first + len(sizes), dtype=np.uint64)),
        at_ms,
        assembled,
        [rng.random((rows, 1), np.float32)],
        None,
        Moments([1.0 + number / 1e6 for number in range(len(sizes))], 1.001, 1.002, 1.004, 1.0045),
    )


def seen(model: Model, served: Served, name: str) -> Array:
    """The values of a stored column as the run had them, [rows, width]."""
    alias, _, column = name.partition(".")
    index = [binding.alias for binding in model.plan.bindings].index(alias)
    place = model.plan.bindings[index].view.layout.places[column]
    block = served.assembled.blocks[index]
    return np.asarray(block[place.run][:, place.start : place.start + place.width])
