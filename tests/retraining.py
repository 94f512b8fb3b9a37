"""A model with columns of every kind, histories of its views, and what serving makes of them at any instant.

Rows go through the wire format of the store, the plan, the graph and the journal; only Redis and gRPC are not there.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from featureclient.schema import Catalogue, View, status
from featureclient.wire.keys import KeyCodec
from featureclient.wire.reader import RowReader
from featureclient.wire.writer import RowWriter
from gateway.journal import reader
from gateway.journal.journal import Journal
from gateway.journal.options import JournalOptions
from gateway.journal.schema import schema_of
from gateway.plan.transform import resolver
from gateway.records.request import Asked, Request
from gateway.records.served import Moments, Served
from gateway.training.pinned import PinnedModel
from gateway.validation.checks import Checks
from gateway.validation.compiler import compile_checks
from tests.running import write_graph

START_MS = 1_780_000_000_000
MINUTE_MS = 60_000
CATALOGUE = """
entities:
  user: {user: string}
  pair: {user: string, item: int64}
views:
  stats@1:
    entity: user
    max_age: 1h
    columns:
      age: {dtype: float32, default: -1.5}
      name: {dtype: "string[6]", default: nobody}
      taste: {dtype: "float32[2]", default: 0.5}
      half: {dtype: float16, default: 0.25}
      seen: {dtype: timestamp, default: 0}
      visits: {dtype: int16, default: 7}
      unread: {dtype: int64, default: 1}
  pairs@1:
    entity: pair
    ttl: 2h
    columns:
      clicks: {dtype: int32, default: 3}
      liked: {dtype: bool, default: false}
      spent: {dtype: float64, default: 9.5}
"""
MANIFEST = """
name: ranker
views:
  u: {view: stats@1}
  p: {view: pairs@1, keys: {item: product}}
context: {hour: float32, tag: "string[4]"}
transforms:
  - {function: "MODULE:wave", inputs: {hour: hour, spent: p.spent}, outputs: {sine: float32, rest: float64}}
derive:
  ratio: {expression: "where(u.visits > 0, rest / u.visits, sine)", dtype: float32}
inputs:
  x: [u.age, u.taste, u.half, u.visits, p.clicks, p.liked, p.spent, hour, sine, ratio]
  words: [u.name, tag]
  times: [u.seen]
"""
TRANSFORMS = """
import numpy as np

def wave(*, hour, spent):
    return {"sine": np.sin(hour).astype(np.float32), "rest": np.sqrt(np.abs(spent)) * hour}
"""
Row = Mapping[str, Any]
STATS = ("age", "name", "taste", "half", "seen", "visits", "unread")
PAIRS = ("clicks", "liked", "spent")


@dataclass(eq=False)
class Retraining:
    """The files of a model and a journal, and what has been served."""

    folder: Path
    validation: str = ""
    catalogue: str = CATALOGUE
    histories: dict[str, list[Row]] = field(default_factory=lambda: {"stats@1": [], "pairs@1": []})
    served: list[Served] = field(default_factory=list)
    counter: int = 0

    def __post_init__(self) -> None:
        self.module = f"wave_of_{abs(hash(str(self.folder)))}"
        (self.folder / f"{self.module}.py").write_text(TRANSFORMS)
        (self.folder / "features.yaml").write_text(self.catalogue)
        self.manifest.parent.mkdir(parents=True)
        self.manifest.write_text(MANIFEST.replace("MODULE", self.module) + self.validation)
        self.write_graph(1.0)
        self.config.write_text(
            f"catalogue: features.yaml\nmodels: models\ntransform_modules: [{self.module}]\ntransform_path: .\n"
            "journal: {path: journal}\n"
        )
        self.pinned = self.open()

    @property
    def manifest(self) -> Path:
        return self.folder / "models/ranker/model.yaml"

    @property
    def config(self) -> Path:
        return self.folder / "headrace.yaml"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def write_graph(self, weight: float) -> None:
        """`score` of the numbers, and `said`, which joins nothing: it gives the words back."""
        weights = np.linspace(-weight, 1.25 * weight, 11, dtype=np.float32)[:, None]
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["score"]),
                helper.make_node("Identity", ["words"], ["said"]),
                helper.make_node("Add", ["times", "one"], ["later"]),
            ],
            "retraining",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 11]),
                helper.make_tensor_value_info("words", TensorProto.STRING, [None, 2]),
                helper.make_tensor_value_info("times", TensorProto.INT64, [None, 1]),
            ],
            [
                helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1]),
                helper.make_tensor_value_info("said", TensorProto.STRING, [None, 2]),
                helper.make_tensor_value_info("later", TensorProto.INT64, [None, 1]),
            ],
            [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.int64([1]), "one")],
        )
        write_graph(self.folder / "models/ranker/1/model.onnx", graph)

    def open(self) -> PinnedModel:
        """The model as the commands open it."""
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        catalogue = Catalogue.load(self.folder / "features.yaml")
        return PinnedModel.open(self.folder / "models", "ranker", None, catalogue, resolver([self.module]))

    def know(self, view: str, event_ms: int, **row: Any) -> None:
        """Add a row to the history of a view; what is not named is null."""
        self.histories[view].append({**row, "event_time_ms": event_ms})

    def write_histories(self) -> dict[str, Path]:
        """The histories as Parquet files."""
        paths = {}
        for ref, rows in self.histories.items():
            view = next(one.view for one in self.pinned.plan.bindings if one.view.ref == ref)
            paths[ref] = self.folder / f"{view.name}.parquet"
            pq.write_table(table_of(view, rows), paths[ref])
        return paths

    def serve(self, at_ms: int, asked: Sequence[Row], request_id: str = "", delay_ms: int = 0) -> Served:
        """One request, answered with what the store would have had at `at_ms`."""
        pinned, plan = self.pinned, self.pinned.plan
        entities = {name: [row[name] for row in asked] for name in plan.entities}
        context = {
            "hour": np.array([row["hour"] for row in asked], np.float32),
            "tag": np.array([row["tag"] for row in asked], object),
        }
        bound = plan.bind(Asked(entities, context, {}, (), False), 10_000)
        request = Request(_Stays(), "ranker", request_id, 1.0, 1e9, bound.rows, bound.ids, bound.context, (), (), False)
        stored = [self._stored(one.view, ids, at_ms) for one, ids in zip(plan.bindings, bound.ids, strict=True)]
        with np.errstate(all="ignore"):
            assembled = plan.assemble([request], stored, at_ms)
        violations, checks = None, self.checks
        outputs: Sequence[Any] = []
        checked = None if checks is None else checks.apply(assembled)
        if checked is not None:
            assembled, violations = checked.assembled, checked.violations
        outputs = pinned.session.run(assembled.inputs)
        if checked is not None and checked.replaced:
            assert checks is not None
            outputs = checks.answers(checked, outputs)
        ids = (b"headrace", np.array([self.counter], np.uint64))
        self.counter += 1
        moments = Moments([1.0], 1.001, 1.002, 1.003, 1.004)
        served = Served(
            "ranker", 1, "default", [request], ids, at_ms + delay_ms, assembled, outputs, violations, moments
        )
        self.served.append(served)
        return served

    @property
    def checks(self) -> Checks | None:
        """The checks of the manifest."""
        use = self.pinned.manifest.validation
        return None if use is None else compile_checks(self.pinned.plan, use, None, self.pinned.session.signature)

    def _stored(self, view: View, ids: Sequence[Any], at_ms: int) -> list[bytes]:
        """The cached row of each id, from the newest row of its history that is there at `at_ms`."""
        names = [key.name for key in view.entity.join_keys]
        found: dict[Any, Row] = {}
        for row in self.histories[view.ref]:
            key = tuple(row[name] for name in names)
            if row["event_time_ms"] <= at_ms and (
                key not in found or row["event_time_ms"] >= found[key]["event_time_ms"]
            ):
                found[key] = row
        if view.ttl_ms is not None:
            found = {key: row for key, row in found.items() if row["event_time_ms"] + view.ttl_ms > at_ms}
        cached: dict[Any, bytes] = {}
        if found:
            table = table_of(view, [*found.values()])
            times = table.column("event_time_ms").to_numpy()
            columns = {name: table.column(name) for name in table.column_names if name != "event_time_ms"}
            encoded = RowWriter(view, KeyCodec(view)).encode(columns, times, at_ms)
            assert not encoded.bad_rows
            rows = RowReader(view).admit(encoded.keys, encoded.values, 1e9, at_ms).rows
            cached = {key if len(names) > 1 else key[0]: row for key, row in zip(found, rows, strict=True)}  # type: ignore[misc]  # none is refused
        absent = RowReader(view).substitute(status.ABSENT)
        return [cached.get(one, absent) for one in ids]

    async def keep(self, **options: Any) -> None:
        """Write everything that was served to the journal."""
        chosen = {"enabled": True, "path": self.journal, "interval_ms": 10, "free_bytes_min": 0, **options}
        pinned, checks = self.pinned, self.checks
        schema = schema_of(
            "ranker",
            1,
            pinned.plan,
            pinned.session.signature,
            manifest_hash=pinned.schema.manifest_hash,
            checked=() if checks is None else checks.names,
            graph_hash=pinned.schema.graph_hash,
            sources=pinned.schema.sources,
        )
        async with Journal(JournalOptions(**chosen)) as journal:
            for served in self.served:
                assert journal.offer(schema, served)

    def journaled(self) -> pa.Table:
        """Every row that is in segments."""
        paths = reader.segments(self.journal)
        return pa.Table.from_batches([batch for path in paths for batch in reader.batches(path)])


class _Stays:
    cancelled = False


def table_of(view: View, rows: Sequence[Row]) -> pa.Table:
    """Rows of a history as a table."""
    kinds = {"string": pa.string(), "timestamp": pa.timestamp("ms", tz="UTC")}
    columns: dict[str, Any] = {
        key.name: pa.array([row[key.name] for row in rows], pa.int64() if key.dtype == "int64" else pa.string())
        for key in view.entity.join_keys
    }
    for column in view.columns:
        kind = kinds.get(column.dtype.kind) or pa.from_numpy_dtype(column.dtype.numpy)
        values = [row.get(column.name) for row in rows]
        columns[column.name] = pa.array(values, pa.list_(kind) if column.dtype.length else kind)
    columns["event_time_ms"] = pa.array([row["event_time_ms"] for row in rows], pa.int64())
    return pa.table(columns)


def user_row(seed: int) -> dict[str, Any]:
    """A row of `stats@1` without its key."""
    rng = np.random.default_rng(seed)
    return {
        "age": float(np.float32(rng.normal(40, 10))),
        "name": f"n{seed % 1000}",
        "taste": rng.normal(size=2).astype(np.float32).tolist(),
        "half": float(np.float16(rng.normal())),
        "seen": int(START_MS - rng.integers(0, 10**9)),
        "visits": int(rng.integers(-5, 90)),
        "unread": int(rng.integers(0, 9)),
    }


def pair_row(seed: int) -> dict[str, Any]:
    """A row of `pairs@1` without its key."""
    rng = np.random.default_rng(seed)
    return {"clicks": int(rng.integers(0, 99)), "liked": bool(rng.integers(0, 2)), "spent": float(rng.normal(50, 30))}


def ordinary(folder: Path, requests: int = 12, **how: Any) -> Retraining:
    """Users and pairs with a row each, some nulls, some unknown, and requests of one to three rows each minute."""
    made = Retraining(folder, **how)
    for number in range(8):
        row = user_row(number)
        if number % 3 == 0:
            row["taste"] = row["age"] = None
        made.know("stats@1", START_MS - number * 10 * MINUTE_MS, user=f"u{number}", **row)
        made.know("pairs@1", START_MS - number * MINUTE_MS, user=f"u{number}", item=number, **pair_row(number))
    rng = np.random.default_rng(11)
    for number in range(requests):
        asked = [
            {
                "user": f"u{rng.integers(0, 10)}",
                "product": int(rng.integers(0, 9)),
                "hour": float(rng.normal()),
                "tag": "ab",
            }
            for _ in range(number % 3 + 1)
        ]
        made.serve(START_MS + number * MINUTE_MS, asked, request_id=f"r{number}")
    return made
