"""What a restart costs the hit rate, with and without prefetching: `python -m loadtest.warmup`.

Lookups of `--ids` ids under Zipf's law with exponent 1, in batches, through a cache that holds a share of them, on a
Redis of its own. When the hit rate is steady, the client and its warmer end; new ones start, as after a restart, and
prefetch. Compared are the hit rate before, and of the first lookups after. Everything is drawn from `--seed`.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featureclient.cache import CacheOptions
from featureclient.client import ClientOptions, FeatureClient
from featureclient.schema import Catalogue, View
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.warmup import Warmer, WarmupOptions
from loadtest.processes import exit_on_signals, running_redis

CATALOGUE = Catalogue.parse(
    "entities: {item: {item: string}}\nviews:\n  item_stats@1: {entity: item, columns: {vector: 'float32[8]'}}\n"
)
VIEW = CATALOGUE.view("item_stats@1")
BATCH = 64
ENTRY_BYTES = 300
"""About what a row of the view costs in the cache."""
ROOM = 0.97
"""How full a cache may be for more to be prefetched."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Hit rates: steady, of the first lookups after a restart without prefetching, and with; and what it took."""

    steady: float
    cold: float
    warm: float
    prefetched: int
    seconds: float


class Traffic:
    """Batches of ids under Zipf's law. The same seed gives the same batches."""

    def __init__(self, ids: int, seed: int) -> None:
        weights = 1 / np.arange(1, ids + 1)
        self._share = np.cumsum(weights / weights.sum())
        self._random = np.random.default_rng(seed)
        # Rank says nothing about the id, as in life.
        order = np.random.default_rng(seed + 1).permutation(ids)
        self.names = [f"item-{i}" for i in order]

    def batches(self, lookups: int) -> list[list[str]]:
        """The next lookups, cut into batches."""
        ranks = np.searchsorted(self._share, self._random.random(lookups)).tolist()
        return [[self.names[rank] for rank in ranks[at : at + BATCH]] for at in range(0, lookups, BATCH)]


async def fill(url: str, names: Sequence[str]) -> None:
    """Write a row for each id."""
    async with FeatureClient(CATALOGUE, RedisStore(RedisOptions(url))) as client:
        for start in range(0, len(names), 5000):
            some = list(names[start : start + 5000])
            await client.write(VIEW, {"item": some, "vector": np.zeros((len(some), 8), np.float32)})


class Server:
    """A client and its warmer, as the gateway has them."""

    def __init__(self, url: str, cache_bytes: int, options: WarmupOptions) -> None:
        client_options = ClientOptions(cache=CacheOptions(bytes_max=cache_bytes), read_timeout_s=30.0)
        self.client = FeatureClient(CATALOGUE, RedisStore(RedisOptions(url, timeout_s=30.0)), client_options)
        self.warmer = Warmer(CATALOGUE, self.client.store, self.client.warm, options, room=self.room)

    def room(self, view: View) -> int | None:
        """How many more rows fit into the cache of a view."""
        cache = self.client.snapshot().get(view.ref)
        if cache is None or not cache.entries:
            return None
        return int((ROOM * cache.bytes_max - cache.bytes) * cache.entries / cache.bytes)

    async def serve(self, batches: Sequence[Sequence[str]]) -> float:
        """Look up every batch, fetch what is missing, count what is due. The share of hits."""
        hits = total = 0
        for batch in batches:
            if self.warmer.sampler.due():
                self.warmer.offer(VIEW.ref, batch)
            rows = self.client.lookup(VIEW, batch, time.monotonic())
            missing = rows.count(None)
            hits += len(batch) - missing
            total += len(batch)
            if missing:
                await self.client.read(VIEW, batch)
        return hits / total


async def measure(
    url: str, *, ids: int, cache_share: float, lookups: int, first: int, options: WarmupOptions, seed: int
) -> Restart:
    """One restart. `first` lookups are looked at after it, and as many as a quarter of `lookups` before."""
    traffic = Traffic(ids, seed)
    await fill(url, traffic.names)
    cache_bytes = int(ids * cache_share * ENTRY_BYTES)
    before = Server(url, cache_bytes, options)
    async with before.client, before.warmer:
        await before.serve(traffic.batches(lookups * 3 // 4))
        steady = await before.serve(traffic.batches(lookups // 4))
    after = traffic.batches(first)
    without = Server(url, cache_bytes, WarmupOptions(enabled=False))
    async with without.client, without.warmer:
        cold = await without.serve(after)
    restarted = Server(url, cache_bytes, options)
    async with restarted.client, restarted.warmer:
        warmed = (await restarted.warmer.prefetch(30.0))[-1]
        warm = await restarted.serve(after)
    return Restart(steady, cold, warm, warmed.cached, warmed.seconds)


async def _table(url: str, ids: int, lookups: int, first: int, seed: int) -> None:
    print("| cache holds | kept ids | counted | steady | first, cold | first, prefetched | of steady | prefetch |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for cache_share in (0.1, 0.2):
        for keys_max, every in ((20_000, 1), (20_000, 16), (20_000, 64), (2_000, 1)):
            options = WarmupOptions(keys_max=keys_max, sample_every=every, sample_ids_per_s_max=10**9, replica="one")
            found = await measure(
                url, ids=ids, cache_share=cache_share, lookups=lookups, first=first, options=options, seed=seed
            )
            async with FeatureClient(CATALOGUE, RedisStore(RedisOptions(url))) as client:
                await client.store.put_blob("warmup:replicas", b"")
                await client.store.put_blob("warmup:counts:one", b"")
            print(
                f"| {cache_share:.0%} of ids | {keys_max:,} | 1 in {every} | {found.steady:.1%} | {found.cold:.1%} "
                f"| {found.warm:.1%} | {found.warm / found.steady:.0%} "
                f"| {found.prefetched:,} rows in {found.seconds:.2f} s |"
            )


def main() -> None:
    """Print the table."""
    exit_on_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=50_000)
    parser.add_argument("--lookups", type=int, default=600_000, help="before the restart")
    parser.add_argument("--first", type=int, default=5_000, help="lookups that are looked at after it")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_redis(folder=Path(folder)) as redis:
        asyncio.run(_table(f"redis://127.0.0.1:{redis.port}/0", asked.ids, asked.lookups, asked.first, asked.seed))


if __name__ == "__main__":
    main()
