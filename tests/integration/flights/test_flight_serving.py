"""What the gateway answers over gRPC is what ONNX Runtime says offline about the same flights."""

import asyncio
from pathlib import Path

import numpy as np

from examples.flights import train
from examples.flights.data import Flights
from examples.flights.demo import CONFIG
from examples.flights.features import VIEWS, Features
from examples.flights.traffic import ask
from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.client import HeadraceClient
from gateway.server import settings
from gateway.server.app import Gateway

ROWS = 10_000
REQUEST_ROWS_MAX = 60


async def test_served_scores_are_the_offline_scores(
    features: Features, flights: Flights, catalogue: Catalogue, model_folder: Path, redis_url: str
) -> None:
    """Any flights in any order, with duplicates, in requests of any size, several of them at once."""
    random = np.random.default_rng(7)
    asked = flights.take(random.integers(len(flights), size=ROWS))
    offline = train.score((model_folder / "1" / "model.onnx").read_bytes(), train.served_matrix(features, asked))
    sizes = random.integers(1, REQUEST_ROWS_MAX, size=ROWS)
    ends = np.cumsum(sizes)
    requests = np.split(np.arange(ROWS), ends[ends < ROWS])

    async with FeatureClient(catalogue, RedisStore(RedisOptions(url=redis_url))) as writer:
        for view in VIEWS:
            await writer.write(f"{view}@1", features.table(view))
    overrides = {
        "grpc": {"listen": ["127.0.0.1:0"]},
        "http": {"listen": "127.0.0.1:0"},
        "store": {"url": redis_url},
    }
    async with Gateway(settings.load(CONFIG, overrides)) as gateway:
        await gateway.wait_ready()
        async with HeadraceClient(gateway.addresses[0]) as client:
            for first in range(0, len(requests), 8):
                several = requests[first : first + 8]
                answers = await asyncio.gather(*(ask(client, asked.take(places)) for places in several))
                for places, answer in zip(several, answers, strict=True):
                    assert answer.error == ""
                    assert answer.probability is not None
                    np.testing.assert_allclose(answer.probability, offline[places], rtol=1e-6)
