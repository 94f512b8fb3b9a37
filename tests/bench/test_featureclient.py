"""What a row costs: warm, cold, and on its way in. `pytest tests/bench/test_featureclient.py --benchmark-enable`.

`views` are 50 float32 columns, and 60 mixed ones: floats, ints, bools, a vector and a string.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import hiredis
import numpy as np
import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from featureclient.cache import CacheOptions
from featureclient.client import Ask, ClientOptions, FeatureClient
from featureclient.client.tier import Tier
from featureclient.schema import Catalogue, View
from featureclient.store.redis import RedisOptions, RedisStore

FLOATS = "".join(f"      f{i}: float32\n" for i in range(50))
MIXED = "".join(
    f"      a{i}: {{dtype: float32, default: 0}}\n      b{i}: {{dtype: int32, default: 1}}\n      c{i}: bool\n"
    for i in range(19)
)
CATALOGUE = Catalogue.parse(
    f"""
entities: {{user: {{user: string}}}}
views:
  floats@1:
    entity: user
    columns:
{FLOATS}
  mixed@1:
    entity: user
    columns:
{MIXED}
      vector: float32[16]
      name: string[16]
      big: float64
"""
)
USERS = 20_000
IDS = [f"u{i:06}" for i in range(USERS)]
OFF = ClientOptions(cache=CacheOptions(enabled=False))


def table(view: View, rows: int) -> dict[str, Any]:
    made: dict[str, Any] = {"user": IDS[:rows]}
    values = np.arange(rows)
    for column in view.columns:
        if column.dtype.kind == "string":
            made[column.name] = ["name"] * rows
        elif column.dtype.kind == "bool":
            made[column.name] = values % 2 == 0
        elif column.dtype.length is not None:
            made[column.name] = np.ones((rows, column.dtype.length), np.float32)
        else:
            made[column.name] = values.astype(column.dtype.numpy)
    return made


def stored(view: View, rows: int) -> tuple[Tier, list[bytes], list[bytes]]:
    tier = Tier(view, ClientOptions(), 1 << 30)
    encoded = tier.writer.encode(table(view, rows), 5, 10)
    return tier, list(encoded.keys), list(encoded.values)


@pytest.mark.parametrize("rows", [1, 64, 200])
@pytest.mark.parametrize("ref", ["floats@1", "mixed@1"])
def test_warm_rows_to_a_block(benchmark: BenchmarkFixture, ref: str, rows: int) -> None:
    view = CATALOGUE.view(ref)
    tier, keys, values = stored(view, USERS)
    found, _ = tier.reader.admit(keys, values, 1e9, 10)
    tier.cache.put_all(IDS, [row for row in found if row is not None])
    chance = random.Random(1)
    # New strings, as they come from a message: their hashes are not known yet the first time, but they are equal.
    wanted = [str(one.encode(), "ascii") for one in chance.choices(IDS, k=rows)]
    dtype = view.layout.block_dtype

    def run() -> Any:
        return np.frombuffer(b"".join(tier.cache.lookup(wanted, 1.0)), dtype)  # type: ignore[arg-type]  # all there

    assert len(benchmark(run)) == rows


@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("ref", ["floats@1", "mixed@1"])
def test_admitting_stored_rows(benchmark: BenchmarkFixture, ref: str, rows: int) -> None:
    tier, keys, values = stored(CATALOGUE.view(ref), rows)
    admitted = benchmark(lambda: tier.reader.admit(keys, values, 1.0, 10))
    assert not admitted.invalid


@pytest.mark.parametrize("ref", ["floats@1", "mixed@1"])
def test_encoding_a_table_of_10000_rows(benchmark: BenchmarkFixture, ref: str) -> None:
    view = CATALOGUE.view(ref)
    tier = Tier(view, ClientOptions(), 1 << 20)
    rows = table(view, 10_000)
    assert len(benchmark(lambda: tier.writer.encode(rows, 5, 10)).keys) == 10_000


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def test_a_bare_mget_of_200_keys(benchmark: BenchmarkFixture, redis_url: str, loop: asyncio.Runner) -> None:
    """What the next two are to be compared with: hiredis and a socket, without a check of anything."""
    view = CATALOGUE.view("floats@1")
    _, keys, values = stored(view, 200)

    async def prepare() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        store = RedisStore(RedisOptions(redis_url))
        await store.write(keys, values, event_ms_max=10)
        await store.close()
        return await asyncio.open_unix_connection(redis_url.removeprefix("unix://"))

    reader, writer = loop.run(prepare())
    parser = hiredis.Reader()

    async def run() -> Any:
        writer.write(hiredis.pack_command(("MGET", *keys)))  # type: ignore[arg-type]  # as in featureclient.store.redis
        while (reply := parser.gets()) is False:
            parser.feed(await reader.read(65_536))
        return reply

    assert benchmark(lambda: loop.run(run())) == values
    writer.close()


@pytest.mark.parametrize("ref", ["floats@1", "mixed@1"])
def test_a_cold_read_of_200_rows(benchmark: BenchmarkFixture, redis_url: str, loop: asyncio.Runner, ref: str) -> None:
    view = CATALOGUE.view(ref)
    client = FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url)), OFF)

    async def prepare() -> None:
        await client.__aenter__()
        await client.write(view, table(view, 200))

    async def run() -> "list[bytes | None]":
        done = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        rows = client.lookup(view, IDS[:200], now)
        client.fetch([Ask(view, IDS[:200], rows)], now + 5, lambda _: done.set_result(None))
        await done
        return rows

    loop.run(prepare())
    try:
        assert None not in benchmark(lambda: loop.run(run()))
    finally:
        loop.run(client.close())


def test_64_cold_readers_of_one_row(benchmark: BenchmarkFixture, redis_url: str, loop: asyncio.Runner) -> None:
    """As the gateway reads: the callers of one tick wait together, and each is told of its own row."""
    view = CATALOGUE.view("floats@1")
    client = FeatureClient(CATALOGUE, RedisStore(RedisOptions(redis_url)), OFF)
    callers = range(64)

    async def prepare() -> None:
        await client.__aenter__()
        await client.write(view, table(view, 64))

    async def run() -> int:
        all_done = asyncio.get_running_loop().create_future()
        told = 0

        def done(ready: Sequence[int]) -> None:
            nonlocal told
            told += len(ready)
            if told == len(callers):
                all_done.set_result(None)

        now = time.monotonic()
        rows = client.lookup(view, IDS[:64], now)
        client.fetch([Ask(view, IDS[:64], rows, callers)], now + 5, done, callers=len(callers))
        await all_done
        return told

    loop.run(prepare())
    try:
        assert benchmark(lambda: loop.run(run())) == 64
    finally:
        loop.run(client.close())
