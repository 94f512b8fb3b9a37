"""What is read from the package is what happened."""

import numpy as np
import pytest

from examples.flights import data
from examples.flights.data import DataMissing, Flights


def test_every_flight_that_arrived_is_there(flights: Flights) -> None:
    assert len(flights) == 327_346
    assert (np.diff(flights.departed_min) >= 0).all()
    assert not np.isnan(flights.arr_delay).any()


def test_the_label_begins_at_15_minutes(flights: Flights) -> None:
    assert flights.late.mean() == pytest.approx(0.2437, abs=1e-3)
    assert flights.late[flights.arr_delay == 15].all()
    assert not flights.late[flights.arr_delay == 14].any()


def test_a_flight_across_time_zones_arrives_at_the_right_instant(flights: Flights) -> None:
    """UA 1545 left Newark at 05:17 on January 1st (UTC-5) and was in Houston at 08:30 (UTC-6)."""
    first = flights.take((flights.carrier == "UA") & (flights.number == 1545) & (flights.dest == "IAH"))
    assert str(first.departed_min.astype("datetime64[m]")[0]) == "2013-01-01T10:17"
    assert str(first.arrived_min.astype("datetime64[m]")[0]) == "2013-01-01T14:30"


def test_no_flight_is_faster_than_sound_or_takes_a_day(flights: Flights) -> None:
    elapsed_min = flights.arrived_min - flights.departed_min
    assert elapsed_min.max() < 14 * 60
    assert (flights.distance / elapsed_min * 60).max() < 767


def test_the_unbelievable_wind_is_gone() -> None:
    weather = data.read_weather()
    assert np.nanmax(weather.readings["wind_speed"]) < data.FASTEST_WIND_MPH
    assert np.isnan(weather.readings["wind_speed"]).sum() == 5


def test_missing_data_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataMissing, match="pip install"):
        data.read_flights()
