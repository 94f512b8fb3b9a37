"""A small invented world: three planes, four routes and two airlines, an arrival every few minutes for two days."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from examples.flights.data import READINGS, Flights, Planes, Weather
from examples.flights.features import CATALOGUE, Features
from featureclient.schema import Catalogue

FIRST_MIN = 23_000_000


def make_flights(count: int, seed: int = 0) -> Flights:
    random = np.random.default_rng(seed)

    def any_of(*names: str) -> npt.NDArray[np.object_]:
        return np.array(names, object)[random.integers(len(names), size=count)]

    departed_min = np.sort(FIRST_MIN + random.integers(0, 2 * 24 * 60, count))
    return Flights(
        carrier=any_of("AA", "UA"),
        number=np.arange(count),
        tailnum=any_of("N1", "N2", "N3"),
        origin=any_of("EWR", "JFK"),
        dest=any_of("IAH", "LAX"),
        month=np.full(count, 9),
        sched_hour=random.integers(0, 24, count).astype(np.float32),
        weekday=random.integers(0, 7, count).astype(np.float32),
        distance=random.integers(100, 3000, count).astype(np.float32),
        dep_delay=random.integers(-10, 60, count).astype(np.float32),
        arr_delay=random.integers(-30, 90, count).astype(np.float32),
        departed_min=departed_min,
        arrived_min=departed_min + random.integers(30, 300, count),
    )


def make_weather() -> Weather:
    hours = np.arange(FIRST_MIN // 60 - 1, FIRST_MIN // 60 + 48)
    origin = np.repeat(np.array(["EWR", "JFK"], object), len(hours))
    readings = {
        name: np.arange(len(origin), dtype=np.float32) + np.float32(1000 * place) for place, name in enumerate(READINGS)
    }
    return Weather(origin, np.tile(hours, 2), readings)


@pytest.fixture
def flights() -> Flights:
    return make_flights(400)


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue.load(CATALOGUE)


@pytest.fixture
def weather() -> Weather:
    return make_weather()


@pytest.fixture
def build(catalogue: Catalogue, weather: Weather) -> Callable[[Flights], Features]:
    """Features of given flights; N3 is not in the registry, and nobody knows when N2 was built."""
    planes = Planes(
        np.array(["N1", "N2"], object), np.array([1999, np.nan], np.float32), np.array([100, 200], np.float32)
    )
    return lambda flights: Features(catalogue, flights, weather, planes)
