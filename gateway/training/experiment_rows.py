"""The rows of an experiment in a window of the journal, with labels where there are some.

    parts of the journal, by what their variant has of the experiment ─▶ views in DuckDB ─┬─▶ arms: all rows of an arm
    labels, joined as in `dataset` ───────────────────────────────────────────────────────┘ └▶ pairs: rows of both

Every row has `unit`: the id, of the column that the experiment is by, in the first row of its request. It is what was
assigned, and rows of one unit are not independent.

Invariants
- Rows of a request stand together, in their order, and requests by time.
- A pair is two rows with the same prediction id and the same number.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gateway.experiments.experiment import variants_in
from gateway.journal.schema import JournalSchema
from gateway.records.signature import TensorSpec
from gateway.training.dataset import LABEL, DatasetOptions, Report, build, serve
from gateway.training.relation import connected, quoted, reader
from gateway.training.window import Part, Window

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 16_384
ROWS_MAX = 5_000_000
"""Rows of one report; their scores are in memory."""
_STAGES = " + ".join(f'"{name}"' for name in ("wait_us", "assemble_us", "run_us", "reply_us"))

Floats = npt.NDArray[np.float64]


class ExperimentRowsError(Exception):
    """A journal that has not what the report needs. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rows, and what of them."""

    experiment: str
    output: str | None = None
    position: int = -1
    by: str | None = None
    """The request column whose id is the unit; None is the model's first."""
    labels: DatasetOptions | None = None


@dataclass(slots=True)
class Scores:
    """What was read of some rows, in their order; all [rows]."""

    time_ms: npt.NDArray[np.int64]
    request: npt.NDArray[np.int64]
    """The same number for the rows of one request, ascending."""
    unit: npt.NDArray[np.int64]
    score: Floats
    violated: npt.NDArray[np.bool_]
    took_us: Floats
    labels: Mapping[str, Floats]
    """Column of the labels -> values, NaN where a row has none."""

    def __len__(self) -> int:
        return len(self.score)

    def only(self, kept: npt.NDArray[np.bool_]) -> "Scores":
        """Some of the rows."""
        return Scores(
            self.time_ms[kept],
            self.request[kept],
            self.unit[kept],
            self.score[kept],
            self.violated[kept],
            self.took_us[kept],
            {name: values[kept] for name, values in self.labels.items()},
        )


@dataclass(slots=True)
class Units:
    """Ids -> numbers, the same for all arms."""

    numbers: dict[Any, int] = field(default_factory=dict)

    def of(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """The number of each id."""
        coded = ids.dictionary_encode(null_encoding="encode")
        known = [self.numbers.setdefault(one, len(self.numbers)) for one in coded.dictionary.to_pylist()]
        numbers: npt.NDArray[np.int64] = np.asarray(known, np.int64)[coded.indices.to_numpy(zero_copy_only=False)]
        return numbers


class Rows:
    """The rows of one experiment, open for reading. Made by `opened`."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", window: Window, asked: Asked) -> None:
        self.connection = connection
        self.window = window
        self.asked = asked
        self.units = Units()
        self.arms: dict[str, list[Part]] = {}
        """Variant of the experiment -> its parts."""
        self.others: list[Part] = []
        """Parts that are not of the experiment."""
        for part in window.parts:
            arm = variants_in(part.schema.variant).get(asked.experiment)
            (self.others if arm is None else self.arms.setdefault(arm, [])).append(part)
        self.report = Report(notes=[*window.notes])
        """What became of the labels."""
        newest = [*self.others, *(part for parts in self.arms.values() for part in parts)][-1].schema
        self.output = _output(newest, asked.output)
        self.by = asked.by or next(iter(newest.entities), None)
        self.hashed = self.by is not None and any(part.policy(self.by) for part in window.parts)
        """Whether the journal has no ids in clear."""
        self._views: dict[str, dict[str, pa.DataType]] = {}
        self._labelled: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What a reader of the report should know."""
        return self.report.notes

    def need(self, arms: Sequence[str]) -> None:
        """Raise ExperimentRowsError unless the window has rows of these arms."""
        missing = [arm for arm in arms if arm not in self.arms]
        if missing:
            known = ", ".join(sorted({part.schema.variant for part in self.window.parts}))
            raise ExperimentRowsError(
                f"the journal has no rows of {', '.join(missing)} of {self.asked.experiment!r} in this window "
                f"(it has the variants {known}); is the experiment running, and is the journal on?"
            )

    def label(self, parts: Sequence[Part]) -> list[str]:
        """Join the labels to the rows of these parts; return their columns of numbers."""
        options = self.asked.labels
        if options is None:
            return []
        batches = []
        for batch, report in build(replace(self.window, parts=parts), replace(options, keep_unmatched=False)):
            notes, self.report = self.report.notes, report
            self.report.notes = notes
            if batch is not None:
                columns = [name for name in batch.schema.names if name.startswith(LABEL)]
                numbers = [name for name in columns if _is_number(batch.schema.field(name).type)]
                batches.append(batch.select(["prediction_id", "row", *numbers]))
        if not batches:
            self.notes.append("no row has a label; see how they are joined (--on, --entity, --label-time, --window)")
            return []
        table = pa.Table.from_batches(batches)
        self.connection.register("labelled", table)
        self._labelled = table.column_names[2:]
        return self._labelled

    def scores(self, arm: str) -> Scores:
        """Every row of an arm."""
        view = self._view(f"arm {arm}", self.arms[arm])
        return self._read(f"SELECT {self._columns('s', '')} FROM {self._from(view, 's')}", [""])[0]  # noqa: S608 - names are quoted

    def pairs(self, arm: str) -> tuple[Scores, Scores]:
        """The rows that both the arm and what is not of the experiment have answered: of these, and of the arm."""
        primary, shadow = self._sides(arm)
        columns = f"{self._columns('s', '')}, {self._columns('t', 'shadow ')}"
        sql = f'SELECT {columns} FROM {self._from(primary, "s")} JOIN {quoted(shadow)} t USING ("prediction_id", "row")'  # noqa: S608 - names are quoted
        first, second = self._read(sql, ["", "shadow "])
        return first, second

    def coverage(self, arm: str) -> tuple[int, int]:
        """Rows of the primaries, and rows of the arm."""
        counts = []
        for view in self._sides(arm):
            sql = f"SELECT count(*) FROM {quoted(view)}"  # noqa: S608 - names are quoted
            counts.append(int(self.connection.execute(sql).fetchall()[0][0]))
        return counts[0], counts[1]

    def values(
        self, arm: str, columns: Sequence[str], limit: int | None = None, where: str = "true"
    ) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield the columns of both sides of pairs, each under its own name; with a `limit` a fixed sample of them."""
        primary, shadow = self._sides(arm)
        chosen = [f"{side}.{quoted(name)} AS {quoted(side + name)}" for side in ("s", "t") for name in columns]
        sql = (
            f"SELECT {', '.join(chosen)} FROM {quoted(primary)} s JOIN {quoted(shadow)} t "  # noqa: S608 - names are quoted
            f'USING ("prediction_id", "row") WHERE {where}'
        )
        if limit is not None:
            sql += f' ORDER BY hash("prediction_id"), "row" LIMIT {limit:d}'
        types = (self._views[primary], self._views[shadow])
        for batch in reader(self.connection, sql, BATCH_ROWS):
            count = len(columns)
            sides = [
                pa.RecordBatch.from_arrays(
                    [
                        _cast(batch.column(place + side * count), types[side][name])
                        for place, name in enumerate(columns)
                    ],
                    [*columns],
                )
                for side in (0, 1)
            ]
            yield sides[0], sides[1]

    def _sides(self, arm: str) -> tuple[str, str]:
        return self._view("primary", self.others), self._view(f"arm {arm}", self.arms[arm])

    def _view(self, name: str, parts: Sequence[Part]) -> str:
        if name not in self._views:
            self._views[name] = serve(self.connection, self.window, parts, self.report, name)
        return name

    def _from(self, view: str, alias: str) -> str:
        joined = ' LEFT JOIN labelled l USING ("prediction_id", "row")' if self._labelled else ""
        unit = "prediction_id" if self.by is None else f"entity.{self.by}"
        first = f'first_value({quoted(unit)}) OVER (PARTITION BY "prediction_id" ORDER BY "row") AS "_unit"'
        return f"(SELECT *, {first} FROM {quoted(view)}) {alias}{joined}"  # noqa: S608 - names are quoted

    def _columns(self, alias: str, prefix: str) -> str:
        named = {
            "score": f"{alias}.{quoted(f'out.{self.output.name}')}",
            "violated": f'{alias}."violations" > 0',
            "took_us": " + ".join(f"{alias}.{one}" for one in _STAGES.split(" + ")),
        }
        if not prefix:
            named |= {
                "time_ms": f'epoch_ms({alias}."time")',
                "prediction_id": f'{alias}."prediction_id"',
                "row": f'{alias}."row"',
                "unit": f'{alias}."_unit"',
            }
            named |= {name: f"CAST(l.{quoted(name)} AS DOUBLE)" for name in self._labelled}
        return ", ".join(f"{sql} AS {quoted(prefix + name)}" for name, sql in named.items())

    def _read(self, sql: str, sides: Sequence[str]) -> list[Scores]:
        sql = f'SELECT * FROM ({sql}) ORDER BY "time_ms", "prediction_id", "row"'  # noqa: S608 - names are quoted
        batches, rows = [], 0
        for batch in reader(self.connection, sql, BATCH_ROWS):
            rows += batch.num_rows
            if rows > ROWS_MAX:
                raise ExperimentRowsError(
                    f"the window has more than {ROWS_MAX:,} rows; narrow it with --since and --until"
                )
            batches.append(batch)
        table = pa.Table.from_batches(batches) if batches else None
        if table is None or not table.num_rows:
            raise ExperimentRowsError("the window has no rows to compare; widen --since and --until")
        ids = table.column("prediction_id").combine_chunks()
        binary = np.frombuffer(b"".join(ids.to_pylist()), "V16")
        new = np.concatenate(([False], binary[1:] != binary[:-1]))
        labels = {name.removeprefix(LABEL): _floats(table.column(name)) for name in self._labelled}
        both = (
            table.column("time_ms").to_numpy().astype(np.int64),
            np.cumsum(new),
            self.units.of(table.column("unit").combine_chunks()),
        )
        return [
            Scores(
                *both,
                _elements(table.column(f"{side}score").combine_chunks(), self.asked.position),
                table.column(f"{side}violated").to_numpy(zero_copy_only=False).astype(np.bool_),
                _floats(table.column(f"{side}took_us")),
                labels,
            )
            for side in sides
        ]


@contextmanager
def opened(window: Window, asked: Asked) -> Iterator[Rows]:
    """The rows of an experiment. Raises ExperimentRowsError, and what `dataset.build` raises."""
    with TemporaryDirectory(prefix="headrace-experiment-") as folder, connected(Path(folder)) as connection:
        yield Rows(connection, window, asked)


def _output(schema: JournalSchema, name: str | None) -> TensorSpec:
    known = [spec for spec in schema.outputs if spec.dtype not in {"string", "bool"}]
    found = [spec for spec in known if spec.name == name] if name else known
    if not found:
        listed = ", ".join(map(str, schema.outputs)) or "none"
        raise ExperimentRowsError(f"the model has no output of numbers {name or ''} (it has: {listed})")
    return found[0]


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _floats(column: pa.ChunkedArray) -> Floats:
    """Numbers as float64, nulls as NaN."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # pyarrow is untyped


def _elements(values: pa.Array, position: int) -> Floats:
    """One element of each row of an output."""
    if pa.types.is_nested(values.type):
        flat = values.flatten()
        width, over = divmod(len(flat), len(values))
        if over or not -width <= position < width:
            raise ExperimentRowsError(f"the rows of the output have no element {position} each (compare.position)")
        values = flat.take(pa.array(np.arange(len(values)) * width + position % width))
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # pyarrow is untyped


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.type == kind:
        return values
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values.flatten().cast(kind.value_type), kind.list_size)
    return values.cast(kind)
