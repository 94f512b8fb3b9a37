"""Ask a running gateway about the flights of October to December, plane by plane, and keep what became of them.

    python -m examples.flights.experiment_traffic --rows 20000 --labels labels.parquet

One request has flights of one plane, as an experiment that is split by `tailnum` assigns whole requests. The labels are
joined by `prediction_id` and `row`; the column `late` says whether the flight arrived 15 minutes late or more.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop

from examples.flights.data import Flights, read_flights
from examples.flights.features import context_columns, entity_columns
from examples.flights.traffic import IN_FLIGHT, MODEL
from gateway.client import CallFailed, HeadraceClient

FIRST_MONTH = 10
REQUEST_ROWS_MAX = 20


@dataclass(slots=True)
class Replayed:
    """What was answered: labels in the order of the answers, requests per variant, and the first failures."""

    prediction_ids: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    late: list[bool] = field(default_factory=list)
    variants: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def labels(self) -> pa.Table:
        """A row for each flight that was answered."""
        return pa.table({"prediction_id": self.prediction_ids, "row": self.rows, "late": self.late})


def by_plane(flights: Flights, rows: int, *, rows_max: int = REQUEST_ROWS_MAX, seed: int = 0) -> list[Flights]:
    """Draw `rows` flights, and put those of one plane together, at most `rows_max` in a request; in any order."""
    random = np.random.default_rng(seed)
    drawn = np.sort(random.choice(len(flights), min(rows, len(flights)), replace=False))
    order = drawn[np.argsort(flights.tailnum[drawn].astype(str), kind="stable")]
    _, firsts = np.unique(flights.tailnum[order].astype(str), return_index=True)
    asked = [
        flights.take(plane[start : start + rows_max])
        for plane in np.split(order, firsts[1:])
        for start in range(0, len(plane), rows_max)
    ]
    return [asked[place] for place in random.permutation(len(asked))]


async def replay(
    client: HeadraceClient, asked: Sequence[Flights], *, in_flight: int = IN_FLIGHT, done: Replayed | None = None
) -> Replayed:
    """Send the requests, some at a time. What fails is counted by its message."""
    found = Replayed() if done is None else done
    waiting = iter(asked)

    async def work() -> None:
        for flights in waiting:
            entities = {name: column.tolist() for name, column in entity_columns(flights).items()}
            try:
                answer = await client.predict(MODEL, entities, context_columns(flights))
            except CallFailed as error:
                found.errors[str(error)] += 1
                continue
            found.variants[answer.variant] += 1
            found.prediction_ids += [answer.prediction_id.hex()] * len(flights)
            found.rows += range(len(flights))
            found.late += flights.late.tolist()

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())
    return found


async def _main(target: str, rows: int, in_flight: int, labels: Path | None) -> None:
    flights = read_flights()
    asked = by_plane(flights.take(flights.month >= FIRST_MONTH), rows)
    async with HeadraceClient(target) as client:
        found = await replay(client, asked, in_flight=in_flight)
    if labels is not None:
        pq.write_table(found.labels(), labels)
    print(f"{len(found.rows):,} flights in {len(asked):,} requests: {dict(found.variants)}")
    for message, count in found.errors.most_common(3):
        print(f"{count:,} failed: {message}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="127.0.0.1:8500", help="the gateway (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=20_000, help="flights to ask about (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="requests at a time (default: %(default)s)")
    parser.add_argument("--labels", type=Path, help="write what became of the flights: a Parquet file")
    options = parser.parse_args(arguments)
    uvloop.run(_main(options.target, options.rows, options.in_flight, options.labels))


if __name__ == "__main__":
    main()
