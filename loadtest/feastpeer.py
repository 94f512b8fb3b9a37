"""Feast in a process of its own, which `loadtest.features` starts in Feast's Python, and asks line by line.

    python loadtest/feastpeer.py SOCKET ENTITIES FEATURES

`load` writes the rows. `round N` reads all entities N times with `get_online_features`, and answers with the medians of
wall and CPU milliseconds; `cpu` counts the threads of this process. Answers are lines of JSON on stdout. It imports
Feast and nothing of this repository.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32

PROJECT = "headrace_bench"
VIEW = "stats"
WRITE_ROWS = 200


def store_of(folder: str, socket: str, names: list[str]) -> FeatureStore:
    """A repository with one view of float32 features, whose online store is the Redis of the benchmark."""
    config = RepoConfig(
        project=PROJECT,
        provider="local",
        registry=f"{folder}/registry.db",
        # What comes behind host and port goes to redis-py as it is, so Feast takes the Unix socket as well.
        online_store={"type": "redis", "connection_string": f"localhost:1,unix_socket_path={socket}"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(path=f"{folder}/none.parquet", timestamp_field="event_timestamp")
    columns: dict[str, Any] = {name: pd.Series([1.0], dtype="float32") for name in names}
    pd.DataFrame({"driver_id": [1], "event_timestamp": [datetime.now(UTC)], **columns}).to_parquet(source.path)
    schema = [Field(name=name, dtype=Float32) for name in names]
    view = FeatureView(name=VIEW, entities=[driver], schema=schema, source=source, ttl=timedelta(days=1))
    store.apply([driver, view])
    return store


def load(store: FeatureStore, entities: int, names: list[str]) -> None:
    """Value `f` of entity `e` is e + f / 100."""
    ids = np.arange(entities)
    columns = {name: (ids + i / 100).astype(np.float32) for i, name in enumerate(names)}
    table = pd.DataFrame({"driver_id": ids, "event_timestamp": datetime.now(UTC), **columns})
    for start in range(0, entities, WRITE_ROWS):
        store.write_to_online_store(VIEW, table[start : start + WRITE_ROWS])


def timed(store: FeatureStore, entities: int, names: list[str], reads: int) -> dict[str, Any]:
    """Medians of so many reads, and the values of the first and last entity."""
    rows = [{"driver_id": one} for one in range(entities)]
    features = [f"{VIEW}:{name}" for name in names]
    walls, cpus = [], []
    for _ in range(reads):
        wall, cpu = time.perf_counter(), time.process_time()
        read = store.get_online_features(features=features, entity_rows=rows)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    found = read.to_dict()
    return {
        "wall_ms": statistics.median(walls) * 1e3,
        "cpu_ms": statistics.median(cpus) * 1e3,
        "first": [found[name][0] for name in names],
        "last": [found[name][-1] for name in names],
    }


def main() -> int:
    warnings.simplefilter("ignore")
    socket, entities, features = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    names = [f"f{i}" for i in range(features)]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Feast prints now and then; stdout is for answers alone
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        store = store_of(folder, socket, names)
        for line in sys.stdin:
            what, _, number = line.strip().partition(" ")
            if what == "load":
                load(store, entities, names)
                answers.write("{}\n")
            else:
                answers.write(json.dumps(timed(store, entities, names, int(number))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
