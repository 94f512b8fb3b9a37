"""Finding and dropping the rows of a view version, on each kind of store."""

import time

import pytest

from featureclient.evolution import CannotScan, StoredRows, count_rows, drop_rows, look_at_rows, pages_of, row_pattern
from featureclient.schema import Catalogue
from featureclient.store.opening import StoreOptions, open_store
from featureclient.wire import KeyCodec, RowWriter
from tests.redisfleet import Cluster, SentinelFleet

LATEST = 2**62
CATALOGUE = Catalogue.parse(
    """
entities:
  plane: {tailnum: string}
  planet: {tailnum: string}
views:
  a@1: {entity: plane, columns: {x: int32}}
  a@2: {entity: plane, columns: {x: int32}}
  a@12: {entity: plane, columns: {x: int32}}
  aa@1: {entity: plane, columns: {x: int32}}
  b@1: {entity: planet, columns: {x: int32}}
"""
)
ROWS = 700
ODD_ID = "*?[a]:{|}%"


@pytest.fixture(params=["redis", "sentinel", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        found: str = request.getfixturevalue("redis_url")
        return found
    servers: Cluster | SentinelFleet = request.getfixturevalue(
        "redis_cluster" if request.param == "cluster" else "redis_sentinels"
    )
    return servers.url


async def test_the_rows_of_a_version_and_no_others(url: str) -> None:
    store = open_store(StoreOptions(url))
    try:
        for view in CATALOGUE.views.values():
            ids = [ODD_ID, *(f"N{i}" for i in range(ROWS - 1))]
            encoded = RowWriter(view, KeyCodec(view)).encode({"tailnum": ids, "x": range(ROWS)}, 1, LATEST)
            await store.write(encoded.keys, encoded.values, event_ms_max=LATEST)
        view = CATALOGUE.view("a@1")
        pattern = row_pattern(view, "a@1", "hr")
        found = {key async for page in pages_of(store, pattern) for key in page}
        assert sorted(KeyCodec(view).decode([*found]), key=str) == sorted([ODD_ID, *(f"N{i}" for i in range(ROWS - 1))])
        assert await look_at_rows(store, view, 10_000) == StoredRows("a@1", ROWS, {view.fingerprint: ROWS}, {})
        assert (await look_at_rows(store, view, 10)).complete is False
        told: list[int] = []
        assert await drop_rows(store, pattern, rows_per_s=1e9, progress=told.append) == ROWS
        assert told[-1] == ROWS
        assert await count_rows(store, pattern) == 0
        for other in ("a@2", "a@12", "aa@1", "b@1"):
            assert await count_rows(store, row_pattern(CATALOGUE.view(other), other, "hr")) == ROWS
        assert await count_rows(store, row_pattern(None, "b@1", "hr")) == ROWS
    finally:
        await store.close()


async def test_a_drop_is_no_faster_than_it_may_be(redis_url: str) -> None:
    store = open_store(StoreOptions(redis_url))
    try:
        view = CATALOGUE.view("a@1")
        encoded = RowWriter(view, KeyCodec(view)).encode({"tailnum": [f"N{i}" for i in range(ROWS)]}, 1, LATEST)
        await store.write(encoded.keys, encoded.values, event_ms_max=LATEST)
        started = time.monotonic()
        assert (
            await drop_rows(store, row_pattern(view, "a@1", "hr"), rows_per_s=ROWS * 5, progress=lambda _: None) == ROWS
        )
        assert time.monotonic() - started >= 0.2
    finally:
        await store.close()


async def test_a_store_that_cannot_scan_says_so() -> None:
    with pytest.raises(CannotScan, match="object cannot find keys"):
        await count_rows(object(), b"*")  # type: ignore[arg-type]  # a store without `scan`
