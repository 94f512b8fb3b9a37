"""Records what the real Feast writes, for the tests of what reads it: tests/data/feast/.

    python3 -m venv /tmp/feast && /tmp/feast/bin/pip install 'feast[redis]==0.67.0'
    /tmp/feast/bin/python tools/feast_vectors.py

It needs a redis-server on the PATH, starts one of its own, and imports nothing of this repository: Feast pins what it
depends on, so it lives in an environment of its own. Written are `registry.db`, the registry file as Feast has made it,
and `hashes_v2.json` and `hashes_v3.json`:

    project, key_version
    hashes    the hashes of Redis: key, field and value in hexadecimal
    rows      for each feature view, what Feast itself reads from them: join keys, and features in JSON
"""

import base64
import json
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, OnDemandFeatureView, RepoConfig, RequestSource
from feast import ValueType as Kind
from feast.on_demand_feature_view import PandasTransformation
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    UnixTimestamp,
    Uuid,
)
from feast.types import Decimal as DecimalType

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "feast"
PROJECT = "my_project"
START_S_MAX = 10.0
EVENT = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
LATER = EVENT + timedelta(hours=1)
UNIT = uuid.UUID("12345678-1234-5678-1234-567812345678")

SCALARS: dict[str, tuple[FeastType, list[Any]]] = {
    "a_float": (Float32, [0.5, -1.25, float("inf")]),
    "a_double": (Float64, [0.1, 1e300, -0.0]),
    "an_int32": (Int32, [7, -1, 2**31 - 1]),
    "an_int64": (Int64, [2**62, -(2**63), 0]),
    "a_bool": (Bool, [True, False, True]),
    "a_string": (String, ["Zürich", "", "x" * 200]),
    "some_bytes": (Bytes, [b"abc", b"\xc3\xa9", b""]),
    "a_time": (UnixTimestamp, [EVENT.replace(microsecond=0), datetime(1969, 12, 31, 23, 59, tzinfo=UTC), LATER]),
    "a_json": (Json, ['{"a":1}', "[]", '"x"']),
    "a_uuid": (Uuid, [str(UNIT)] * 3),
    "a_decimal": (DecimalType, [Decimal("1.50"), Decimal(-3), Decimal(0)]),
}
LISTS: dict[str, tuple[FeastType, list[Any]]] = {
    "floats": (Array(Float32), [[0.5, 1.5, -2.5]] * 3),
    "doubles": (Array(Float64), [[0.1, 1e300], [0.0, -0.0], [3.0, 4.0]]),
    "int32s": (Array(Int32), [[1, -1, 2**31 - 1]] * 3),
    "int64s": (Array(Int64), [[2**62, -(2**63)], [0, 0], [1, 300]]),
    "bools": (Array(Bool), [[True, False], [False, False], [True, True]]),
    "strings": (Array(String), [["a", "é"], ["", "b"], ["c"]]),
    "bytess": (Array(Bytes), [[b"a", b"b"], [b""], [b"c"]]),
    "times": (Array(UnixTimestamp), [[EVENT.replace(microsecond=0), LATER.replace(microsecond=0)]] * 3),
}
OTHERS: dict[str, tuple[FeastType, list[Any]]] = {
    "a_map": (Map, [{"k": "v"}] * 3),
    "a_set": (Set(Int64), [{1, 2}] * 3),
}


def source(name: str) -> FileSource:
    """A file that is named in the registry and read by nobody."""
    return FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp")


def view(name: str, entities: list[Entity], types: dict[str, FeastType], **rest: Any) -> FeatureView:
    """A feature view. The join keys' types come from the entities."""
    schema = [Field(name=feature, dtype=kind) for feature, kind in types.items()]
    keys = [Field(name=entity.join_key, dtype=KEY_TYPES[entity.join_key]) for entity in entities]
    return FeatureView(name=name, entities=entities, schema=[*keys, *schema], source=source(f"{name}_source"), **rest)


KEY_TYPES = {"driver_id": Int64, "zone_id": Int32, "customer": String, "city": String}
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=Kind.INT64)
ZONE = Entity(name="zone", join_keys=["zone_id"], value_type=Kind.INT32)
CUSTOMER = Entity(name="customer", join_keys=["customer"], value_type=Kind.STRING)
CITY = Entity(name="city", join_keys=["city"], value_type=Kind.STRING)


def scaled(inputs: pd.DataFrame) -> pd.DataFrame:
    """The transformation of an on-demand view, which an import has to name as left out."""
    return pd.DataFrame({"scaled": inputs["conv_rate"] * 2})


def definitions() -> list[Any]:
    """Entities and views of every kind that a reader meets."""
    every = {name: kind for name, (kind, _) in (SCALARS | LISTS | OTHERS).items()}
    hourly = view(
        "driver_hourly_stats",
        [DRIVER],
        {"conv_rate": Float32, "acc_rate": Float32, "avg_daily_trips": Int64},
        ttl=timedelta(days=1),
    )
    return [
        DRIVER,
        ZONE,
        CUSTOMER,
        CITY,
        hourly,
        view("all_types", [DRIVER], every, ttl=timedelta(0)),
        view("zone_stats", [ZONE], {"pickups": Int32}, ttl=timedelta(hours=2)),
        view("customer_stats", [CUSTOMER], {"spent-eur": Float64}),
        view("trips", [DRIVER, CITY], {"trips": Int64}),
        view("offline_only", [DRIVER], {"old": Int64}, online=False),
        OnDemandFeatureView(
            name="scaled_stats",
            sources=[hourly, RequestSource(name="asked", schema=[Field(name="factor", dtype=Float64)])],
            schema=[Field(name="scaled", dtype=Float64)],
            feature_transformation=PandasTransformation(udf=scaled, udf_string="scaled"),
            mode="pandas",
        ),
    ]


def tables() -> dict[str, pd.DataFrame]:
    """What is written, by feature view."""
    stamps = {"event_timestamp": [EVENT, LATER, EVENT]}
    typed = {name: pd.Series(values, dtype=object) for name, (_, values) in (SCALARS | LISTS | OTHERS).items()}
    nulls = {name: pd.Series([None], dtype=object) for name in typed}
    every = pd.DataFrame({"driver_id": [1001, 1002, 1003], **stamps, **typed})
    none = pd.DataFrame({"driver_id": [1004], "event_timestamp": [EVENT], **nulls})
    return {
        "driver_hourly_stats": pd.DataFrame(
            {
                "driver_id": [1001, 1002, -5],
                **stamps,
                "conv_rate": np.array([0.5, 0.25, 1.0], np.float32),
                "acc_rate": pd.Series([0.75, None, 0.125], dtype=object),
                "avg_daily_trips": [10, 200, -3],
            }
        ),
        "all_types": pd.concat([every, none], ignore_index=True),
        "zone_stats": pd.DataFrame({"zone_id": [1, -2, 2**31 - 1], **stamps, "pickups": [4, 5, 6]}),
        "customer_stats": pd.DataFrame({"customer": ["é|%{}", "", "bob"], **stamps, "spent-eur": [1.5, 2.5, 3.5]}),
        "trips": pd.DataFrame(
            {"driver_id": [1001, 1001, 7], "city": ["Zürich", "Bern", "a:b"], **stamps, "trips": [1, 2, 3]}
        ),
    }


JSON_FORMS: Sequence[tuple[Any, Callable[[Any], Any]]] = (
    (bytes, lambda found: {"bytes": base64.b64encode(found).decode()}),
    (datetime, lambda found: {"time": found.isoformat()}),  # pandas' Timestamp is one
    ((uuid.UUID, Decimal), str),
    (dict, lambda found: {key: as_json(one) for key, one in found.items()}),
    ((list, tuple, np.ndarray), lambda found: [as_json(one) for one in found]),
    (set, sorted),
    (np.generic, lambda found: found.item()),
)


def as_json(found: Any) -> Any:
    """A value of Feast's as JSON has it: times as ISO 8601, bytes as base64."""
    for kind, form in JSON_FORMS:
        if isinstance(found, kind):
            return form(found)
    return found


def record(folder: Path, port: int, key_version: int) -> None:
    """Apply, write, read back and dump one store."""
    registry = folder / f"registry_v{key_version}.db"
    config = RepoConfig(
        project=PROJECT,
        provider="local",
        registry=str(registry),
        online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"},
        entity_key_serialization_version=key_version,
    )
    store = FeatureStore(config=config)
    store.apply(definitions())
    rows: dict[str, list[Any]] = {}
    for name, table in tables().items():
        store.write_to_online_store(name, table)
        keys = [key for key in KEY_TYPES if key in table.columns]
        features = [feature.name for feature in store.get_feature_view(name).features]
        entities = table[keys].to_dict("records")
        read = store.get_online_features([f"{name}:{feature}" for feature in features], entities).to_dict()
        rows[name] = [
            {"id": entity, "features": {feature: as_json(read[feature][i]) for feature in features}}
            for i, entity in enumerate(entities)
        ]
    with redis.Redis(port=port) as connection:
        hashes = {
            key.hex(): {field.hex(): value.hex() for field, value in sorted(connection.hgetall(key).items())}
            for key in sorted(connection.keys())
        }
        connection.flushall()
    recorded = {"project": PROJECT, "key_version": key_version, "hashes": hashes, "rows": rows}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"hashes_v{key_version}.json").write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
    if key_version == 3:  # noqa: PLR2004  # one registry is enough, of the version that is Feast's default
        (OUT / "registry.db").write_bytes(registry.read_bytes())


def main() -> int:
    warnings.simplefilter("ignore")  # Feast warns of version 2, which is here on purpose
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 16399
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                give_up_at = time.monotonic() + START_S_MAX
                with redis.Redis(port=port) as connection:
                    while True:
                        try:
                            connection.ping()
                            break
                        except redis.ConnectionError:
                            if time.monotonic() > give_up_at or server.poll() is not None:
                                raise
                            time.sleep(0.05)
                for key_version in (2, 3):
                    record(Path(folder), port, key_version)
            finally:
                server.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
