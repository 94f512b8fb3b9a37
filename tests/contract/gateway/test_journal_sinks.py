"""What every sink of the journal keeps to: all rows, in order, at least once; outages and crashes cost none."""

import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from obstore.store import S3Store

from gateway.journal import reader
from gateway.journal.cloudevents_sink import RESPONSE
from gateway.journal.compaction import compact
from gateway.journal.object_sink import ObjectSink
from gateway.journal.options import JournalOptions
from gateway.journal.policy import Redaction
from gateway.journal.recording import Recorder
from gateway.journal.segment import SegmentFile
from gateway.journal.sink import Delivery, ParquetSink, Sink, SinkDown, Spill
from gateway.journal.sinks import (
    CloudEventsSinkOptions,
    KafkaSinkOptions,
    RedisSinkOptions,
    SinkOptions,
    open_sink,
)
from gateway.journal.streams import folder_of
from tests.conftest import RedisServer
from tests.eventserver import EventServer
from tests.journaling import NOW_MS, model_of, served_of
from tests.kafkabroker import KafkaBroker, running_kafka
from tests.ownredis import OwnRedis

MODEL = model_of({"age": "float32", "email": "string[20]", "taste": "float32[3]"})
BYTES_MAX = 1 << 30
START_S_MAX = 60.0
CONFIG = {"region": "us-east-1", "access_key_id": "test", "secret_access_key": "test"}


Sent = list[tuple[str, str]]


@dataclass
class Rig:
    """A sink, how to read what it has, and how to take it away and bring it back."""

    sink: Sink
    sent: Callable[[], Sent]
    """The id and the request id of each row, in order, as often as it came."""
    stop: Callable[[], None]
    resume: Callable[[], None]

    def rows(self) -> list[str]:
        """The request ids of the rows, as a consumer has them that leaves out what it has."""
        return [*dict(self.sent()).values()]


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


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder, running_kafka(Path(folder)) as broker:
        yield broker


KINDS = ("parquet", "objects", "redis-json", "redis-arrow", "events-binary", "events-structured", "events-batch")


@pytest.fixture(params=[*KINDS, pytest.param("kafka", marks=[pytest.mark.needs_kafka, pytest.mark.slow])])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        made = rig_of(str(request.param), request, tmp_path, stack)
        stack.callback(made.sink.close)
        yield made


def rig_of(param: str, request: pytest.FixtureRequest, tmp_path: Path, stack: contextlib.ExitStack) -> Rig:
    kind, _, form = param.partition("-")
    if kind == "parquet":
        return parquet_rig(tmp_path / "there")
    if kind == "objects":
        return object_rig(request.getfixturevalue("s3"), tmp_path.name)
    if kind == "events":
        return events_rig(stack.enter_context(EventServer()), form)
    if kind == "kafka":
        return kafka_rig(request.getfixturevalue("kafka"), tmp_path.name)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-")))
    server: RedisServer = request.getfixturevalue("redis_server")
    own = OwnRedis(server.binary, folder)
    stack.callback(own.kill)
    own.start()
    return redis_rig(own, form)


def ids_of(table: pa.Table) -> Sent:
    rows = zip(*(table[name].to_pylist() for name in ("prediction_id", "row", "request_id")), strict=True)
    return [(f"{prediction.hex()}:{row}", request) for prediction, row, request in rows]


def parquet_rig(folder: Path) -> Rig:
    def sent() -> Sent:
        paths = sorted(folder.rglob("*.parquet"), key=place)
        return [one for path in paths for one in ids_of(pq.read_table(path, partitioning=None))]

    def stop() -> None:  # a file where its folder should be
        folder.rename(folder.with_name("away")) if folder.exists() else None
        folder.touch()

    def resume() -> None:
        folder.unlink()
        away = folder.with_name("away")
        away.rename(folder) if away.exists() else None

    return Rig(ParquetSink(folder, "other"), sent, stop, resume)


def object_rig(s3: S3Server, prefix: str) -> Rig:
    store = S3Store("bucket", prefix=prefix, config=s3.config, client_options={"allow_http": True})  # type: ignore[arg-type]

    def sent() -> Sent:
        found = [Path(str(one["path"])) for page in obstore.list(store) for one in page]
        content = [bytes(obstore.get(store, str(path)).bytes()) for path in sorted(found, key=place)]
        return [one for each in content for one in ids_of(pq.read_table(io.BytesIO(each)))]

    sink = ObjectSink(f"s3://bucket/{prefix}", "other", s3.config)
    there = sink._store

    def stop() -> None:
        nobody = {**s3.config, "endpoint": "http://127.0.0.1:9"}
        sink._store = ObjectSink(f"s3://bucket/{prefix}", "other", nobody)._store

    def resume() -> None:
        sink._store = there

    return Rig(sink, sent, stop, resume)


def redis_rig(server: OwnRedis, form: Any) -> Rig:
    options = RedisSinkOptions(server.url, stream="served.{model}", format=form, timeout_s=0.5)

    def sent() -> Sent:
        with redis.Redis.from_url(server.url) as connection:
            entries: Any = connection.xrange("served.ranker")
        if form == "json":
            return [(entry[b"id"].decode(), json.loads(entry[b"row"])["request_id"]) for _, entry in entries]
        return [one for _, entry in entries for one in ids_of(pa.ipc.open_stream(entry[b"arrow"]).read_all())]

    def stop() -> None:
        server.signal(signal.SIGSTOP)

    def resume() -> None:
        server.signal(signal.SIGCONT)

    return Rig(open_sink("other", SinkOptions(redis=options)), sent, stop, resume)


def events_rig(server: EventServer, mode: Any) -> Rig:
    options = CloudEventsSinkOptions(f"{server.url}/events", mode, batch_events_max=3, timeout_s=2.0, retries=1)

    def sent() -> Sent:
        return [
            (f"{event['id']}:{row}", event["data"]["parameters"]["request_id"])
            for event in server.events
            if event["type"] == RESPONSE
            for row in range(event["data"]["outputs"][0]["shape"][0])
        ]

    return Rig(open_sink("other", SinkOptions(cloudevents=options)), sent, server.stop, server.start)


def kafka_rig(broker: KafkaBroker, topic: str) -> Rig:
    broker.make_topic(topic)
    options = KafkaSinkOptions(broker.servers, topic, timeout_s=5.0)

    def sent() -> Sent:
        found = []
        for message in broker.read(topic):
            headers: Any = dict(message.headers() or ())
            found.append((headers["id"].decode(), json.loads(message.value() or b"")["request_id"]))
        return found

    def stop() -> None:
        broker.signal(signal.SIGSTOP)

    def resume() -> None:
        broker.signal(signal.SIGCONT)

    return Rig(open_sink("other", SinkOptions(kafka=options)), sent, stop, resume)


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


def spilled_files(root: Path) -> list[Path]:
    return sorted((root / "spill/other").glob("*.arrows"))


def test_every_row_arrives_in_order(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 3)
    spill = Spill(tmp_path / "j", rig.sink, BYTES_MAX)
    done = spill.deliver()
    assert (done.rows, done.segments, done.down, done.dropped_rows, done.waiting_bytes) == (len(wanted), 3, "", 0, 0)
    assert rig.rows() == wanted
    assert len(rig.sent()) == len(wanted)
    assert not [path for path in (tmp_path / "j/spill/other").iterdir() if path.name != ".lock"]
    assert spill.deliver().batches == 0


def test_a_file_has_all_that_the_segment_had(tmp_path: Path) -> None:
    spilled(tmp_path / "j", 3)
    waiting = pa.concat_tables(pa.Table.from_batches([*reader.batches(path)]) for path in spilled_files(tmp_path / "j"))
    Spill(tmp_path / "j", ParquetSink(tmp_path / "there", "other"), BYTES_MAX).deliver()
    paths = sorted((tmp_path / "there").rglob("*.parquet"), key=place)
    found = pa.concat_tables(pq.read_table(path, partitioning=None) for path in paths)
    assert found.equals(waiting)
    assert found.schema.metadata == waiting.schema.metadata


def test_what_comes_twice_has_the_same_ids(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 1)
    (path,) = spilled_files(tmp_path / "j")
    whole = path.read_bytes()
    spill = Spill(tmp_path / "j", rig.sink, BYTES_MAX)
    spill.deliver()
    before = rig.sent()
    path.write_bytes(whole)  # as if the process had ended before it could delete it
    spill.deliver()
    assert rig.sent() in (before, before + before)
    assert rig.rows() == wanted


def test_a_sink_that_is_down_loses_nothing(rig: Rig, tmp_path: Path) -> None:
    spill = Spill(tmp_path / "j", rig.sink, BYTES_MAX)
    wanted = spilled(tmp_path / "j", 1)
    spill.deliver()
    rig.stop()
    try:
        wanted += spilled(tmp_path / "j", 2, first=1)
        done = spill.deliver()
    finally:
        rig.resume()
    assert done.down
    assert (done.rows, done.segments) == (0, 0)
    assert done.waiting_bytes > 0
    again = spill.deliver(done)
    assert (again.segments, again.down) == (2, "")
    assert rig.rows() == wanted


def test_beyond_its_bytes_the_oldest_are_dropped_and_counted(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 4)
    sizes = [reader.size_of(path) for path in spilled_files(tmp_path / "j")]
    done = Spill(tmp_path / "j", rig.sink, sum(sizes) - 1).deliver()
    assert (done.dropped_rows, done.segments) == (9, 3)
    assert rig.rows() == wanted[9:]


class Dies(BaseException):
    """The end of a process."""


class DiesAfter:
    """Another sink, until it has taken so many batches; then its process ends, before or after one more."""

    def __init__(self, sink: Sink, batches: int, *, having_taken: bool) -> None:
        self.name = sink.name
        self.batch_bytes = 1  # each batch is a delivery
        self.sink = sink
        self.left = batches
        self.having_taken = having_taken

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        if not self.left and not self.having_taken:
            raise SinkDown("it is dead")
        refused = self.sink.deliver(batch, delivery)
        if not self.left:
            raise Dies
        self.left -= 1
        return refused

    def close(self) -> None:
        self.sink.close()


def test_it_goes_on_where_it_was_interrupted(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 2)
    assert Spill(tmp_path / "j", DiesAfter(rig.sink, 4, having_taken=False), BYTES_MAX).deliver().rows == 12
    rig.sink.batch_bytes = 1
    done = Spill(tmp_path / "j", rig.sink, BYTES_MAX).deliver()
    assert done.rows == len(wanted) - 12
    assert rig.rows() == wanted
    assert len(rig.sent()) == len(wanted)


def test_a_crash_repeats_one_delivery_with_its_ids(rig: Rig, tmp_path: Path) -> None:
    wanted = spilled(tmp_path / "j", 2)
    with pytest.raises(Dies):
        Spill(tmp_path / "j", DiesAfter(rig.sink, 4, having_taken=True), BYTES_MAX).deliver()
    rig.sink.batch_bytes = 1
    Spill(tmp_path / "j", rig.sink, BYTES_MAX).deliver()
    assert rig.rows() == wanted
    assert len(rig.sent()) in (len(wanted), len(wanted) + 3)
