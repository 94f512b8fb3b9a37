"""From predictions of a running gateway back to training: the audit finds nothing, a backfill gives what was served,
and the delays that came later become labels."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from examples.flights.data import Flights
from examples.flights.demo import CONFIG
from examples.flights.features import VIEWS, Features, context_columns, entity_columns
from examples.flights.traffic import ask
from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.client import HeadraceClient
from gateway.server import settings
from gateway.server.app import Gateway
from gateway.server.cli import main

ROWS = 1_200
REQUEST_ROWS = 30


async def serve(flights: Flights, features: Features, catalogue: Catalogue, url: str, journal: Path) -> None:
    async with FeatureClient(catalogue, RedisStore(RedisOptions(url=url))) as writer:
        for view in VIEWS:
            await writer.write(f"{view}@1", features.table(view))
    overrides = {
        "grpc": {"listen": ["127.0.0.1:0"]},
        "http": {"listen": "127.0.0.1:0"},
        "store": {"url": url},
        "journal": {"enabled": True, "path": str(journal)},
        "monitor": {"enabled": False},
    }
    async with Gateway(settings.load(CONFIG, overrides)) as gateway:
        await gateway.wait_ready()
        async with HeadraceClient(gateway.addresses[0]) as client:
            parts = [flights.take(np.arange(first, first + REQUEST_ROWS)) for first in range(0, ROWS, REQUEST_ROWS)]
            answers = await asyncio.gather(*(ask(client, part) for part in parts))
            assert [answer.error for answer in answers] == [""] * len(parts)


def command(*words: str) -> Any:
    result = CliRunner().invoke(main, [*words, "--config", str(CONFIG), "--model", "flight_delay", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def test_the_way_back_to_training(
    tmp_path: Path, features: Features, flights: Flights, catalogue: Catalogue, redis_url: str
) -> None:
    asked = flights.take(np.random.default_rng(3).integers(len(flights), size=ROWS))
    journal = tmp_path / "journal"
    await serve(asked, features, catalogue, redis_url, journal)

    def back() -> None:
        found = command("audit", "skew", "--journal", str(journal))
        assert (found["rows"], found["differ"], found["unverified"]) == (ROWS, 0, [])
        keys, context = entity_columns(asked), context_columns(asked)
        # Each flight is known by its keys and its context, so that a label finds its row of the journal.
        names = [f"--entity={name}" for name in keys]
        labels = {name: pa.array(values.tolist()) for name, values in keys.items()}
        labels |= {"late": pa.array(asked.late), "dep_delay": pa.array(context["dep_delay"])}
        labels["known"] = pa.array(np.full(ROWS, np.datetime64("2100-01-01T00:00:00", "ms")), pa.timestamp("ms", "UTC"))
        pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
        made = command("dataset", "build", "--journal", str(journal), "--labels", str(tmp_path / "labels.parquet"),
                       "--on", "entity", *names, "--label-time", "known", "--window", "99999d",
                       "-o", str(tmp_path / "set.parquet"))  # fmt: skip
        assert (made["served"], made["matched"]) == (ROWS, ROWS)
        served = pq.read_table(tmp_path / "set.parquet")

        entities = {name: served[f"entity.{name}"] for name in keys} | {name: served[f"f.{name}"] for name in context}
        pq.write_table(pa.table(entities | {"time": served["time"]}), tmp_path / "entities.parquet")
        views = []
        for view in VIEWS:
            pq.write_table(features.table(view), tmp_path / f"{view}.parquet")
            views += ["--view", f"{view}@1={tmp_path / view}.parquet"]
        command("dataset", "backfill", *views, "--entities", str(tmp_path / "entities.parquet"),
                "-o", str(tmp_path / "back.parquet"))  # fmt: skip
        back = pq.read_table(tmp_path / "back.parquet")
        for name in back.column_names:
            if name.startswith(("f.", "entity.", "status.", "null.")):
                assert back[name].combine_chunks().equals(served[name].combine_chunks()), name
        together = pa.concat_tables([served, back], promote_options="default")
        assert together.num_rows == 2 * ROWS

    await asyncio.to_thread(back)
