"""The committed model: its graph fits its manifest, and it is as good as its metrics say."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ruamel.yaml import YAML

from examples.flights import train
from examples.flights.data import Flights
from examples.flights.features import CATALOGUE, Features
from examples.flights.metrics import auc, log_loss
from featureclient.schema import Catalogue, document
from gateway.inference import InferenceOptions, ModelRepository
from gateway.plan.manifest import Manifest
from gateway.plan.transform import resolver

GRAPH_BYTES_MAX = 1_000_000


@pytest.fixture(scope="module")
def session(model_folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model_folder / "1" / "model.onnx", options)


@pytest.fixture(scope="module")
def recorded(model_folder: Path) -> dict[str, float]:
    return json.loads((model_folder / "1" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def test_flights(flights: Flights) -> Flights:
    return flights.take(~train.in_training(flights))


def test_the_manifest_is_the_one_that_training_writes(model_folder: Path) -> None:
    manifest = model_folder / "model.yaml"
    assert document.load(manifest, Manifest).inputs == {"features": list(train.COLUMNS)}
    assert YAML(typ="safe").load(manifest) == train.MANIFEST


def test_the_graph_takes_what_the_manifest_fills_and_gives_one_probability_a_row(
    session: onnxruntime.InferenceSession, model_folder: Path
) -> None:
    assert [(node.name, node.type, node.shape) for node in session.get_inputs()] == [
        ("features", "tensor(float)", ["N", len(train.COLUMNS)])
    ]
    assert [(node.name, node.type, node.shape) for node in session.get_outputs()] == [
        ("probability", "tensor(float)", ["N"])
    ]
    assert (model_folder / "1" / "model.onnx").stat().st_size < GRAPH_BYTES_MAX


def test_the_gateway_loads_the_repository(
    model_folder: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CATALOGUE.parent))
    models = ModelRepository.open(model_folder.parent, catalogue, resolver(["flight_transforms"]), InferenceOptions())
    try:
        model = models.labelled("flight_delay", "stable")
        assert model.version == 1
        assert dict(model.plan.entities) == {
            "tailnum": "string",
            "origin": "string",
            "dest": "string",
            "carrier": "string",
            "hour": "int64",
        }
        assert [column.name for column in model.plan.context] == ["sched_hour", "weekday", "distance", "dep_delay"]
    finally:
        models.close()


def test_it_beats_the_departure_delay_by_its_metrics(recorded: dict[str, float]) -> None:
    assert recorded["auc"] > max(recorded["auc_baseline"], recorded["auc_dep_delay"])
    assert recorded["log_loss"] < recorded["log_loss_baseline"]


def test_its_metrics_are_true(
    session: onnxruntime.InferenceSession,
    features: Features,
    test_flights: Flights,
    recorded: dict[str, float],
) -> None:
    probability = session.run(["probability"], {"features": train.served_matrix(features, test_flights)})[0]
    assert len(test_flights) == recorded["test_rows"]
    assert auc(test_flights.late, probability) == pytest.approx(recorded["auc"], abs=1e-4)
    assert log_loss(test_flights.late, probability) == pytest.approx(recorded["log_loss"], abs=1e-4)
    assert auc(test_flights.late, test_flights.dep_delay) == pytest.approx(recorded["auc_dep_delay"], abs=1e-4)


def test_an_answer_does_not_depend_on_its_neighbours(
    session: onnxruntime.InferenceSession, features: Features, test_flights: Flights
) -> None:
    inputs = train.served_matrix(features, test_flights.take(np.arange(500)))
    together = session.run(None, {"features": inputs})[0]
    alone = np.concatenate([session.run(None, {"features": row[None]})[0] for row in inputs])
    np.testing.assert_allclose(alone, together, rtol=1e-5)


def test_export_keeps_the_model(features: Features, flights: Flights) -> None:
    """On a small model, at the thresholds too: that is where rounding them to float32 would show."""
    some = flights.take(np.arange(0, len(flights), 50))
    inputs = train.matrix(features, some)
    booster = train.fit(inputs, some.late, train.COLUMNS, rounds=10)
    exported = train.export(booster, len(train.COLUMNS))
    np.testing.assert_allclose(train.score(exported, inputs), booster.predict(inputs), rtol=0, atol=1e-6)
    thresholds = [
        float(threshold)
        for line in booster.model_to_string().splitlines()
        if line.startswith("threshold=")
        for threshold in line.removeprefix("threshold=").split()
    ]
    for near in (np.float32(thresholds), np.nextafter(np.float32(thresholds), np.float32(np.inf))):
        edges = np.repeat(near[:, None], len(train.COLUMNS), axis=1)
        np.testing.assert_allclose(train.score(exported, edges), booster.predict(edges), rtol=0, atol=1e-6)
