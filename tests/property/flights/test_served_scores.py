"""What is served is what ONNX Runtime says of the same features offline, however requests are mixed.

The offline side takes nothing from the gateway: it builds the features from the raw data, with pandas, and runs the
committed model file.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import examples.flights
from examples.flights.data import Flights, read_flights
from examples.flights.features import AS_OF_MIN, CATALOGUE, VIEWS, Features, context_columns, entity_columns
from examples.flights.flight_transforms import cyclical_hour
from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, document
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.client import HeadraceClient
from gateway.plan import Manifest
from tests.conftest import RedisServer
from tests.running import Running, Site, running

EXAMPLE = Path(examples.flights.__file__).parent
MODEL = EXAMPLE.parents[1] / "models/flight_delay"
FLIGHTS = 10_000

Scores: TypeAlias = npt.NDArray[np.float32]


def offline_scores(features: Features, flights: Flights) -> Scores:
    columns = features.columns(flights, np.full(len(flights), AS_OF_MIN, np.int64)) | context_columns(flights)
    columns |= cyclical_hour(hour=columns["sched_hour"])
    manifest = document.load(MODEL / "model.yaml", Manifest)
    matrix = np.stack([columns[name] for name in manifest.inputs["features"]], axis=1).astype(np.float32)
    session = onnxruntime.InferenceSession(str(MODEL / "1/model.onnx"), providers=["CPUExecutionProvider"])
    scores: Scores = session.run(["probability"], {"features": matrix})[0]
    return scores.reshape(len(flights))


@pytest.fixture(scope="module")
def drawn() -> Flights:
    """Random flights of October to December; some twice, since they are drawn with replacement."""
    flights = read_flights()
    late = flights.take(flights.month >= 10)
    return late.take(np.random.default_rng(7).integers(0, len(late), FLIGHTS))


@pytest.fixture(scope="module")
def expected(drawn: Flights) -> Scores:
    return offline_scores(Features.read(), drawn)


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer) -> Iterator[Running]:
    asyncio.run(load(redis_server.url))
    overrides = {
        "grpc": {"listen": ["127.0.0.1:0"]},
        "http": {"listen": "127.0.0.1:0"},
        "store": {"url": redis_server.url},
        "pipeline": {"store_timeout_ms": 5000, "batch_rows_max": 256},
        # Small, so that rows are evicted all the time and hits and misses mix.
        "features": {"cache": {"bytes_max": 400_000}},
    }
    with running(Site(EXAMPLE), overrides) as gateway:
        yield gateway


async def load(url: str) -> None:
    features = Features.read()
    async with FeatureClient(Catalogue.load(CATALOGUE), RedisStore(RedisOptions(url=url))) as client:
        for view in VIEWS:
            await client.write(f"{view}@1", features.table(view))


async def served_scores(target: str, drawn: Flights, batches: Sequence[npt.NDArray[np.intp]]) -> list[Scores]:
    """Ask for all batches at once, at most 64 in flight."""
    places = asyncio.Semaphore(64)
    async with HeadraceClient(target) as client:

        async def ask(rows: npt.NDArray[np.intp]) -> Scores:
            flights = drawn.take(rows)
            async with places:
                entities = {name: column.tolist() for name, column in entity_columns(flights).items()}
                prediction = await client.predict("flight_delay", entities, context_columns(flights), timeout_s=30)
            return prediction.outputs["probability"].reshape(len(rows)).astype(np.float32)

        return await asyncio.gather(*map(ask, batches))


def test_ten_thousand_real_flights(gateway: Running, drawn: Flights, expected: Scores) -> None:
    random = np.random.default_rng(11)
    order = random.permutation(FLIGHTS)
    batches = np.split(order, np.sort(random.integers(1, FLIGHTS, 1500)))
    batches = [batch for batch in batches if len(batch)]
    served = asyncio.run(served_scores(gateway.target, drawn, batches))
    np.testing.assert_allclose(np.concatenate(served), expected[order], rtol=1e-5, atol=1e-6)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=12), min_size=1, max_size=20))
def test_any_mix_order_and_duplicates(
    gateway: Running, drawn: Flights, expected: Scores, batches: list[list[int]]
) -> None:
    served = asyncio.run(served_scores(gateway.target, drawn, [np.array(batch) for batch in batches]))
    for batch, scores in zip(batches, served, strict=True):
        np.testing.assert_allclose(scores, expected[batch], rtol=1e-5, atol=1e-6)
