"""The second process delivers to sinks, and tells how they are."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.journal.compaction import compact
from gateway.journal.options import JournalOptions
from gateway.journal.policy import Redaction
from gateway.journal.recording import Recorder
from gateway.journal.segment import SegmentFile
from gateway.journal.sinks import ParquetSinkOptions, RedisSinkOptions, SinkOptions
from gateway.journal.streams import folder_of
from gateway.monitor.chores import Compaction
from gateway.monitor.options import MonitorOptions
from gateway.monitor.supervisor import Supervisor
from gateway.telemetry import Telemetry
from tests.journaling import model_of, served_of
from tests.waiting import soon

OPTIONS = MonitorOptions(poll_s=0.02, compact_s=0.1, restart_wait_s=0.05)
START_S = 30.0
MODEL = model_of({"x": "float32"})


def written(options: JournalOptions, number: int = 0, batches: int = 1) -> SegmentFile:
    recorder = Recorder(MODEL.schema, Redaction())
    now_ms = time.time_ns() // 1_000_000
    file = SegmentFile(folder_of(options.path, MODEL.schema), f"{now_ms}-1-{number}", recorder.arrow, 0.0)
    for n in range(batches):
        file.write(recorder.record([served_of(MODEL, [100], first=n, at_ms=now_ms)]))
    file.close()
    return file


def journal(tmp_path: Path, **sinks: SinkOptions) -> JournalOptions:
    return JournalOptions(path=tmp_path / "journal", free_bytes_min=0, keep_days=0, sinks=sinks)


async def test_closed_segments_reach_every_sink_and_the_metrics_say_so(tmp_path: Path, redis_url: str) -> None:
    options = journal(
        tmp_path,
        lake=SinkOptions(parquet=ParquetSinkOptions(tmp_path / "lake")),
        stream=SinkOptions(redis=RedisSinkOptions(redis_url)),
        gone=SinkOptions(redis=RedisSinkOptions("unix:///nowhere")),
    )
    async with Supervisor(options, tmp_path / "models", OPTIONS) as supervisor:
        telemetry = Telemetry()
        telemetry.watch_monitor(supervisor.snapshot)
        written(options)

        def states() -> Any:
            return supervisor.snapshot().sinks

        await soon(lambda: "lake" in states() and states()["lake"].rows == 100, START_S)
        await soon(lambda: states()["stream"].rows == 100 and states()["gone"].waiting_bytes > 0, START_S)
        await soon(lambda: states()["gone"].down, START_S)
        page = telemetry.render()[0].decode()
    assert 'headrace_journal_sink_rows_total{sink="lake",what="delivered"} 100.0' in page
    assert 'headrace_journal_sink_rows_total{sink="gone",what="dropped"} 0.0' in page
    assert 'headrace_journal_sink_down{sink="gone"} 1.0' in page
    assert 'headrace_journal_sink_down{sink="stream"} 0.0' in page
    assert 'headrace_journal_sink_waiting_bytes{sink="lake"} 0.0' in page
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.xlen("headrace.predictions") == 100
    assert supervisor.restarts == 0


async def test_what_waited_for_a_sink_outlives_the_process(tmp_path: Path, redis_url: str) -> None:
    gone = journal(tmp_path, stream=SinkOptions(redis=RedisSinkOptions("unix:///nowhere")))
    async with Supervisor(gone, tmp_path / "models", OPTIONS) as supervisor:
        written(gone)
        await soon(lambda: any(one.down and one.waiting_bytes for one in supervisor.snapshot().sinks.values()), START_S)
    there = replace(gone, sinks={"stream": SinkOptions(redis=RedisSinkOptions(redis_url))})
    async with Supervisor(there, tmp_path / "models", OPTIONS) as supervisor:
        await soon(lambda: any(one.rows == 100 for one in supervisor.snapshot().sinks.values()), START_S)


def test_compacting_by_hand_hands_segments_to_the_sinks_too(tmp_path: Path) -> None:
    options = journal(tmp_path, lake=SinkOptions(parquet=ParquetSinkOptions(tmp_path / "lake")))
    written(options)
    compact(options, now_s=time.time())
    assert len([*(options.path / "spill/lake").glob("*.arrows")]) == 1


def test_a_long_compaction_says_that_it_lives_after_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = journal(tmp_path)
    written(options, batches=50)
    told: list[float] = []
    monkeypatch.setattr("gateway.monitor.chores.ALIVE_S", 0.0)
    assert Compaction(options, (), 1.0, lambda: told.append(time.monotonic())).run(100.0, time.time_ns() // 10**6)
    assert len(told) >= 50  # one group, which is one file
