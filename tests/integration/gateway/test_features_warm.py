"""`headrace features warm`: a running gateway gets its caches filled from a file of ids."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from gateway.client import BlockingClient
from gateway.server.cli import main
from tests.running import Running, Site, make_site, running, write_items, write_users


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    return make_site(tmp_path, redis_url)


def warm(site: Site, target: str, file: str, *more: str) -> Result:
    words = ["--config", str(site.config), "--target", target, str(site.folder / file), *more]
    return CliRunner().invoke(main, ["features", "warm", *words])


def write_rows(target: str, rows: int) -> None:
    with BlockingClient(target) as client:
        write_users(client, rows)
        write_items(client, rows)
        ids = [f"u{i}" for i in range(rows)]
        client.write_features("pair_stats@1", {"user": ids, "item": list(range(rows))}, {"clicks": [1] * rows})


def metric(gateway: Running, name: str, **labels: str) -> int:
    return int(gateway.gateway.telemetry.registry.get_sample_value(f"headrace_{name}", labels) or 0)


def cached(gateway: Running, view: str) -> int:
    """Rows in the cache of a view, and ids known to have none."""
    return sum(metric(gateway, f"cache_{kind}", view=view) for kind in ("entries", "negative_entries"))


@pytest.mark.parametrize("transport", ["fast", "grpcio"])
def test_what_the_file_names_is_cached(site: Site, transport: str) -> None:
    lines = ["# the hot ones", *(f"user_stats@1 u{i}" for i in range(1200)), "item_stats@1 7", "pair_stats@1 u3 3"]
    (site.folder / "ids.txt").write_text("\n".join([*lines, "user_stats@1 nobody"]))
    with running(site, {"transport": transport}) as gateway:
        write_rows(gateway.target, 1200)
        result = warm(site, gateway.target, "ids.txt")
        assert result.exit_code == 0, result.output
        assert result.stdout == ("1,203 ids: 1,202 have a row (user_stats@1 1,200, item_stats@1 1, pair_stats@1 1)\n")
        assert [cached(gateway, f"{name}_stats@1") for name in ("user", "item", "pair")] == [1201, 1, 1]
        read = metric(gateway, "store_read_keys_sum")
        assert read >= 1203
        assert warm(site, gateway.target, "ids.txt").exit_code == 0
        assert metric(gateway, "store_read_keys_sum") == read, "what is cached is not read again"


def test_the_file_that_a_view_was_loaded_from(site: Site) -> None:
    table = pa.table({"user": [f"u{i}" for i in range(50)], "age": [1.0] * 50})
    pq.write_table(table, site.folder / "users.parquet")
    with running(site, {"predict": {"rows_max": 20}}) as gateway:
        settings = site.config.read_text()
        site.config.write_text(settings + "predict: {rows_max: 20}\n")
        result = warm(site, gateway.target, "users.parquet", "--view", "user_stats@1")
        assert result.exit_code == 0, result.output
        assert result.stdout == "50 ids: 0 have a row\n"
        assert cached(gateway, "user_stats@1") == 50


def test_wrong_lines_are_named_and_the_others_warmed(site: Site) -> None:
    (site.folder / "ids.txt").write_text("user_stats@1 u1\nuser_stats@1\nitem_stats@1 seven\nnope@1 x\n")
    with running(site) as gateway:
        write_rows(gateway.target, 3)
        result = warm(site, gateway.target, "ids.txt")
        assert result.exit_code == 1
        assert result.stdout == "1 ids: 1 have a row\n"
        assert "bad line 2: 0 values; an id of user_stats@1 is user" in result.stderr
        assert "bad line 3:" in result.stderr
        assert "bad line 4: no view 'nope@1'" in result.stderr
        assert "headrace: 3 bad lines" in result.stderr
        assert cached(gateway, "user_stats@1") == 1
        unknown = warm(site, gateway.target, "ids.txt", "--view", "nope@1")
        assert unknown.exit_code == 1
        assert "no view 'nope@1'" in unknown.stderr


def test_a_gateway_that_shows_no_features_says_so(site: Site) -> None:
    (site.folder / "ids.txt").write_text("user_stats@1 u1\n")
    with running(site, {"expose_features": "never"}) as gateway:
        result = warm(site, gateway.target, "ids.txt")
    assert result.exit_code == 1
    assert "FeatureService answers on loopback and Unix sockets; the setting expose_features allows more" in (
        result.stderr
    )


def test_a_gateway_that_is_not_there(site: Site) -> None:
    (site.folder / "ids.txt").write_text("user_stats@1 u1\n")
    result = warm(site, f"unix:{site.folder}/nobody.sock", "ids.txt", "--timeout-s", "2")
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.stderr


def test_a_gateway_without_its_store(site: Site) -> None:
    (site.folder / "ids.txt").write_text("".join(f"user_stats@1 u{i}\n" for i in range(3000)))
    away = {"start_without_store": True, "store": {"url": f"unix://{site.folder}/nobody.sock"}}
    with running(site, away) as gateway:
        result = warm(site, gateway.target, "ids.txt", "--timeout-s", "5")
    assert result.exit_code == 1
    assert "1,536 ids could not be read in time; the gateway could not read 3 batches in a row" in result.stderr
