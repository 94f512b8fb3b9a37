"""What the log says of a store that fails: why, and not thousands of times."""

import logging

import pytest

from featureclient.events import Event, StoreRead, StoreWrite
from featureclient.warmup import CountsLoaded, CountsSaved, WarmingEnded, WarmupEvent
from gateway.server.feature_events import PERIOD_S, TEXTS_MAX, FailureLog, FeatureEvents


def ignore(_event: Event | WarmupEvent) -> None:
    """Metrics are not what is tested here."""


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> FeatureEvents:
    caplog.set_level(logging.INFO)
    return FeatureEvents(ignore, ignore)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_failure_is_logged_once_a_minute_and_counted_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = FailureLog(lambda: now)
    for moment in (0.0, 1.0, PERIOD_S - 1, PERIOD_S, PERIOD_S + 1):
        now = moment
        log("it is away")
    assert lines(caplog) == [
        ("WARNING", "it is away"),
        ("WARNING", "it is away (and 2 times more since this was logged)"),
    ]


def test_a_failure_that_is_always_new_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = FailureLog(lambda: now)
    for number in range(1000):
        log(f"key {number}")
    assert len(lines(caplog)) == TEXTS_MAX
    now = PERIOD_S
    log("another")
    assert lines(caplog)[-1] == ("WARNING", "another")
    assert repr(log) == "<FailureLog texts=1>"


def test_failed_reads_and_writes_say_why(events: FeatureEvents, caplog: pytest.LogCaptureFixture) -> None:
    events(StoreRead(keys=3, found=3, seconds=0.1, error=None))
    events(StoreWrite(rows=3, seconds=0.1, error=None))
    for _ in range(100):
        events(StoreRead(keys=3, found=0, seconds=0.1, error="StoreRefused", why="NOPERM no MGET for you"))
    events(StoreWrite(rows=3, seconds=0.1, error="StoreRefused", why="OOM too much"))
    events(StoreWrite(rows=3, seconds=0.1, error="unexpected"))
    assert lines(caplog) == [
        ("WARNING", "a read of the feature store failed: StoreRefused: NOPERM no MGET for you"),
        ("WARNING", "a write to the feature store failed: StoreRefused: OOM too much"),
        ("WARNING", "a write to the feature store failed: unexpected"),
    ]


def test_warming_that_failed_says_why(events: FeatureEvents, caplog: pytest.LogCaptureFixture) -> None:
    events.warmed(WarmingEnded("hot", "done", 5, 5, 0, 0, 0.5))
    events.warmed(WarmingEnded("a.txt", "failed", 0, 0, 0, 0, 0.5, "a.txt: there is no such file"))
    events.warmed(CountsSaved(0, 0.1, "StoreUnavailable", "nobody there"))
    events.warmed(CountsLoaded(0, 0, 0, 0.1, "StoreUnavailable", "nobody there"))
    (_, done), (_, failed), *counts = lines(caplog)
    assert [level for level, _ in lines(caplog)] == ["INFO", "WARNING", "WARNING", "WARNING"]
    assert done.startswith("warming from hot ended (done): 5 of 5 ids cached")
    assert failed.startswith("warming from a.txt ended (failed: a.txt: there is no such file): 0 of 0 ids")
    assert [line for _, line in counts] == [
        "counts of hot ids could not be saved: StoreUnavailable: nobody there",
        "counts of hot ids could not be loaded: StoreUnavailable: nobody there",
    ]
