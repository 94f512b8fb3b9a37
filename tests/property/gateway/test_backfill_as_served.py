"""A backfill of random histories has the columns that serving would have journaled at the same instants, to the bit."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.training.backfill import Backfilled, BackfillOptions, backfill
from tests.retraining import MINUTE_MS, PAIRS, START_MS, STATS, Retraining, pair_row, user_row

USERS = st.sampled_from(["u0", "é"])
ITEMS = st.integers(0, 1)
MOMENTS = st.integers(-4, 4).map(lambda step: START_MS + step * 30 * MINUTE_MS)
"""Coarse, so that events and requests often have the same time, and often are older than an hour or two."""
SEEDS = st.integers(0, 2**32 - 1)
NULLS = st.sets(st.sampled_from((*STATS, *PAIRS)), max_size=4)
HISTORY = st.lists(st.tuples(st.booleans(), USERS, ITEMS, MOMENTS, SEEDS, NULLS), max_size=20)
ASKED = st.lists(
    st.tuples(USERS, ITEMS, MOMENTS, st.floats(-1e6, 1e6, width=32), st.text("abé", max_size=2)),
    min_size=1,
    max_size=12,
)


def backfilled(site: Retraining, entities: dict[str, Any]) -> tuple[pa.Table, Backfilled]:
    path = site.folder / "entities.parquet"
    pq.write_table(pa.table(entities), path)
    options = BackfillOptions(path, site.write_histories())
    made = [*backfill(site.pinned, options)]
    return pa.Table.from_batches([batch for batch, _ in made if batch is not None]), made[-1][1]


def arranged(folder: Path, history: list[Any]) -> Retraining:
    site = Retraining(folder)
    for of_pair, user, item, moment, seed, nulls in history:
        if of_pair:
            row: dict[str, Any] = {"user": user, "item": item, **pair_row(seed)}
        else:
            row = {"user": user, **user_row(seed)}
        site.know("pairs@1" if of_pair else "stats@1", moment, **{k: None if k in nulls else v for k, v in row.items()})
    return site


@settings(max_examples=40, deadline=None)
@given(HISTORY, ASKED)
def test_a_backfill_is_what_would_have_been_served(history: list[Any], asked: list[Any]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="headrace-backfill-test-"))
    try:
        site = arranged(folder, history)
        for user, item, moment, hour, tag in asked:
            site.serve(moment, [{"user": user, "product": item, "hour": hour, "tag": tag}])
        asyncio.run(site.keep())
        served = site.journaled()
        columns = ("user", "product", "time", "hour", "tag")
        entities: dict[str, Any] = dict(zip(columns, map(list, zip(*asked, strict=True)), strict=True))
        entities["time"] = pa.array(entities["time"], pa.timestamp("ms", "UTC"))
        entities["hour"] = pa.array(entities["hour"], pa.float32())
        entities["late"] = list(range(len(asked)))
        made, done = backfilled(site, entities)
    finally:
        shutil.rmtree(folder)
    assert (done.total, done.rows, done.rejected) == (len(asked), len(asked), 0)
    assert made["label.late"].to_pylist() == list(range(len(asked)))
    same = [name for name in served.column_names if name.startswith(("entity.", "f.", "null.", "status.", "age_ms."))]
    assert set(made.column_names) - {"label.late", "version", "variant"} == {"time", *same}
    for name in ("time", *same):
        ours, theirs = (one[name].combine_chunks() for one in (made, served))
        assert ours.type == theirs.type, name
        assert ours.equals(theirs), f"{name}: {ours} is not {theirs}"
