"""Rows that are read ahead: what one model has seen together, another need not wait for."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, View
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.inference import InferenceOptions, Model, ModelRepository
from gateway.pipeline import Answers, Pipeline, PipelineOptions
from gateway.pipeline.ahead import BATCH_IDS, LOOK_IDS_MAX, ReadAhead
from gateway.plan.transform import resolver
from gateway.records.errors import HeadraceError
from gateway.records.request import Asked, Request
from tests.running import Site, make_site

CATALOGUE = """
entities: {plane: {tailnum: string}, route: {route: int64}}
views:
  plane_stats@1: {entity: plane, prefetch: [route_stats@1], columns: {a: {dtype: float32, default: 0.0}}}
  route_stats@1: {entity: route, columns: {b: {dtype: float32, default: 0.0}}}
"""
PLANE = "plane: {view: plane_stats@1}"
ROUTE = "route: {view: route_stats@1}"


class Caller:
    cancelled = False


class Ended:
    """A sink that knows when requests have ended."""

    def __init__(self) -> None:
        self.left = 0
        self.all = asyncio.Event()

    def answer(self, answers: Answers) -> None:
        self._end(len(answers.requests))

    def refuse(self, request: Request, error: HeadraceError, model: Model) -> None:
        raise AssertionError(error)

    def _end(self, count: int) -> None:
        self.left -= count
        if not self.left:
            self.all.set()


class Bench:
    def __init__(self, pipeline: Pipeline, models: ModelRepository, client: FeatureClient, ended: Ended) -> None:
        self.pipeline, self.models, self.client, self._ended = pipeline, models, client, ended

    async def ask(self, model: str, *asked: dict[str, Sequence[Any]]) -> None:
        """All of these requests at once."""
        found = self.models.latest(model)
        now = time.monotonic()
        requests = []
        for entities in asked:
            bound = found.plan.bind(Asked(entities, {}, {}, (), False), 10_000)
            requests.append(
                Request(Caller(), model, "", now, now + 30, bound.rows, bound.ids, bound.context, (), (), False)
            )
        self._ended.left, self._ended.all = len(requests), asyncio.Event()
        self.pipeline.accept(found, requests)
        async with asyncio.timeout(10):
            await self._ended.all.wait()

    def cached(self, *routes: int) -> list[bool]:
        view = self.client.catalogue.view("route_stats@1")
        return [row is not None for row in self.client.lookup(view, routes, time.monotonic())]

    def forget(self) -> None:
        """The caches are as if they had been evicted."""
        for tier in self.client._tiers.values():  # eviction cannot be had for so few rows
            tier.cache.clear()


@asynccontextmanager
async def opened(site: Site, redis_url: str) -> AsyncIterator[Bench]:
    catalogue = Catalogue.load(site.folder / "features.yaml")
    models = ModelRepository.open(site.models, catalogue, resolver(()), InferenceOptions())
    ended = Ended()
    async with FeatureClient(catalogue, RedisStore(RedisOptions(url=redis_url))) as client:
        planes = {"tailnum": [f"N{i}" for i in range(300)], "a": np.arange(300)}
        await client.write("plane_stats@1", planes)
        await client.write("route_stats@1", {"route": np.arange(300), "b": np.arange(300)})
        pipeline = Pipeline(client, PipelineOptions(store_timeout_ms=5000), ended, lambda _: None)
        yield Bench(pipeline, models, client, ended)
    models.close()


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    site = make_site(tmp_path, redis_url)
    (tmp_path / "features.yaml").write_text(CATALOGUE)
    site.models.joinpath("ranker/model.yaml").write_text(
        f"name: ranker\nviews: {{{PLANE}, {ROUTE}}}\ninputs: {{x: [plane.a, route.b]}}\n"
    )
    site.add_model("ranker", site.models.joinpath("ranker/model.yaml").read_text(), np.float32([[1], [1]]))
    site.add_model("planes", f"name: planes\nviews: {{{PLANE}}}\ninputs: {{x: [plane.a]}}\n", np.float32([[1]]))
    site.add_model("routes", f"name: routes\nviews: {{{ROUTE}}}\ninputs: {{x: [route.b]}}\n", np.float32([[1]]))
    return site


async def test_what_one_model_has_seen_together_is_read_ahead_for_another(site: Site, redis_url: str) -> None:
    async with opened(site, redis_url) as it:
        for _ in range(4):  # every second one is looked at
            await it.ask("ranker", {"tailnum": ["N1"], "route": [11]}, {"tailnum": ["N2"], "route": [22, 23]})
        await it.ask("ranker", {"tailnum": ["N1"], "route": [99]})  # once is no habit
        it.forget()
        await it.ask("planes", {"tailnum": ["N1"]}, {"tailnum": ["N2", "N3"]})
        give_up_at = time.monotonic() + 10
        while it.cached(11, 22, 23) != [True] * 3:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.002)
        assert it.cached(99) == [False]


async def test_a_model_of_views_without_prefetch_looks_at_nothing(site: Site, redis_url: str) -> None:
    async with opened(site, redis_url) as it:
        ahead = ReadAhead(it.client)
        views = it.client.catalogue.views
        assert ahead.of(it.models.latest("routes").plan, views) is None
        assert ahead.of(it.models.latest("planes").plan, views) is not None
        await it.ask("routes", {"route": [1]})


class Told:
    """Notes what is to be read ahead."""

    def __init__(self) -> None:
        self.ids: list[Any] = []

    def read_ahead(self, view: View, ids: Sequence[Any]) -> None:
        self.ids += ids


async def test_looking_is_bounded_and_paid_for(site: Site, redis_url: str) -> None:
    """Of large batches a part is looked at, another one each time, and then batches are passed over."""
    async with opened(site, redis_url) as it:
        told = Told()
        ahead = ReadAhead(told)
        views = it.client.catalogue.views
        plan = it.models.latest("ranker").plan
        teaching, asking = ahead.of(plan, views), ahead.of(it.models.latest("planes").plan, views)
        assert teaching is not None
        assert asking is not None
        entities = {"tailnum": [f"N{i}" for i in range(300)], "route": [*range(300)]}
        bound = plan.bind(Asked(entities, {}, {}, (), False), 10_000)
        now = time.monotonic()
        one = Request(Caller(), "ranker", "", now, now + 1, bound.rows, bound.ids, bound.context, (), (), False)
        (together,) = ahead._together.values()  # how much was learned is seen nowhere else
        for _ in range(100 // BATCH_IDS):
            teaching.look([one])
            assert len(together) == 100, "every third row, which the next batches pay for"
        for _ in range(2 * LOOK_IDS_MAX // BATCH_IDS):
            teaching.look([one])
        assert len(together) == 300, "another part each time"
        lone = one._replace(rows=1, ids=(["alone"], [1]))
        for _ in range(2 * LOOK_IDS_MAX):
            teaching.look([lone])
        assert len(together) == 301
        teaching.look([lone])
        assert together.ahead(["alone"]) == [1], "a lone request is looked at each time"
        asking.look([one._replace(ids=(bound.ids[0],))])
        assert 0 < len(told.ids) <= LOOK_IDS_MAX
        told.ids.clear()
        asking.look([one._replace(ids=(bound.ids[0],))])
        assert told.ids == []


async def test_long_ids_are_not_remembered(site: Site, redis_url: str) -> None:
    """They may be refused by the client, and would take memory without a bound."""
    async with opened(site, redis_url) as it:
        told = Told()
        ahead = ReadAhead(told)
        views, both, alone = it.client.catalogue.views, it.models.latest("ranker"), it.models.latest("planes")
        teaching, asking = ahead.of(both.plan, views), ahead.of(alone.plan, views)
        assert teaching is not None
        assert asking is not None
        for tailnum in ("N" * 600, "N1"):
            for _ in range(8):
                bound = both.plan.bind(Asked({"tailnum": [tailnum], "route": [7]}, {}, {}, (), False), 10)
                request = Request(Caller(), "ranker", "", 0.0, 9.0, 1, bound.ids, bound.context, (), (), False)
                teaching.look([request])
        for tailnum in ("N" * 600, "N1"):
            bound = alone.plan.bind(Asked({"tailnum": [tailnum]}, {}, {}, (), False), 10)
            request = Request(Caller(), "planes", "", 0.0, 9.0, 1, bound.ids, bound.context, (), (), False)
            for _ in range(2):
                asking.look([request])
        assert set(told.ids) == {7}
        assert [len(together) for together in ahead._together.values()] == [1]


async def test_a_hint_that_cannot_be_followed_harms_nobody(site: Site, redis_url: str) -> None:
    async with opened(site, redis_url) as it:
        it.client.read_ahead(it.client.catalogue.view("plane_stats@1"), ["N" * 600, "N1"])
        await it.ask("planes", {"tailnum": ["N1"]})
