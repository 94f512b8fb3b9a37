"""What the journal does when its process is killed, its disk is full or read-only, or its files are damaged."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gateway.journal import reader
from gateway.journal.compaction import compact
from gateway.journal.journal import Journal
from gateway.journal.options import JournalOptions
from gateway.records.errors import HeadraceError, Unavailable
from tests.journaling import NOW_MS, model_of, served_of
from tests.waiting import soon, soon_blocking

MODEL = model_of({f"c{n}": "float64" for n in range(20)})
INTERVAL_MS = 50
# Offers a run of 8 rows each millisecond, and says to its parent how many it has offered, by a file of 8 bytes that is
# mapped, so that the last count survives the kill.
WRITER = f"""
import asyncio, mmap, sys
from pathlib import Path
from gateway.journal.journal import Journal
from gateway.journal.options import JournalOptions
from tests.adversity.gateway.test_journal_faults import MODEL
from tests.journaling import served_of

async def main(folder, counter):
    options = JournalOptions(enabled=True, path=Path(folder), interval_ms={INTERVAL_MS}, free_bytes_min=0)
    runs = [served_of(MODEL, [1] * 8, first=8 * n, seed=n) for n in range(100)]
    with open(counter, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    async with Journal(options) as journal:
        offered = 0
        while True:
            first = 8 * offered
            run = runs[offered % 100]
            ids = (b"prefix__", run.prediction_ids[1] - run.prediction_ids[1][0] + first)
            assert journal.offer(MODEL.schema, run._replace(prediction_ids=ids))
            offered += 1
            shared[:8] = (8 * offered).to_bytes(8, "little")
            await asyncio.sleep(0.001)

asyncio.run(main(*sys.argv[1:]))
"""


def counters(folder: Path) -> list[int]:
    """The prediction counters of all rows that can be read, in order."""
    found = []
    for path in reader.segments(folder):
        for batch in reader.batches(path):
            found += [int.from_bytes(one[8:], "big") for one in batch["prediction_id"].to_pylist()]
    return found


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    """Change the small disk."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


def options(folder: Path, **changed: Any) -> JournalOptions:
    return JournalOptions(**{"enabled": True, "path": folder, "interval_ms": 10, "free_bytes_min": 0, **changed})


@pytest.mark.slow
def test_a_killed_process_loses_one_interval_at_most(tmp_path: Path) -> None:
    rng = random.Random(7)
    for attempt in range(3):
        folder, counter = tmp_path / f"j{attempt}", tmp_path / f"count{attempt}"
        counter.write_bytes(bytes(8))
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(counter)], cwd=Path.cwd())
        try:
            soon_blocking(lambda folder=folder: bool(reader.segments(folder)) and len(counters(folder)) > 100, 60)  # type: ignore[misc]  # bound as it is
            time.sleep(rng.uniform(0, 0.3))
            before = int.from_bytes(counter.read_bytes(), "little")
            time.sleep(5 * INTERVAL_MS / 1000)
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
        found = counters(folder)
        # Whole from the start, without gaps, and everything that was offered some intervals before the end.
        assert found == list(range(len(found)))
        assert len(found) >= before > 0
        # Nobody holds the dead writer's lock: what it left is compacted as far as it is whole, and only once.
        done = compact(options(folder), now_s=time.time())
        assert (done.rows, done.segments, done.bad) == (len(found), 1, [])
        assert not reader.segments(folder)
        assert compact(options(folder), now_s=time.time()).rows == 0


async def test_a_segment_cut_anywhere_is_read_up_to_its_last_whole_batch(tmp_path: Path) -> None:
    async with Journal(options(tmp_path)) as journal:
        for n in range(3):
            journal.offer(MODEL.schema, served_of(MODEL, [4], first=n))
            await soon(lambda n=n: journal.state().batches == n + 1, 5)  # type: ignore[misc]  # bound as it is
    (path,) = reader.segments(tmp_path)
    whole = path.read_bytes()
    ends = [end for _, end in reader.read_from(path)]
    rng = random.Random(1)
    for size in {len(whole) - 1, len(whole) - 8, *ends, *(rng.randrange(ends[0] - 200, len(whole)) for _ in range(60))}:
        path.write_bytes(whole[:size])
        assert len([*reader.batches(path)]) == sum(end <= size for end in ends)
    # From an offset on, as who follows a live segment reads it.
    path.write_bytes(whole[: ends[1] + 5])
    assert [end for _, end in reader.read_from(path, ends[0])] == [ends[1]]
    path.write_bytes(whole)
    assert [end for _, end in reader.read_from(path, ends[1])] == [ends[2]]
    path.write_bytes(whole[:50])
    with pytest.raises(reader.BadSegment, match="no whole schema"):
        list(reader.batches(path))


async def test_damage_in_a_segment_harms_nobody(tmp_path: Path) -> None:
    async with Journal(options(tmp_path)) as journal:
        journal.offer(MODEL.schema, served_of(MODEL, [50]))
    (path,) = reader.segments(tmp_path)
    whole = path.read_bytes()
    rng = random.Random(3)
    kept = 0
    for round_ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 20)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        other = tmp_path / f"damaged{round_}" / path.relative_to(tmp_path)
        other.parent.mkdir(parents=True)
        other.write_bytes(damaged)
        done = compact(options(tmp_path / f"damaged{round_}"), now_s=time.time())
        assert not reader.segments(tmp_path / f"damaged{round_}")
        assert done.rows in (0, 50)
        kept += done.rows == 50
    assert 0 < kept < 150
    path.write_bytes(b"not a segment at all")
    done = compact(options(tmp_path), now_s=time.time())
    assert len(done.bad) == 1
    assert not reader.segments(tmp_path)
    assert len([*(tmp_path / "bad").iterdir()]) == 1


async def test_a_full_disk_drops_counts_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    async with Journal(options(small_disk / "journal")) as journal:
        await fill(journal, "disk_full")
        assert not journal.healthy
        rows = journal.state().rows
        # Nothing of the batch that did not fit is left: what follows can be read.
        (path,) = reader.segments(small_disk / "journal")
        before = sum(batch.num_rows for batch in reader.batches(path))
        assert before == rows
        remount(small_disk, "size=4m")
        dropped = journal.state().dropped["disk_full"]
        journal.offer(MODEL.schema, served_of(MODEL, [16]))
        await soon(lambda: journal.state().rows == rows + 16, 5)
        assert journal.healthy
        assert journal.state().dropped["disk_full"] == dropped
    assert sum(
        batch.num_rows for path in reader.segments(small_disk / "journal") for batch in reader.batches(path)
    ) == (rows + 16)


async def test_the_journal_leaves_the_disk_what_it_should(small_disk: Path) -> None:
    async with Journal(options(small_disk, free_bytes_min=512 * 1024)) as journal:
        await fill(journal, "disk_full")
    disk = os.statvfs(small_disk)
    assert disk.f_bavail * disk.f_frsize >= 500 * 1024


async def test_the_quota_holds_without_a_compactor(tmp_path: Path) -> None:
    async with Journal(options(tmp_path, disk_bytes_max=200_000)) as journal:
        await fill(journal, "quota")
    assert 100_000 < sum(reader.size_of(path) for path in reader.segments(tmp_path)) < 202_000


async def test_when_others_fill_the_disk_the_oldest_days_make_room(small_disk: Path) -> None:
    remount(small_disk, "size=4m")
    kept = options(small_disk, free_bytes_min=200_000, segment_bytes_max=1, disk_bytes_max=3_000_000)
    async with Journal(kept) as journal:
        for n in range(8):
            journal.offer(MODEL.schema, served_of(MODEL, [400], first=n, seed=n, at_ms=NOW_MS + n * 86_400_000))
            await soon(lambda n=n: journal.state().rows == 400 * (n + 1), 5)  # type: ignore[misc]  # bound as it is
            compact(kept, now_s=NOW_MS / 1000)
        disk = os.statvfs(small_disk)
        (small_disk / "others").write_bytes(bytes(disk.f_bavail * disk.f_frsize - 150_000))
        journal.offer(MODEL.schema, served_of(MODEL, [1], first=100))
        await soon(lambda: journal.state().dropped.get("disk_full", 0) == 1, 5)
        # There is nothing to compact, and still the oldest go.
        done = compact(kept, now_s=NOW_MS / 1000)
        assert done.segments == 0
        assert 0 < done.deleted_files < 8
        rows = journal.state().rows
        journal.offer(MODEL.schema, served_of(MODEL, [1], first=101))
        await soon(lambda: journal.state().rows == rows + 1, 5)
    days = days_of(small_disk)
    assert len(days) == 8 - done.deleted_files
    assert days[-1] == f"date={datetime.fromtimestamp(NOW_MS / 1000 + 7 * 86_400, UTC).date()}"


async def test_with_sync_a_full_disk_is_unavailable_and_nothing_else(small_disk: Path) -> None:
    told: list[HeadraceError | None] = []
    async with Journal(options(small_disk, durability="sync")) as journal:
        for n in range(400):
            journal.commit(
                MODEL.schema,
                served_of(MODEL, [16], first=n),
                lambda numbers, error: told.extend([error] * len(numbers)),
            )
            await soon(lambda n=n: len(told) == n + 1, 10)  # type: ignore[misc]  # bound as it is
            if told[-1] is not None:
                break
        assert isinstance(told[-1], Unavailable)
        assert "cannot be written" in str(told[-1])
        answered = sum(error is None for error in told)
    # Every answer that went out is there.
    rows = sum(batch.num_rows for path in reader.segments(small_disk) for batch in reader.batches(path))
    assert rows == 16 * answered > 0


async def test_a_read_only_folder_is_said_and_the_rest_goes_on(small_disk: Path) -> None:
    remount(small_disk, "ro")
    async with Journal(options(small_disk / "journal")) as journal:
        assert journal.offer(MODEL.schema, served_of(MODEL, [4]))
        await soon(lambda: journal.state().dropped.get("disk", 0) == 4, 5)
        assert "Read-only file system" in journal.state().error
        assert journal.state().alive
        remount(small_disk, "rw")
        journal.offer(MODEL.schema, served_of(MODEL, [4]))
        await soon(lambda: journal.state().rows == 4, 5)
        assert journal.healthy


async def test_the_folder_may_be_deleted_while_it_is_written(tmp_path: Path) -> None:
    async with Journal(options(tmp_path / "j", segment_bytes_max=1)) as journal:
        journal.offer(MODEL.schema, served_of(MODEL, [4]))
        await soon(lambda: journal.state().rows == 4, 5)
        shutil.rmtree(tmp_path / "j")
        journal.offer(MODEL.schema, served_of(MODEL, [4]))
        await soon(lambda: journal.state().rows == 8, 5)
    table = pa.Table.from_batches([b for path in reader.segments(tmp_path / "j") for b in reader.batches(path)])
    assert table.num_rows == 4


def days_of(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("parquet/*/*/*.parquet"))


async def fill(journal: Journal, reason: str) -> None:
    """Offer until something is dropped."""
    for n in range(1000):
        journal.offer(MODEL.schema, served_of(MODEL, [16], first=n))
        await soon(lambda: journal.state().pending_bytes == 0, 5)
        if journal.state().dropped.get(reason):
            return
    raise AssertionError(f"nothing was dropped: {journal.state()}")
