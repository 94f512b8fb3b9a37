"""A row knows what was known at its instant, and nothing that came later."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from examples.flights.data import READINGS, Flights, Weather
from examples.flights.features import PRIOR_FLIGHTS, STATISTICS, Features
from featureclient.schema import Catalogue

Build = Callable[[Flights], Features]


def test_changing_a_flight_changes_no_row_of_a_departure_before_its_arrival(build: Build, flights: Flights) -> None:
    before = build(flights).columns(flights)
    for changed in range(0, len(flights), 23):
        arr_delay = flights.arr_delay.copy()
        arr_delay[changed] += 1000
        after = build(replace(flights, arr_delay=arr_delay)).columns(flights)
        same = flights.departed_min <= flights.arrived_min[changed]
        for name, values in after.items():
            np.testing.assert_array_equal(values[same], before[name][same], err_msg=name)
        later = ~same & (flights.carrier == flights.carrier[changed])
        assert (after["carrier_stats.lost_min"][later] > before["carrier_stats.lost_min"][later]).all()


def test_flights_that_have_not_arrived_yet_might_as_well_not_exist(build: Build, flights: Flights) -> None:
    at_min = int(np.median(flights.departed_min))
    now = np.full(len(flights), at_min)
    known = build(flights.take(flights.arrived_min < at_min)).columns(flights, now)
    for name, values in build(flights).columns(flights, now).items():
        np.testing.assert_array_equal(values, known[name], err_msg=name)


def test_an_arrival_in_the_minute_of_the_departure_is_not_known(build: Build, flights: Flights) -> None:
    pair = flights.take(np.array([0, 1]))
    pair = replace(pair, carrier=np.array(["AA", "AA"], object), departed_min=np.array([100, 200]))
    for arrived_min, counted in ((200, 0), (199, 1)):
        moved = replace(pair, arrived_min=np.array([arrived_min, 300]))
        assert build(moved).columns(moved)["carrier_stats.flights"].tolist() == [0, counted]


@pytest.mark.parametrize("view", STATISTICS)
def test_a_row_of_training_is_the_row_that_would_be_served_then(build: Build, flights: Flights, view: str) -> None:
    features = build(flights)
    trained = features.columns(flights)
    key = {"plane_stats": ["tailnum"], "route_stats": ["origin", "dest"], "carrier_stats": ["carrier"]}[view]
    for place in range(0, len(flights), 37):
        table = features.table(view, int(flights.departed_min[place])).to_pylist()
        rows = [row for row in table if all(row[name] == getattr(flights, name)[place] for name in key)]
        assert len(rows) == (trained[f"{view}.flights"][place] > 0)
        for row in rows:
            assert row["event_time_ms"] == flights.departed_min[place] * 60_000
            for column in ("flights", "late_share", "lost_min"):
                assert trained[f"{view}.{column}"][place] == np.float32(row[column])


def test_a_plane_without_an_arrival_has_no_row_and_trains_as_the_defaults(
    build: Build, flights: Flights, catalogue: Catalogue
) -> None:
    features = build(flights)
    first = flights.take(np.array([int(np.argmax(flights.tailnum == "N1"))]))
    columns = features.columns(first)
    for column in catalogue.view("plane_stats@1").columns:
        assert columns[f"plane_stats.{column.name}"][0] == np.float32(column.default), column.name
    tables = [features.table("plane_stats", int(at)) for at in (first.departed_min[0], first.arrived_min[0] + 1)]
    assert ["N1" in table["tailnum"].to_pylist() for table in tables] == [False, True]


def test_shares_are_drawn_to_the_default_by_some_more_flights(build: Build, flights: Flights) -> None:
    ours = flights.carrier == "AA"
    row = next(row for row in build(flights).table("carrier_stats", 2**31).to_pylist() if row["carrier"] == "AA")
    assert row["flights"] == ours.sum()
    late = flights.late[ours].sum()
    assert row["late_share"] == pytest.approx((late + PRIOR_FLIGHTS * 0.25) / (ours.sum() + PRIOR_FLIGHTS))


def test_what_the_registry_does_not_know_is_null_when_served_and_the_default_in_training(
    build: Build, flights: Flights
) -> None:
    features = build(flights)
    end = np.full(len(flights), 2**31)
    served = {row["tailnum"]: (row["built"], row["seats"]) for row in features.table("plane_stats", 2**31).to_pylist()}
    assert served == {"N1": (1999, 100), "N2": (None, 200), "N3": (None, None)}
    trained = features.columns(flights, end)
    pairs = zip(trained["plane_stats.built"].tolist(), trained["plane_stats.seats"].tolist(), strict=True)
    assert dict(zip(flights.tailnum, pairs, strict=True)) == {"N1": (1999, 100), "N2": (2002, 200), "N3": (2002, 149)}


def test_the_weather_is_the_report_of_the_hour_before(build: Build, flights: Flights, weather: Weather) -> None:
    features = build(flights)
    trained = features.columns(flights)
    for place in range(0, len(flights), 41):
        report = (weather.origin == flights.origin[place]) & (weather.hour == flights.departed_min[place] // 60 - 1)
        for name in READINGS:
            assert trained[f"airport_weather.{name}"][place] == weather.readings[name][report][0]
    # The same row is served under the hour of the departure.
    served = features.table("airport_weather").to_pylist()
    assert [row["hour"] for row in served] == (weather.hour + 1).tolist()
    assert [row["temp"] for row in served] == weather.readings["temp"].tolist()
    assert all(row["event_time_ms"] == row["hour"] * 3_600_000 for row in served)
