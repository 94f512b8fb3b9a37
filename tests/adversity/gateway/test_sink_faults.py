"""Sinks whose servers hang, cut, refuse, or take only some: nothing is lost, and no sink holds up another."""

import asyncio
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from gateway.journal.cloudevents_sink import REQUEST, RESPONSE
from gateway.journal.compaction import compact
from gateway.journal.messages import messages
from gateway.journal.object_sink import ObjectSink
from gateway.journal.options import JournalOptions
from gateway.journal.policy import Redaction
from gateway.journal.recording import Recorder
from gateway.journal.segment import SegmentFile
from gateway.journal.sink import Delivery, Sink, SinkDown
from gateway.journal.sinks import (
    CloudEventsSinkOptions,
    KafkaSinkOptions,
    ParquetSinkOptions,
    RedisSinkOptions,
    SinkOptions,
    open_sink,
)
from gateway.journal.streams import folder_of
from gateway.monitor.chores import Deliveries
from tests.eventserver import EventServer
from tests.faultproxy import FaultProxy, TcpFaultProxy
from tests.journaling import NOW_MS, model_of, served_of
from tests.kafkabroker import KafkaBroker, running_kafka
from tests.waiting import soon_blocking

MODEL = model_of({"age": "float32", "email": "string[20]", "taste": "float32[3]"})
WAIT_S = 30.0
DELIVERY = Delivery("host~1~0", "ranker")


def batch_of(sizes: tuple[int, ...] = (1, 2), first: int = 0) -> pa.RecordBatch:
    return Recorder(MODEL.schema, Redaction()).record([served_of(MODEL, sizes, first=first)])


def journaled(options: JournalOptions, segments: int, *, first: int = 0, rows: int = 3) -> int:
    """So many segments of one batch, handed to all sinks; returns the rows."""
    recorder = Recorder(MODEL.schema, Redaction())
    for n in range(first, first + segments):
        file = SegmentFile(folder_of(options.path, MODEL.schema), f"{n}-1-{n}", recorder.arrow, 0.0)
        file.write(recorder.record([served_of(MODEL, [rows], first=n)]))
        file.close()
    return compact(options, now_s=NOW_MS / 1000).rows


def redis_sink(url: str, **options: Any) -> Sink:
    return open_sink("r", SinkOptions(redis=RedisSinkOptions(url, timeout_s=0.3, **options)))


async def test_a_redis_that_hangs_is_down_in_time_and_then_has_all(redis_url: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        async with FaultProxy(redis_url, Path(folder)) as proxy:
            sink = redis_sink(proxy.url)
            proxy.hold(b"XADD")
            with pytest.raises(SinkDown, match="Redis does not take"):
                await asyncio.to_thread(sink.deliver, batch_of(), DELIVERY)
            proxy.heal()
            await asyncio.to_thread(sink.deliver, batch_of(), DELIVERY)
            sink.close()
    with redis.Redis.from_url(redis_url) as connection:
        entries: Any = connection.xrange("headrace.predictions")
    # Redis had done what it was asked the first time: the rows are there twice, with the same ids.
    ids = [entry[b"id"] for _, entry in entries]
    assert len(ids) == 6
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3


async def test_a_redis_that_is_cut_in_the_middle_of_a_reply(redis_url: str) -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        async with FaultProxy(redis_url, Path(folder)) as proxy:
            sink = redis_sink(proxy.url)
            await asyncio.to_thread(sink.deliver, batch_of(), DELIVERY)
            proxy.cut(7)
            with pytest.raises(SinkDown):
                await asyncio.to_thread(sink.deliver, batch_of(first=10), DELIVERY)
            proxy.heal()
            await asyncio.to_thread(sink.deliver, batch_of(first=10), DELIVERY)
            sink.close()
    with redis.Redis.from_url(redis_url) as connection:
        entries: Any = connection.xrange("headrace.predictions")
    assert len({entry[b"id"] for _, entry in entries}) == 6


def test_a_redis_stream_is_bounded_and_failures_have_their_own(redis_url: str) -> None:
    sink = redis_sink(redis_url, entries_max=100)
    for n in range(20):
        sink.deliver(batch_of((50,), first=n), DELIVERY)
    failure = pa.RecordBatch.from_pylist([{"request_id": "r", "model": "ranker", "code": "INTERNAL"}])
    sink.deliver(failure, Delivery("host~f~0", ""))
    sink.close()
    with redis.Redis.from_url(redis_url) as connection:
        assert 100 <= int(str(connection.xlen("headrace.predictions"))) < 400
        ((_, entry),) = connection.xrange("headrace.failures")
    assert entry[b"id"] == b"host~f~0:0"
    assert json.loads(entry[b"row"]) == {"request_id": "r", "model": "ranker", "code": "INTERNAL"}


def test_a_redis_without_memory_is_an_outage(redis_url: str) -> None:
    sink = redis_sink(redis_url)
    with redis.Redis.from_url(redis_url) as connection:
        connection.config_set("maxmemory", "1")
        try:
            with pytest.raises(SinkDown, match=r"OOM|maxmemory"):
                sink.deliver(batch_of(), DELIVERY)
        finally:
            connection.config_set("maxmemory", "0")
    assert sink.deliver(batch_of(), DELIVERY) == 0
    sink.close()


async def test_an_object_storage_that_hangs_is_down_in_time() -> None:
    with EventServer() as server:
        async with TcpFaultProxy(server.port) as proxy:
            config = {"endpoint": f"http://127.0.0.1:{proxy.port}", "region": "x"}
            config |= {"access_key_id": "x", "secret_access_key": "x"}
            sink = ObjectSink("s3://bucket/prefix", "o", config, timeout_s=0.3)
            proxy.hold(b"PUT")
            began = time.monotonic()
            with pytest.raises(SinkDown, match="does not take an object"):
                await asyncio.to_thread(sink.deliver, batch_of(), DELIVERY)
            assert proxy.held.is_set()
            assert time.monotonic() - began < WAIT_S


async def test_a_server_of_events_that_hangs_or_cuts_is_tried_again_and_is_down_in_time() -> None:
    with EventServer() as server:
        async with TcpFaultProxy(server.port) as proxy:
            options = CloudEventsSinkOptions(f"http://127.0.0.1:{proxy.port}/", timeout_s=0.3, retries=1)
            sink = open_sink("e", SinkOptions(cloudevents=options))
            proxy.hold(b"POST")
            with pytest.raises(SinkDown, match="TimeoutError"):
                await asyncio.to_thread(sink.deliver, batch_of(), DELIVERY)
            assert proxy.connections == 2
            proxy.heal()
            proxy.cut(10)
            with pytest.raises(SinkDown):
                await asyncio.to_thread(sink.deliver, batch_of(), DELIVERY)
            proxy.heal()
            await asyncio.to_thread(sink.deliver, batch_of(), DELIVERY)
            sink.close()
    assert len({(event["type"], event["id"]) for event in server.events}) == 4


def events_sink(server: EventServer, **options: Any) -> Sink:
    return open_sink("e", SinkOptions(cloudevents=CloudEventsSinkOptions(server.url, **options)))


def test_an_event_that_is_refused_is_counted_and_holds_up_nothing() -> None:
    with EventServer() as server:
        sink = events_sink(server)
        server.statuses = [202, 422]  # the first response, of one row
        assert sink.deliver(batch_of(), DELIVERY) == 1
        server.statuses = [503, 429]
        assert sink.deliver(batch_of(first=10), DELIVERY) == 0
        server.statuses = [503] * 3
        with pytest.raises(SinkDown, match="answered 503"):
            sink.deliver(batch_of(first=20), DELIVERY)
        server.statuses = [301] * 3
        with pytest.raises(SinkDown, match="answered 301"):
            sink.deliver(batch_of(first=20), DELIVERY)
        sink.close()


def test_events_are_as_kserve_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTS_TOKEN", "a secret")
    with EventServer() as server:
        sink = events_sink(server, namespace="fraud", source="urn:site:ä", token_env="EVENTS_TOKEN")
        batch = batch_of((2,))
        sink.deliver(batch, DELIVERY)
        sink.close()
    request, response = server.events
    headers = server.headers[0]
    assert headers["ce-specversion"] == "1.0"
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer a secret"
    assert (request["type"], response["type"]) == (REQUEST, RESPONSE)
    assert request["id"] == response["id"] == batch["prediction_id"][0].as_py().hex()
    assert request["source"] == "urn:site:ä"
    assert {name: request[name] for name in ("inferenceservicename", "namespace", "component", "endpoint")} == {
        "inferenceservicename": "ranker",
        "namespace": "fraud",
        "component": "predictor",
        "endpoint": "default",
    }
    inputs = {one["name"]: one for one in request["data"]["inputs"]}
    assert inputs["user"] == {"name": "user", "shape": [2], "datatype": "BYTES", "data": ["u0.0", "u0.1"]}
    assert inputs["u.taste"]["shape"] == [2, 3]
    assert len(inputs["u.taste"]["data"]) == 6
    (output,) = response["data"]["outputs"]
    assert output == {
        "name": "score",
        "shape": [2],
        "datatype": "FP32",
        "data": batch["out.score"].to_pylist(),
    }


def test_rows_as_json_keep_what_json_cannot_say() -> None:
    batch = batch_of((3,))
    columns = {name: batch.column(name) for name in batch.schema.names}
    columns["f.u.age"] = pa.array([float("nan"), float("inf"), float("-inf")], pa.float32())
    odd = pa.RecordBatch.from_arrays([*columns.values()], schema=batch.schema)
    rows = [json.loads(one.value) for one in messages(odd, DELIVERY, "item")]
    assert [row["f.u.age"] for row in rows] == ["NaN", "Infinity", "-Infinity"]
    assert [one.key for one in messages(odd, DELIVERY, "item")] == ["0", "1", "2"]
    assert [one.key for one in messages(odd, DELIVERY)] == ["u0.0", "u0.1", "u0.2"]
    assert [one.id for one in messages(odd, DELIVERY)] == [f"{rows[0]['prediction_id']}:{n}" for n in range(3)]
    assert rows[0]["time"].endswith("Z")
    assert (rows[0]["model"], rows[0]["version"], rows[0]["variant"]) == ("ranker", 1, "default")


class Stuck:
    """A sink that never comes back."""

    def __init__(self) -> None:
        self.name = "stuck"
        self.batch_bytes = 1
        self.reached = threading.Event()
        self.freed = threading.Event()

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        self.reached.set()
        assert self.freed.wait(WAIT_S)
        return 0

    def close(self) -> None:
        """It is not told."""


@pytest.fixture
def options(tmp_path: Path) -> JournalOptions:
    sinks = {
        "lake": SinkOptions(parquet=ParquetSinkOptions(tmp_path / "lake")),
        "gone": SinkOptions(redis=RedisSinkOptions("unix:///nowhere", timeout_s=0.3), retry_wait_max_s=0.1),
        "stuck": SinkOptions(parquet=ParquetSinkOptions(tmp_path / "unused"), spill_bytes_max=20_000),
    }
    return JournalOptions(path=tmp_path / "j", free_bytes_min=0, keep_days=0, sinks=sinks)


@contextlib.contextmanager
def delivering(options: JournalOptions, stuck: Stuck) -> Iterator[Deliveries]:
    deliveries = Deliveries(options, lambda name, one: stuck if name == "stuck" else open_sink(name, one))
    deliveries.start()
    try:
        yield deliveries
    finally:
        stuck.freed.set()
        assert deliveries.close(WAIT_S)


def test_a_sink_that_is_stuck_or_down_holds_up_nobody_and_keeps_its_bound(options: JournalOptions) -> None:
    stuck = Stuck()
    with delivering(options, stuck) as deliveries:
        rows = journaled(options, 1)
        deliveries.look()
        assert stuck.reached.wait(WAIT_S)
        rows += journaled(options, 20, first=1)
        deliveries.look()
        soon_blocking(lambda: deliveries.states()["lake"].rows == rows, WAIT_S)
        soon_blocking(lambda: deliveries.states()["gone"].down, WAIT_S)
        states = deliveries.states()
        assert states["lake"].waiting_bytes == 0
        assert "nowhere" in states["gone"].error
        assert states["gone"].waiting_bytes > states["stuck"].waiting_bytes
        assert states["gone"].dropped_rows == 0
        # The bound is kept from outside the thread that is stuck; the segment that it has stays.
        kept = states["stuck"].waiting_bytes
        assert 0 < kept <= 20_000
        assert states["stuck"].dropped_rows >= 3
        assert states["stuck"].dropped_rows + 3 * len([*(options.path / "spill/stuck").glob("*.arrows")]) == rows
        assert not deliveries.close(0.01)


def test_what_a_sink_missed_comes_when_it_is_there(options: JournalOptions, redis_url: str) -> None:
    sinks = {"gone": options.sinks["gone"]}
    down = replace(options, sinks=sinks)
    with delivering(down, Stuck()) as deliveries:
        rows = journaled(down, 4)
        deliveries.look()
        soon_blocking(lambda: deliveries.states()["gone"].down, WAIT_S)
    there = replace(options, sinks={"gone": SinkOptions(redis=RedisSinkOptions(redis_url))})
    with delivering(there, Stuck()) as deliveries:
        soon_blocking(lambda: deliveries.states()["gone"].rows == rows, WAIT_S)
        soon_blocking(lambda: not deliveries.states()["gone"].down, WAIT_S)
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.xlen("headrace.predictions") == rows


def test_a_damaged_batch_is_left_out_and_what_follows_is_delivered(tmp_path: Path, redis_url: str) -> None:
    sinks = {"r": SinkOptions(redis=RedisSinkOptions(redis_url))}
    options = JournalOptions(path=tmp_path / "j", free_bytes_min=0, keep_days=0, sinks=sinks)
    fields = [("time", pa.timestamp("ms", tz="UTC")), ("prediction_id", pa.binary(16))]
    torn = pa.schema(fields, batch_of().schema.metadata)  # which row of its request it is, is lost
    file = SegmentFile(folder_of(options.path, MODEL.schema), "1-1-1", torn, 0.0)
    file.write(pa.RecordBatch.from_pydict({"time": [NOW_MS], "prediction_id": [bytes(16)]}, schema=torn))
    file.close()
    rows = journaled(options, 2, first=2)
    with delivering(options, Stuck()) as deliveries:
        deliveries.look()
        soon_blocking(lambda: deliveries.states()["r"].rows == 6, WAIT_S)
        assert deliveries.states()["r"].refused_rows == rows - 6 == 1


@pytest.fixture
def kafka() -> Iterator[KafkaBroker]:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder, running_kafka(Path(folder)) as broker:
        yield broker


@pytest.mark.slow
@pytest.mark.needs_kafka
def test_kafka_dies_refuses_and_comes_back(kafka: KafkaBroker) -> None:
    kafka.make_topic("small", 3, **{"max.message.bytes": "2000"})
    sink = open_sink("k", SinkOptions(kafka=KafkaSinkOptions(kafka.servers, "small", "", timeout_s=4.0)))
    assert sink.deliver(batch_of((50,)), DELIVERY) == 0
    assert sink.deliver(batch_of((1,)), Delivery("host~f~0", "")) == 0  # failures have no topic here
    found = kafka.read("small")
    assert len(found) == 50
    assert {message.key() for message in found} == {f"u0.{row}".encode() for row in range(50)}
    assert {message.partition() for message in found} == {0, 1, 2}
    kafka.kill()
    with pytest.raises(SinkDown, match=r"did not take|Kafka at"):
        sink.deliver(batch_of((5,), first=1), DELIVERY)
    kafka.start()
    assert sink.deliver(batch_of((5,), first=1), DELIVERY) == 0
    ids = [dict(message.headers() or ())["id"] for message in kafka.read("small")]
    assert len(set(ids)) == 55
    sink.close()
    wide = model_of({f"c{n}": "float64" for n in range(200)})
    large = Recorder(wide.schema, Redaction()).record([served_of(wide, [4])])
    assert sink.deliver(large, DELIVERY) == 4
    assert len(kafka.read("small")) == len(ids)
    sink.close()


@pytest.mark.slow
@pytest.mark.needs_kafka
def test_a_topic_that_is_not_there_is_an_outage_until_it_is(kafka: KafkaBroker) -> None:
    sink = open_sink("k", SinkOptions(kafka=KafkaSinkOptions(kafka.servers, "later", timeout_s=4.0)))
    with pytest.raises(SinkDown, match="later"):
        sink.deliver(batch_of(), DELIVERY)
    kafka.make_topic("later")
    assert sink.deliver(batch_of(), DELIVERY) == 0
    assert len(kafka.read("later")) == 3
    sink.close()
