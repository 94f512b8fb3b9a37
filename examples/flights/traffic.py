"""Flights as requests: which are asked for together, how they are sent, and what the answers amount to.

Most requests are about one flight, as a gate would ask; some are about many, as a departure board would. A fixed number
of workers sends them, each the next one as soon as it has its answer.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.flights.data import Flights
from examples.flights.features import context_columns, entity_columns
from examples.flights.metrics import auc
from gateway.client import CallFailed, HeadraceClient

MODEL = "flight_delay"
OUTPUT = "probability"

BATCH_ROWS = 50
SHARE_IN_BATCHES = 0.6
IN_FLIGHT = 2
"""Enough that requests meet in the gateway. Client and server share one interpreter, so more would only queue."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request and what came back: `probability` float32 [rows] and a status byte per row and view, or an error."""

    flights: Flights
    seconds: float
    probability: npt.NDArray[np.float32] | None
    statuses: dict[str, npt.NDArray[np.uint8]]
    error: str = ""
    prediction_id: bytes = b""
    """What the journal knows the answer by."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the demo reports. The fields are the keys of its JSON; None where nothing could be measured."""

    requests: int
    rows: int
    p50_ms: float | None
    p99_ms: float | None
    cache_hit_ratio: float | None
    auc: float | None
    auc_baseline: float | None
    """Of the departure delay itself: an AUC needs an order, not a probability."""
    errors: int


def questions(flights: Flights, rows: int, seed: int = 0, *, ordered: bool = True) -> list[Flights]:
    """Draw `rows` of the flights (all when there are fewer) into requests, ordered by departure or not at all."""
    random = np.random.default_rng(seed)
    rows = min(rows, len(flights))
    batches = int(rows * SHARE_IN_BATCHES) // BATCH_ROWS
    sizes = np.array([BATCH_ROWS] * batches + [1] * (rows - batches * BATCH_ROWS))
    random.shuffle(sizes)
    drawn = random.choice(len(flights), rows, replace=False)
    if ordered:
        drawn = np.sort(drawn)
    return [flights.take(places) for places in np.split(drawn, np.cumsum(sizes)[:-1])]


async def ask(client: HeadraceClient, flights: Flights) -> Answer:
    """Send one request."""
    entities = {name: column.tolist() for name, column in entity_columns(flights).items()}
    began = time.perf_counter()
    try:
        prediction = await client.predict(MODEL, entities, context_columns(flights))
    except CallFailed as error:
        return Answer(flights, time.perf_counter() - began, None, {}, str(error))
    seconds = time.perf_counter() - began
    probability = prediction.outputs[OUTPUT].astype(np.float32)
    statuses = {alias: rows.status for alias, rows in prediction.views.items()}
    return Answer(flights, seconds, probability, statuses, prediction_id=prediction.prediction_id)


async def send(
    client: HeadraceClient, asked: Sequence[Flights], on_answer: Callable[[Answer], None] = lambda _: None
) -> list[Answer]:
    """Send the requests, `IN_FLIGHT` at a time; return the answers in the order of the requests."""
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(asked))

    async def work() -> None:
        for place, flights in waiting:
            answers[place] = await ask(client, flights)
            on_answer(answers[place])

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())
    return [answers[place] for place in range(len(asked))]


def summarise(answers: Sequence[Answer], cache_hit_ratio: float | None) -> Summary:
    """Measure. Requests that failed count as errors and in nothing else but `requests` and `rows`."""
    good = [
        (answer.flights, answer.seconds, answer.probability) for answer in answers if answer.probability is not None
    ]
    seconds = np.array([seconds for _, seconds, _ in good] or [np.nan])
    late = np.concatenate([np.empty(0, np.bool_), *(flights.late for flights, _, _ in good)])
    delay = np.concatenate([np.empty(0, np.float32), *(flights.dep_delay for flights, _, _ in good)])
    probability = np.concatenate([np.empty(0, np.float32), *(scores for _, _, scores in good)])
    return Summary(
        requests=len(answers),
        rows=sum(len(answer.flights) for answer in answers),
        p50_ms=_rounded(np.percentile(seconds, 50) * 1e3, 3),
        p99_ms=_rounded(np.percentile(seconds, 99) * 1e3, 3),
        cache_hit_ratio=_rounded(cache_hit_ratio, 4),
        auc=_rounded(auc(late, probability), 4),
        auc_baseline=_rounded(auc(late, delay), 4),
        errors=len(answers) - len(good),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), digits)
