"""Files into a view: every format, bad rows by number and name, and going on where a load was cut off."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from featureclient.client import FeatureClient
from featureclient.load import LoadError, load_file, loading
from featureclient.schema import Catalogue
from featureclient.store import OnlineStore, StoreUnavailable
from featureclient.store.redis import RedisOptions, RedisStore

CATALOGUE = Catalogue.parse(
    """
entities: {e: {name: string, hour: int64}}
views:
  v@1:
    entity: e
    columns: {i: int16, f: float32, b: bool, s: "string[4]", t: timestamp, e: "float32[2]"}
"""
)
ROWS = 10_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[FeatureClient]:
    async with FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url))) as made:
        yield made


def table(rows: int = ROWS) -> pa.Table:
    return pa.table(
        {
            "extra": ["not of the view"] * rows,
            "name": [f"n{i}" for i in range(rows)],
            "hour": list(range(rows)),
            "i": pa.array([i % 1000 for i in range(rows)], pa.int64()),
            "f": [i / 2 for i in range(rows)],
            "b": [i % 2 == 0 for i in range(rows)],
            "s": [None if i % 3 == 0 else "é" for i in range(rows)],
            "t": pa.array([i * 1000 for i in range(rows)], pa.timestamp("us")),
            "e": pa.array([[i, i + 1] for i in range(rows)], pa.list_(pa.float32())),
        }
    )


def write_file(path: Path, content: pa.Table) -> None:
    if path.suffix == ".parquet":
        pa.parquet.write_table(content, path, row_group_size=3000)
    elif path.suffix == ".feather":
        pa.feather.write_feather(content, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, content.schema) as writer:
            writer.write_table(content, max_chunksize=3000)
    else:
        with pa.ipc.new_stream(path, content.schema) as writer:
            writer.write_table(content, max_chunksize=3000)


async def check(client: FeatureClient, last: int = ROWS) -> None:
    wanted = [0, 1, 2, 4095, 4096, last - 1]
    rows = await client.read("v@1", [(f"n{i}", i) for i in wanted])
    assert rows.columns["i"].tolist() == [i % 1000 for i in wanted]
    assert rows.columns["f"].tolist() == [i / 2 for i in wanted]
    assert rows.columns["b"].tolist() == [i % 2 == 0 for i in wanted]
    assert rows.columns["s"].tolist() == ["" if i % 3 == 0 else "é" for i in wanted]
    assert rows.valid["s"].tolist() == [i % 3 != 0 for i in wanted]
    assert rows.columns["t"].astype(int).tolist() == list(wanted)
    assert rows.columns["e"].tolist() == [[i, i + 1] for i in wanted]


@pytest.mark.parametrize("name", ["f.parquet", "f.feather", "f.arrow", "f.arrows"])
async def test_every_arrow_format(client: FeatureClient, tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, table())
    told: list[tuple[int, int | None]] = []
    report = await load_file(client, "v@1", tmp_path / name, progress=lambda *both: told.append(both))
    assert (report.rows, report.written, report.bad, report.stopped) == (ROWS, ROWS, 0, False)
    assert [rows for rows, _ in told] == sorted({rows for rows, _ in told})
    assert told[-1] == (ROWS, None if name == "f.arrows" else ROWS)
    await check(client)


def csv_text(rows: int = ROWS, replaced: dict[int, str] | None = None) -> str:
    """Row numbers count from 1."""
    lines = ["name,hour,i,f,b,s,t,e"]
    for i in range(rows):
        text = "" if i % 3 == 0 else "é"
        line = f'n{i},{i},{i % 1000},{i / 2},{str(i % 2 == 0).lower()},{text},{i},"[{i}, {i + 1}]"'
        lines.append((replaced or {}).get(i + 1, line))
    return "\n".join(lines) + "\n"


async def test_csv(client: FeatureClient, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(csv_text(), encoding="utf-8")
    report = await load_file(client, "v@1", tmp_path / "f.csv")
    assert (report.rows, report.written, report.bad) == (ROWS, ROWS, 0)
    await check(client)


async def test_what_a_cell_may_say(client: FeatureClient, tmp_path: Path) -> None:
    text = 'name,hour,i,f,b,s,t,e\n"a\nb",1,NA, 1e2,1,"",2013-10-01T00:00:00Z,\nNA,2,,nan,FALSE,NA,null,"[1,2]"\n'
    (tmp_path / "f.csv").write_text(text, encoding="utf-8")
    assert (await load_file(client, "v@1", tmp_path / "f.csv")).bad == 0
    rows = await client.read("v@1", [("a\nb", 1), ("NA", 2)])
    assert {name: valid.tolist() for name, valid in rows.valid.items()} == {
        "i": [False, False],
        "f": [True, True],
        "b": [True, True],
        "s": [True, True],
        "t": [True, False],
        "e": [False, True],
    }
    assert rows.columns["s"].tolist() == ["", "NA"]
    assert rows.columns["f"][0] == 100
    assert rows.columns["b"].tolist() == [True, False]
    assert rows.columns["t"].astype(int)[0] == 1_380_585_600_000


BAD = {
    3: "n2,2,x,1,true,,0,",
    7: "only,three,cells",
    4099: 'n4098,4098,40000,1,true,,0,"[1,2]"',
    5000: "n4999,04999,1,1,true,,0,",
    5001: 'n5000,5000,1,1,true,much too long,0,"[1,2,3]"',
    9000: "a,b,c,d,e,f,g,h,i",
    10_000: "n,9999,1,1,maybe,,0,",
}
NAMED = [(3, "i"), (7, ""), (4099, "i"), (5000, "hour"), (5001, "s"), (9000, ""), (10_000, "b")]


async def test_bad_rows_are_named_and_the_rest_is_loaded(client: FeatureClient, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(csv_text(replaced=BAD), encoding="utf-8")
    report = await load_file(client, "v@1", tmp_path / "f.csv", on_bad_row="skip")
    assert [(bad.row, bad.column) for bad in report.bad_rows] == NAMED
    assert (report.rows, report.written, report.bad) == (ROWS, ROWS - len(BAD), len(BAD))
    assert (await client.read("v@1", [("n9998", 9998)])).columns["f"].tolist() == [4999.0]


async def test_a_load_stops_at_the_first_piece_with_a_bad_row(client: FeatureClient, tmp_path: Path) -> None:
    bad = {row: text for row, text in BAD.items() if row > 4096}
    (tmp_path / "f.csv").write_text(csv_text(replaced=bad), encoding="utf-8")
    report = await load_file(client, "v@1", tmp_path / "f.csv", on_bad_row="stop")
    assert report.stopped
    assert (report.rows, report.written) == (4096, 4096)
    assert [bad.row for bad in report.bad_rows] == [4099, 5000, 5001]
    statuses = (await client.read("v@1", [("n4095", 4095), ("n4096", 4096)])).status.tolist()
    assert statuses[0] == 1
    assert statuses[1] != 1


async def test_many_bad_rows_are_counted_and_some_are_named(client: FeatureClient, tmp_path: Path) -> None:
    bad = {row: f"n{row},x,1,1,true,,0," for row in range(1, 1001)}
    (tmp_path / "f.csv").write_text(csv_text(2000, bad), encoding="utf-8")
    report = await load_file(client, "v@1", tmp_path / "f.csv", on_bad_row="skip")
    assert (report.bad, report.written) == (1000, 1000)
    assert [bad.row for bad in report.bad_rows] == list(range(1, loading.BAD_ROWS_MAX + 1))


async def test_event_times_of_the_file_decide(client: FeatureClient, tmp_path: Path) -> None:
    times = pa.array([1000] * 5, pa.timestamp("ms"))
    write_file(tmp_path / "f.parquet", table(5).append_column("event_time_ms", times))
    await load_file(client, "v@1", tmp_path / "f.parquet")
    write_file(tmp_path / "g.parquet", table(5).append_column("event_time_ms", pa.array([999, 999, 1000, 1001, 999])))
    report = await load_file(client, "v@1", tmp_path / "g.parquet")
    assert (report.written, report.superseded) == (2, 3)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "none.csv: cannot be read: No such file"),
        ("f.txt", "x", "not a format"),
        ("f.parquet", "not parquet", "cannot be read"),
        ("f.csv", "name,hour,i\na,1,2\n", "no column f, b, s, t, e; there are: name, hour, i"),
        ("f.csv", "", "cannot be read"),
    ],
)
async def test_files_that_cannot_be_loaded(
    client: FeatureClient, tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(LoadError, match=said):
        await load_file(client, "v@1", tmp_path / name)


class FailingStore(RedisStore):
    """A real store that is lost after some writes."""

    writes_left = 1_000_000

    async def write(self, *args: Any, **options: Any) -> int:
        if self.writes_left == 0:
            raise StoreUnavailable("gone")
        self.writes_left -= 1
        return await super().write(*args, **options)


@pytest.mark.parametrize("name", ["f.parquet", "f.arrow", "f.csv"])
async def test_a_load_that_was_cut_off_goes_on_behind_what_is_done(redis_url: str, tmp_path: Path, name: str) -> None:
    bad = dict(list(BAD.items())[:2] + list(BAD.items())[-2:])
    if name == "f.csv":
        (tmp_path / name).write_text(csv_text(replaced=bad), encoding="utf-8")
    else:
        bad = {}
        write_file(tmp_path / name, table())
    store = FailingStore(RedisOptions(redis_url))
    clock = iter(range(1_000_000_000, 2_000_000_000))
    async with FeatureClient(CATALOGUE, store, wall_ms=lambda: next(clock)) as client:
        store.writes_left = 1
        with pytest.raises(StoreUnavailable):
            await load_file(client, "v@1", tmp_path / name, on_bad_row="skip")
        store.writes_left = 1_000_000
        report = await load_file(client, "v@1", tmp_path / name, on_bad_row="skip", resume=True)
        assert 0 < report.resumed_at < ROWS
        assert (report.rows, report.written, report.bad) == (ROWS, ROWS - len(bad), len(bad))
        assert [row.row for row in report.bad_rows] == [row for row in bad if row > report.resumed_at]
        # One moment for all rows: the load began once.
        rows = await client.read("v@1", [("n0", 0), ("n9997", 9997)])
        assert len(set(rows.block["event_ms"].tolist())) == 1
        # What ended is forgotten: resuming again loads it all.
        again = await load_file(client, "v@1", tmp_path / name, on_bad_row="skip", resume=True)
        assert again.resumed_at == 0


async def test_a_changed_file_is_not_resumed(redis_url: str, tmp_path: Path) -> None:
    store = FailingStore(RedisOptions(redis_url))
    async with FeatureClient(CATALOGUE, store) as client:
        write_file(tmp_path / "f.parquet", table())
        store.writes_left = 1
        with pytest.raises(StoreUnavailable):
            await load_file(client, "v@1", tmp_path / "f.parquet")
        store.writes_left = 1_000_000
        write_file(tmp_path / "f.parquet", table(9000))
        report = await load_file(client, "v@1", tmp_path / "f.parquet", resume=True)
        assert (report.resumed_at, report.written) == (0, 9000)


def test_the_redis_store_is_an_online_store(redis_url: str) -> None:
    store: OnlineStore = RedisStore(RedisOptions(redis_url))
    assert store is not None
