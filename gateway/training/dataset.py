"""Labels joined to what was served: a training set of the values that the model saw.

    journal window -> served rows --+-- by prediction or request id --+-> verdict for every row -> rows with a label
    labels -> times, duplicates ----+-- by entity and time -----------+                         -> counts of all others

By entity and time, a label belongs to the rows that were served for its entity in the window before it. A served row
gets the first label after it: strictly after, because features of the same instant may know it already.

Invariants
- A served row has one label at most, and is in the training set once at most.
- Every served row and every label is counted under exactly one heading.
- Columns have the names and the types of the journal; those of labels begin with `label.`.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gateway.journal.redaction import digest
from gateway.training.relation import (
    check_zone,
    connected,
    instant,
    literal,
    needed,
    quoted,
    reader,
    table_of,
)
from gateway.training.window import Part, Window

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 16_384
LABEL = "label."
On = Literal["prediction_id", "request_id", "entity"]
_VERDICTS = ("matched", "unmatched", "late", "before", "ambiguous", "repeated")
_MATCHED = _VERDICTS.index("matched")
_ID = r"^[0-9a-fA-F]{32}$"


class DatasetError(Exception):
    """Labels and a journal that cannot be joined. The message says what to do."""


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """How labels are joined."""

    labels: Path
    on: On = "prediction_id"
    entities: Sequence[str] = ()
    """With `entity`: the request columns to join by; all of the model's by default."""
    label_time: str | None = None
    """The column that says when the label was. Needed with `entity`."""
    window: timedelta | None = None
    """How long after the prediction a label may be. Needed with `entity`; without it no label is late."""
    zone: str | None = None
    """The zone of label times that have none; without it they are refused."""
    duplicates: Literal["last", "first", "refuse"] = "last"
    """Which of several labels of one key counts: by label time, then by place in the file. `refuse` takes none where
    they say different things."""
    match: Literal["all", "last"] = "all"
    """With `entity`: all served rows in the window before a label, or only the last of them."""
    keep_unmatched: bool = False
    """Keep rows without a label too, with nulls."""
    version: int | None = None
    salt: bytes = b""
    """The journal's `pii_salt`, for ids that it has as hashes."""

    def __post_init__(self) -> None:
        if self.on == "entity" and (self.label_time is None or self.window is None):
            raise ValueError("joining by entity needs the time of the labels and a window")
        if self.window is not None and (self.window <= timedelta(0) or self.label_time is None):
            raise ValueError("a window is above 0, and needs the time of the labels")
        if self.match == "last" and self.on != "entity":
            raise ValueError("match: last is for labels joined by entity")


@dataclass(slots=True)
class Report:
    """What became of every served row, and of every label."""

    served: int = 0
    """Rows that were served in the window."""
    matched: int = 0
    unmatched: int = 0
    """Rows without any label."""
    late: int = 0
    """Rows whose label came after the window."""
    before: int = 0
    """Rows whose label is older than the prediction."""
    ambiguous: int = 0
    """Rows of predictions of several rows, whose label does not say which row it is of."""
    repeated: int = 0
    """Rows that were not the last before their label (`match: last`)."""
    labels: int = 0
    """Rows of the labels' file."""
    incomplete: int = 0
    """Labels without an id or a time."""
    duplicates: int = 0
    """Labels left out because another of the same key counts."""
    conflicting: int = 0
    """Keys whose labels said different things."""
    used: int = 0
    """Labels that a row of the training set has."""
    unused: int = 0
    """Labels that no row has."""
    notes: list[str] = field(default_factory=list)


def build(window: Window, options: DatasetOptions) -> Iterator[tuple[pa.RecordBatch | None, Report]]:
    """Yield batches of the training set by time, with the counts so far; the last are final. Raises DatasetError and
    RelationError."""
    parts = [part for part in window.parts if options.version in (None, part.schema.version)]
    if not parts:
        raise DatasetError(
            f"the journal has no rows of version {options.version} (it has: {', '.join(map(str, window.versions))})"
        )
    report = Report(notes=[*window.notes])
    with tempfile.TemporaryDirectory(prefix="headrace-dataset-") as folder, connected(Path(folder)) as connection:
        check_zone(connection, options.zone)
        types = serve(connection, window, parts, report)
        labels = _Labels(connection, options, parts)
        labels.load(report)
        used = np.zeros(report.labels + 1, np.bool_)
        yield None, report
        for batch in reader(connection, _joined(options, labels), BATCH_ROWS):
            kept = _counted(batch, options, report, used)
            report.used = int(used.sum())
            report.unused = report.labels - report.incomplete - report.duplicates - report.used
            if kept.num_rows:
                yield _typed(kept, types), report
        if not report.served:
            raise DatasetError("nothing was served in this window; widen --since and --until")
        yield None, report


def _counted(
    batch: pa.RecordBatch, options: DatasetOptions, report: Report, used: npt.NDArray[np.bool_]
) -> pa.RecordBatch:
    """Count the verdicts; return the rows that stay."""
    verdicts = batch.column("_verdict").to_numpy(zero_copy_only=False)
    for verdict, count in enumerate(np.bincount(verdicts, minlength=len(_VERDICTS)).tolist()):
        setattr(report, _VERDICTS[verdict], getattr(report, _VERDICTS[verdict]) + count)
    report.served += batch.num_rows
    matched = verdicts == _MATCHED
    used[pc.fill_null(batch.column("_label"), 0).to_numpy(zero_copy_only=False)[matched]] = True
    return batch if options.keep_unmatched else batch.filter(pa.array(matched))


def _typed(batch: pa.RecordBatch, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """The journal's columns in the journal's types, which DuckDB does not have all of."""
    names = [name for name in batch.schema.names if name in types or name.startswith(LABEL)]
    columns = [_cast(batch.column(name), types.get(name)) for name in names]
    return pa.RecordBatch.from_arrays(columns, names)


def _cast(values: pa.Array, kind: pa.DataType | None) -> pa.Array:
    if kind is None or values.type == kind:
        return values
    if pa.types.is_fixed_size_list(kind) and values.null_count:  # a column that older files do not have
        return pa.array(values.to_pylist(), kind)
    return values.cast(kind)


def serve(
    connection: "duckdb.DuckDBPyConnection", window: Window, parts: Sequence[Part], report: Report, view: str = "served"
) -> dict[str, pa.DataType]:
    """Make the view `served` of the parts, and return the types of its columns: those of the newest part."""
    types: dict[str, pa.DataType] = {field.name: field.type for part in parts for field in part.arrow}
    selects = []
    for part in parts:
        other = [field.name for field in part.arrow if types[field.name] != field.type]
        if other:
            report.notes.append(f"{', '.join(other)} had another type in {len(part.paths)} files, null there")
        names = ", ".join(quoted(field.name) for field in part.arrow if field.name not in (*other, "time"))
        paths = ", ".join(literal(str(path)) for path in part.paths)
        when = 'CAST("time" AS TIMESTAMP) AS "time"'
        selects.append(f"SELECT {when}, {names} FROM read_parquet([{paths}], hive_partitioning = false)")  # noqa: S608 - names are quoted
    bounds = [
        f'"time" {sign} make_timestamp_ms({int(bound.timestamp() * 1000)})'
        for sign, bound in ((">=", window.since), ("<", window.until))
        if bound is not None
    ]
    connection.execute(
        f"CREATE VIEW {quoted(view)} AS SELECT * FROM ({' UNION ALL BY NAME '.join(selects)}) "  # noqa: S608 - names are quoted
        f"WHERE {' AND '.join(bounds) or 'true'}"
    )
    return types


class _Labels:
    """The table `labels` in DuckDB: `_key 0`, …, `_at`, `_label` (the number of the row) and `label.<column>`."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", options: DatasetOptions, parts: Sequence[Part]) -> None:
        self.connection = connection
        self.options = options
        self.parts = parts
        self.entities = parts[-1].schema.entities
        self.keys: list[str] = []
        """The columns of `served` that the keys are equal to."""
        self.by_row = False
        self.shown: list[str] = []
        """The columns that the training set gets."""

    def load(self, report: Report) -> None:
        """Read the file, leave out what is incomplete, and choose among duplicates."""
        options, connection = self.options, self.connection
        texts = [name for name, kind in self.entities.items() if kind == "string"]
        columns = table_of(connection, options.labels, "label file", ["prediction_id", "request_id", *texts])
        names = self._names(columns)
        needed(options.labels, columns, [*names, *filter(None, [options.label_time])], "what the labels are joined by")
        at = "NULL::TIMESTAMP"
        if options.label_time is not None:
            at = instant(options.labels, options.label_time, columns[options.label_time], options.zone)
        keys = [self._key(name, columns[name]) for name in names]
        values = [name for name in columns if name not in {*names, options.label_time}]
        if not values:
            raise DatasetError(f"{options.labels}: has nothing but the columns that it is joined by")
        shown = [f"{quoted(name)} AS {quoted(LABEL + name)}" for name in values]
        if options.label_time is not None:
            shown.append(f"({at}) AT TIME ZONE 'UTC' AS {quoted(LABEL + options.label_time)}")
        self.shown = [LABEL + name for name in (*values, *filter(None, [options.label_time]))]
        named = ", ".join(f"{key} AS {quoted(f'_key {number}')}" for number, key in enumerate(keys))
        connection.execute(
            f"CREATE TABLE every AS SELECT {named}, {at} AS _at, _row AS _label, {', '.join(shown)} "  # noqa: S608 - names are quoted
            'FROM "label file"'
        )
        self._choose(report, len(keys), [LABEL + name for name in values])

    def _choose(self, report: Report, keys: int, values: Sequence[str]) -> None:
        connection, options = self.connection, self.options
        key = [quoted(f"_key {number}") for number in range(keys)]
        by = ", ".join([*key, "_at"] if options.on == "entity" else key)
        complete = [f"{one} IS NOT NULL" for one in key]
        if options.label_time is not None:
            complete += ["_at IS NOT NULL", "isfinite(_at)"]
        direction = "ASC" if options.duplicates == "first" else "DESC"
        said = f"row({', '.join(map(quoted, values))})"
        connection.execute(f"CREATE TABLE complete AS SELECT * FROM every WHERE {' AND '.join(complete)}")  # noqa: S608 - names are quoted
        connection.execute(
            f"CREATE TABLE labels AS SELECT * FROM complete "  # noqa: S608 - names are quoted
            f"QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY _at {direction}, _label {direction}) = 1"
        )
        every, kept, used = (len(connection.table(name)) for name in ("every", "complete", "labels"))
        report.labels, report.incomplete, report.duplicates = every, every - kept, kept - used
        report.conflicting = connection.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM complete GROUP BY {by} HAVING count(DISTINCT {said}) > 1)"  # noqa: S608 - names are quoted
        ).fetchall()[0][0]
        if not every:
            raise DatasetError(f"{options.labels}: has no rows")
        if options.duplicates == "refuse" and report.conflicting:
            raise DatasetError(
                f"{options.labels}: {report.conflicting} keys have labels that say different things; mend the file, or "
                "let the last or the first count (--duplicates)"
            )

    def _names(self, columns: Mapping[str, str]) -> list[str]:
        """The columns of the file that it is joined by."""
        options = self.options
        if options.on != "entity":
            self.by_row = "row" in columns
            self.keys = [options.on, *(["row"] if self.by_row else [])]
            return self.keys
        names = [*(options.entities or self.entities)]
        unknown = [name for name in names if name not in self.entities]
        if unknown or not names:
            known = ", ".join(self.entities) or "none"
            raise DatasetError(f"the model has no request column {', '.join(unknown)} (it has: {known})")
        self.keys = [f"entity.{name}" for name in names]
        return names

    def _key(self, name: str, kind: str) -> str:
        """SQL of a key of the file, in the type of the journal's."""
        column = quoted(name)
        is_number = "INT" in kind
        if name == "row" and self.options.on != "entity":
            if not is_number:
                raise DatasetError(f"{self.options.labels}: row is {kind}, and not the number of a row")
            return f"CAST({column} AS BIGINT)"
        if self.options.on == "prediction_id":
            return self._prediction_id(kind)
        wanted = "string" if self.options.on == "request_id" else self.entities[name]
        if not (kind == "VARCHAR" if wanted == "string" else is_number):
            raise DatasetError(f"{self.options.labels}: {name} is {kind}, the journal has it as {wanted}")
        policies: set[str | None] = {None}
        if self.options.on == "entity":
            policies = {part.policy(name) for part in self.parts}
        if policies == {None}:
            return column if wanted == "string" else f"CAST({column} AS BIGINT)"
        return self._hashed(name, policies)

    def _prediction_id(self, kind: str) -> str:
        if kind == "BLOB":
            return '"prediction_id"'
        if kind not in {"VARCHAR", "UUID"}:
            raise DatasetError(
                f"{self.options.labels}: prediction_id is {kind}; it is 16 bytes, or 32 hexadecimal digits"
            )
        text = """replace(CAST("prediction_id" AS VARCHAR), '-', '')"""
        bad = self.connection.execute(
            f'SELECT min(_row), count(*) FROM "label file" WHERE NOT regexp_matches({text}, {literal(_ID)})'  # noqa: S608 - names are quoted
        ).fetchall()[0]
        if bad[1]:
            raise DatasetError(
                f"{self.options.labels}: {bad[1]} rows have a prediction_id that is not 32 hexadecimal digits, "
                f"the first is row {bad[0]}"
            )
        return f"unhex({text})"

    def _hashed(self, name: str, policies: set[str | None]) -> str:
        """The journal has hashes of these ids: make those of the labels."""
        if policies != {"hash"}:
            said = ", ".join(sorted(str(policy or "in clear") for policy in policies))
            raise DatasetError(f"the journal does not have all ids of {name} in one form ({said}): narrow the window")
        if not self.options.salt:
            raise DatasetError(f"the journal has hashes of {name}: the setting journal.pii_salt is needed to make them")
        # With its table, because "user" alone is also who runs DuckDB.
        text, hashes = f'CAST("label file".{quoted(name)} AS VARCHAR)', f"hashes of {name}"
        found = self.connection.execute(f'SELECT DISTINCT {text} FROM "label file"').fetchall()  # noqa: S608 - names are quoted
        texts = [row[0] for row in found if row[0] is not None]
        digests = [digest(one, self.options.salt) for one in texts]
        self.connection.register(hashes, pa.table({"id": pa.array(texts, pa.string()), "digest": digests}))
        return f"(SELECT h.digest FROM {quoted(hashes)} h WHERE h.id = {text})"  # noqa: S608 - names are quoted


def _joined(options: DatasetOptions, labels: _Labels) -> str:
    """SQL of every served row, its label where there is one, and `_verdict`, by time."""
    keys = [f"s.{quoted(name)} = l.{quoted(f'_key {number}')}" for number, name in enumerate(labels.keys)]
    columns = "s.*, l.* EXCLUDE (" + ", ".join(quoted(f"_key {number}") for number in range(len(keys))) + ")"
    kind = "ASOF LEFT JOIN" if options.on == "entity" else "LEFT JOIN"
    on = [*keys, 's."time" < l._at'] if options.on == "entity" else keys
    verdict = _verdict(options, labels)
    sql = f"SELECT {columns}, {verdict} AS _verdict FROM served s {kind} labels l ON {' AND '.join(on)}"  # noqa: S608 - names are quoted
    if options.match == "last":
        order = '"time" DESC, "prediction_id" DESC, "row" DESC'
        again = f"row_number() OVER (PARTITION BY _label, _verdict ORDER BY {order})"
        worse = _VERDICTS.index("repeated")
        sql = (
            f"SELECT * REPLACE (CASE WHEN _verdict = {_MATCHED} AND {again} > 1 THEN {worse} ELSE _verdict END "  # noqa: S608 - names are quoted
            f"AS _verdict) FROM ({sql})"
        )
    label = [f"CASE WHEN _verdict = {_MATCHED} THEN {quoted(name)} END AS {quoted(name)}" for name in labels.shown]
    return (
        f"SELECT * EXCLUDE (_at) REPLACE ({', '.join(label)}) FROM ({sql}) "  # noqa: S608 - names are quoted
        'ORDER BY "time", "prediction_id", "row"'
    )


def _verdict(options: DatasetOptions, labels: _Labels) -> str:
    """SQL of what becomes of a served row: the index of a word of `_VERDICTS`."""
    cases = [("l._label IS NULL", "unmatched")]
    if options.on != "entity" and not labels.by_row:
        cases.append(('s."rows" > 1', "ambiguous"))
    if options.on != "entity" and options.label_time is not None:
        cases.append(('l._at < s."time"', "before"))
    if options.window is not None:
        span_us = options.window // timedelta(microseconds=1)
        cases.append((f'l._at > s."time" + to_microseconds({span_us})', "late"))
    said = " ".join(f"WHEN {condition} THEN {_VERDICTS.index(word)}" for condition, word in cases)
    return f"CASE {said} ELSE {_MATCHED} END"
