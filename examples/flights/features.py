"""The views' rows, as of any instant: for serving all keys at one instant, for training each flight at its departure.

Flow: flights, weather and planes → `Features` → `table(view, as_of_min)` for `headrace load`, or
`columns(flights, at_min)` for a training matrix. Both ask the same `_statistics` and `_weather`.

What may be known at a departure:
- of other flights, only arrivals *before* the minute of the departure, so neither the flight itself nor one in the air;
- of a plane, the registry's entry as soon as the plane has arrived once, and nothing before;
- of the weather, the report made in the hour before the hour of the departure.
Nothing that happens later can change a row: `tests/unit/flights/test_point_in_time.py` changes the future and looks.

Shares and means of few flights are noise, so they are drawn towards the default that the catalogue declares, as if
`PRIOR_FLIGHTS` more had behaved like it. A key without any flight has no row; its default row is the limit.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from examples.flights.data import Flights, Planes, Weather, read_flights, read_planes, read_weather
from examples.flights.history import History
from featureclient.schema import EVENT_TIME, Catalogue, View

Columns: TypeAlias = dict[str, npt.NDArray[np.generic]]

CATALOGUE = Path(__file__).with_name("features.yaml")

AS_OF_MIN = int(datetime(2013, 10, 1, 4, tzinfo=UTC).timestamp()) // 60
"""The end of 2013-09-30 on New York's clock, in minutes since the epoch: what is served was known by then."""

PRIOR_FLIGHTS = 20

WINDOW_DAYS = 30
"""How far `plane_stats@2` looks back."""

STATISTICS = ("plane_stats", "route_stats", "carrier_stats")
WEATHER = "airport_weather"
VIEWS = (*STATISTICS, WEATHER)


class Features:
    """Answers what a view says of a key at an instant. Construction sorts the flights once per view."""

    def __init__(self, catalogue: Catalogue, flights: Flights, weather: Weather, planes: Planes) -> None:
        self._views: dict[str, View] = {name: catalogue.view(f"{name}@1") for name in VIEWS}
        self._flights = flights
        self._weather_reports = weather
        # The row of an hour is the report made in the hour before it.
        self._weather_rows = pd.Index(_joined([weather.origin, weather.hour + 1]))
        self._registry = pd.Index(planes.tailnum)
        self._planes = planes
        events = {"late": flights.late, "lost": flights.arr_delay - flights.dep_delay}
        self._histories = {
            name: History(_joined(self._keys(name, flights)), flights.arrived_min, events) for name in STATISTICS
        }

    @classmethod
    def read(cls, flights: Flights | None = None) -> "Features":
        """Return the features of the installed data, of all its flights or of the given ones."""
        return cls(
            Catalogue.load(CATALOGUE),
            read_flights() if flights is None else flights,
            read_weather(),
            read_planes(),
        )

    def table(self, name: str, as_of_min: int = AS_OF_MIN) -> pa.Table:
        """Return a view's rows as of an instant: join keys, columns (null where not known) and event times.

        The weather is the whole year's, one row per hour: each of them is known when its hour begins.
        """
        view = self._views[name]
        if name == WEATHER:
            reports = self._weather_reports
            hours = reports.hour + 1
            keys: Columns = {"origin": reports.origin, "hour": hours}
            values: Columns = dict(reports.readings)
            event_time_ms = hours * 3_600_000
        else:
            groups = self._histories[name].groups
            values = self._statistics(name, groups, np.full(len(groups), as_of_min, np.int64))
            exists = np.asarray(values["flights"], np.int32) > 0
            values = {column: array[exists] for column, array in values.items()}
            names = [key.name for key in view.entity.join_keys]
            parts = [group.split("|") for group in groups[exists]]
            keys = {key: np.array([part[i] for part in parts], object) for i, key in enumerate(names)}
            event_time_ms = np.full(len(parts), as_of_min * 60_000, np.int64)
        columns = {column.name: _arrow(values[column.name], column.dtype.numpy) for column in view.columns}
        return pa.table({**keys, **columns, EVENT_TIME: event_time_ms})

    def windowed(self, as_of_min: int = AS_OF_MIN) -> pa.Table:
        """Return the rows of `plane_stats@2`: of the same planes as `@1`, the arrivals of `WINDOW_DAYS` alone."""
        table = self.table("plane_stats", as_of_min)
        default = _defaults(self._views["plane_stats"])
        planes = table["tailnum"].to_numpy()
        history = self._histories["plane_stats"]
        count, sums = history.before(planes, np.full(len(planes), as_of_min, np.int64))
        earlier, earlier_sums = history.before(planes, np.full(len(planes), as_of_min - WINDOW_DAYS * 1440, np.int64))
        flights = count - earlier
        values: Columns = {"flights": flights.astype(np.int32)}
        for column, event in (("late_share", "late"), ("lost_min", "lost")):
            total = sums[event] - earlier_sums[event] + PRIOR_FLIGHTS * default[column]
            values[column] = (total / (flights + PRIOR_FLIGHTS)).astype(np.float32)
        for column, array in values.items():
            table = table.set_column(table.column_names.index(column), column, pa.array(array))
        return table

    def arrivals(self, as_of_min: int = AS_OF_MIN) -> pa.Table:
        """Return what `plane_stats` of an instant is made of: an arrival a row, with the instant as `known_ms`."""
        known = self._flights.take(self._flights.arrived_min < as_of_min)
        return pa.table(
            {
                "tailnum": pa.array(known.tailnum, pa.string()),
                "late": known.late,
                "lost_min": known.arr_delay - known.dep_delay,
                "arrived_ms": known.arrived_min * 60_000,
                "known_ms": np.full(len(known), as_of_min * 60_000, np.int64),
            }
        )

    def registry(self) -> pa.Table:
        """Return what is known of a plane whenever it flies; null where the registry is empty."""
        planes = self._planes
        return pa.table(
            {
                "tailnum": pa.array(planes.tailnum, pa.string()),
                "built": _arrow(planes.built, np.dtype(np.int16)),
                "seats": _arrow(planes.seats, np.dtype(np.int16)),
            }
        )

    def columns(self, flights: Flights, at_min: npt.NDArray[np.int64] | None = None) -> Columns:
        """Return `view.column` for each flight, float32, as of `at_min` or its departure; defaults where not known."""
        known = self.known(flights, at_min)
        defaults = {
            f"{name}.{key}": value for name, view in self._views.items() for key, value in _defaults(view).items()
        }
        return {name: np.where(np.isnan(values), np.float32(defaults[name]), values) for name, values in known.items()}

    def known(
        self, flights: Flights, at_min: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return `view.column` for each flight, as `columns` does, with NaN where nothing was known."""
        at_min = flights.departed_min if at_min is None else at_min
        known: dict[str, npt.NDArray[np.float32]] = {}
        for name, view in self._views.items():
            keys = _joined(self._keys(name, flights))
            values = self._weather(keys) if name == WEATHER else self._statistics(name, keys, at_min)
            known |= {f"{name}.{column}": values[column].astype(np.float32) for column in _defaults(view)}
        return known

    def _keys(self, name: str, flights: Flights) -> list[npt.NDArray[np.generic]]:
        found = entity_columns(flights)
        return [found[key.name] for key in self._views[name].entity.join_keys]

    def _statistics(self, name: str, keys: npt.NDArray[np.object_], at_min: npt.NDArray[np.int64]) -> Columns:
        """Count and shrink. A key without an arrival has NaN everywhere but in `flights`."""
        default = _defaults(self._views[name])
        count, sums = self._histories[name].before(keys, at_min)

        def drawn(total: npt.NDArray[np.float64], towards: float) -> npt.NDArray[np.float32]:
            mean = (total + PRIOR_FLIGHTS * towards) / (count + PRIOR_FLIGHTS)
            return np.where(count > 0, mean, np.nan).astype(np.float32)

        values: Columns = {
            "flights": count.astype(np.int32),
            "late_share": drawn(sums["late"], default["late_share"]),
            "lost_min": drawn(sums["lost"], default["lost_min"]),
        }
        if name == "plane_stats":
            entry = np.where(count > 0, self._registry.get_indexer(keys), -1)
            values["built"] = _taken(self._planes.built, entry)
            values["seats"] = _taken(self._planes.seats, entry)
        return values

    def _weather(self, keys: npt.NDArray[np.object_]) -> Columns:
        entry = self._weather_rows.get_indexer(keys)
        return {name: _taken(readings, entry) for name, readings in self._weather_reports.readings.items()}


def entity_columns(flights: Flights) -> dict[str, npt.NDArray[np.generic]]:
    """Return the entity columns of a request about these flights."""
    return {
        "tailnum": flights.tailnum,
        "origin": flights.origin,
        "dest": flights.dest,
        "carrier": flights.carrier,
        "hour": flights.departed_min // 60,
    }


def context_columns(flights: Flights) -> dict[str, npt.NDArray[np.float32]]:
    """Return the context of a request about these flights: what only the caller knows, at the departure."""
    return {
        "sched_hour": flights.sched_hour,
        "weekday": flights.weekday,
        "distance": flights.distance,
        "dep_delay": flights.dep_delay,
    }


def _defaults(view: View) -> dict[str, float]:
    return {column.name: float(cast("float", column.substitute)) for column in view.columns}


def _joined(parts: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.object_]:
    if len(parts) == 1:
        return parts[0].astype(object)
    return np.array(["|".join(map(str, key)) for key in zip(*parts, strict=True)], object)


def _taken(values: npt.NDArray[np.float32], entry: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    return np.where(entry >= 0, values[entry], np.float32(np.nan))


def _arrow(values: npt.NDArray[np.generic], dtype: np.dtype[np.generic]) -> pa.Array:
    """An Arrow array of the column's dtype, with nulls for NaN."""
    null = np.isnan(values)
    return pa.array(np.where(null, 0, values).astype(dtype), mask=null)
