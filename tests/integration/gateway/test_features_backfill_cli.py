"""`headrace features backfill` as a user types it: whole, interrupted by Ctrl-C, with what goes wrong."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from click.testing import CliRunner, Result

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.server.cli import main
from tests.running import CATALOGUE, Site, make_site
from tests.waiting import eventually

USERS = 1_200
NEW = """\
  user_stats@2:
    entity: user
    columns: {age: {dtype: float32, default: -1.0}}
    on_missing: compute
    compute: {sql: "SELECT user, age FROM 'ages.parquet' WHERE user IN $ids", on: duckdb, timeout_ms: 20000}
  elsewhere@1:
    entity: user
    columns: {age: {dtype: float32, default: -1.0}}
    on_missing: compute
    compute: {sql: "SELECT user, age FROM 'nowhere.parquet' WHERE user IN $ids", on: duckdb, timeout_ms: 20000}
"""


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    """Users with rows of version 1, and a file with the ages of all of them but the first."""
    made = make_site(tmp_path, redis_url)
    (tmp_path / "features.yaml").write_text(CATALOGUE + NEW)
    ids = [f"u{i}" for i in range(USERS)]
    pq.write_table(pa.table({"user": ids[1:], "age": np.arange(1, USERS, dtype=np.float32)}), tmp_path / "ages.parquet")

    async def write() -> None:
        catalogue = Catalogue.load(tmp_path / "features.yaml")
        async with FeatureClient(catalogue, RedisStore(RedisOptions(redis_url))) as client:
            await client.write("user_stats@1", {"user": ids, "visits": np.zeros(USERS, np.int32)})

    asyncio.run(write())
    return made


def backfill(site: Site, *words: str) -> Result:
    return CliRunner().invoke(main, ["features", "backfill", "--config", str(site.config), *words])


def said(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_version_before_gives_the_ids(site: Site) -> None:
    done = backfill(site, "user_stats@2")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "user_stats@2: 1,200 ids: 1,199 written, 0 already there, 0 superseded by newer stored rows, "
        "1 have no row, 0 failed\n"
    )
    again = backfill(site, "user_stats@2", "--json")
    assert (said(again)["there"], said(again)["written"], said(again)["complete"]) == (1199, 0, True)
    renewed = backfill(site, "user_stats@2", "--restart", "--json")
    assert (said(renewed)["there"], said(renewed)["written"]) == (0, 1199)


def test_ids_of_a_file_and_a_table_of_rows(site: Site) -> None:
    (site.folder / "ids.txt").write_text("u1\nu2\n# a comment\nu3 u4\n")
    some = backfill(site, "user_stats@2", "--ids", str(site.folder / "ids.txt"))
    assert some.exit_code == 1
    assert "2 ids: 2 written" in some.stdout
    assert "bad line 4: 2 values; an id of user_stats@2 is user" in some.stderr
    table = backfill(site, "elsewhere@1", "--from-table", str(site.folder / "ages.parquet"))
    assert table.exit_code == 0, table.output
    assert table.stdout == "elsewhere@1: 1,199 rows: 1,199 written, 0 superseded by newer stored rows, 0 bad\n"
    bad = pa.table({"user": ["a", None], "age": [1.0, 2.0]})
    pq.write_table(bad, site.folder / "bad.parquet")
    partly = backfill(site, "elsewhere@1", "--from-table", str(site.folder / "bad.parquet"))
    assert partly.exit_code == 1
    assert "2 rows: 1 written" in partly.stdout
    assert "bad row 2" in partly.stderr


def test_what_goes_wrong_is_said(site: Site, redis_url: str) -> None:
    for words, why in (
        (["nope@1"], "no view 'nope@1'"),
        (["user_stats@1"], "user_stats@1 has no version before it: say whose ids to fill"),
        (["user_stats@1", "--ids-from", "strict@1"], "no rows of strict@1 are stored"),
        (["user_stats@2", "--ids-from", "item_stats@1"], "item_stats@1 is of item: int64, and user_stats@2 is of user"),
    ):
        refused = backfill(site, *words)
        assert refused.exit_code == 1, words
        assert why in refused.stderr
    for words in (["user_stats@2", "--rate", "0"], ["user_stats@2", "--ids-from", "strict@1", "--ids", __file__]):
        assert backfill(site, *words).exit_code == 2
    with redis.Redis(unix_socket_path=redis_url.removeprefix("unix://")) as connection:
        assert connection.keys("*user_stats:2") == []


def test_a_source_that_is_not_there_stops_it(site: Site) -> None:
    stopped = backfill(site, "elsewhere@1", "--ids-from", "user_stats@1", "--rate", "100")
    assert stopped.exit_code == 1
    assert "5 batches in a row gave nothing but failures" in stopped.stderr
    assert "nowhere.parquet" in stopped.stderr
    assert "500 ids: 0 written" in stopped.stdout
    assert "not finished: run it again" in stopped.stderr


def test_ctrl_c_stops_it_and_another_run_goes_on(site: Site, redis_url: str) -> None:
    command = [sys.executable, "-m", "gateway.server.cli", "features", "backfill", "user_stats@2", "--json"]
    command += ["--config", str(site.config), "--rate", "100"]
    with (
        redis.Redis(unix_socket_path=redis_url.removeprefix("unix://")) as connection,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        ) as run,
    ):
        eventually(lambda: connection.keys("*user_stats:2"), 30)
        run.send_signal(signal.SIGINT)
        output, errors = run.communicate(timeout=30)
        assert run.returncode == 130, errors
        assert "Traceback" not in errors
        report = json.loads(output)
        assert not report["complete"]
        assert 0 < report["written"] < USERS - 1
        assert len(connection.keys("*user_stats:2")) == report["written"]
        done = said(backfill(site, "user_stats@2", "--json"))
        assert done["there"] == report["written"]
        assert done["there"] + done["written"] == USERS - 1
