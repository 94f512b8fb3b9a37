"""A reader of the journal and the compactor do not hold each other up, and no row is lost or counted twice."""

from pathlib import Path

import numpy as np
import pytest

from gateway.journal import compaction
from gateway.journal.compaction import compact, reading_lock
from gateway.journal.locks import locked
from gateway.journal.options import JournalOptions
from gateway.monitor.comparison import Span, compare
from tests.drifting import START_MS, batch_of, profile_of, save_profile, schema_of_columns, segment

RANDOM = np.random.default_rng(0)
NOW_S = START_MS / 1000


def drawn(rows: int) -> dict[str, np.ndarray]:
    return {"v.x": RANDOM.normal(size=rows).astype(np.float32)}


@pytest.fixture
def options(tmp_path: Path) -> JournalOptions:
    """Three closed segments."""
    save_profile(tmp_path / "models", profile_of(drawn(5000), {}))
    options = JournalOptions(path=tmp_path / "journal", free_bytes_min=0, keep_days=0)
    schema = schema_of_columns(drawn(1))
    for number in range(3):
        file = segment(options.path, schema, START_MS + number)
        file.write(batch_of(schema, drawn(1000), {}, START_MS + number))
        file.close()
    return options


def test_a_pass_says_that_it_lives_while_somebody_reads_and_ends(
    options: JournalOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_READERS_WAIT_S", 0.2)
    alive: list[None] = []
    with locked(reading_lock(options.path), shared=True):
        for _ in range(2):  # the second one finds what the first one decided
            before = len(alive)
            done = compact(options, now_s=NOW_S, alive=lambda: alive.append(None))
            assert (done.stopped, done.rows) == ("readers", 0)
            assert len(alive) > before + 2
    done = compact(options, now_s=NOW_S)
    assert (done.stopped, done.repeated) == ("", 1)
    assert len(list((options.path / "parquet").rglob("*.parquet"))) == 1
    assert not list((options.path / "segments").rglob("*.arrows"))


def test_what_is_compacted_while_it_is_compared_is_counted_once(
    options: JournalOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.monitor import comparison

    compacted: list[int] = []
    add = comparison.Stream.add

    def interrupted(*arguments: object) -> None:
        if not compacted:
            compacted.append(compact(options, now_s=NOW_S).rows)
        add(*arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(comparison.Stream, "add", interrupted)
    models, span = options.path.parent / "models", Span(START_MS, START_MS + 10)
    (stream,) = compare([options.path], models, "flight_delay", span)
    assert compacted == [3000]
    assert stream.window.whole.rows == 3000
    (stream,) = compare([options.path], models, "flight_delay", span)
    assert stream.window.whole.rows == 3000
