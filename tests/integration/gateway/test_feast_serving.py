"""A gateway that predicts from rows that the real Feast wrote, beside rows of our own."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from featureclient.feast import Refusal
from featureclient.schema import status
from gateway.client import BlockingClient, CallFailed
from gateway.server.cli import main
from gateway.server.stores import LINES_MAX, PERIOD_S, RefusalLog
from tests.running import Site, make_site, running

RECORDED = json.loads((Path(__file__).resolve().parents[2] / "data" / "feast" / "hashes_v3.json").read_text())
ROWS: list[Any] = RECORDED["rows"]["driver_hourly_stats"]
CATALOGUE = """
entities: {driver: {driver_id: int64}}
views:
  driver_hourly_stats@1:
    entity: driver
    feast: {project: my_project, view: driver_hourly_stats}
    columns: {conv_rate: {dtype: float32, default: -1.0}, avg_daily_trips: {dtype: int64, default: 0}}
  own@1: {entity: driver, columns: {score: {dtype: float32, default: 0.0}}}
"""
MANIFEST = """
name: driver_rank
views: {feast: {view: driver_hourly_stats@1}, own: {view: own@1}}
inputs: {x: [feast.conv_rate, feast.avg_daily_trips, own.score]}
"""
WEIGHTS = np.float32([[1], [10], [100]])
CONV_RATE = bytes.fromhex("6160e3da")


def key(driver_id: int) -> str:
    """Feast's key of a driver."""
    wanted = (driver_id.to_bytes(8, "little") + b"my_project").hex()
    return next(found for found in RECORDED["hashes"] if found.endswith(wanted) and b"city" not in bytes.fromhex(found))


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    with redis.Redis.from_url(redis_url) as connection:
        for name, fields in RECORDED["hashes"].items():
            mapping = {bytes.fromhex(field): bytes.fromhex(value) for field, value in fields.items()}
            connection.hset(bytes.fromhex(name), mapping=mapping)
    site = make_site(tmp_path, redis_url)
    (tmp_path / "features.yaml").write_text(CATALOGUE)
    (site.models / "ranker/model.yaml").unlink()
    (site.models / "ranker/1/model.onnx").rename(tmp_path / "unused.onnx")
    (site.models / "ranker/1").rmdir()
    (site.models / "ranker").rmdir()
    site.add_model("driver_rank", MANIFEST, WEIGHTS)
    return site


def test_a_prediction_from_rows_that_feast_wrote(site: Site, redis_url: str) -> None:
    known = [row for row in ROWS if None not in row["features"].values()]
    ids = [row["id"]["driver_id"] for row in known]
    features = [row["features"] for row in known]
    expected = [row["conv_rate"] + 10 * row["avg_daily_trips"] + 100 * n for n, row in enumerate(features)]
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        client.write_features("own@1", {"driver_id": ids}, {"score": np.arange(len(ids), dtype=np.float32)})
        answer = client.predict("driver_rank", {"driver_id": [*ids, 424242]})
        np.testing.assert_allclose(answer.outputs["score"].ravel(), [*expected, -1], rtol=1e-6)
        assert answer.views["feast"].status.tolist() == [status.PRESENT] * len(ids) + [status.DEFAULTED | status.ABSENT]
        with pytest.raises(CallFailed, match="Feast writes these rows"):
            client.write_features("driver_hourly_stats@1", {"driver_id": 1}, {"conv_rate": np.float32([1])})


def test_a_row_that_is_refused_is_counted_and_logged(
    site: Site, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = ROWS[0]["id"]["driver_id"]
    with redis.Redis.from_url(redis_url) as connection:
        connection.hset(bytes.fromhex(key(driver)), CONV_RATE, b"\xff\xff garbage")
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        answer = client.predict("driver_rank", {"driver_id": [driver]})
        page = gateway.gateway.telemetry.render()[0].decode()
    assert answer.views["feast"].status.tolist() == [status.DEFAULTED | status.INVALID]
    assert 'headrace_invalid_rows_total{reason="protobuf",view="driver_hourly_stats@1"} 1.0' in page
    assert "a row of Feast's is refused: driver_hourly_stats@1, conv_rate:" in caplog.text


def test_commands_leave_feasts_rows_alone(site: Site) -> None:
    (site.folder / "rows.csv").write_text("driver_id,conv_rate,avg_daily_trips\n1,0.5,2\n")
    options = ["--config", str(site.config)]
    source = str(site.folder / "rows.csv")
    loaded = CliRunner().invoke(main, ["load", *options, "--view", "driver_hourly_stats@1", "--from", source])
    assert loaded.exit_code == 1
    assert "Feast writes these rows" in loaded.stderr
    dropped = CliRunner().invoke(main, ["features", "drop", *options, "--yes", "driver_hourly_stats@1"])
    assert dropped.exit_code == 1
    assert "Feast writes these rows" in dropped.stderr
    assert CliRunner().invoke(main, ["features", "drop", *options, "--dry-run", "own@1"]).exit_code == 0
    assert CliRunner().invoke(main, ["features", "check", *options]).exit_code == 0


def test_a_flood_of_refused_rows_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    log = RefusalLog(lambda: now)
    refusal = Refusal("v@1", b"k", "c", "type", "it is an INT64")
    with caplog.at_level(logging.WARNING):
        for _ in range(1500):
            log(refusal)
        assert len(caplog.records) == LINES_MAX
        now += PERIOD_S
        log(refusal)
        assert [record.getMessage() for record in caplog.records[LINES_MAX:]] == [
            "1,490 more rows of Feast's were refused",
            "a row of Feast's is refused: v@1, c: it is an INT64 (Feast's row under our key b'k')",
        ]
        log.close()
        assert len(caplog.records) == LINES_MAX + 2
