"""A gateway with a journal, checks and the second process: what callers are told is what is kept."""

import asyncio
import json
import math
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.client import BlockingClient, CallFailed
from gateway.journal import reader
from gateway.journal.journal import Journal
from gateway.journal.redaction import digest
from gateway.records.served import Served
from tests.running import MANIFEST, WEIGHTS, Running, Site, make_site, running, write_graph, write_items, write_users
from tests.waiting import eventually

CHECKED = (
    MANIFEST
    + """
validation:
  columns:
    hour: {range: {min: 0, max: 23}, policy: clip}
    user.age: {range: {max: 100}, policy: flag}
"""
)


@pytest.fixture
def site(tmp_path: Path, redis_url: str) -> Site:
    site = make_site(tmp_path, redis_url)
    site.add_model("ranker", CHECKED, WEIGHTS)
    return site


@pytest.fixture(params=["interval", "sync"])
def gateway(site: Site, request: pytest.FixtureRequest) -> Iterator[Running]:
    journal = {"enabled": True, "path": str(site.folder / "journal"), "durability": request.param}
    with running(site, {"journal": journal, "monitor": {"enabled": False}}) as gateway:
        yield gateway


def kept(site: Site, rows: int) -> pa.Table:
    """The rows of the journal, when there are so many."""

    def table() -> pa.Table | None:
        batches = [batch for path in reader.segments(site.folder / "journal") for batch in reader.batches(path)]
        found = sum(batch.num_rows for batch in batches)
        assert found <= rows
        return pa.Table.from_batches(batches) if found == rows else None

    return eventually(table)


def shows(page: str, line: bytes) -> bool:
    return line in urllib.request.urlopen(page).read()


def versions(site: Site) -> list[int]:
    return sorted({versions_of(path) for path in reader.segments(site.folder / "journal")})


def versions_of(path: Path) -> int:
    with reader.Segment(path) as segment:
        return segment.schema.version


def ask(client: BlockingClient, hours: list[float], **more: Any) -> Any:
    users = [f"u{index}" for index in range(len(hours))]
    items = list(range(len(hours)))
    return client.predict("ranker", {"user": users, "item": items}, {"hour": np.float32(hours)}, **more)


def test_what_was_answered_is_kept(gateway: Running, site: Site) -> None:
    with BlockingClient(gateway.target) as client:
        write_users(client, 5)
        write_items(client, 5)
        answers = [ask(client, [float(index)] * (index + 1), return_features=True) for index in range(4)]
    table = kept(site, 1 + 2 + 3 + 4)
    assert table["prediction_id"].to_pylist() == [one.prediction_id for one in answers for _ in one.outputs["score"]]
    assert table["row"].to_pylist() == [row for one in answers for row in range(len(one.outputs["score"]))]
    for name in ("user.age", "user.taste", "item.price", "hour"):
        told = np.concatenate([one.features[name] for one in answers])
        np.testing.assert_array_equal(np.stack(table[f"f.{name}"].to_pylist()), told)
    told = np.concatenate([one.outputs["score"] for one in answers]).ravel()
    np.testing.assert_array_equal(np.float32(table["out.score"].to_pylist()).ravel(), told)
    statuses = np.concatenate([one.views["user"].status for one in answers])
    assert table["status.user"].to_pylist() == statuses.tolist()
    assert table["violations"].to_pylist() == [0] * 10


def test_violations_are_told_and_kept(gateway: Running, site: Site) -> None:
    with BlockingClient(gateway.target) as client:
        client.write_features("user_stats@1", {"user": ["u1"]}, {"age": np.float32([101])})
        answer = ask(client, [5.0, 7.0, 99.0], return_violations=True, return_features=True)
        silent = ask(client, [99.0])
    assert answer.verdicts.tolist() == [0, 1, 2]
    found = {(one.row, one.column): (one.kinds, one.raw) for one in answer.violations}
    assert found == {(1, "user.age"): (("above its range",), None), (2, "hour"): (("above its range",), 99.0)}
    assert answer.features["hour"].tolist() == [5, 7, 23]
    assert silent.verdicts.size == 0
    assert silent.violations == ()
    table = kept(site, 4)
    assert table["f.hour"].to_pylist() == [5, 7, 23, 23]
    assert table["violations"].to_pylist() == [0, 1, 1, 1]
    assert table["verdict"].to_pylist() == [0, 1, 2, 2]
    (changed,) = table["changed"].to_pylist()[2]
    assert changed["raw"] == 99.0
    metrics = urllib.request.urlopen(f"{gateway.http}/metrics").read().decode()
    assert 'headrace_violations_total{column="hour",kind="above its range",model="ranker"} 2.0' in metrics
    assert 'headrace_checked_rows_total{model="ranker",verdict="changed"} 2.0' in metrics


def test_failures_are_kept(gateway: Running, site: Site) -> None:
    with BlockingClient(gateway.target) as client:
        with pytest.raises(CallFailed, match="strange"):
            ask(client, [1.0], outputs=["strange"], request_id="mine")
        ask(client, [1.0])
    kept(site, 1)

    def failed() -> list[dict[str, Any]]:
        return [
            row for path in reader.failures(site.folder / "journal") for batch in reader.batches(path)
            for row in batch.to_pylist()
        ]  # fmt: skip

    (failure,) = eventually(failed)
    assert failure["model"] == "ranker"
    assert failure["code"] == "INVALID_ARGUMENT"
    assert "strange" in failure["message"]


def test_of_a_refused_request_the_ids_are_kept_as_its_version_calls_them(site: Site) -> None:
    refusing = CHECKED.replace("policy: clip", "policy: reject")
    site.add_model("ranker", refusing, WEIGHTS)
    secret = {"pii": {"user": "hash"}, "pii_salt": "a secret that is long"}
    journal = {"enabled": True, "path": str(site.folder / "journal"), **secret}
    overrides = {"journal": journal, "monitor": {"enabled": False}}
    with running(site, overrides) as gateway, BlockingClient(gateway.target) as client, pytest.raises(CallFailed):
        ask(client, [99.0])
    (path,) = reader.failures(site.folder / "journal")
    (row,) = (row for batch in reader.batches(path) for row in batch.to_pylist())
    assert (row["model"], row["version"], row["variant"], row["message"]) == ("ranker", 1, "default", None)
    assert json.loads(row["entities"]) == {"user": [digest("u0", b"a secret that is long")], "item": [0]}


def test_what_came_over_the_wire_does_not_wait_for_the_journal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[int] = []

    def offer(_: Journal, __: object, served: Served) -> bool:
        offered.extend(len(request.caller.payload) for request in served.requests)  # type: ignore[attr-defined]  # a call
        return True

    monkeypatch.setattr(Journal, "offer", offer)
    journal = {"enabled": True, "path": str(site.folder / "journal")}
    overrides = {"journal": journal, "monitor": {"enabled": False}}
    with running(site, overrides) as gateway, BlockingClient(gateway.target) as client:
        ask(client, [1.0, 2.0])
        ask(client, [1.0, 2.0])
        eventually(lambda: len(offered) == 2)
    assert offered == [0, 0]


def test_an_output_whose_shape_the_graph_does_not_tell_is_answered_and_kept(gateway: Running, site: Site) -> None:
    """As many columns as there are, found out while it runs."""
    shaped = helper.make_node("Compress", ["shape", "all"], ["found"])
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Greater", ["shape", "least"], ["all"]),
        shaped,
        helper.make_node("Reshape", ["x", "found"], ["score"]),
    ]
    output = helper.make_empty_tensor_value_info("score")
    output.type.tensor_type.elem_type = TensorProto.FLOAT
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(WEIGHTS)])
    least = numpy_helper.from_array(np.int64([-1]), "least")
    write_graph(
        site.models / "ranker" / "2" / "model.onnx", helper.make_graph(nodes, "odd", [entry], [output], [least])
    )
    asyncio.run_coroutine_threadsafe(gateway.gateway.models.load("ranker"), gateway.loop).result(30)
    with BlockingClient(gateway.target) as client:
        answer = ask(client, [1.0, 2.0])
    assert answer.outputs["score"].shape == (2, len(WEIGHTS))
    table = kept(site, 2)
    assert np.float32(table["out.score"].to_pylist()).tolist() == answer.outputs["score"].tolist()
    assert table["shape.out.score"].to_pylist() == [[len(WEIGHTS)]] * 2
    assert not any(gateway.gateway._keeper.journal.state().dropped.values())


def test_a_journal_that_cannot_be_written_refuses_in_sync_mode_and_drops_in_the_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is a file: whoever runs the test, root included, cannot write there."""
    (site.folder / "journal").write_text("in the way")
    for durability in ("interval", "sync"):
        journal = {"enabled": True, "path": str(site.folder / "journal"), "durability": durability}
        overrides = {"journal": journal, "monitor": {"enabled": False}}
        with running(site, overrides) as gateway, BlockingClient(gateway.target) as client:
            if durability == "interval":
                score = ask(client, [1.0]).outputs["score"]
                assert math.isfinite(float(score.ravel()[0]))
                page = f"{gateway.http}/metrics"
                eventually(
                    lambda page=page: b'dropped_rows_total{reason="disk"} 1.0' in urllib.request.urlopen(page).read()
                )
            else:
                with pytest.raises(CallFailed) as caught:
                    ask(client, [1.0])
                assert caught.value.code == grpc.StatusCode.UNAVAILABLE


def test_the_second_process_watches_and_is_seen(site: Site) -> None:
    journal = {"enabled": True, "path": str(site.folder / "journal")}
    monitor = {"poll_s": 0.1, "verdict_s": 0.0, "windows": {"rows": 100, "panes": 2}}
    with running(site, {"journal": journal, "monitor": monitor}) as gateway, BlockingClient(gateway.target) as client:
        for _ in range(30):
            ask(client, [1.0] * 10)
        page = f"{gateway.http}/metrics"

        def seen() -> bool:
            text = urllib.request.urlopen(page).read().decode()
            return "headrace_monitor_up 1.0" in text and "headrace_journal_rows_total 300.0" in text

        eventually(seen)
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        with grpc.insecure_channel(gateway.target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("headrace.journal", "headrace.monitor"):
                eventually(
                    lambda service=service: (
                        stub.Check(health_pb2.HealthCheckRequest(service=service)).status
                        == health_pb2.HealthCheckResponse.SERVING
                    )
                )


def test_a_swap_keeps_both_versions_apart(gateway: Running, site: Site) -> None:
    with BlockingClient(gateway.target) as client:
        ask(client, [1.0])
        site.add_model("ranker", CHECKED, WEIGHTS * 2, version=2)
        asyncio.run_coroutine_threadsafe(gateway.gateway.models.load("ranker"), gateway.loop).result(30)
        ask(client, [1.0])
    eventually(lambda: versions(site) == [1, 2])
