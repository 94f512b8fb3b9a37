"""What every sink of the journal keeps to: all rows, in order, at least once; outages and crashes cost none."""

import contextlib
import io
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import S3Store

from gateway.journal import reader
from gateway.journal.compaction import compact
from gateway.journal.object_sink import ObjectSink
from gateway.journal.options import JournalOptions
from gateway.journal.policy import Redaction
from gateway.journal.recording import Recorder
from gateway.journal.segment import SegmentFile
from gateway.journal.sink import Delivery, ParquetSink, Sink, SinkDown, Spill
from gateway.journal.streams import folder_of
from tests.journaling import NOW_MS, model_of, served_of

MODEL = model_of({"age": "float32", "email": "string[20]", "taste": "float32[3]"})
BYTES_MAX = 1 << 30
START_S_MAX = 60.0
CONFIG = {"region": "us-east-1", "access_key_id": "test", "secret_access_key": "test"}


@dataclass
class Rig:
    """A sink, how to read what it has, and how to take it away and bring it back."""

    sink: Sink
    read: Callable[[], pa.Table]
    stop: Callable[[], None]
    resume: Callable[[], None]


class S3Server:
    """Moto's server, which can be stopped, and then has lost what it had unless it is only frozen."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {**CONFIG, "endpoint": f"http://127.0.0.1:{self.port}"}

    def start(self) -> None:
        arguments = [
            sys.executable,
            "-c",
            "from moto.server import main; main()",
            "-H",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up_at = time.monotonic() + START_S_MAX
        while True:
            assert self.process.poll() is None
            assert time.monotonic() < give_up_at
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            time.sleep(0.05)
        request = (
            f"PUT /bucket HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(request.encode())
            assert b"200" in connection.recv(100)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["parquet", "objects"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "parquet":
        return parquet_rig(tmp_path / "there")
    return object_rig(request.getfixturevalue("s3"), tmp_path.name)


def parquet_rig(folder: Path) -> Rig:
    def read() -> pa.Table:
        return pa.concat_tables(
            [pq.read_table(path, partitioning=None) for path in sorted(folder.rglob("*.parquet"), key=place)]
        )

    def stop() -> None:  # a file where its folder should be
        folder.rename(folder.with_name("away")) if folder.exists() else None
        folder.touch()

    def resume() -> None:
        folder.unlink()
        away = folder.with_name("away")
        away.rename(folder) if away.exists() else None

    return Rig(ParquetSink(folder, "other"), read, stop, resume)


def object_rig(s3: S3Server, prefix: str) -> Rig:
    store = S3Store("bucket", prefix=prefix, config=s3.config, client_options={"allow_http": True})  # type: ignore[arg-type]

    def read() -> pa.Table:
        found = [Path(str(one["path"])) for page in obstore.list(store) for one in page]
        content = [bytes(obstore.get(store, str(path)).bytes()) for path in sorted(found, key=place)]
        return pa.concat_tables([pq.read_table(io.BytesIO(one)) for one in content])

    sink = ObjectSink(f"s3://bucket/{prefix}", "other", s3.config)
    there = sink._store

    def stop() -> None:
        nobody = {**s3.config, "endpoint": "http://127.0.0.1:9"}
        sink._store = ObjectSink(f"s3://bucket/{prefix}", "other", nobody)._store

    def resume() -> None:
        sink._store = there

    return Rig(sink, read, stop, resume)


def place(path: Path) -> tuple[str, int]:
    """Deliveries of one host in their order."""
    segment, _, offset = path.stem.rpartition("~")
    return segment, int(offset)


def spilled(root: Path, segments: int, *, first: int = 0) -> list[str]:
    """So many segments of three batches each, compacted and so handed to the sink; their request ids in order."""
    recorder = Recorder(MODEL.schema, Redaction())
    wanted: list[str] = []
    for n in range(first, first + segments):
        file = SegmentFile(folder_of(root, MODEL.schema), f"{n}-1-{n}", recorder.arrow, 0.0)
        for k in range(3):
            served = served_of(MODEL, [1, 2], first=100 * n + 10 * k, seed=n)
            wanted += [request.request_id for request in served.requests for _ in range(request.rows)]
            file.write(recorder.record([served]))
        file.close()
    compact(JournalOptions(path=root, free_bytes_min=0), now_s=NOW_MS / 1000, sinks=["other"])
    return wanted


def test_every_row_arrives_whole_and_in_order(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 3)
    waiting = pa.concat_tables(
        pa.Table.from_batches([*reader.batches(path)]) for path in sorted((tmp_path / "j/spill/other").glob("*.arrows"))
    )
    spill = Spill(tmp_path / "j", rig.sink, BYTES_MAX)
    done = spill.deliver()
    assert (done.rows, done.segments, done.down, done.dropped_rows, done.waiting_bytes) == (len(wanted), 3, "", 0, 0)
    found = rig.read()
    assert found["request_id"].to_pylist() == wanted
    assert found.equals(waiting)
    assert found.schema.metadata == waiting.schema.metadata
    assert not [path for path in (tmp_path / "j/spill/other").iterdir() if path.name != ".lock"]
    assert spill.deliver().batches == 0
    rig.sink.close()


def test_what_comes_twice_has_the_same_id_and_is_there_once(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 1)
    (path,) = (tmp_path / "j/spill/other").glob("*.arrows")
    whole = path.read_bytes()
    spill = Spill(tmp_path / "j", rig.sink, BYTES_MAX)
    spill.deliver()
    path.write_bytes(whole)  # as if the process had ended before it could delete it
    spill.deliver()
    assert rig.read()["request_id"].to_pylist() == wanted


def test_a_sink_that_is_down_loses_nothing(rig: Rig, tmp_path: Path) -> None:
    spill = Spill(tmp_path / "j", rig.sink, BYTES_MAX)
    wanted = spilled(tmp_path / "j", 1)
    spill.deliver()
    rig.stop()
    wanted += spilled(tmp_path / "j", 2, first=1)
    done = spill.deliver()
    assert done.down
    assert (done.rows, done.segments) == (0, 0)
    assert done.waiting_bytes > 0
    rig.resume()
    assert spill.deliver().segments == 2
    assert rig.read()["request_id"].to_pylist() == wanted


def test_beyond_its_bytes_the_oldest_are_dropped_and_counted(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 4)
    sizes = [reader.size_of(path) for path in (tmp_path / "j/spill/other").glob("*.arrows")]
    done = Spill(tmp_path / "j", rig.sink, sum(sizes) - 1).deliver()
    assert (done.dropped_rows, done.segments) == (9, 3)
    assert rig.read()["request_id"].to_pylist() == wanted[9:]


class DiesAfter:
    """Another sink, until it has taken so many batches."""

    def __init__(self, sink: Sink, batches: int) -> None:
        self.name = sink.name
        self.sink = sink
        self.left = batches

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> None:
        if not self.left:
            raise SinkDown("it is dead")
        self.left -= 1
        self.sink.deliver(batch, delivery)

    def close(self) -> None:
        self.sink.close()


def test_it_goes_on_where_it_was_interrupted(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.journal.sink.BATCH_BYTES", 1)  # each batch is a delivery
    wanted = spilled(tmp_path / "j", 2)
    assert Spill(tmp_path / "j", DiesAfter(rig.sink, 4), BYTES_MAX).deliver().rows == 12
    done = Spill(tmp_path / "j", rig.sink, BYTES_MAX).deliver()
    assert done.rows == len(wanted) - 12
    assert rig.read()["request_id"].to_pylist() == wanted
