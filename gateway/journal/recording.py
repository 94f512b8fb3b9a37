"""What was served -> a record batch: a few array operations for each column and none for each row, but for its ids.

The arrays of all runs are joined part by part: the runs of a view's block, the context columns, the input matrices. A
part's numbers are copied once more, transposed, and its columns are slices of that copy.

Invariants
- What is written is what the model saw, bit for bit.
- The columns that hold personal data are redacted before anything leaves this module.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featureclient.schema import ages_ms
from gateway.journal.policy import Redaction
from gateway.journal.redaction import redacted
from gateway.journal.sampling import kept, keys_of
from gateway.journal.schema import (
    CHANGED,
    FAILURES,
    PREDICTION_ID,
    SHAPE,
    STAGES,
    TIME,
    JournalColumn,
    JournalSchema,
    arrow_schema,
    column_type,
    row_width,
    tensor_type,
)
from gateway.records.request import Array, Request
from gateway.records.served import Failed, Served

_EXACT_MAX = 2**53
"""Up to here a double holds every integer."""
ENTITIES_MAX = 100
"""Ids of each request column that a failure is written with."""

_request_id = itemgetter(Request._fields.index("request_id"))
_rows = itemgetter(Request._fields.index("rows"))
_ids = itemgetter(Request._fields.index("ids"))


class Recorder:
    """Makes the record batches of one schema."""

    def __init__(self, schema: JournalSchema, redaction: Redaction, share: float = 1.0, sample_by: str = "") -> None:
        """`share` of the entities is kept: of the request column `sample_by`, or of the model's first."""
        self.schema = schema
        self.redaction = redaction
        self.arrow = arrow_schema(schema, redaction)
        self._share = share
        self._sample_by = sample_by if sample_by in schema.entities else next(iter(schema.entities), "")
        self._parts = _parts(schema, redaction)
        self._checked = {name: bit for bit, name in enumerate(schema.checked)}

    def record(self, served: Sequence[Served]) -> pa.RecordBatch:
        """One batch of all rows that are kept, in order."""
        of_requests = np.fromiter(
            chain.from_iterable(map(_rows, one.requests) for one in served),
            np.int32,
            sum(len(one.requests) for one in served),
        )
        of_runs = np.array([sum(map(_rows, one.requests)) for one in served])
        columns: dict[str, pa.Array] = {}
        columns |= self._heads(served, of_requests, of_runs)
        keys = self._entities(served, of_requests, columns)
        for part in self._parts:
            self._features(part, [np.asarray(part.of(one)) for one in served], of_runs, columns)
        self._views(served, of_runs, columns)
        columns |= self._violations(served, of_runs)
        columns |= self._outputs(served, of_runs)
        columns |= _stages(served, of_requests, of_runs)
        batch = pa.RecordBatch.from_arrays([columns[name] for name in self.arrow.names], schema=self.arrow)
        return batch if keys is None else batch.filter(pa.array(kept(keys, self._share)))

    def _heads(
        self, served: Sequence[Served], of_requests: npt.NDArray[np.int32], of_runs: npt.NDArray[np.int64]
    ) -> dict[str, pa.Array]:
        ids = np.empty((len(of_requests), 2), "V8")
        start = 0
        for one in served:
            prefix, counters = one.prediction_ids
            span = slice(start, start + len(counters))
            ids[span, 0] = np.void(prefix)
            ids[span, 1] = counters.astype(">u8").view("V8")
            start = span.stop
        texts = [*chain.from_iterable(map(_request_id, one.requests) for one in served)]
        request_ids = pa.array([text or None for text in texts], pa.string()) if any(texts) else None
        rows = int(of_requests.sum())
        if rows != len(of_requests):
            ids = np.repeat(ids, of_requests, axis=0)
            if request_ids is not None:
                request_ids = request_ids.take(pa.array(np.repeat(np.arange(len(of_requests)), of_requests)))
        ends = np.cumsum(of_requests)
        return {
            "prediction_id": pa.Array.from_buffers(
                PREDICTION_ID, rows, [None, pa.py_buffer(np.ascontiguousarray(ids).view("u1"))]
            ),
            "request_id": pa.nulls(rows, pa.string()) if request_ids is None else request_ids,
            "row": _numbers(
                np.arange(rows, dtype=np.int32) - np.repeat(ends - of_requests, of_requests).astype(np.int32)
            ),
            "rows": _numbers(np.repeat(of_requests, of_requests)),
            "time": pa.Array.from_buffers(
                TIME, rows, [None, pa.py_buffer(np.repeat(np.array([one.at_ms for one in served], np.int64), of_runs))]
            ),
        }

    def _entities(
        self, served: Sequence[Served], of_requests: npt.NDArray[np.int32], columns: dict[str, pa.Array]
    ) -> npt.NDArray[np.uint64] | None:
        """Add the ids to `columns`; return the sampling keys of the rows where not all are kept."""
        keys = None
        for name, kind in self.schema.entities.items():
            ids = _ids_of(self.schema, name, [request for one in served for request in one.requests], of_requests)
            array = pa.array(ids, pa.int64() if kind == "int64" else pa.string())
            if self._share < 1 and name == self._sample_by:
                keys = keys_of(ids)
            self._add(columns, f"entity.{name}", array)
        if self._share < 1 and keys is None:  # a model without entities: by prediction
            counters = np.concatenate([one.prediction_ids[1] for one in served])
            keys = np.repeat(keys_of(counters.view(np.int64).tolist()), of_requests)
        return keys

    def _add(self, columns: dict[str, pa.Array], name: str, values: pa.Array) -> None:
        written = redacted(values, self.redaction.of(name.partition(".")[2]), self.redaction.salt)
        if written is not None:
            columns[name] = written

    def _features(
        self, part: "_Part", arrays: Sequence[Array], of_runs: npt.NDArray[np.int64], columns: dict[str, pa.Array]
    ) -> None:
        """Add the columns of one part."""
        if part.open_ended is not None:
            self._add(columns, f"f.{part.open_ended.name}", _lists(part.open_ended.element, arrays, of_runs))
            if f"f.{part.open_ended.name}" in columns:
                columns[f"shape.f.{part.open_ended.name}"] = _shapes(arrays, of_runs, self.schema.batched)
            return
        cells = _joined(arrays, of_runs)
        if cells.shape[1] < part.width:
            raise ValueError(f"a row has {cells.shape[1]} elements and not {part.width}")
        if part.plain:
            across = np.ascontiguousarray(cells[:, part.plain_index].T)
            whole = pa.py_buffer(across)
            rows, size = across.shape[1], across.shape[1] * across.itemsize
            for number, (column, kind) in enumerate(part.plain):
                values = pa.Array.from_buffers(kind, rows, [None, whole.slice(number * size, size)])
                self._add(columns, f"f.{column.name}", values)
        for column, kind in part.others:
            values = cells[:, column.where.start : column.where.start + column.where.width]
            self._add(columns, f"f.{column.name}", _values(column.element, values, kind))

    def _views(self, served: Sequence[Served], of_runs: npt.NDArray[np.int64], columns: dict[str, pa.Array]) -> None:
        """Add status, age and nulls of every view's rows."""
        now_ms = np.repeat(np.array([one.assembled.now_ms for one in served], np.int64), of_runs)
        for index, binding in enumerate(self.schema.bindings):
            statuses = np.concatenate([one.assembled.statuses[index] for one in served])
            events_ms = np.concatenate([one.assembled.events_ms[index] for one in served])
            valid = np.concatenate([one.assembled.blocks[index]["valid"] for one in served])
            columns[f"status.{binding.alias}"] = _numbers(statuses)
            columns[f"age_ms.{binding.alias}"] = _numbers(ages_ms(events_ms, now_ms))
            columns[f"null.{binding.alias}"] = _nulls(valid, binding.columns)

    def _violations(self, served: Sequence[Served], of_runs: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
        rows = int(of_runs.sum())
        if all(one.violations is None for one in served):
            return {
                "verdict": _numbers(np.zeros(rows, np.uint8)),
                "violations": _numbers(np.zeros(rows, np.uint32)),
                "violated": pa.nulls(rows, pa.binary()),
                "changed": _changed(rows, [], [], []),
            }
        verdicts = np.zeros(rows, np.uint8)
        counts = np.zeros(rows, np.uint32)
        bits = np.zeros((rows, max(len(self._checked), 1)), np.bool_)
        places: list[npt.NDArray[np.int64]] = []
        which: list[int] = []
        raws: list[Array] = []
        start = 0
        for one, length in zip(served, of_runs.tolist(), strict=True):
            if one.violations is not None:
                span = slice(start, start + length)
                verdicts[span] = one.violations.verdicts
                counts[span] = one.violations.mask.sum(axis=1)
                for number, name in enumerate(one.violations.columns):
                    if (bit := self._checked.get(name)) is not None:
                        bits[span, bit] |= one.violations.mask[:, number]
                for number, changed_rows, raw in one.violations.changed:
                    name = one.violations.columns[number]
                    places.append(np.asarray(changed_rows, np.int64) + start)
                    which.append(self._checked.get(name, -1))
                    raws.append(np.asarray(raw) if self.redaction.of(name) is None else np.empty(0))
            start += length
        packed = np.packbits(bits, axis=1, bitorder="little")
        masks = _fixed(packed).cast(pa.binary())
        return {
            "verdict": _numbers(verdicts),
            "violations": _numbers(counts),
            "violated": _masked(masks, counts > 0),
            "changed": _changed(rows, places, which, raws),
        }

    def _outputs(self, served: Sequence[Served], of_runs: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
        columns = {}
        for index, spec in enumerate(self.schema.outputs):
            arrays = [np.asarray(one.outputs[index]) for one in served]
            width = row_width(spec, self.schema.batched)
            if width == 0:
                columns[f"out.{spec.name}"] = _lists(spec.dtype, arrays, of_runs)
                columns[f"shape.out.{spec.name}"] = _shapes(arrays, of_runs, self.schema.batched)
                continue
            cells = _joined(arrays, of_runs)
            if cells.shape[1] != width:
                raise ValueError(f"a row of output {spec.name} has {cells.shape[1]} elements and not {width}")
            columns[f"out.{spec.name}"] = _values(spec.dtype, cells, tensor_type(spec.dtype, width))
        return columns


def record_failures(failed: Sequence[tuple[Failed, JournalSchema | None]], redaction: Redaction) -> pa.RecordBatch:
    """The batch of failures, each with the schema of the model that its request was bound to.

    Without one no ids are written: what they are called, and what may be written of them, is not known. With a
    redaction, messages are left out: they quote what callers sent.
    """
    quoted = not redaction.policies
    every = [one for one, _ in failed]
    rows = {
        "time": [one.at_ms for one in every],
        "request_id": [one.request_id or None for one in every],
        "model": [one.model for one in every],
        "version": [one.version or None for one in every],
        "variant": [one.variant or None for one in every],
        "code": [one.code for one in every],
        "message": [one.message if quoted else None for one in every],
        "entities": _failed_entities(failed, redaction),
    }
    return pa.RecordBatch.from_arrays([pa.array(rows[one.name], one.type) for one in FAILURES], schema=FAILURES)


def _failed_entities(failed: Sequence[tuple[Failed, JournalSchema | None]], redaction: Redaction) -> list[str | None]:
    """The first ids of each failure as JSON, made schema by schema."""
    found: list[dict[str, list[Any]] | None] = [None] * len(failed)
    places: dict[JournalSchema, list[int]] = {}
    for place, (one, schema) in enumerate(failed):
        if one.request is not None and schema is not None:
            found[place] = {}
            places.setdefault(schema, []).append(place)
    for schema, some in places.items():
        requests = [cast("Request", failed[place][0].request) for place in some]
        for name, kind in schema.entities.items():
            position, part = _binding_of(schema, name)
            ids = [request.ids[position][:ENTITIES_MAX] for request in requests]
            flat: list[Any] = [*chain.from_iterable(ids)]
            if part is not None:
                flat = [one[part] for one in flat]
            kept = pa.array(flat, pa.int64() if kind == "int64" else pa.string())
            written = redacted(kept, redaction.of(name), redaction.salt)
            if written is None:
                continue
            texts, start = written.to_pylist(), 0
            for place, of_one in zip(some, ids, strict=True):
                found[place][name] = texts[start : start + len(of_one)]  # type: ignore[index]  # set above
                start += len(of_one)
    return [None if one is None else json.dumps(one) for one in found]


class _Part:
    """The columns that are in one array of a run, and how to get it."""

    def __init__(self, kind: str, part: int, run: str, members: Sequence[JournalColumn]) -> None:
        self.of = _getter(kind, part, run)
        self.open_ended = members[0] if members[0].where.width == 0 else None
        self.width = max(one.where.start + one.where.width for one in members)
        plain = [column for column in members if _is_plain(column)]
        self.plain = [(column, column_type(column)) for column in plain]
        self.plain_index = _index([column.where.start for column in plain])
        self.others = [(column, column_type(column)) for column in members if not _is_plain(column)]


def _parts(schema: JournalSchema, redaction: Redaction) -> list[_Part]:
    """The columns by the array that they are in. What is dropped is not looked at."""
    grouped: dict[tuple[str, int, str], list[JournalColumn]] = {}
    for column in schema.columns:
        if redaction.of(column.name) != "drop":
            grouped.setdefault((column.kind, column.where.part, column.where.run), []).append(column)
    return [_Part(kind, part, run, members) for (kind, part, run), members in grouped.items()]


def _getter(kind: str, part: int, run: str) -> Callable[[Served], Array]:
    if kind == "stored":
        return lambda served: served.assembled.blocks[part][run]
    if kind == "context":
        return lambda served: served.assembled.context[part]
    return lambda served: served.assembled.inputs[run]


def _binding_of(schema: JournalSchema, name: str) -> tuple[int, int | None]:
    """Which ids of a request have the column: the number of the view, and the place in its tuples."""
    for position, binding in enumerate(schema.bindings):
        if binding.keys == (name,):
            return position, None
    for position, binding in enumerate(schema.bindings):
        if name in binding.keys:
            return position, binding.keys.index(name)
    raise KeyError(name)


def _ids_of(
    schema: JournalSchema, name: str, requests: Sequence[Request], of_requests: npt.NDArray[np.int32]
) -> list[Any]:
    """The ids of one request column, one for each row."""
    position, part = _binding_of(schema, name)
    every: list[Any] = [ids[position] for ids in map(_ids, requests)]
    flat = [*chain.from_iterable(every)]
    if part is not None:
        flat = [one[part] for one in flat]
    if len(flat) == int(of_requests.sum()):
        return flat
    spread: list[Any] = []
    start = 0
    for ids, rows in zip(every, of_requests.tolist(), strict=True):
        found = flat[start : start + len(ids)]
        spread += found * rows if len(ids) == 1 else found
        start += len(ids)
    return spread


def _joined(arrays: Sequence[Array], of_runs: npt.NDArray[np.int64]) -> Array:
    """All rows of a part as [rows, elements]. Raises ValueError where a run has not as many as its requests."""
    if any(len(array) != rows for array, rows in zip(arrays, of_runs.tolist(), strict=True)):
        raise ValueError("an array has not the rows of its run")
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined.reshape(int(of_runs.sum()), -1)


def _is_plain(column: JournalColumn) -> bool:
    """A number, whose column is a slice of the transposed part as it stands."""
    return column.dtype.length is None and column.where.width == 1 and column.element not in ("bool", "string")


def _index(starts: Sequence[int]) -> slice | list[int]:
    if not starts:
        return slice(0)
    in_a_row = list(starts) == list(range(starts[0], starts[0] + len(starts)))
    return slice(starts[0], starts[0] + len(starts)) if in_a_row else list(starts)


def _numbers(values: Array) -> pa.Array:
    """A column of numbers, not copied where they stand side by side."""
    return pa.array(np.ascontiguousarray(values))


def _values(element: str, cells: Array, kind: pa.DataType) -> pa.Array:
    """[rows, width] as a column of `kind`."""
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_flat(element, cells), kind.list_size)
    return _flat(element, cells)


def _flat(element: str, cells: Array) -> pa.Array:
    """All elements in order."""
    flat = np.ascontiguousarray(cells).reshape(-1)
    if element != "string":
        return pa.array(flat)
    return _texts(flat) if flat.dtype.kind == "S" else pa.array(_decoded(flat), pa.string())


def _decoded(flat: Array) -> list[str]:
    return [one.decode() if isinstance(one, bytes) else str(one) for one in flat.tolist()]


def _texts(flat: Array) -> pa.Array:
    """Stored strings, which end with their first NUL, as a column of strings."""
    width = flat.dtype.itemsize
    raw = flat.view(np.uint8).reshape(len(flat), width)
    there = raw != 0
    ends = np.zeros(len(flat) + 1, np.int32)
    np.cumsum(there.sum(axis=1), out=ends[1:])
    return pa.Array.from_buffers(
        pa.string(), len(flat), [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(raw[there]))]
    )


def _lists(element: str, arrays: Sequence[Array], of_runs: npt.NDArray[np.int64]) -> pa.Array:
    """Rows whose length is the same inside a run only. Raises ValueError where a run does not divide into its rows."""
    parts = [divmod(array.size, rows) for array, rows in zip(arrays, of_runs.tolist(), strict=True)]
    if any(rest for _, rest in parts):
        raise ValueError("an array has not the rows of its run")
    lengths = [length for length, _ in parts]
    ends = np.zeros(int(of_runs.sum()) + 1, np.int64)
    np.cumsum(np.repeat(lengths, of_runs), out=ends[1:])
    values = pa.concat_arrays([_flat(element, array) for array in arrays])
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), values)


def _shapes(arrays: Sequence[Array], of_runs: npt.NDArray[np.int64], batched: bool) -> pa.Array:
    """The shape of each row; where there are no rows, of the whole."""
    shapes = [array.shape[1:] if batched else array.shape for array in arrays]
    return pa.array(shapes, SHAPE).take(pa.array(np.repeat(np.arange(len(shapes)), of_runs)))


def _fixed(raw: npt.NDArray[np.uint8]) -> pa.Array:
    """[rows, width] bytes as a column of fixed size."""
    return pa.Array.from_buffers(pa.binary(raw.shape[1]), len(raw), [None, pa.py_buffer(np.ascontiguousarray(raw))])


def _masked(values: pa.Array, there: npt.NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(there), values, pa.scalar(None, values.type))


def _nulls(valid: npt.NDArray[np.uint8], columns: int) -> pa.Array:
    """Bit i is set where column i of the view was null; the whole is null where no column was."""
    nulls = np.ascontiguousarray(~valid)
    if columns % 8:
        nulls[:, -1] &= (1 << columns % 8) - 1
    some: npt.NDArray[np.bool_] = nulls.max(axis=1) > 0
    return _masked(_fixed(nulls), some) if some.any() else pa.nulls(len(nulls), pa.binary(nulls.shape[1]))


def _changed(
    rows: int, places: Sequence[npt.NDArray[np.int64]], which: Sequence[int], raws: Sequence[Array]
) -> pa.Array:
    """What policies changed: per row the bit of the column, and the value before; a vector has an entry per element.

    A number that a double cannot hold is there as text too.
    """
    ends = np.zeros(rows + 1, np.int32)
    if not places:
        return pa.ListArray.from_arrays(pa.array(ends), pa.array([], CHANGED.value_type), type=CHANGED)
    where: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    columns: list[npt.NDArray[np.int16]] = [np.empty(0, np.int16)]
    numbers: list[pa.Array] = [pa.array([], pa.float64())]
    texts: list[pa.Array] = [pa.array([], pa.string())]
    for at, column, raw in zip(places, which, raws, strict=True):
        width = raw.size // len(at) if len(at) and raw.size else 1
        where.append(np.repeat(at, width))
        columns.append(np.full(len(at) * width, column, np.int16))
        missing = len(at) * width - raw.size
        is_text = raw.dtype.kind in "OSU"
        large = raw.dtype == np.int64 and raw.size > 0 and max(-int(raw.min()), int(raw.max())) > _EXACT_MAX
        numbers.append(
            pa.nulls(len(at) * width, pa.float64())
            if is_text or missing
            else pa.array(raw.astype(np.float64).reshape(-1))
        )
        texts.append(
            pa.array(_decoded(raw.reshape(-1)), pa.string())
            if (is_text or large) and not missing
            else pa.nulls(len(at) * width, pa.string())
        )
    flat = np.concatenate(where)
    order = np.argsort(flat, kind="stable")
    np.cumsum(np.bincount(flat, minlength=rows), out=ends[1:])
    entries = pa.StructArray.from_arrays(
        [pa.array(np.concatenate(columns)), pa.concat_arrays(numbers), pa.concat_arrays(texts)],
        fields=list(CHANGED.value_type),
    )
    return pa.ListArray.from_arrays(pa.array(ends), entries.take(pa.array(order)), type=CHANGED)


def _stages(
    served: Sequence[Served], of_requests: npt.NDArray[np.int32], of_runs: npt.NDArray[np.int64]
) -> dict[str, pa.Array]:
    """What each stage took: of the request while it waited, of the whole run from then on."""
    moments = [one.moments for one in served]
    arrived = np.fromiter(chain.from_iterable(one.arrived for one in moments), np.float64, len(of_requests))
    shared = np.array([[one.ready, one.assembled, one.computed, one.answered] for one in moments])
    counts = [len(one.requests) for one in served]
    waits = np.repeat((np.repeat(shared[:, 0], counts) - arrived) * 1e6, of_requests)
    rest = np.repeat(np.diff(shared, axis=1) * 1e6, of_runs, axis=0).T
    return {name: _numbers(values.astype(np.float32)) for name, values in _named(waits, rest)}


def _named(
    waits: npt.NDArray[np.float64], rest: npt.NDArray[np.float64]
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    return zip(STAGES, [waits, *rest], strict=True)
