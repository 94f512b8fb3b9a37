"""The columns that would have been served, from offline tables: what each row's view had at the row's time.

    entities (ids, time, context, labels) --ASOF JOIN--> newest row of each view's history that is not from the future
        -> blocks, as a reader fills them -> age, defaults -> transforms of the plan -> the journal's columns -> Parquet

A row of a history counts from the time of its event on, and until `ttl` has passed. Of rows of one key and time the
last in the file counts, as the last write does in the store. What is older than `max_age` is STALE and still used.

Invariants
- No value comes from a row whose event is later than the entity's time.
- Blocks, transforms, inputs and columns are made by the code that serves and journals.
- Rows are in the order of the entities, and one batch of them is in memory at a time.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featureclient.schema import EVENT_TIME, DType, View, ages_ms, apply_age, status
from featureclient.wire.columns import ColumnError, Converted, convert, given
from gateway.journal.policy import Redaction
from gateway.journal.recording import Recorder
from gateway.journal.schema import TIME
from gateway.plan.column import Stored
from gateway.plan.plan import Assembled, Binding, Values
from gateway.plan.transform import TransformError
from gateway.records.errors import HeadraceError
from gateway.records.request import Array, Id, Request
from gateway.records.served import Moments, Served
from gateway.training.pinned import PinnedModel
from gateway.training.relation import check_zone, connected, instant, needed, quoted, reader, table_of

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 8192
LABEL = "label."
"""What the names of columns of labels begin with."""
_TIME_MS = "entity time"


class BackfillError(Exception):
    """Tables that nothing can be made of. The message names the table, the column and the row."""


@dataclass(frozen=True, slots=True)
class BackfillOptions:
    """What is to be made."""

    entities: Path
    histories: Mapping[str, Path]
    """View (`plane_stats@1`) or alias -> its table: join keys, features, and the time of each row's event."""
    time: str = "time"
    """The column of the entities' times."""
    event_time: str = EVENT_TIME
    """The column of the histories' times."""
    zone: str | None = None
    """The zone of times that have none; without it they are refused."""
    redaction: Redaction = field(default_factory=Redaction)
    """What the journal does to personal data, so that the columns are alike."""


@dataclass(slots=True)
class Backfilled:
    """What was made so far."""

    total: int = 0
    """Rows of the entities' table."""
    rows: int = 0
    rejected: int = 0
    """Rows that serving would have refused: a view with `on_missing: reject` had no row. They are left out."""
    found: dict[str, int] = field(default_factory=dict)
    """Alias -> rows that had a row of the view."""
    stale: dict[str, int] = field(default_factory=dict)
    """Alias -> of those, older than `max_age`."""
    repeated: dict[str, int] = field(default_factory=dict)
    """Alias -> rows of the history left out, because a later one has the same key and time."""


def backfill(model: PinnedModel, options: BackfillOptions) -> Iterator[tuple[pa.RecordBatch | None, Backfilled]]:
    """Yield batches of columns with the counts so far, first of all the counts alone. Raises BackfillError and
    RelationError."""
    done = Backfilled()
    with tempfile.TemporaryDirectory(prefix="headrace-backfill-") as folder, connected(Path(folder)) as connection:
        check_zone(connection, options.zone)
        maker = _Maker(model, options.redaction)
        sql = _Joined(connection, model, options, maker, done).sql()
        done.total = connection.execute("SELECT count(*) FROM entities").fetchall()[0][0]
        if not done.total:
            raise BackfillError(f"{options.entities}: has no rows")
        yield None, done
        first = 1
        for batch in reader(connection, sql, BATCH_ROWS):
            if batch.num_rows:
                yield maker.made(batch, first, done), done
                first += batch.num_rows


class _Joined:
    """The SQL that joins the histories to the entities. Makes the views `entities` and `h0`, `h1`, … in DuckDB."""

    def __init__(
        self,
        connection: "duckdb.DuckDBPyConnection",
        model: PinnedModel,
        options: BackfillOptions,
        maker: "_Maker",
        done: Backfilled,
    ) -> None:
        self.connection = connection
        self.plan = model.plan
        self.options = options
        self.maker = maker
        self.done = done

    def sql(self) -> str:
        """All columns that the maker needs, in the order of the entities."""
        options = self.options
        texts = [name for name, kind in self.plan.entities.items() if kind == "string"]
        columns = table_of(self.connection, options.entities, "entities", texts)
        context = [column.name for column in self.plan.context if column.name in self.maker.read]
        needed(
            options.entities,
            columns,
            [*self.plan.entities, *context, options.time],
            "the model's ids, context and time",
        )
        when = instant(options.entities, options.time, columns[options.time], options.zone)
        self._check_keys(options.entities, columns, {name: name for name in self.plan.entities})
        self._check_times(options.entities, "entities", when)
        self.maker.labels = [name for name in columns if name not in {*self.plan.entities, *context, options.time}]
        parts = ["e.*"]
        joins = []
        for index, binding in enumerate(self.plan.bindings):
            self._history(index, binding)
            own = [f"h{index}.event AS {quoted(f'event {index}')}"]
            own += [f"h{index}.{quoted(name)} AS {quoted(f'{index}.{name}')}" for name in self.maker.given[index]]
            parts += own
            keys = zip(binding.keys, binding.view.entity.join_keys, strict=True)
            on = [f"e.{quoted(column)} = h{index}.{quoted(key.name)}" for column, key in keys]
            joins.append(f"ASOF LEFT JOIN h{index} ON {' AND '.join([*on, f'e.{quoted(_TIME_MS)} >= h{index}.event'])}")
        source = f"(SELECT *, epoch_ms({when}) AS {quoted(_TIME_MS)} FROM entities) e"  # noqa: S608 - names are quoted
        return f"SELECT {', '.join(parts)} FROM {source} {' '.join(joins)} ORDER BY e._row"  # noqa: S608 - names are quoted

    def _history(self, index: int, binding: Binding) -> None:
        view, options = binding.view, self.options
        path = options.histories.get(binding.alias) or options.histories.get(binding.ref)
        if path is None:
            raise BackfillError(f"no table of {binding.ref} ({binding.alias}): name it with --view {binding.ref}=FILE")
        raw = f"raw h{index}"
        texts = [key.name for key in view.entity.join_keys if key.dtype == "string"]
        columns = table_of(self.connection, path, raw, texts)
        keys = [key.name for key in view.entity.join_keys]
        wanted = [*keys, *self.maker.stored(index), options.event_time]
        needed(path, columns, wanted, f"the keys, features and event time of {view.ref}")
        # What the model does not read comes along where it is there: its nulls are journaled too.
        stored = self.maker.given[index] = [column.name for column in view.columns if column.name in columns]
        self._check_keys(path, columns, {key.name: key.name for key in view.entity.join_keys}, view)
        event = instant(path, options.event_time, columns[options.event_time], options.zone)
        self._check_times(path, raw, event)
        named = ", ".join(map(quoted, [*keys, *stored]))
        by = ", ".join([*map(quoted, keys), "event"])
        self.connection.execute(
            f"CREATE TABLE h{index} AS SELECT {named}, epoch_ms({event}) AS event FROM {quoted(raw)} "  # noqa: S608 - names are quoted
            f"QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY _row DESC) = 1"
        )
        before, after = (len(self.connection.table(quoted(table))) for table in (raw, f"h{index}"))
        self.done.repeated[binding.alias] = before - after
        self.done.found[binding.alias] = self.done.stale[binding.alias] = 0

    def _check_keys(
        self, path: Path, columns: Mapping[str, str], names: Mapping[str, str], view: View | None = None
    ) -> None:
        kinds = self.plan.entities if view is None else {key.name: key.dtype for key in view.entity.join_keys}
        for name in names:
            is_text = columns[name] == "VARCHAR"
            is_number = columns[name] in {
                "TINYINT",
                "SMALLINT",
                "INTEGER",
                "BIGINT",
                "UTINYINT",
                "USMALLINT",
                "UINTEGER",
            }
            if not (is_text if kinds[name] == "string" else is_number):
                raise BackfillError(f"{path}: the ids of {name} are {columns[name]}, they have to be {kinds[name]}")

    def _check_times(self, path: Path, view: str, when: str) -> None:
        """Every row has a time, and it is one that milliseconds can hold."""
        bad = self.connection.execute(
            f"SELECT min(_row), count(*) FROM {quoted(view)} WHERE ({when}) IS NULL OR NOT isfinite({when})"  # noqa: S608 - names are quoted
        ).fetchall()[0]
        if bad[1]:
            raise BackfillError(f"{path}: {bad[1]} rows have no time, the first is row {bad[0]}")


class _Maker:
    """Makes the journal's columns of joined rows."""

    def __init__(self, model: PinnedModel, redaction: Redaction) -> None:
        self.plan = model.plan
        self.labels: list[str] = []
        self.given: dict[int, list[str]] = {}
        """Number of the view -> those of its columns that its history has."""
        schema = replace(model.schema, outputs=(), row_bytes=None)
        self.read = {column.name for column in schema.columns if column.kind != "derived"}
        self.recorder = Recorder(schema, redaction)
        self.version = model.version

    def stored(self, index: int) -> list[str]:
        """The columns of the view at `index` that are read, without its alias."""
        alias = self.plan.bindings[index].alias
        return [
            name.partition(".")[2] for name in self.read if self._is_of(name, index) and name.startswith(f"{alias}.")
        ]

    def _is_of(self, name: str, index: int) -> bool:
        source = self.plan.columns[name].source
        return isinstance(source, Stored) and source.binding == index

    def made(self, batch: pa.RecordBatch, first: int, done: Backfilled) -> pa.RecordBatch:
        """The columns of a batch whose first row has the number `first`."""
        rows = batch.num_rows
        now_ms = batch.column(_TIME_MS).to_numpy(zero_copy_only=False)
        blocks = [self._block(batch, binding, now_ms, done) for binding in self.plan.bindings]
        context = [self._context(batch, column.name, column.dtype, first) for column in self.plan.context]
        statuses = tuple(
            apply_age(binding.view, block, now_ms) for binding, block in zip(self.plan.bindings, blocks, strict=True)
        )
        kept = np.ones(rows, np.bool_)
        for binding, codes in zip(self.plan.bindings, statuses, strict=True):
            done.stale[binding.alias] += int((codes & status.OUTCOME_MASK == status.STALE).sum())
            if binding.view.on_missing == "reject":
                kept &= codes & status.OUTCOME_MASK != status.MISSING
        values = Values(self.plan, blocks, context, rows)
        try:
            inputs = {matrix.spec.name: matrix.fill(blocks, rows, values) for matrix in self.plan.matrices}
        except (TransformError, HeadraceError) as error:
            raise BackfillError(f"rows {first} to {first + rows - 1} of the entities: {error}") from error
        events_ms = tuple(block["event_ms"] for block in blocks)
        assembled = Assembled(inputs, statuses, events_ms, 0, None, tuple(blocks), tuple(context))
        recorded = self.recorder.record([self._served(batch, assembled, rows)])
        done.rows += int(kept.sum())
        done.rejected += rows - int(kept.sum())
        whole = self._whole(recorded, batch, now_ms, events_ms)
        return whole if kept.all() else whole.filter(pa.array(kept))

    def _whole(
        self, recorded: pa.RecordBatch, batch: pa.RecordBatch, now_ms: Array, events_ms: Sequence[Array]
    ) -> pa.RecordBatch:
        """The journal's columns that a backfill has: no ids of predictions, nothing of checks, outputs and latency."""
        rows = batch.num_rows
        columns: dict[str, Any] = {
            "time": pa.array(now_ms, pa.int64()).cast(TIME),
            "version": pa.repeat(pa.scalar(self.version, pa.int32()), rows),
            "variant": pa.repeat(pa.scalar("backfill", pa.string()), rows),
        }
        for name in recorded.schema.names:
            if name.startswith(("entity.", "f.", "null.", "status.")):
                columns[name] = recorded.column(name)
        for binding, events in zip(self.plan.bindings, events_ms, strict=True):
            columns[f"age_ms.{binding.alias}"] = pa.array(ages_ms(events, now_ms))  # type: ignore[arg-type]  # one time for each row
        for name in self.labels:
            columns[f"{LABEL}{name}"] = batch.column(name)
        return pa.RecordBatch.from_arrays([*columns.values()], [*columns])

    def _block(self, batch: pa.RecordBatch, binding: Binding, now_ms: Array, done: Backfilled) -> npt.NDArray[np.void]:
        """The rows of a view as a reader would have given them."""
        view, rows, index = binding.view, batch.num_rows, self.plan.bindings.index(binding)
        event = batch.column(f"event {index}")
        there = event.is_valid().to_numpy(zero_copy_only=False)
        events_ms = pc.fill_null(event, -1).to_numpy(zero_copy_only=False)
        if view.ttl_ms is not None:
            there = there & (events_ms + view.ttl_ms > now_ms)
        done.found[binding.alias] += int(there.sum())
        block = np.zeros(rows, view.layout.block_dtype)
        block["status"] = np.where(there, status.PRESENT, view.absent_outcome | status.ABSENT)
        block["event_ms"] = np.where(there, events_ms, -1)
        valid = np.repeat(there[:, None], len(view.columns), axis=1)
        stored = self.given[index]
        for bit, column in enumerate(view.columns):
            place = view.layout.places[column.name]
            cells = block[place.run][:, place.start : place.start + place.width]
            substitute = column.substitute
            cells[:] = substitute.encode() if isinstance(substitute, str) else substitute
            if column.name in stored:
                found = _converted(
                    binding.ref, column.name, column.dtype, batch.column(f"{index}.{column.name}"), there
                )
                good = there if found.null is None else there & ~found.null
                cells[good] = found.values.reshape(rows, -1)[good]
                valid[:, bit] = good
        block["valid"] = np.packbits(valid, axis=1, bitorder="little")
        block.setflags(write=False)
        return block

    def _context(self, batch: pa.RecordBatch, name: str, dtype: DType, first: int) -> Array:
        rows = batch.num_rows
        if name not in self.read:  # nothing reads it
            shape = (rows, dtype.width) if dtype.length else (rows,)
            return np.full(shape, "", object) if dtype.kind == "string" else np.zeros(shape, dtype.numpy)
        found = _converted("the entities", name, dtype, batch.column(name), np.ones(rows, np.bool_))
        values = found.values
        if found.null is not None and found.null.any():
            row = first + int(np.flatnonzero(found.null)[0])
            raise BackfillError(f"the entities have no value of the context column {name} in row {row}")
        if dtype.kind == "string":
            texts = np.empty(rows, object)
            texts[:] = [text.decode() for text in values.tolist()]
            values = texts
        values.setflags(write=False)
        return values

    def _served(self, batch: pa.RecordBatch, assembled: Assembled, rows: int) -> Served:
        """The batch as one request of a run, which is what a recorder takes."""
        ids: list[Sequence[Id]] = []
        for binding in self.plan.bindings:
            columns = [batch.column(name).to_pylist() for name in binding.keys]
            ids.append(columns[0] if len(columns) == 1 else [*zip(*columns, strict=True)])
        request = Request(_Nobody(), self.plan.model, "", 0.0, 0.0, rows, tuple(ids), (), (), (), False)
        numbers = (bytes(8), np.zeros(1, np.uint64))
        moments = Moments([0.0], 0.0, 0.0, 0.0, 0.0)
        return Served(self.plan.model, self.version, "", [request], numbers, 0, assembled, [], None, moments)


class _Nobody:
    """Nobody waits for a backfill."""

    cancelled = False


def _converted(where: str, name: str, dtype: DType, values: pa.Array, there: npt.NDArray[np.bool_]) -> Converted:
    try:
        found = convert(dtype, given(values))
    except ColumnError as error:
        raise BackfillError(f"{where}, column {name}: {error}") from error
    wrong = [why for row, why in found.bad.items() if there[row]]
    if wrong:
        raise BackfillError(f"{where}, column {name}: {wrong[0]} ({len(wrong)} such rows in a batch)")
    return found
