"""Combined rows follow their members, also while these are written."""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featureclient.client import FeatureClient
from featureclient.client.combining import Combiner, NotCombined, combined_views
from featureclient.load import LoadError, load_file
from featureclient.load.combining import combine_all
from featureclient.schema import Catalogue, InvalidTable, status
from featureclient.store import StoreUnavailable
from featureclient.store.redis import RedisOptions, RedisStore

CATALOGUE = Catalogue.parse(
    """
entities:
  leg: {origin: string, number: int64}
views:
  a@1: {entity: leg, max_age: 1d, columns: {x: {dtype: int32, default: 7}, v: "float32[2]", s: "string[4]"}}
  b@1: {entity: leg, ttl: 1h, columns: {at: timestamp, flag: bool}}
  c@1: {entity: leg, columns: {y: {dtype: float32, default: 0.5}}}
  all@1: {entity: leg, combine: [a@1, b@1, c@1]}
"""
)
IDS = [("JFK", 1), ("A:|%", -2), ("LGA", 3), ("none", 4)]


def client_of(redis_url: str) -> FeatureClient:
    return FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url)))


def keys(ids: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {"origin": [one[0] for one in ids], "number": [one[1] for one in ids]}


async def test_values_nulls_and_event_times(redis_url: str) -> None:
    async with client_of(redis_url) as client:
        a = {"x": [1, None, 3], "v": [[1.0, 2.0], [3.0, 4.0], None], "s": ["ab", "é", ""]}
        await client.write("a@1", {**keys(IDS[:3]), **a}, event_time_ms=1000)
        moment = np.array(["2020-01-01T00:00:00.5"], "datetime64[ms]")
        await client.write("b@1", {**keys(IDS[1:2]), "at": moment, "flag": [True]}, event_time_ms=2000)
        rows = await client.read("all@1", IDS)
    assert [status.describe(code) for code in rows.status.tolist()] == [
        "STALE (EXPIRED)",  # as a@1 is, after a day
        "STALE (EXPIRED)",
        "STALE (EXPIRED)",
        "MISSING (ABSENT)",
    ]
    assert rows.block["event_ms"].tolist() == [1000, 1000, 1000, -1]
    assert rows.columns["x"].tolist() == [1, 7, 3, 7]
    assert rows.columns["v"][:2].tolist() == [[1, 2], [3, 4]]
    assert rows.columns["s"].tolist()[:3] == ["ab", "é", ""]
    assert rows.columns["at"][1] == moment[0]
    valid = {name: column.tolist() for name, column in rows.valid.items()}
    assert valid == {
        "x": [True, False, True, False],
        "v": [True, True, False, False],
        "s": [True, True, True, False],
        "at": [False, True, False, False],
        "flag": [False, True, False, False],
        "y": [False] * 4,
    }


async def test_deleted_members_and_forced_older_ones(redis_url: str) -> None:
    async with client_of(redis_url) as client:
        await client.write("c@1", {**keys(IDS[:2]), "y": [1.0, 2.0]}, event_time_ms=5000)
        assert (await client.read("all@1", IDS[:2])).columns["y"].tolist() == [1.0, 2.0]
        await client.write("c@1", {**keys(IDS[:1]), "y": [9.0]}, event_time_ms=10, force=True)
        await client.delete("c@1", IDS[1:2])
        rows = await client.read("all@1", IDS[:2])
        assert rows.columns["y"].tolist() == [9.0, 0.5]
        assert rows.status.tolist()[1] & status.OUTCOME_MASK == status.MISSING


async def test_every_row_is_combined_once(redis_url: str) -> None:
    ids = [(f"p{i}", i) for i in range(3000)]
    async with client_of(redis_url) as client:
        await client.write("a@1", {**keys(ids[:2000]), "x": range(2000)})
        await client.write("c@1", {**keys(ids[1000:]), "y": np.arange(1000, 3000, dtype=np.float32)})
        told: list[tuple[int, int]] = []
        done = await combine_all(client, "all@1", lambda looked_at, total: told.append((looked_at, total)))
        assert done.written == 3000
        assert told[-1] == (4000, 4000)
        rows = await client.read("all@1", ids)
    assert rows.columns["x"].tolist() == [*range(2000), *[7] * 1000]
    assert rows.columns["y"].tolist() == [*[0.5] * 1000, *range(1000, 3000)]


async def test_writers_who_combine_at_the_same_time_end_with_the_right_row(redis_url: str) -> None:
    """Three clients write different members of the same rows, without knowing of each other."""
    ids = [(f"p{i}", i) for i in range(20)]

    async def writer(view: str, column: str, values: Any) -> None:
        async with client_of(redis_url) as client:
            for turn in range(15):
                await client.write(view, {**keys(ids), column: [values(turn)] * len(ids)})

    await asyncio.gather(
        writer("a@1", "x", int), writer("b@1", "flag", lambda turn: turn % 2 == 0), writer("c@1", "y", float)
    )
    async with client_of(redis_url) as client:
        rows = await client.read("all@1", ids)
    assert rows.columns["x"].tolist() == [14] * 20
    assert rows.columns["flag"].tolist() == [True] * 20
    assert rows.columns["y"].tolist() == [14.0] * 20


async def test_a_member_that_is_written_meanwhile_is_seen(redis_url: str) -> None:
    """The write happens exactly between reading the members and writing the combined row."""
    async with client_of(redis_url) as client, client_of(redis_url) as other:
        await client.write("c@1", {**keys(IDS[:1]), "y": [1.0]})
        store_write, turns = client.store.write, iter([2.0, 3.0])

        async def late(*arguments: Any, **named: Any) -> int:
            value = next(turns, None)
            if value is not None:
                await other.write("c@1", {**keys(IDS[:1]), "y": [value]})
            return await store_write(*arguments, **named)

        client.store.write = late  # type: ignore[method-assign]  # a seam in time, not in what is done
        done = await Combiner(client, "all@1").combine(IDS[:1])
        assert (done.written, done.contended) == (3, ())
        assert (await other.read("all@1", IDS[:1])).columns["y"].tolist() == [3.0]


async def test_rows_that_never_rest_are_named(redis_url: str) -> None:
    async with client_of(redis_url) as client, client_of(redis_url) as other:
        await client.write("c@1", {**keys(IDS[:1]), "y": [0.0]})
        store_write, turn = client.store.write, 0

        async def late(*arguments: Any, **named: Any) -> int:
            nonlocal turn
            turn += 1
            await other.write("c@1", {**keys(IDS[:1]), "y": [float(turn)]})
            return await store_write(*arguments, **named)

        client.store.write = late  # type: ignore[method-assign]  # a seam in time, not in what is done
        assert (await Combiner(client, "all@1").combine(IDS[:2])).contended == (IDS[0],)


async def test_which_views_combine_a_member(redis_url: str) -> None:
    assert [view.ref for view in combined_views(CATALOGUE.views, CATALOGUE.view("b@1"))] == ["all@1"]
    async with client_of(redis_url) as client:
        with pytest.raises(NotCombined, match="a@1 is not a combined view"):
            Combiner(client, "a@1")


async def test_a_combined_view_is_not_written_itself(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("origin,number,x\nJFK,1,2\n")
    async with client_of(redis_url) as client:
        with pytest.raises(InvalidTable, match=r"all@1: it is a combined view: write a@1 and b@1 and c@1 instead"):
            await client.write("all@1", {**keys(IDS[:1]), "x": [1]})
        with pytest.raises(LoadError, match="all@1 is a combined view: load a@1 and b@1 and c@1 instead"):
            await load_file(client, "all@1", file)


async def test_writers_who_are_cancelled_leave_no_combined_row_behind(redis_url: str) -> None:
    chance = random.Random(3)
    async with client_of(redis_url) as client:
        await client.write("c@1", {**keys(IDS[:1]), "y": [0.0]})
        for turn in range(1, 40):
            writing = asyncio.create_task(client.write("c@1", {**keys(IDS[:1]), "y": [float(turn)]}))
            await asyncio.sleep(chance.random() * 0.002)
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
    async with client_of(redis_url) as client:
        member, combined = await client.read("c@1", IDS[:1]), await client.read("all@1", IDS[:1])
        assert combined.columns["y"].tolist() == member.columns["y"].tolist()


async def test_a_write_that_is_applied_and_whose_answer_is_lost_is_combined(redis_url: str) -> None:
    async with client_of(redis_url) as client:
        await client.write("c@1", {**keys(IDS[:1]), "y": [1.0]})
        store_write, lost = client.store.write, iter([True])

        async def losing(*arguments: Any, **named: Any) -> int:
            written = await store_write(*arguments, **named)
            if next(lost, False):
                raise StoreUnavailable("the answer is lost")
            return written

        client.store.write = losing  # type: ignore[method-assign]  # a seam: what a cut connection does
        with pytest.raises(StoreUnavailable, match="the answer is lost"):
            await client.write("c@1", {**keys(IDS[:1]), "y": [2.0]})
        assert (await client.read("all@1", IDS[:1])).columns["y"].tolist() == [2.0]
