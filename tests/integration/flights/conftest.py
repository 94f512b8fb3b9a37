"""The real data, read once per worker."""

from pathlib import Path

import pytest

import examples.flights
from examples.flights.data import Flights, read_flights
from examples.flights.features import CATALOGUE, Features
from featureclient.schema import Catalogue


@pytest.fixture(scope="session")
def flights() -> Flights:
    return read_flights()


@pytest.fixture(scope="session")
def features(flights: Flights) -> Features:
    return Features.read(flights)


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue.load(CATALOGUE)


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return Path(examples.flights.__file__).parents[2] / "models" / "flight_delay"
