"""The compiled plan of one model: `bind` a request to it, `assemble` a batch of bound requests into model inputs.

There are two kinds with one face, `Plan`: here the one that a manifest makes, whose inputs are filled from features and
context; in `gateway.plan.tensors` the one for callers who send the graph's own inputs.

`bind` runs once per request and is where a caller hears that a name, a dtype or a length is wrong. `assemble` runs once
per batch on rows that the store or the cache gave; it does nothing per request but gather bytes. Nothing a batch reads
is written in place: overrides go into a copy of the block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from featureclient.schema import DType, View, ages_ms, apply_age, status
from gateway.plan.column import Context, PlanColumn, Stored
from gateway.plan.conform import conform, encoded
from gateway.plan.ids import ID_TYPES, join, typed_ids
from gateway.plan.matrix import Matrix, texts
from gateway.plan.transform import Transform
from gateway.records.errors import InvalidRequest, LimitExceeded
from gateway.records.request import Array, Asked, Id, Override, Request

_rows_of = itemgetter(Request._fields.index("rows"))
_overrides_of = itemgetter(Request._fields.index("overrides"))


class Binding(NamedTuple):
    """A view under its alias, and the request columns that carry its join keys."""

    alias: str
    view: View
    keys: tuple[str, ...]
    ref: str
    """`plane_stats@1`, worked out once."""


class ContextColumn(NamedTuple):
    """A column that the request carries."""

    name: str
    dtype: DType


class Bound(NamedTuple):
    """What `Request` takes from the plan."""

    rows: int
    ids: tuple[Sequence[Id], ...]
    context: tuple[bytes | list[str], ...]
    overrides: tuple[Override, ...]
    outputs: tuple[int, ...]
    shape: tuple[tuple[int, ...], ...] = ()


class Assembled(NamedTuple):
    """The inputs of one run and, per view, where its rows came from. Every array has `rows` rows."""

    inputs: dict[str, Array]
    statuses: tuple[npt.NDArray[np.uint8], ...]
    events_ms: tuple[npt.NDArray[np.int64], ...]
    """When the events behind the rows were, milliseconds since the epoch; -1 where it is unknown."""
    now_ms: int
    rejected: npt.NDArray[np.bool_] | None
    """Rows that a view with `on_missing: reject` does not let through; None when there are none."""
    blocks: tuple[npt.NDArray[np.void], ...] = ()
    """Per view, the rows that the stored columns were taken from."""
    context: tuple[Array, ...] = ()
    """Per context column, its values."""

    def ages_ms(self) -> list[npt.NDArray[np.int64]]:
        """How old the rows are, per view; -1 where it is unknown. The model does not wait for this to be worked out."""
        return [ages_ms(events_ms, self.now_ms) for events_ms in self.events_ms]

    def only(self, kept: npt.NDArray[np.bool_]) -> "Assembled":
        """The rows that `kept` marks."""
        return Assembled(
            {name: array[kept] for name, array in self.inputs.items()},
            tuple([codes[kept] for codes in self.statuses]),
            tuple([events_ms[kept] for events_ms in self.events_ms]),
            self.now_ms,
            None,
            tuple([block[kept] for block in self.blocks]),
            tuple([column[kept] for column in self.context]),
        )


class Plan(Protocol):
    """What the pipeline and the edge know of a plan."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The views whose rows are looked up."""
        ...

    @property
    def entities(self) -> Mapping[str, str]:
        """Request column -> `string` or `int64`."""
        ...

    @property
    def context(self) -> tuple[ContextColumn, ...]:
        """The columns that a request carries under the manifest's names."""
        ...

    @property
    def columns(self) -> Mapping[str, PlanColumn]:
        """Every named column."""
        ...

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """How the graph's inputs are filled from columns; empty where the caller sends them."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's outputs, in its order."""
        ...

    @property
    def batched(self) -> bool:
        """Whether a run has rows. Where it has not, a request is a run of its own and its outputs are given whole."""
        ...

    @property
    def steady(self) -> bool:
        """Whether a row always has the same size, so that runs of few rows teach what runs of many will cost."""
        ...

    def bind(self, asked: Asked, rows_max: int) -> Bound:
        """Match the names of a request with the plan's, or raise `InvalidRequest` saying what exists."""
        ...

    def assemble(self, requests: Sequence[Request], stored: Sequence[Sequence[bytes]], now_ms: int) -> Assembled:
        """Turn a batch into model inputs."""
        ...

    def blank(self, rows: int) -> dict[str, Array]:
        """Inputs of zeros and empty strings, to try the graph out. Dimensions that are free are 1."""
        ...


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """A manifest with every name resolved."""

    model: str
    bindings: tuple[Binding, ...]
    entities: Mapping[str, str]
    """Request column -> `string` or `int64`."""
    context: tuple[ContextColumn, ...]
    columns: Mapping[str, PlanColumn]
    transforms: tuple[Transform, ...]
    matrices: tuple[Matrix, ...]
    outputs: tuple[str, ...]

    @property
    def batched(self) -> bool:
        """A manifest fills rows."""
        return True

    @property
    def steady(self) -> bool:
        """The manifest says how many values a row has."""
        return True

    def blank(self, rows: int) -> dict[str, Array]:
        """Inputs of zeros and empty strings, to try the graph out."""
        return {
            matrix.spec.name: np.full((rows, *matrix.row_shape), "" if matrix.dtype.hasobject else 0, matrix.dtype)
            for matrix in self.matrices
        }

    def bind(self, asked: Asked, rows_max: int) -> Bound:
        """Match the names of a request with the plan's, or raise `InvalidRequest` saying what exists."""
        columns = asked.entities
        if columns.keys() != self.entities.keys():
            self._explain("entities", columns, self.entities)
        rows = _row_count(asked)
        if rows > rows_max:
            raise LimitExceeded(f"the request has {rows} rows, the limit rows_max is {rows_max}", limit="rows_max")
        for name, wanted in self.entities.items():
            if ID_TYPES[wanted] is not type(columns[name][0]):
                columns = {name: typed_ids(name, ids, self.entities[name]) for name, ids in columns.items()}
                break
        return Bound(
            rows,
            tuple(
                [
                    columns[binding.keys[0]]
                    if len(binding.keys) == 1
                    else join([columns[key] for key in binding.keys], rows)
                    for binding in self.bindings
                ]
            ),
            self._bind_context(asked.context, rows) if asked.context or self.context else (),
            self._bind_overrides(asked.overrides, rows) if asked.overrides else (),
            chosen_outputs(self.model, self.outputs, asked.outputs) if asked.outputs else (),
        )

    def assemble(self, requests: Sequence[Request], stored: Sequence[Sequence[bytes]], now_ms: int) -> Assembled:
        """Turn a batch into model inputs.

        `stored` has, per view, the cached rows of every id of every request, in order. `now_ms` is milliseconds since
        the epoch and decides which rows are stale.
        """
        rows = sum(map(_rows_of, requests))
        blocks = []
        statuses = []
        for index, binding in enumerate(self.bindings):
            block = np.frombuffer(b"".join(stored[index]), binding.view.layout.block_dtype)
            if len(block) != rows:
                block = np.repeat(block, _repeats(requests, index))
                block.setflags(write=False)
            blocks.append(block)
            statuses.append(apply_age(binding.view, block, now_ms))
        # Before the overrides: a value of the caller's does not make up for a row that a rejecting view has not.
        rejected = self._rejected(statuses)
        if any(map(_overrides_of, requests)):
            self._override(requests, blocks, statuses)
        context = [self._gather(requests, index) for index in range(len(self.context))]
        values = Values(self, blocks, context, rows)
        return Assembled(
            {matrix.spec.name: matrix.fill(blocks, rows, values) for matrix in self.matrices},
            tuple(statuses),
            tuple([block["event_ms"] for block in blocks]),
            now_ms,
            rejected,
            tuple(blocks),
            tuple(context),
        )

    def _bind_context(self, tensors: Mapping[str, Array], rows: int) -> tuple[bytes | list[str], ...]:
        if len(tensors) != len(self.context):
            self._explain("context", tensors, dict(self.context))
        packed: list[bytes | list[str]] = []
        for name, dtype in self.context:
            tensor = tensors.get(name)
            if tensor is None:
                self._explain("context", tensors, dict(self.context))
            array = conform(f"context.{name}", tensors[name], dtype)
            if dtype.kind == "string":
                packed.append([*array.tolist()] * (rows // len(array)))
            else:
                packed.append(array.tobytes() * (rows // len(array)))
        return tuple(packed)

    def _bind_overrides(self, tensors: Mapping[str, Array], rows: int) -> tuple[Override, ...]:
        overrides: list[Override] = []
        for name, tensor in tensors.items():
            column = self.columns.get(name)
            if column is None or not isinstance(column.source, Stored):
                known = ", ".join(key for key, found in self.columns.items() if isinstance(found.source, Stored))
                raise InvalidRequest(
                    f"no stored column {name!r} to override (there are: {known or 'none'})", field=f"overrides.{name}"
                )
            array = conform(f"overrides.{name}", tensor, column.dtype)
            if column.dtype.kind == "string":
                array = encoded(f"overrides.{name}", array, column.dtype)
            if len(array) != rows:
                array = np.broadcast_to(array, (rows, *array.shape[1:]))
            overrides.append(Override(column.source.binding, name.partition(".")[2], array))
        return tuple(overrides)

    def _explain(self, field: str, given: Mapping[str, object], wanted: Mapping[str, object]) -> NoReturn:
        """Say which columns are unknown or missing. Called only when some are."""
        needs = ", ".join(f"{name} ({dtype})" for name, dtype in wanted.items()) or "none"
        for name in given.keys() - wanted.keys():
            raise InvalidRequest(
                f"model {self.model} takes no {field} column {name!r} (it takes: {needs})", field=field
            )
        missing = ", ".join(sorted(wanted.keys() - given.keys()))
        raise InvalidRequest(f"{field} column {missing} is missing (model {self.model} takes: {needs})", field=field)

    def _gather(self, requests: Sequence[Request], index: int) -> Array:
        dtype = self.context[index].dtype
        parts = [request.context[index] for request in requests]
        if dtype.kind == "string":
            return np.array([*chain.from_iterable(parts)], dtype=object)
        array: Array = np.frombuffer(b"".join(parts), dtype.numpy)  # type: ignore[arg-type]  # strings were handled above
        return array.reshape(-1, dtype.width) if dtype.length else array

    def _override(
        self, requests: Sequence[Request], blocks: list[npt.NDArray[np.void]], statuses: list[npt.NDArray[np.uint8]]
    ) -> None:
        touched = {override.binding for request in requests for override in request.overrides}
        for index in touched:
            blocks[index], statuses[index] = blocks[index].copy(), statuses[index].copy()
        start = 0
        for request in requests:
            span = slice(start, start + request.rows)
            start = span.stop
            for binding, column, values in request.overrides:
                place = self.bindings[binding].view.layout.places[column]
                cells = blocks[binding][place.run][span, place.start : place.start + place.width]
                cells[:] = values.reshape(cells.shape)
                byte, bit = divmod([one.name for one in self.bindings[binding].view.columns].index(column), 8)
                blocks[binding]["valid"][span, byte] |= 1 << bit  # the caller's value is no null
                # The cause stays: OVERRIDDEN (ABSENT) says that there was no row under the caller's value.
                statuses[binding][span] = statuses[binding][span] & status.CAUSE_MASK | status.OVERRIDDEN
        for index in touched:
            blocks[index].setflags(write=False)

    def _rejected(self, statuses: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.bool_] | None:
        rejected: npt.NDArray[np.bool_] | None = None
        for binding, codes in zip(self.bindings, statuses, strict=True):
            if binding.view.on_missing == "reject":
                missing = codes & status.OUTCOME_MASK == status.MISSING
                rejected = missing if rejected is None else rejected | missing
        return rejected if rejected is not None and rejected.any() else None


class Values:
    """The columns of one batch that are not copied straight from a block; each transform runs at most once."""

    def __init__(
        self, plan: FeaturePlan, blocks: Sequence[npt.NDArray[np.void]], context: Sequence[Array], rows: int
    ) -> None:
        self.plan = plan
        self.blocks = blocks
        self.context = context
        self.rows = rows
        self.derived: dict[int, Mapping[str, Array]] = {}

    def __call__(self, column: PlanColumn) -> Array:
        """Return the column as [rows], or [rows, length] for a vector."""
        source = column.source
        if isinstance(source, Context):
            return self.context[source.index]
        if isinstance(source, Stored):
            cells = self.blocks[source.binding][source.run][:, source.start : source.start + column.dtype.width]
            if column.dtype.kind == "string":
                cells = texts(cells)
            return cells if column.dtype.length else cells[:, 0]
        results = self.derived.get(source.transform)
        if results is None:
            transform = self.plan.transforms[source.transform]
            arguments = {name: self(self.plan.columns[of]) for name, of in transform.parameters.items()}
            results = self.derived[source.transform] = transform.run(arguments, self.rows)
        return results[source.output]


def chosen_outputs(model: str, known: tuple[str, ...], names: Sequence[str]) -> tuple[int, ...]:
    """The indices of the outputs that a request names, each once, or `InvalidRequest`."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidRequest(
            f"model {model} has no output {unknown[0]!r} (it has: {', '.join(known)})", field="outputs"
        )
    return tuple(known.index(name) for name in dict.fromkeys(names))


def _row_count(asked: Asked) -> int:
    """The longest column's length; every other must be as long, or 1."""
    lengths = {*map(len, asked.entities.values())}
    if asked.context or asked.overrides:
        lengths |= {*map(len, asked.context.values()), *map(len, asked.overrides.values())}
    if not lengths:
        raise InvalidRequest("the request has no columns, so it has no rows", field="entities")
    rows = max(lengths)
    if lengths - {1, rows} or rows == 0:
        _explain_lengths(asked, rows)
    return rows


def _explain_lengths(asked: Asked, rows: int) -> NoReturn:
    """Say which column has the wrong length. Called only when one has."""
    parts = {"entities": asked.entities, "context": asked.context, "overrides": asked.overrides}
    lengths = {(part, name): len(column) for part, columns in parts.items() for name, column in columns.items()}
    (part, name), length = next(found for found in lengths.items() if found[1] not in {1, rows or 1})
    what = "is empty" if length == 0 else f"has {length} rows"
    message = f"{part} column {name!r} {what}; the longest column has {rows}, each needs 1 or {rows}"
    raise InvalidRequest(message, field=f"{part}.{name}")


def _repeats(requests: Sequence[Request], index: int) -> list[int]:
    """How many rows each id of view `index` stands for."""
    return [*chain.from_iterable((r.rows,) if len(r.ids[index]) == 1 else (1,) * r.rows for r in requests)]
