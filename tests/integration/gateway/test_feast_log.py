"""The journal in the schema of Feast's feature logs, against what `FeatureServiceLoggingSource` of feast 0.67 says."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
from click.testing import CliRunner, Result

from gateway.server.cli import main
from gateway.training.feast_log import feast_schema
from tests.retraining import MINUTE_MS, START_MS, Retraining

RECORDED = Path(__file__).parents[2] / "data/feast/feature_log_schema.json"
"""What feast said of the same views, made as its FeatureViews and projected with these names and join keys."""
PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = 1, 2, 3, 4


def logged(site: Retraining, *words: str) -> Result:
    command = ["dataset", "feast-log", "--config", str(site.config), "--model", "ranker", "-o", str(log_of(site))]
    return CliRunner().invoke(main, [*command, *words])


def log_of(site: Retraining) -> Path:
    return site.folder / "log.parquet"


def arranged(folder: Path) -> Retraining:
    """One user who is there, with a null; one who is older than the view's `max_age`; one who is not there."""
    site = Retraining(folder)
    row = {"name": "abc", "taste": [1.0, 2.0], "half": 0.5, "seen": START_MS - 1500, "visits": 4}
    site.know("stats@1", START_MS - 5 * MINUTE_MS, user="u0", **row)  # `age` is null
    site.know("stats@1", START_MS - 90 * MINUTE_MS, user="u1", age=3.0, **row)
    site.know("pairs@1", START_MS - MINUTE_MS, user="u0", item=7, clicks=3, liked=True, spent=1.5)
    asked = [{"user": user, "product": 7, "hour": 1.0, "tag": "x"} for user in ("u0", "u1", "u2")]
    site.serve(START_MS, asked, request_id="r0")
    site.serve(START_MS, asked[:1])
    return site


def test_the_schema_is_that_of_feast(tmp_path: Path) -> None:
    schema = feast_schema(arranged(tmp_path).pinned.schema)
    assert [[field.name, str(field.type)] for field in schema] == json.loads(RECORDED.read_text())


async def test_values_times_and_statuses(tmp_path: Path) -> None:
    site = arranged(tmp_path)
    await site.keep()
    assert logged(site).exit_code == 0
    there, old, gone, again = pq.read_table(log_of(site)).to_pylist()
    moment = datetime.fromtimestamp(START_MS / 1000, UTC)
    assert (there["user"], there["product"]) == ("u0", 7)
    assert (there["u__age"], there["u__age__status"]) == (None, NULL_VALUE)
    assert (there["u__name"], there["u__name__status"]) == ("abc", PRESENT)
    assert (there["u__taste"], there["u__half"], there["u__visits"]) == ([1.0, 2.0], 0.5, 4)
    assert there["u__seen"] == datetime.fromtimestamp(START_MS // 1000 - 2, UTC).replace(tzinfo=None)
    assert there["u__name__timestamp"] == datetime.fromtimestamp(START_MS / 1000 - 300, UTC)
    assert (there["p__liked"], there["p__liked__status"]) == (True, PRESENT)
    assert (old["u__age"], old["u__age__status"]) == (3.0, OUTSIDE_MAX_AGE)
    assert (gone["u__age"], gone["u__taste"], gone["u__age__status"]) == (None, None, NOT_FOUND)
    assert gone["u__age__timestamp"] is None
    assert there["__log_timestamp"] == moment
    assert there["__log_date"] == moment.date()
    assert [one["__request_id"] for one in (there, old)] == ["r0", "r0"]
    assert again["__request_id"] == site.journaled()["prediction_id"][3].as_py().hex()


async def test_what_cannot_be_logged(tmp_path: Path) -> None:
    site = arranged(tmp_path)
    await site.keep(pii={"user": "hash"}, pii_salt="a secret of ours")
    result = logged(site)
    assert result.exit_code == 1
    assert "user: the journal has it hashed, masked or not at all" in result.output
    assert not log_of(site).exists()


async def test_an_empty_window(tmp_path: Path) -> None:
    site = arranged(tmp_path)
    await site.keep()
    assert "nothing was served in this window" in logged(site, "--since", "2031-01-01").output
    assert "no rows of ranker" in logged(site, "--version", "4").output
