"""Endless requests of the kinds that real callers send, for the load generators that drive any running gateway.

Two sources give the same three kinds of request. `FlightTraffic` is for the flights example (`make demo`),
`UserTraffic` for the benchmark's model (`python -m loadtest.serve`).

    single    one popular entity; popularity follows Zipf, so a cache is soon warm for most of them
    ranking   200 candidates in one request
    cold      one entity nobody has asked about before, so that the gateway has to ask the store

A source draws from the `random.Random` it is given: the same seed gives the same requests.
"""

import functools
import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from headrace.v1 import prediction_pb2, tensor_pb2
from loadtest import workload

if TYPE_CHECKING:
    from examples.flights.data import Flights

Request = prediction_pb2.PredictRequest

KINDS = ("single", "ranking", "cold")
CANDIDATES = 200
FLIGHT_MODEL = "flight_delay"
FIRST_TEST_MONTH = 10
"""The model is asked about the months it was not trained on."""


class Traffic(Protocol):
    """A source of requests."""

    def single(self) -> Request:
        """One popular entity."""
        ...

    def ranking(self) -> Request:
        """200 candidates."""
        ...

    def cold(self) -> Request:
        """An entity that has not been asked about."""
        ...


class Zipf:
    """Draws positions 0..count-1, the first the most popular."""

    def __init__(self, count: int, exponent: float = workload.ZIPF_EXPONENT) -> None:
        self._cumulative = list(itertools.accumulate(1 / rank**exponent for rank in range(1, count + 1)))
        self._positions = range(count)

    def draw(self, rng: random.Random) -> int:
        """One position."""
        return rng.choices(self._positions, cum_weights=self._cumulative)[0]


class UserTraffic:
    """Users of the benchmark's model `mlp`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._popularity = Zipf(workload.USERS)
        self._unasked = itertools.count(workload.USERS + rng.randrange(10**12))

    def single(self) -> Request:
        """One user."""
        return workload.headrace_request([self._popularity.draw(self._rng)])

    def ranking(self) -> Request:
        """200 distinct users."""
        return workload.headrace_request(self._rng.sample(range(workload.USERS), CANDIDATES))

    def cold(self) -> Request:
        """A user without a row, so the store says nil and the answer is made from defaults."""
        return workload.headrace_request([next(self._unasked)])


@functools.cache
def _test_flights() -> "Flights":
    """October to December. Read once: it takes a second."""
    from examples.flights.data import read_flights  # needs the extra `demo`, and only this source does

    flights = read_flights()
    return flights.take(flights.month >= FIRST_TEST_MONTH)


class FlightTraffic:
    """Departures of the flights example. A popular plane is one whose flights are asked about often."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._flights = _test_flights()
        by_plane: dict[str, list[int]] = {}
        for position, tailnum in enumerate(self._flights.tailnum):
            by_plane.setdefault(tailnum, []).append(position)
        self._by_popularity = sorted(by_plane.values(), key=len, reverse=True)
        self._popularity = Zipf(len(self._by_popularity))

    def single(self) -> Request:
        """One departure of a popular plane."""
        departures = self._by_popularity[self._popularity.draw(self._rng)]
        return self._request([self._rng.choice(departures)])

    def ranking(self) -> Request:
        """The 200 departures that follow one another from some moment on."""
        start = self._rng.randrange(len(self._flights) - CANDIDATES)
        return self._request(range(start, start + CANDIDATES))

    def cold(self) -> Request:
        """A departure with a plane that does not exist; the store says nil and defaults take its place."""
        request = self.single()
        for column in request.entities:
            if column.name == "tailnum":
                column.strings.values[0] = f"X{self._rng.randrange(10**12)}"
        return request

    def _request(self, positions: Sequence[int]) -> Request:
        flights = self._flights
        chosen = list(positions)
        ids = {name: getattr(flights, name)[chosen].tolist() for name in ("tailnum", "origin", "dest", "carrier")}
        entities = [
            tensor_pb2.EntityColumn(name=name, strings=tensor_pb2.StringIds(values=values))
            for name, values in ids.items()
        ]
        hours = (flights.departed_min[chosen] // 60).tolist()
        entities.append(tensor_pb2.EntityColumn(name="hour", int64s=tensor_pb2.Int64Ids(values=hours)))
        context = [
            tensor_pb2.Tensor(
                name=name,
                dtype=tensor_pb2.DTYPE_FLOAT32,
                contents=tensor_pb2.TensorContents(floats=getattr(flights, name)[chosen].tolist()),
            )
            for name in ("sched_hour", "weekday", "distance", "dep_delay")
        ]
        return Request(model=FLIGHT_MODEL, entities=entities, context=context)


SOURCES: dict[str, type[FlightTraffic] | type[UserTraffic]] = {"flights": FlightTraffic, "users": UserTraffic}


def make_traffic(source: str, rng: random.Random) -> Traffic:
    """The source with this name."""
    return SOURCES[source](rng)


def draw_kind(rng: random.Random, *, cold_share: float, ranking_share: float) -> str:
    """A kind by its share of the requests; what is left over is single."""
    return rng.choices(KINDS, weights=[1 - cold_share - ranking_share, ranking_share, cold_share])[0]


def make_request(traffic: Traffic, kind: str) -> Request:
    """One request of a kind."""
    return cast(Request, getattr(traffic, kind)())
