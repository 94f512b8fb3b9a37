"""Compaction and retention: every row once, wherever it is interrupted, and never more disk than it may have."""

import asyncio
import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.journal import reader
from gateway.journal.compaction import GROUP_BYTES, compact
from gateway.journal.journal import Journal
from gateway.journal.locks import locked
from gateway.journal.options import JournalOptions
from gateway.journal.policy import Redaction
from gateway.journal.query import opened
from gateway.journal.recording import Recorder
from gateway.journal.segment import SegmentFile
from gateway.journal.streams import folder_of, used_bytes
from tests.journaling import NOW_MS, Model, model_of, served_of
from tests.waiting import soon

MODEL = model_of({"age": "float32", "email": "string[20]"})
NOW_S = NOW_MS / 1000
DAY_MS = 86_400_000


def options(folder: Path, **changed: Any) -> JournalOptions:
    return JournalOptions(**{"enabled": True, "path": folder, "free_bytes_min": 0, **changed})


def segment(root: Path, name: str, *runs: Any, model: Model = MODEL, close: bool = True) -> SegmentFile:
    """A segment with a batch for each run."""
    recorder = Recorder(model.schema, Redaction())
    file = SegmentFile(folder_of(root, model.schema), name, recorder.arrow, 0.0)
    for run in runs:
        file.write(recorder.record([run]))
    if close:
        file.close()
    return file


def rows(root: Path) -> Counter[str]:
    """How often each request is in the Parquet files and the segments together."""
    found: Counter[str] = Counter()
    for path in root.glob("parquet/*/*/*.parquet"):
        found.update(pq.read_table(path, partitioning=None)["request_id"].to_pylist())
    for path in reader.segments(root):
        for batch in reader.batches(path):
            found.update(batch["request_id"].to_pylist())
    return found


def test_closed_segments_become_one_file_for_each_day(tmp_path: Path) -> None:
    segment(
        tmp_path, "1-1-1", served_of(MODEL, [2], at_ms=NOW_MS), served_of(MODEL, [1], first=5, at_ms=NOW_MS + DAY_MS)
    )
    segment(tmp_path, "2-1-2", served_of(MODEL, [3], first=9))
    live = segment(tmp_path, "3-1-3", served_of(MODEL, [1], first=20), close=False)
    before = pa.concat_tables(pa.Table.from_batches([*reader.batches(path)]) for path in reader.segments(tmp_path)[:2])
    done = compact(options(tmp_path), now_s=NOW_S)
    assert (done.segments, done.rows, done.files, done.stopped, done.bad) == (2, 6, 2, "", [])
    assert reader.segments(tmp_path) == [live.path]
    day = datetime.fromtimestamp(NOW_S, UTC).date().isoformat()
    (file,) = (tmp_path / "parquet" / "model=ranker" / f"date={day}").glob("*.parquet")
    table = pq.read_table(file, partitioning=None)
    assert table.schema.metadata == before.schema.metadata
    same_day = before.filter(pa.array([one.timestamp() * 1000 == NOW_MS for one in before["time"].to_pylist()]))
    assert table.drop_columns(["version", "variant"]).equals(same_day)
    assert set(table["version"].to_pylist()) == {1}
    live.close()
    assert compact(options(tmp_path), now_s=NOW_S).rows == 1
    assert rows(tmp_path) == {"r0": 2, "r5": 1, "r9": 3, "r20": 1}


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["replace", "fsync", "unlink", "link"])
def test_a_crash_at_any_step_neither_loses_nor_doubles_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    wanted = {f"r{n}": 1 for n in range(8)}
    crashes = 0
    for crash_at in range(1, 40):
        root = tmp_path / str(crash_at)
        for n in range(4):
            at_ms = NOW_MS + n * DAY_MS // 2
            segment(root, f"{n}-1-{n}", *(served_of(MODEL, [1], first=2 * n + k, at_ms=at_ms) for k in range(2)))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, crashing(getattr(os, call), crash_at))
            try:
                compact(options(root), now_s=NOW_S, sinks=["other"])
                break
            except Crash:
                crashes = crash_at
        # Who reads now sees each row once, though the compactor is dead in the middle of its work.
        with opened(root) as query:
            found = query.connection.execute("SELECT request_id, count(*) FROM journal GROUP BY ALL").fetchall()
        assert dict(found) == wanted
        compact(options(root), now_s=NOW_S, sinks=["other"])
        assert rows(root) == wanted
        assert not reader.segments(root)
        assert not [*root.rglob(".*.tmp")]
        assert len([*(root / "spill" / "other").iterdir()]) == 4
    assert crashes > 0


def crashing(real: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The call, which ends the process instead of being made for the `at`th time."""
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Crash
        return real(*args, **kwargs)

    return called


def test_two_compactors_do_not_meet(tmp_path: Path) -> None:
    segment(tmp_path, "1-1-1", served_of(MODEL, [1]))
    with locked(tmp_path / "compaction" / "lock"):
        assert compact(options(tmp_path), now_s=NOW_S).stopped == "busy"
    assert compact(options(tmp_path), now_s=NOW_S).rows == 1


def test_old_days_are_deleted(tmp_path: Path) -> None:
    for n in range(10):
        segment(tmp_path, f"{n}-1-{n}", served_of(MODEL, [1], first=n, at_ms=NOW_MS - n * DAY_MS))
    compact(options(tmp_path), now_s=NOW_S)
    for path in tmp_path.glob("parquet/*/*/*.parquet"):
        written_s = datetime.fromisoformat(path.parent.name.removeprefix("date=") + "T23:59+00:00").timestamp()
        os.utime(path, (written_s, written_s))
    done = compact(options(tmp_path, keep_days=3), now_s=NOW_S)
    assert done.deleted_files == 6
    assert set(rows(tmp_path)) == {"r0", "r1", "r2", "r3"}
    assert len([*(tmp_path / "parquet" / "model=ranker").iterdir()]) == 4
    assert compact(options(tmp_path, keep_days=0), now_s=NOW_S + 1e9).deleted_files == 0


def test_a_clock_that_went_back_for_a_while_loses_nothing(tmp_path: Path) -> None:
    now_s = time.time()
    for n, at_ms in enumerate([now_s * 1000, now_s * 1000 - 40 * DAY_MS, 0]):
        segment(tmp_path, f"{n}-1-{n}", served_of(MODEL, [1], first=n, at_ms=int(at_ms)))
    for _ in range(2):
        assert compact(options(tmp_path, keep_days=30), now_s=now_s).deleted_files == 0
    assert set(rows(tmp_path)) == {"r0", "r1", "r2"}
    # They go in their turn.
    assert compact(options(tmp_path, keep_days=30), now_s=now_s + 32 * 86_400).deleted_files == 3


def test_a_segment_that_has_no_lock_yet_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(file: int, how: int) -> None:
        monkeypatch.undo()
        compact(options(tmp_path), now_s=time.time())
        fcntl.flock(file, how)

    segment(tmp_path, "1-1-1", served_of(MODEL, [1]))
    monkeypatch.setattr("gateway.journal.segment.fcntl.flock", lock)
    segment(tmp_path, "2-1-2", served_of(MODEL, [1], first=1))
    compact(options(tmp_path), now_s=time.time())
    assert rows(tmp_path) == {"r0": 1, "r1": 1}


def test_without_second_names_sinks_get_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    file = segment(tmp_path, "1-1-1", served_of(MODEL, [1]))
    content = file.path.read_bytes()
    assert compact(options(tmp_path), now_s=NOW_S, sinks=["other"]).rows == 1
    (copy,) = (tmp_path / "spill" / "other").iterdir()
    assert copy.read_bytes() == content


async def test_at_the_quota_the_oldest_go_and_nothing_is_dropped(tmp_path: Path) -> None:
    bounded = options(tmp_path, disk_bytes_max=800_000, segment_bytes_max=30_000, segment_age_max_s=0.02, interval_ms=5)
    deleted = 0
    async with Journal(bounded) as journal:
        for n in range(40):
            journal.offer(MODEL.schema, served_of(MODEL, [400], first=n, seed=n))
            await soon(lambda n=n: journal.state().rows == 400 * (n + 1), 10)  # type: ignore[misc]  # bound as it is
            deleted += (await asyncio.to_thread(compact, bounded, now_s=NOW_S)).deleted_files
            assert not any(journal.state().dropped.values())
    assert deleted > 0
    assert used_bytes(tmp_path) <= 800_000
    compact(bounded, now_s=NOW_S)
    assert "r39" in rows(tmp_path)
    assert "r0" not in rows(tmp_path)


def test_beyond_the_quota_the_oldest_go_first(tmp_path: Path) -> None:
    for n in range(6):
        segment(tmp_path, f"{n}-1-{n}", served_of(MODEL, [500], first=n, at_ms=NOW_MS + n * DAY_MS))
        compact(options(tmp_path), now_s=NOW_S)
    sizes = [reader.size_of(path) for path in sorted(tmp_path.glob("parquet/*/*/*.parquet"))]
    most = sum(sizes[-2:]) + 10
    bounded = options(tmp_path, disk_bytes_max=most + most // 15, segment_bytes_max=1)
    done = compact(bounded, now_s=NOW_S)
    assert done.deleted_files == 4
    assert set(rows(tmp_path)) == {"r4", "r5"}
    assert int((tmp_path / "parquet.bytes").read_text()) == sum(sizes[-2:])


def test_without_room_nothing_is_written_and_it_is_said(tmp_path: Path) -> None:
    segment(tmp_path, "1-1-1", served_of(MODEL, [5]))
    assert compact(options(tmp_path), now_s=NOW_S).rows == 5
    segment(tmp_path, "2-1-2", served_of(MODEL, [5], first=9))
    done = compact(options(tmp_path, free_bytes_min=2**62), now_s=NOW_S)
    assert (done.stopped, done.rows, done.deleted_files) == ("disk_full", 0, 1)
    assert rows(tmp_path) == {"r9": 5}


def test_a_group_has_a_bound(tmp_path: Path) -> None:
    assert JournalOptions().segment_bytes_max <= GROUP_BYTES


def test_what_a_dead_writer_left_without_a_schema_is_swept(tmp_path: Path) -> None:
    segment(tmp_path, "1-1-1", served_of(MODEL, [1]))
    left = reader.segments(tmp_path)[0].parent / ".2-1-2.new"
    left.write_bytes(b"half a sch")
    os.utime(left, (time.time() - 100,) * 2)
    compact(options(tmp_path), now_s=time.time())
    assert not left.exists()
