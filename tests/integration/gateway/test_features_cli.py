"""`headrace features …` as a user types it, on rows that a real Redis holds."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner, Result

from featureclient.client import FeatureClient, Rows
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.server.cli import main
from tests.running import CATALOGUE, MANIFEST, WEIGHTS, Site, make_site

MORE = """\
  user_age@1: {entity: user, max_age: 7d, columns: {born: {dtype: int16, default: 1990}}}
  user_all@1: {entity: user, combine: [user_stats@1, user_age@1]}
"""
DERIVED = (
    MANIFEST.replace("x: [item.price,", "x: [cheap,")
    + 'derive: {cheap: {expression: "1 / item.price", dtype: float32}}\n'
)


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    made = make_site(tmp_path, redis_url)
    (tmp_path / "features.yaml").write_text(CATALOGUE + MORE)
    return made


def command(site: Site, *words: str, answer: str | None = None) -> Result:
    name, *rest = words
    return CliRunner().invoke(main, ["features", name, "--config", str(site.config), *rest], input=answer)


def features_of(site: Site) -> Path:
    return site.folder / "features.yaml"


def change(site: Site, before: str, after: str, copied: str = "before.yaml") -> Path:
    """Change the catalogue; returns a copy of the one of before."""
    copy = site.folder / copied
    text = features_of(site).read_text()
    assert before in text
    copy.write_text(text)
    features_of(site).write_text(text.replace(before, after))
    return copy


def written(site: Site, redis_url: str, view: str, **table: Any) -> None:
    async def write() -> None:
        catalogue = Catalogue.load(features_of(site))
        async with FeatureClient(catalogue, RedisStore(RedisOptions(redis_url))) as client:
            await client.write(view, table)

    asyncio.run(write())


def read(site: Site, redis_url: str, view: str, ids: list[str]) -> Rows:
    async def rows() -> Rows:
        catalogue = Catalogue.load(features_of(site))
        async with FeatureClient(catalogue, RedisStore(RedisOptions(redis_url))) as client:
            return await client.read(view, ids)

    return asyncio.run(rows())


def test_list_and_show(site: Site) -> None:
    listed = command(site, "list", "--json")
    assert listed.exit_code == 0, listed.output
    views = {view["view"]: view for view in json.loads(listed.stdout)}
    assert views["item_stats@1"]["models"] == {"ranker": ["price"]}
    assert views["user_stats@1"]["models"] == {"ranker": ["age", "taste", "visits"]}
    assert views["user_all@1"]["models"] == {}
    table = command(site, "list").stdout
    assert "user_all@1" in table
    assert "4 of user_stats@1, user_age@1" in table
    shown = command(site, "show", "user_all@1").stdout
    assert "float32[2]" in shown
    assert re.search(r"max_age +7d", shown)
    assert re.search(r"fingerprint +[0-9a-f]{8}", shown)
    unknown = command(site, "show", "nope@1")
    assert unknown.exit_code == 1
    assert "no view 'nope@1'; there are: item_stats@1" in unknown.stderr


def test_derived_columns_pin_what_they_read(site: Site) -> None:
    site.add_model("ranker", DERIVED, WEIGHTS)
    assert json.loads(command(site, "show", "item_stats@1", "--json").stdout)["models"] == {"ranker": ["price"]}


def test_diff(site: Site) -> None:
    old = change(site, "age: {dtype: float32, default: -1.0}", "age: {dtype: float64, default: -1.0}")
    found = command(site, "diff", str(old), str(features_of(site)))
    assert found.exit_code == 0
    assert re.search(r"widened .* user_stats@1 .* columns.age .* float32 .* float64", found.stdout)
    as_json = command(site, "diff", str(old), str(features_of(site)), "--json", "--exit-code")
    assert as_json.exit_code == 1
    assert [(one["kind"], one["subject"]) for one in json.loads(as_json.stdout)] == [
        ("widened", "user_stats@1"),
        ("widened", "user_all@1"),
    ]
    same = command(site, "diff", str(old), str(old), "--exit-code")
    assert (same.exit_code, same.stdout) == (0, "no difference\n")
    views = command(site, "diff", "user_stats@1", "user_age@1", "--json")
    assert {change["field"] for change in json.loads(views.stdout)} >= {"columns.age", "columns.born", "max_age"}
    # Two files need no settings.
    alone = CliRunner().invoke(main, ["features", "diff", "--config", "nowhere.yaml", str(old), str(old)])
    assert alone.exit_code == 0
    bad = command(site, "diff", str(old), "nowhere.yaml")
    assert bad.exit_code == 1
    assert "nowhere.yaml: cannot be read" in bad.stderr


def test_check_of_a_good_catalogue(site: Site, redis_url: str) -> None:
    written(site, redis_url, "user_stats@1", user=["a", "b"], age=[1.0, 2.0])
    found = command(site, "check", "--against", str(features_of(site)))
    assert found.exit_code == 0, found.output
    assert "nothing would break" in found.stdout
    assert re.search(r"2 [0-9a-f]{8} \(newest\)", found.stdout)


def test_check_names_what_stored_rows_need_and_is_content_when_they_have_it(site: Site, redis_url: str) -> None:
    written(site, redis_url, "user_stats@1", user=["a", "b", "c"], age=[1.0, 2.0, 3.0])
    old = change(site, "age: {dtype: float32, default: -1.0}", "age: {dtype: float64, default: -1.0}")
    broken = command(site, "check", "--against", str(old))
    assert broken.exit_code == 1
    assert "breaking user_stats@1: rows with the fingerprint" in broken.stdout
    assert "(3 are stored)" in broken.stdout
    advised = '      - {age: float32, visits: int32, taste: "float32[2]"}'
    assert f"        revisions:\n    {advised}" in broken.stdout
    without = command(site, "check")
    assert without.exit_code == 1
    assert "3 have the fingerprint" in without.stdout
    head = "  user_stats@1:\n    entity: user\n"
    change(site, head, f"{head}    revisions:\n{advised}\n", "unlisted.yaml")
    mended = command(site, "check", "--against", str(old), "--json")
    assert mended.exit_code == 0, mended.output
    said = json.loads(mended.stdout)
    assert {finding["severity"] for finding in said["findings"]} == {"warning", "note"}
    assert said["stored"]["user_stats@1"]["rows"] == 3
    rows = read(site, redis_url, "user_stats@1", ["a", "b", "c"])
    assert rows.columns["age"].tolist() == [1.0, 2.0, 3.0]


def test_check_compiles_the_models(site: Site) -> None:
    old = change(site, "      visits: {dtype: int32, default: 0}\n", "")
    found = command(site, "check", "--against", str(old), "--no-store")
    assert found.exit_code == 1
    assert "no column 'user.visits'" in found.stdout
    assert "column visits is removed, and models read it: ranker" in found.stdout


def test_check_counts_rows_that_are_not_sound(site: Site, redis_url: str) -> None:
    written(site, redis_url, "item_stats@1", item=[1, 2], price=[1.0, 2.0])
    with redis.Redis.from_url(redis_url) as server:
        row = server.get("hr:{item:1}:item_stats:1")
        assert isinstance(row, bytes)
        server.set("hr:{item:1}:item_stats:1", row[:-1] + b"\xff")
        server.set("hr:{item:3}:item_stats:1", b"x")
    found = json.loads(command(site, "check", "--json").stdout)
    assert found["stored"]["item_stats@1"]["invalid"] == {"crc": 1, "length": 1}
    assert {finding["severity"] for finding in found["findings"]} == {"warning"}
    sample = json.loads(command(site, "check", "--json", "--rows-max", "1").stdout)
    assert sample["stored"]["item_stats@1"]["complete"] is False
    for none in ("0", "-3"):
        refused = command(site, "check", "--rows-max", none)
        assert refused.exit_code == 2
        assert "--rows-max" in refused.stderr


def test_check_without_a_store(site: Site) -> None:
    site.config.write_text(site.config.read_text().replace("unix://", "unix:///nowhere"))
    found = command(site, "check")
    assert found.exit_code == 0, found.output
    assert "stored rows were not looked at" in found.stdout


def test_drop(site: Site, redis_url: str) -> None:
    written(site, redis_url, "user_age@1", user=[f"u{i}" for i in range(2500)], born=np.arange(2500) % 100)
    written(site, redis_url, "user_stats@1", user=["u1"], age=[1.0])
    pinned = command(site, "drop", "user_stats@1", "--yes")
    assert pinned.exit_code == 1
    assert "user_stats@1 is pinned by ranker" in pinned.stderr
    counted = command(site, "drop", "user_age@1", "--dry-run")
    assert (counted.exit_code, counted.stdout) == (0, "user_age@1: 2,500 rows are stored\n")
    assert "user_all@1 combines user_age@1" in counted.stderr
    refused = command(site, "drop", "user_age@1", answer="n\n")
    assert refused.exit_code == 1
    with redis.Redis.from_url(redis_url) as server:
        assert len(server.keys("*:user_age:1")) == 2500
        dropped = command(site, "drop", "user_age@1", answer="y\n")
        assert dropped.exit_code == 0, dropped.output
        assert dropped.stdout.endswith("2,500 rows deleted\n")
        assert server.keys("*:user_age:1") == []
        assert server.keys("*:user_stats:1") == [b"hr:{user:u1}:user_stats:1"]


def test_drop_of_a_view_that_the_catalogue_has_no_more(site: Site, redis_url: str) -> None:
    written(site, redis_url, "user_age@1", user=["a"], born=[1])
    features_of(site).write_text(CATALOGUE)
    assert command(site, "drop", "user_age", "--yes").exit_code == 1
    dropped = command(site, "drop", "user_age@1", "--yes")
    assert "1 rows deleted" in dropped.stdout
    with redis.Redis.from_url(redis_url) as server:
        assert server.keys("*:user_age:1") == []


def test_combine(site: Site, redis_url: str) -> None:
    written(site, redis_url, "user_stats@1", user=["a", "b"], age=[1.0, 2.0])
    written(site, redis_url, "user_age@1", user=["b", "c"], born=[2000, 2001])
    with redis.Redis.from_url(redis_url) as server:
        # As if the members had been written before the combined view was declared.
        assert server.delete(*server.keys("*:user_all:1")) == 3
    combined = command(site, "combine", "user_all@1")
    assert (combined.exit_code, combined.stdout) == (0, "3 rows written\n")
    rows = read(site, redis_url, "user_all@1", ["a", "b", "c"])
    assert rows.columns["age"].tolist() == [1.0, 2.0, -1.0]
    assert rows.columns["born"].tolist() == [1990, 2000, 2001]
    assert rows.valid["born"].tolist() == [False, True, True]
    other = command(site, "combine", "user_age@1")
    assert other.exit_code == 1
    assert "user_age@1 is not a combined view" in other.stderr
