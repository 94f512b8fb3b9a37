"""Train, test, export: `python -m examples.flights.train` writes `models/flight_delay`.

Flow: flights → training matrix, each flight as of its departure → LightGBM on January to September → ONNX with one
input and one output → the manifest. The test is what serving will be: the flights of October to December with the
statistics of 2013-09-30, scored by the exported graph in ONNX Runtime, not by LightGBM.

The model has to beat one that knows only the departure delay, which is the obvious thing to know; both are trained the
same way. Columns and hyperparameters were chosen on August and September, after training on January to July; nothing
was chosen by looking at October to December. The same libraries make the same bytes again.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import onnx
import onnxmltools
import onnxruntime
from onnxmltools.convert.common.data_types import FloatTensorType
from ruamel.yaml import YAML

from examples.flights.data import READINGS, Flights, read_flights
from examples.flights.features import AS_OF_MIN, STATISTICS, VIEWS, WEATHER, Features, context_columns
from examples.flights.flight_transforms import cyclical_hour
from examples.flights.metrics import auc, log_loss

NAME = "flight_delay"
VERSION = 1
MODELS = Path(__file__).parents[2] / "models"

LAST_TRAINING_MONTH = 9

INPUT = "features"
OUTPUT = "probability"
OPSET = 15
"""The newest that the converter knows."""
EXPORT_TOLERANCE = 1e-5

# The counts of flights are left out: they grow through the year, so a tree would read the date from them.
COLUMNS = (
    *(f"{view}.{column}" for view in STATISTICS for column in ("late_share", "lost_min")),
    "plane_stats.built",
    "plane_stats.seats",
    *(f"{WEATHER}.{reading}" for reading in READINGS),
    "dep_delay",
    "distance",
    "weekday",
    "hour_sin",
    "hour_cos",
)
BASELINE_COLUMNS = ("dep_delay",)

ROUNDS = 200
PARAMETERS = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 200,
    "seed": 1,
    # One thread adds up the same numbers in the same order on every machine.
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}

MANIFEST: Mapping[str, Any] = {
    "name": NAME,
    "views": {view: {"view": f"{view}@1"} for view in VIEWS},
    "context": dict.fromkeys(("sched_hour", "weekday", "distance", "dep_delay"), "float32"),
    "transforms": [
        {
            "function": "flight_transforms:cyclical_hour",
            "inputs": {"hour": "sched_hour"},
            "outputs": {"hour_sin": "float32", "hour_cos": "float32"},
        }
    ],
    "inputs": {INPUT: list(COLUMNS)},
    # Counted and told, but for an hour that no day has: a caller who sends one means something else.
    "validation": {
        "policy": "flag",
        "every": {"range": {"learned": {"quantile": 0.0, "margin": 0.5}}},
        "columns": {"sched_hour": {"range": {"min": 0, "max": 24}, "policy": "reject"}},
        "views": {WEATHER: {"statuses": ["PRESENT", "DEFAULTED"]}},
    },
    "labels": {"stable": VERSION},
}

MANIFEST_HEADER = """\
# Written by `python -m examples.flights.train`.
# Probability that a flight arrives 15 minutes late or more, asked for at its departure.
"""


class ExportFailed(Exception):
    """The graph is not the model that was trained."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of the test period. AUC is a share of pairs, log loss is in nats."""

    train_rows: int
    test_rows: int
    auc: float
    log_loss: float
    auc_baseline: float
    log_loss_baseline: float
    auc_dep_delay: float
    """Of the departure delay itself as a score, which needs no model at all."""


def matrix(
    features: Features, flights: Flights, at_min: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float32]:
    """Return the model's input for the flights, float32 [flights, columns], as of `at_min` or their departures."""
    context = context_columns(flights)
    columns = {**features.columns(flights, at_min), **context, **cyclical_hour(context["sched_hour"])}
    return np.stack([columns[name] for name in COLUMNS], axis=1)


def served_matrix(features: Features, flights: Flights) -> npt.NDArray[np.float32]:
    """Return the model's input as the gateway assembles it from the rows of `AS_OF_MIN`."""
    return matrix(features, flights, np.full(len(flights), AS_OF_MIN, np.int64))


def in_training(flights: Flights) -> npt.NDArray[np.bool_]:
    """Return which flights the model may learn from."""
    return flights.month <= LAST_TRAINING_MONTH


def fit(
    inputs: npt.NDArray[np.float32], late: npt.NDArray[np.bool_], names: Sequence[str], rounds: int = ROUNDS
) -> lightgbm.Booster:
    """Train with our parameters."""
    data = lightgbm.Dataset(inputs, label=late.astype(np.float32), feature_name=[n.replace(".", "_") for n in names])
    return lightgbm.train(PARAMETERS, data, num_boost_round=rounds)


def export(booster: lightgbm.Booster, columns: int) -> bytes:
    """Return a graph `features` float32 [N, columns] → `probability` float32 [N].

    The converter's graph ends in a label and in the probabilities of both classes. A caller needs neither a threshold
    that we chose nor the probability of a punctual arrival, so only the other one is left.
    """
    model = onnxmltools.convert_lightgbm(
        in_float32(booster),
        name=NAME,
        initial_types=[(INPUT, FloatTensorType([None, columns]))],
        target_opset=OPSET,
        zipmap=False,
    )
    graph = model.graph
    trees = next(node for node in graph.node if node.op_type == "TreeEnsembleClassifier")
    _, both = trees.output
    late = onnx.helper.make_node("Gather", [both, "late"], [OUTPUT], axis=1)
    exported = onnx.helper.make_model(
        onnx.helper.make_graph(
            [trees, late],
            NAME,
            [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["N", columns])],
            [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["N"])],
            [onnx.helper.make_tensor("late", onnx.TensorProto.INT64, [], [1])],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        producer_name="headrace examples.flights",
    )
    onnx.checker.check_model(exported)
    return bytes(exported.SerializeToString())


def in_float32(booster: lightgbm.Booster) -> lightgbm.Booster:
    """Return the same trees with every threshold rounded down to a float32, as the graph's thresholds are.

    For a float32 input nothing changes: x <= t exactly when x is not above the greatest float32 that is not above t.
    Left to the converter, a threshold is rounded to the nearest, which puts the rows right at it on the other side.
    """
    text = _THRESHOLDS.sub(_rounded_down, booster.model_to_string())
    # Where each tree begins, in bytes, which the rounding has moved. Without this line the trees are read in turn.
    return lightgbm.Booster(model_str=_TREE_SIZES.sub("", text))


_THRESHOLDS = re.compile(r"^threshold=(.*)$", re.MULTILINE)
_TREE_SIZES = re.compile(r"^tree_sizes=.*\n", re.MULTILINE)


def _rounded_down(line: re.Match[str]) -> str:
    exact = np.array(line[1].split(), np.float64)
    nearest = exact.astype(np.float32)
    below = np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return "threshold=" + " ".join(repr(float(threshold)) for threshold in below)


def train(features: Features, flights: Flights) -> tuple[bytes, Metrics]:
    """Return the exported graph and how it does on the months that it has not seen."""
    training = in_training(flights)
    train_inputs, late = matrix(features, flights.take(training)), flights.late[training]
    test_flights = flights.take(~training)
    test_inputs = served_matrix(features, test_flights)

    booster = fit(train_inputs, late, COLUMNS)
    exported = export(booster, len(COLUMNS))
    scores = score(exported, test_inputs)
    if not np.allclose(scores, booster.predict(test_inputs), rtol=0, atol=EXPORT_TOLERANCE):
        raise ExportFailed(f"the exported graph and LightGBM differ by more than {EXPORT_TOLERANCE} on the test rows")

    known = [COLUMNS.index(name) for name in BASELINE_COLUMNS]
    baseline = np.asarray(fit(train_inputs[:, known], late, BASELINE_COLUMNS).predict(test_inputs[:, known]))

    return exported, Metrics(
        train_rows=len(late),
        test_rows=len(test_flights),
        auc=round(auc(test_flights.late, scores), 5),
        log_loss=round(log_loss(test_flights.late, scores), 5),
        auc_baseline=round(auc(test_flights.late, baseline), 5),
        log_loss_baseline=round(log_loss(test_flights.late, baseline), 5),
        auc_dep_delay=round(auc(test_flights.late, test_flights.dep_delay), 5),
    )


def score(exported: bytes, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run the exported graph, in one thread as the gateway does: several would add up the trees in another order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    probability: npt.NDArray[np.float32] = session.run([OUTPUT], {INPUT: inputs})[0]
    return probability


def write(models: Path, exported: bytes, metrics: Metrics) -> None:
    """Write the graph, its metrics and the manifest to the model repository."""
    version = models / NAME / str(VERSION)
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.onnx").write_bytes(exported)
    (version / "metrics.json").write_text(json.dumps(asdict(metrics), indent=2) + "\n")
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    with (models / NAME / "model.yaml").open("w") as file:
        file.write(MANIFEST_HEADER)
        yaml.dump(MANIFEST, file)


def report(metrics: Metrics) -> str:
    """Return the comparison for people."""
    return "\n".join(
        [
            f"trained on {metrics.train_rows:,} flights of January to September,"
            f" tested on {metrics.test_rows:,} of October to December",
            f"{'':28}{'AUC':>8}{'log loss':>10}",
            f"{'flight_delay':28}{metrics.auc:8.4f}{metrics.log_loss:10.4f}",
            f"{'departure delay alone':28}{metrics.auc_baseline:8.4f}{metrics.log_loss_baseline:10.4f}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write; end with an error, and write nothing, when the model does not beat the departure delay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=MODELS, help="the model repository (default: %(default)s)")
    options = parser.parse_args(arguments)
    flights = read_flights()
    exported, metrics = train(Features.read(flights), flights)
    print(report(metrics))
    if metrics.auc <= max(metrics.auc_baseline, metrics.auc_dep_delay) or metrics.log_loss >= metrics.log_loss_baseline:
        raise SystemExit("the model does not beat the departure delay alone, so nothing was written")
    write(options.models, exported, metrics)
    print(f"wrote {options.models / NAME} ({len(exported) / 1024:.0f} KiB)")


if __name__ == "__main__":
    main()
