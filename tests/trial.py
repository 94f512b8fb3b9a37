"""A model with two versions of a view and experiments on it, and a journal of what its variants answered.

Rows go through the plan, the graph and the real journal; only the store and gRPC are not there.
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

from featureclient.schema import Catalogue, status
from featureclient.wire.keys import KeyCodec
from featureclient.wire.reader import RowReader
from featureclient.wire.writer import RowWriter
from gateway.experiments.experiment import Change, Experiment, variant_name
from gateway.inference.variants import changed
from gateway.journal.journal import Journal
from gateway.journal.options import JournalOptions
from gateway.journal.schema import JournalSchema, schema_of
from gateway.plan.transform import resolver
from gateway.records.request import Asked, Request
from gateway.records.served import Moments, Served
from gateway.server import experiment_files
from gateway.server import settings as settings_file
from gateway.training.pinned import PinnedModel
from tests.running import write_graph

START_MS = 1_780_000_000_000
CATALOGUE = """
entities: {plane: {tailnum: string}, route: {origin: string}}
views:
  plane@1: {entity: plane, columns: {late: {dtype: float32, default: 0.25}, lost: {dtype: float32, default: 0}}}
  plane@2: {entity: plane, columns: {lost: {dtype: float64, default: 0}, late: {dtype: float32, default: 0.25}}}
  route@1: {entity: route, columns: {busy: {dtype: float32, default: 0.5}}}
"""
MANIFEST = """
name: delay
views: {plane: {view: plane@1}, route: {view: route@1}}
context: {wait: float32}
transforms:
  - {function: "MODULE:squared", inputs: {wait: wait}, outputs: {wait2: float32}}
inputs:
  x: [plane.late, plane.lost, route.busy, wait, wait2]
"""
TRANSFORMS = """
import numpy as np

def squared(*, wait):
    return {"wait2": (wait * wait).astype(np.float32)}
"""
EXPERIMENTS = """
# who sees what
experiments:
  # thirty days instead of all time
  window:
    model: delay
    variants:
      control: {}
      month: {views: {plane: plane@2}}  # thirty days
    split: {by: tailnum, weights: {control: 50, month: 50}}
  shady:
    model: delay
    variants: {month: {views: {plane: plane@2}}}
    shadow: {variants: [month]}
    compare: {threshold: 0.5, tolerance: 0.001, top_k: 2}
"""
Row = Mapping[str, Any]


@dataclass(eq=False)
class Trial:
    """The files of a model with experiments, and what has been served."""

    folder: Path
    experiments: str = EXPERIMENTS
    weights: Sequence[float] = (2.0, 0.5, 1.0, 1.0, -0.25)
    store: dict[str, dict[str, Row]] = field(default_factory=dict)
    """View -> id -> row."""
    served: list[tuple[JournalSchema, Served]] = field(default_factory=list)
    ids: list[tuple[str, int, float]] = field(default_factory=list)
    """Prediction id, row, score of what primaries and arms answered: what labels are made of."""
    counter: int = 0

    def __post_init__(self) -> None:
        self.module = f"squared_of_{abs(hash(str(self.folder)))}"
        (self.folder / f"{self.module}.py").write_text(TRANSFORMS)
        (self.folder / "features.yaml").write_text(CATALOGUE)
        (self.folder / "models/delay/1").mkdir(parents=True)
        (self.folder / "models/delay/model.yaml").write_text(MANIFEST.replace("MODULE", self.module))
        self.write_graph(1, self.weights)
        self.file.write_text(self.experiments)
        self.config.write_text(
            f"catalogue: features.yaml\nmodels: models\ntransform_modules: [{self.module}]\ntransform_path: .\n"
            "journal: {path: journal}\nexperiments: experiments.yaml\n"
        )
        sys.path.insert(0, str(self.folder))
        self.catalogue = Catalogue.load(self.folder / "features.yaml")
        self._experiments: dict[str, Experiment] = {}
        self._rows: dict[tuple[str, str], bytes] = {}
        self._opened: dict[str, tuple[PinnedModel, JournalSchema]] = {}

    @property
    def config(self) -> Path:
        return self.folder / "headrace.yaml"

    @property
    def file(self) -> Path:
        return self.folder / "experiments.yaml"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def write_graph(self, version: int, weights: Sequence[float]) -> None:
        """`score`: the chance of being late."""
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["score"])],
            "trial",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 5])],
            [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
            [numpy_helper.from_array(np.array(weights, np.float32)[:, None], "w")],
        )
        (self.folder / f"models/delay/{version}").mkdir(exist_ok=True)
        write_graph(self.folder / f"models/delay/{version}/model.onnx", graph)

    def arm_of(self, experiment: str, tailnum: str) -> str:
        """Whom the file assigns the plane to."""
        if not self._experiments:
            settings = settings_file.load(self.config)
            self._experiments = {one.name: one for one in experiment_files.read(settings, self.file)}
        one = self._experiments[experiment]
        assert one.assignment is not None
        return one.arms[one.assignment.assign([tailnum])[0]]

    def answer(
        self,
        at_ms: int,
        asked: Sequence[Row],
        *,
        variant: str = "default",
        change: Change | None = None,
        again: bool = False,
    ) -> Any:
        """Answer rows of {tailnum, origin, wait} as a variant; `again`: the last request, as its shadow. Returns the
        scores."""
        pinned, schema = self._pinned(variant, change or Change())
        plan = pinned.plan
        entities = {name: [row[name] for row in asked] for name in plan.entities}
        context = {"wait": np.array([row["wait"] for row in asked], np.float32)}
        bound = plan.bind(Asked(entities, context, {}, (), False), 10_000)
        request = Request(_Stays(), "delay", "", 1.0, 1e9, bound.rows, bound.ids, bound.context, (), (), False)
        stored = [self._stored(one.view, ids) for one, ids in zip(plan.bindings, bound.ids, strict=True)]
        assembled = plan.assemble([request], stored, at_ms)
        outputs = pinned.session.run(assembled.inputs)
        self.counter += not again
        ids = (b"headrace", np.array([self.counter], np.uint64))
        moments = Moments([1.0], 1.001, 1.002, 1.003, 1.004)
        served = Served("delay", pinned.version, variant, [request], ids, at_ms, assembled, outputs, None, moments)
        self.served.append((schema, served))
        scores = np.asarray(outputs[0])[:, 0]
        if not again:
            name = (b"headrace" + self.counter.to_bytes(8, "big")).hex()
            self.ids += [(name, row, float(score)) for row, score in enumerate(scores)]
        return scores

    def split(self, at_ms: int, asked: Sequence[Row], experiment: str = "window", arm: str | None = None) -> Any:
        """Answer as the arm of the first row's plane, or as the arm that is forced."""
        found = arm or self.arm_of(experiment, asked[0]["tailnum"])
        return self.answer(
            at_ms, asked, variant=variant_name(experiment, found), change=self._experiments[experiment].variants[found]
        )

    def write_labels(self, labels: Sequence[float], **columns: Sequence[float]) -> Path:
        """One label for each of `ids`."""
        path = self.folder / "labels.parquet"
        table = {
            "prediction_id": [one[0] for one in self.ids],
            "row": [one[1] for one in self.ids],
            "late": [int(one) for one in labels],
            **columns,
        }
        pq.write_table(pa.table(table), path)
        return path

    async def keep(self) -> None:
        """Write everything that was served to the journal."""
        options = JournalOptions(enabled=True, path=self.journal, interval_ms=10, free_bytes_min=0)
        async with Journal(options) as journal:
            for schema, served in self.served:
                assert journal.offer(schema, served)

    def _pinned(self, variant: str, change: Change) -> tuple[PinnedModel, JournalSchema]:
        if variant not in self._opened:
            pinned = PinnedModel.open(
                self.folder / "models", "delay", change.version or 1, self.catalogue, resolver([self.module]),
                changed=lambda one: changed(one, change),
            )  # fmt: skip
            schema = schema_of(
                "delay", pinned.version, pinned.plan, pinned.session.signature, variant=variant,
                manifest_hash=pinned.schema.manifest_hash, graph_hash=pinned.schema.graph_hash,
                sources=pinned.schema.sources,
            )  # fmt: skip
            self._opened[variant] = (pinned, schema)
        return self._opened[variant]

    def _stored(self, view: Any, ids: Sequence[Any]) -> list[bytes]:
        if not any(ref == view.ref for ref, _ in self._rows):
            self._encode(view)
        return [self._rows.get((view.ref, one)) or RowReader(view).substitute(status.ABSENT) for one in ids]

    def _encode(self, view: Any) -> None:
        """Make the cached row of every row of a view."""
        known = self.store[view.ref]
        kinds = {"float32": pa.float32(), "float64": pa.float64()}
        columns = {view.entity.join_keys[0].name: pa.array([*known], pa.string())}
        columns |= {
            one.name: pa.array([row[one.name] for row in known.values()], kinds[one.dtype.kind]) for one in view.columns
        }
        encoded = RowWriter(view, KeyCodec(view)).encode(columns, np.full(len(known), START_MS), START_MS)
        assert not encoded.bad_rows
        rows = RowReader(view).admit(encoded.keys, encoded.values, 1e9, START_MS).rows
        self._rows |= {(view.ref, one): row for one, row in zip(known, rows, strict=True)}  # type: ignore[misc]  # none is refused


class _Stays:
    cancelled = False


def planes(trial: Trial, count: int, *, noise: float, seed: int = 5) -> Any:
    """Give the store planes whose rate in `plane@2` is the true one, and in `plane@1` the true one and noise."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=count)
    blurred = truth + noise * rng.normal(size=count)
    trial.store["plane@1"] = {f"N{i}": {"late": blurred[i], "lost": 0.5} for i in range(count)}
    trial.store["plane@2"] = {f"N{i}": {"late": truth[i], "lost": 0.5} for i in range(count)}
    trial.store["route@1"] = {"JFK": {"busy": 0.4}}
    return truth
