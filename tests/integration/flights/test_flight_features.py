"""The views of the real data: honest defaults, and the same values offline, in the store and back."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.flights.build import WINDOWED, write
from examples.flights.data import READINGS, Flights, read_planes, read_weather
from examples.flights.features import AS_OF_MIN, STATISTICS, VIEWS, Features, entity_columns
from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, status
from featureclient.store.redis import RedisOptions, RedisStore

KEYS = {
    "plane_stats": ["tailnum"],
    "route_stats": ["origin", "dest"],
    "carrier_stats": ["carrier"],
    "airport_weather": ["origin", "hour"],
}


@pytest.fixture(scope="module")
def asked(flights: Flights) -> Flights:
    """Some flights after the day that the views are of."""
    later = np.flatnonzero(flights.month >= 10)
    return flights.take(np.random.default_rng(0).choice(later, 3_000, replace=False))


def test_the_defaults_are_what_was_known_at_the_end_of_september(flights: Flights, catalogue: Catalogue) -> None:
    known = flights.take(flights.arrived_min < AS_OF_MIN)
    for view in STATISTICS:
        default = {column.name: column.default for column in catalogue.view(f"{view}@1").columns}
        assert default["flights"] == 0
        assert default["late_share"] == pytest.approx(known.late.mean(), abs=0.001)
        assert default["lost_min"] == pytest.approx((known.arr_delay - known.dep_delay).mean(), abs=0.05)

    weather = read_weather()
    default = {column.name: column.default for column in catalogue.view("airport_weather@1").columns}
    assert default.pop("wind_gust") == 0
    for name in set(READINGS) - {"wind_gust"}:
        readings = weather.readings[name][weather.hour * 60 < AS_OF_MIN]
        assert default[name] == pytest.approx(np.nanmedian(readings), abs=0.05), name

    planes = read_planes()
    counts = dict(zip(*np.unique(known.tailnum.astype(str), return_counts=True), strict=True))
    flown = np.array([counts.get(tailnum, 0) for tailnum in planes.tailnum])
    default = {column.name: column.default for column in catalogue.view("plane_stats@1").columns}
    for name, values in (("built", planes.built), ("seats", planes.seats)):
        there = ~np.isnan(values)
        assert default[name] == np.median(np.repeat(values[there], flown[there])), name


async def test_what_the_store_gives_back_is_what_the_offline_matrix_has(
    features: Features, asked: Flights, catalogue: Catalogue, redis_url: str
) -> None:
    offline = features.columns(asked, np.full(len(asked), AS_OF_MIN))
    async with FeatureClient(catalogue, RedisStore(RedisOptions(url=redis_url))) as client:
        for name in VIEWS:
            table = features.table(name)
            assert (await client.write(f"{name}@1", table)).written == table.num_rows
            view = catalogue.view(f"{name}@1")
            keys = [entity_columns(asked)[key.name].tolist() for key in view.entity.join_keys]
            rows = await client.read(view, keys[0] if len(keys) == 1 else list(zip(*keys, strict=True)), timeout_s=30)
            for column in view.columns:
                served = rows.columns[column.name].astype(np.float32)
                np.testing.assert_array_equal(served, offline[f"{name}.{column.name}"], err_msg=f"{name}.{column.name}")
            present = rows.status == status.PRESENT
            assert 0.95 < present.mean() <= 1
            assert (rows.status[~present] == status.DEFAULTED | status.ABSENT).all()


def test_the_files_have_the_rows_of_the_views(features: Features, tmp_path: Path) -> None:
    rows = write(features, tmp_path)
    sources = {"plane_arrivals.parquet", "plane_registry.parquet", f"{WINDOWED}.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{view}.parquet" for view in VIEWS} | sources
    assert pq.read_table(tmp_path / f"{WINDOWED}.parquet").num_rows == rows[WINDOWED] == rows["plane_stats"]
    for view in VIEWS:
        table = pq.read_table(tmp_path / f"{view}.parquet")
        assert table.num_rows == rows[view]
        assert table.equals(features.table(view))
        keys = zip(*(table[key].to_pylist() for key in KEYS[view]), strict=True)
        assert len(set(keys)) == table.num_rows
