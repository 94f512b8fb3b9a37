"""Replay real flights through a running gateway: `python -m examples.flights.replay --from 2013-10 --rows 20000`.

The flights are drawn at random from those that left from a month on, in no order: a stream in which nothing changes, so
that what drifts is the fault that `--inject` puts into it from a row on. A faulty row is sent as it is; its label stays
what really happened.

`--labels FILE` writes what is known once the planes have landed, under the ids of the predictions: what
`headrace dataset build` joins. `--history FILE` asks nothing; it writes all flights of that time as `headrace dataset
backfill` takes them.
"""

import argparse
import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.flights.data import Flights, read_flights
from examples.flights.features import context_columns, entity_columns
from examples.flights.traffic import Answer, questions, send, summarise
from gateway.client import HeadraceClient

SECONDS_A_MINUTE = np.float32(60)
STUCK_HOUR = np.float32(12)
NEW_CARRIER = "ZZ"
NEW_CARRIER_EVERY = 20
YEAR = 2013


def minutes_to_seconds(flights: Flights) -> Flights:
    """Somebody sends the delay in seconds."""
    return replace(flights, dep_delay=flights.dep_delay * SECONDS_A_MINUTE)


def stuck(flights: Flights) -> Flights:
    """The clock has stopped: every flight was scheduled for noon."""
    return replace(flights, sched_hour=np.full(len(flights), STUCK_HOUR, np.float32))


def new_carrier(flights: Flights) -> Flights:
    """Some flights, chosen by their number, are of a carrier that nothing is known about."""
    carrier = np.where(flights.number % NEW_CARRIER_EVERY == 0, NEW_CARRIER, flights.carrier).astype(object)
    return replace(flights, carrier=carrier)


FAULTS: Mapping[str, Callable[[Flights], Flights]] = {
    "minutes-to-seconds": minutes_to_seconds,
    "stuck": stuck,
    "new-carrier": new_carrier,
}


def since(flights: Flights, month: int) -> Flights:
    """The flights that left in a month (1 to 12) or later."""
    return flights.take(flights.month >= month)


def stream(flights: Flights, rows: int, seed: int, fault: str | None = None, faulty_from: int = 0) -> list[Flights]:
    """Requests about `rows` of the flights; those that begin at row `faulty_from` or later have the fault."""
    asked = questions(flights, rows, seed, ordered=False)
    if fault is None:
        return asked
    before = np.cumsum([0, *map(len, asked)])
    return [FAULTS[fault](one) if row >= faulty_from else one for row, one in zip(before, asked, strict=False)]


def labels(answers: Iterable[Answer]) -> pa.Table:
    """What is known after the landing: a row for each row that was answered, by prediction id and row."""
    good = [answer for answer in answers if answer.prediction_id]
    empty = np.empty(0, np.int64)
    return pa.table(
        {
            "prediction_id": pa.array(
                [answer.prediction_id for answer in good for _ in range(len(answer.flights))], pa.binary(16)
            ),
            "row": pa.array(np.concatenate([empty, *(np.arange(len(answer.flights)) for answer in good)]), pa.int32()),
            "late": pa.array(np.concatenate([empty, *(answer.flights.late for answer in good)]).astype(bool)),
        }
    )


def history(flights: Flights) -> pa.Table:
    """Ids, time and context of each flight, and whether it was late."""
    columns = {name: pa.array(values.tolist()) for name, values in entity_columns(flights).items()}
    columns |= {name: pa.array(values) for name, values in context_columns(flights).items()}
    columns["time"] = pa.array(flights.departed_min * 60_000, pa.timestamp("ms", "UTC"))
    return pa.table({**columns, "late": pa.array(flights.late)})


async def ask(target: str, asked: Sequence[Flights]) -> list[Answer]:
    """Send the requests to the gateway."""
    async with HeadraceClient(target) as client:
        return await send(client, asked)


def main(arguments: Sequence[str] | None = None) -> None:
    """Replay, print what came back, and end with 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="month", type=_month, default=10, help="the first month, 2013-10 by default")
    parser.add_argument("--rows", type=int, default=20_000, help="flights to ask about (default: %(default)s)")
    parser.add_argument("--inject", choices=sorted(FAULTS), help="a fault")
    parser.add_argument("--inject-from", type=int, default=0, help="the row from which on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draw other flights with another (default: %(default)s)")
    parser.add_argument("--target", default="127.0.0.1:8500", help="the gateway (default: %(default)s)")
    parser.add_argument("--labels", type=Path, help="write who was late, by prediction id, to this Parquet file")
    parser.add_argument("--history", type=Path, help="ask nothing; write all flights of that time to this Parquet file")
    options = parser.parse_args(arguments)
    flights = since(read_flights(), options.month)
    if options.history is not None:
        pq.write_table(history(flights), options.history)
        print(f"{options.history}: {len(flights):,} flights")
        return
    asked = stream(flights, options.rows, options.seed, options.inject, options.inject_from)
    answers = asyncio.run(ask(options.target, asked))
    summary = summarise(answers, None)
    print(f"{summary.requests:,} requests about {summary.rows:,} flights, {summary.errors} errors, AUC {summary.auc}")
    if options.labels is not None:
        pq.write_table(labels(answers), options.labels)
        print(f"{options.labels}: {summary.rows:,} labels")
    if summary.errors:
        raise SystemExit(next(answer.error for answer in answers if answer.error))


def _month(text: str) -> int:
    moment = datetime.strptime(text, "%Y-%m")  # noqa: DTZ007 - a month of New York's clock, as in the data
    if moment.year != YEAR:
        raise argparse.ArgumentTypeError(f"the flights are of {YEAR}, not of {moment.year}")
    return moment.month


if __name__ == "__main__":
    main()
