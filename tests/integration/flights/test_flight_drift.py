"""Drift that is put into the flights: after how many rows it is found, and that nothing is found where nothing changed.

The stream is drawn from the flights of January to September with what was known at each departure, the output is the
exported model's. The reference is the profile of one half of them, the stream the other half.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from examples.flights.data import Flights
from examples.flights.features import Features, context_columns
from examples.flights.flight_transforms import cyclical_hour
from examples.flights.train import COLUMNS, INPUT, OUTPUT, in_training
from gateway.journal.schema import Redaction, arrow_schema
from gateway.monitor.options import MonitorOptions
from gateway.monitor.stream import StreamDrift
from gateway.records.drift import WindowDrift
from gateway.validation.options import DriftOptions
from gateway.validation.profile import Profile
from gateway.validation.windows import WindowOptions
from tests.drifting import START_MS, batch_of, profile_of, schema_of_columns

Columns = dict[str, npt.NDArray[Any]]

OPTIONS = MonitorOptions(windows=WindowOptions(rows=10_000, panes=10))
BATCH_ROWS = 500
ROWS_BEFORE = 20_000
"""Rows of a stream that has not changed yet: the window is full of them."""


class Stream:
    """Draws rows, changes them, and asks the drift of each window."""

    def __init__(self, live: Columns, reference: Columns, model: Callable[[Columns], Columns]) -> None:
        self._live, self._model = live, model
        self._scored = model(live)
        self.reference = reference
        self.profile: Profile = profile_of(reference, model(reference))
        self._schema = schema_of_columns(live, [OUTPUT])
        self._arrow = arrow_schema(self._schema, Redaction())

    def windows(
        self,
        options: MonitorOptions,
        seed: int,
        change: Callable[[Columns, int], None] | None = None,
        wanted: str = "sliding",
    ) -> Iterator[tuple[int, WindowDrift]]:
        """Yield (rows so far, drift) of each window of a kind, for ever."""
        random = np.random.default_rng(seed)
        drift = StreamDrift(self._schema, self._arrow, self.profile, options)
        rows = 0
        while True:
            places = random.integers(0, len(self._live["dep_delay"]), BATCH_ROWS)
            columns = {name: values[places] for name, values in self._live.items()}
            outputs = {name: values[places] for name, values in self._scored.items()}
            if change is not None:
                change(columns, rows - ROWS_BEFORE)
                outputs = self._model(columns)
            batch = batch_of(self._schema, columns, outputs, START_MS + rows)
            rows += BATCH_ROWS
            for window in [*drift.add(batch), *drift.settle()]:
                if window.kind == wanted:
                    yield rows, drift.judge(window)


@pytest.fixture(scope="session")
def stream(flights: Flights, features: Features, model_folder: Path) -> Stream:
    session = onnxruntime.InferenceSession(model_folder / "1" / "model.onnx")

    def model(columns: Columns) -> Columns:
        inputs = {**columns, **cyclical_hour(columns["sched_hour"])}
        matrix = np.stack([inputs[name] for name in COLUMNS], axis=1)
        return {OUTPUT: session.run([OUTPUT], {INPUT: matrix})[0].reshape(-1)}

    random = np.random.default_rng(1)
    trained = flights.take(random.permutation(np.flatnonzero(in_training(flights)))[:80_000])
    columns = {**features.columns(trained), **context_columns(trained), "carrier": trained.carrier}
    half = len(trained) // 2
    return Stream(
        {name: values[half:] for name, values in columns.items()},
        {name: values[:half] for name, values in columns.items()},
        model,
    )


def seconds(columns: Columns, row: int) -> None:
    """Somebody sends seconds where minutes were."""
    if row >= 0:
        columns["dep_delay"] = columns["dep_delay"] * np.float32(60)


def stuck(columns: Columns, row: int) -> None:
    """The barometer shows one value for ever."""
    if row >= 0:
        columns["airport_weather.pressure"] = np.full(BATCH_ROWS, 1013.25, np.float32)


def new_carrier(columns: Columns, row: int) -> None:
    """One flight of twenty is of a carrier that the model has never seen."""
    if row >= 0:
        columns["carrier"] = np.where(np.arange(BATCH_ROWS) % 20 == 0, "ZZ", columns["carrier"]).astype(object)


def lost_values(columns: Columns, row: int) -> None:
    """One value of twenty is not there."""
    if row >= 0:
        columns["airport_weather.temp"][::20] = np.nan


def slow_shift(columns: Columns, row: int) -> None:
    """The temperature moves by 0.2 standard deviations within 20,000 rows."""
    moved = min(max(row, 0) / 20_000, 1.0)
    temperature = columns["airport_weather.temp"]
    columns["airport_weather.temp"] = (temperature + np.float32(moved * 0.2 * 18.4)).astype(np.float32)


INJECTED = [
    (seconds, "dep_delay", 2_000),
    (stuck, "airport_weather.pressure", 2_000),
    (new_carrier, "carrier", 5_000),
    (lost_values, "airport_weather.temp", 5_000),
    (slow_shift, "airport_weather.temp", 26_000),
]


@pytest.mark.parametrize(("change", "column", "rows_max"), INJECTED, ids=lambda value: getattr(value, "__name__", ""))
def test_injected_drift_is_found_within_the_stated_number_of_rows(
    stream: Stream, change: Callable[[Columns, int], None], column: str, rows_max: int
) -> None:
    found: int | None = None
    for rows, drift in stream.windows(OPTIONS, seed=3, change=change):
        if drift.verdict == "few":
            continue
        alarms = {one.column for one in drift.columns if one.verdict not in {"stable", "few"}}
        if rows <= ROWS_BEFORE:
            assert not alarms
        elif column in alarms:
            found = rows - ROWS_BEFORE
            break
        if rows > ROWS_BEFORE + rows_max:
            break
    print(f"{change.__name__}: found after {found} rows")
    assert found is not None
    assert found <= rows_max


def test_a_changed_unit_drifts_and_moves_the_prediction(stream: Stream) -> None:
    for rows, drift in stream.windows(OPTIONS, seed=4, change=seconds):
        if rows >= ROWS_BEFORE + 10_000:
            columns = {one.column: one for one in drift.columns}
            assert columns["dep_delay"].verdict == "drifted"
            assert columns[f"out.{OUTPUT}"].verdict != "stable"
            assert columns["airport_weather.visib"].verdict == "stable"
            return


def false_alarms(stream: Stream, windows: int, correction: str) -> int:
    """How many of so many separate windows have any alarm, though nothing changes; any size of effect counts."""
    drift = DriftOptions(correction=correction, psi_shifted=1e-9, share_shifted=1e-9)  # type: ignore[arg-type]  # a parameter
    options = replace(OPTIONS, windows=WindowOptions(rows=2_000, panes=4), drift=drift)
    separate = islice(stream.windows(options, seed=5, wanted="tumbling"), windows)
    alarms = sum(found.verdict != "stable" for _, found in separate)
    print(f"{correction}: {alarms} false alarms in {windows} windows")
    return alarms


def test_false_alarms_are_rare_in_a_hundred_windows(stream: Stream) -> None:
    # At a level of 1%, five or more of 100 windows have a probability below 0.4%.
    assert false_alarms(stream, 100, "holm") < 5


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["holm", "bh"])
def test_false_alarms_are_at_most_the_level_in_a_thousand_windows(stream: Stream, correction: str) -> None:
    assert false_alarms(stream, 1000, correction) <= DriftOptions().level * 1000
