"""The commands, as a user types them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from click.testing import CliRunner, Result

from gateway.server.cli import main
from tests.running import Running, Site, make_site, running


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    return make_site(tmp_path, redis_url)


@pytest.fixture
def gateway(site: Site) -> Iterator[Running]:
    with running(site) as gateway:
        yield gateway


def command(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def write_prices(path: Path, prices: list[str]) -> str:
    table = pa.table({"item": pa.array(range(len(prices))), "price": prices})
    pyarrow.csv.write_csv(table, path)
    return str(path)


def test_load_then_predict(site: Site, gateway: Running, tmp_path: Path) -> None:
    source = write_prices(tmp_path / "prices.csv", ["1.5", "2.5"])
    loaded = command("load", "--config", str(site.config), "--view", "item_stats@1", "--from", source)
    assert (loaded.exit_code, loaded.stdout) == (0, "2 rows: 2 written, 0 superseded by newer stored rows, 0 bad\n")
    asked = command(
        "predict", "ranker", "--target", gateway.target, "-e", "user=u1", "-e", "item=1,7", "-c", "hour=3", "--features"
    )
    assert asked.exit_code == 0, asked.output
    assert "ranker/1" in asked.stdout
    assert "item DEFAULTED (ABSENT)" in asked.stdout
    assert "item.price" in asked.stdout


def test_load_names_the_bad_row_and_stops_or_loads_the_rest(site: Site, tmp_path: Path) -> None:
    source = write_prices(tmp_path / "prices.csv", ["1.5", "dear", "2.5"])
    words = ("load", "--config", str(site.config), "--view", "item_stats@1", "--from", source)
    stopped = command(*words)
    assert stopped.exit_code == 1
    assert "bad row 2" in stopped.stderr
    assert "--on-bad-row skip" in stopped.stderr
    skipped = command(*words, "--on-bad-row", "skip")
    assert skipped.exit_code == 0
    assert "2 written" in skipped.stdout
    assert "1 bad" in skipped.stdout


def test_load_into_a_view_that_is_not_there(site: Site, tmp_path: Path) -> None:
    source = write_prices(tmp_path / "prices.csv", ["1"])
    failed = command("load", "--config", str(site.config), "--view", "item_stats@2", "--from", source)
    assert failed.exit_code == 1
    assert failed.stderr.endswith(
        "headrace: no view 'item_stats@2'; there are: item_stats@1, pair_stats@1, strict@1, user_stats@1\n"
    )


def test_models_says_what_each_takes(site: Site) -> None:
    shown = command("models", "--config", str(site.config), "--json")
    (model,) = json.loads(shown.stdout)
    assert (model["model"], model["version"], model["labels"]) == ("ranker", 1, ["stable"])
    assert model["entities"] == {"user": "string", "item": "int64"}
    assert model["context"] == {"hour": "float32"}
    assert "ranker" in command("models", "--config", str(site.config)).stdout


def test_health(gateway: Running) -> None:
    assert command("health", "--target", gateway.target).stdout == "SERVING\n"
    gone = command("health", "--target", "127.0.0.1:1")
    assert gone.exit_code == 1
    assert gone.stderr.startswith("headrace: 127.0.0.1:1: ")


def test_predict_says_what_the_server_said(gateway: Running) -> None:
    failed = command("predict", "rankr", "--target", gateway.target, "-e", "user=u1")
    assert failed.exit_code == 1
    assert failed.stderr == "headrace: NOT_FOUND: no model 'rankr' (there are: ranker)\n"
