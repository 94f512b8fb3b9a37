"""A pipeline with a shadow on real Redis: the ranker as it is served, and variants of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featureclient.client import ClientOptions, FeatureClient
from featureclient.events import Event, StoreRead
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.experiments.experiment import Change
from gateway.inference import InferenceOptions, Model, ModelRepository, Runner
from gateway.inference.cost import Cost
from gateway.inference.session import Session
from gateway.inference.variants import Compiling, Target, variant_of
from gateway.pipeline import Answers, Pipeline, PipelineOptions
from gateway.pipeline.copies import Compared
from gateway.pipeline.shadow import Shadow
from gateway.pipeline.shadow_options import ShadowOptions
from gateway.plan.transform import resolver
from gateway.records.request import Asked, Request
from gateway.records.served import Moments
from tests.executing import Kept, Waiting
from tests.running import CATALOGUE, Site, make_site
from tests.waiting import soon

SECOND = """
  user_stats@2:
    entity: user
    columns:
      age: {dtype: float32, default: -2.0}
      visits: {dtype: int32, default: 0}
      taste: {dtype: "float32[2]", default: 0.0}
"""
EAGER = {"linger_ms": 0, "load_max": 1.0, "cpu_share": 1.0}
"""A shadow that waits for nothing but the turn."""


def shadow_site(folder: Path, redis_url: str) -> Site:
    """The ranker, with a second version of a view that no model reads."""
    site = make_site(folder, redis_url)
    (folder / "features.yaml").write_text(CATALOGUE + SECOND)
    return site


@dataclass
class Rig:
    """A pipeline and its shadow."""

    pipeline: Pipeline
    shadow: Shadow
    models: ModelRepository
    catalogue: Catalogue
    client: FeatureClient
    kept: Kept
    targets: dict[Model, Sequence[Target]]
    compared: list[Compared] = field(default_factory=list)
    journaled: list[tuple[Answers, Moments]] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    """Keys of each read of the primaries' client."""
    shadow_reads: list[int] = field(default_factory=list)

    @property
    def model(self) -> Model:
        return self.models.latest("ranker")

    def variant(self, name: str = "second", **change: Any) -> Model:
        """A variant of the ranker; by default with the second version of the users' view."""
        changed = Change(**(change or {"views": {"user": "user_stats@2"}}))
        return variant_of(self.model, changed, name, Compiling(self.catalogue, resolver(())))

    def shadowed(self, *variants: Model, share: float = 100.0, experiment: str = "try") -> None:
        """Answer once more with these variants."""
        self.targets[self.model] = [Target(experiment, one, share, None, None) for one in variants]

    def ask(self, name: str, users: Sequence[str], *, stay_s: float = 30.0, hour: float = 1.0) -> Request:
        """A request of so many rows."""
        asked = Asked(
            {"user": list(users), "item": list(range(len(users)))}, {"hour": np.float32([hour])}, {}, (), False
        )
        bound = self.model.plan.bind(asked, 100_000)
        now = time.monotonic()
        return Request(
            Waiting(name), "ranker", name, now, now + stay_s, bound.rows, bound.ids, bound.context, (), (), False
        )

    def counts(self, variant: str = "second", experiment: str = "try") -> dict[str, int]:
        """What became of the rows, without zeros."""
        results = self.shadow.state().rows.get((experiment, variant), {})
        return {result: rows for result, rows in results.items() if rows}

    async def counted(self, rows: int, variant: str = "second", wait_s: float = 10.0) -> dict[str, int]:
        """The same when so many rows have been counted."""
        await soon(lambda: sum(self.counts(variant).values()) >= rows, wait_s)
        return self.counts(variant)


@asynccontextmanager
async def shadow_rig(
    site: Site, redis_url: str, pipeline: PipelineOptions | None = None, store_url: str = "", **options: Any
) -> AsyncIterator[Rig]:
    """Serve the site's models with a shadow; `store_url` is another way to the store, for the shadow alone."""
    catalogue = Catalogue.load(site.folder / "features.yaml")
    models = ModelRepository.open(site.models, catalogue, resolver(()), InferenceOptions())
    kept = Kept()
    targets: dict[Model, Sequence[Target]] = {}
    reads: tuple[list[int], list[int]] = ([], [])

    def counting(where: list[int]) -> Any:
        def on_event(event: Event) -> None:
            if isinstance(event, StoreRead):
                where.append(event.keys)

        return on_event

    def client(where: list[int], url: str) -> FeatureClient:
        return FeatureClient(catalogue, RedisStore(RedisOptions(url=url)), ClientOptions(), on_event=counting(where))

    async with client(reads[0], redis_url) as primary, client(reads[1], store_url or redis_url) as own:
        served = Pipeline(primary, pipeline or PipelineOptions(store_timeout_ms=2000), kept, lambda report: None)
        settings = replace(ShadowOptions(**EAGER), **options)
        compared: list[Compared] = []
        journaled: list[tuple[Answers, Moments]] = []
        shadow = Shadow(
            served,
            own,
            settings,
            lambda model: targets.get(model, ()),
            compared.append,
            keep=lambda answers, moments: journaled.append((answers, moments)),
        )
        yield Rig(served, shadow, models, catalogue, primary, kept, targets, compared, journaled, *reads)
        shadow.close()
    models.close()


def on(model: Model, session: Session, *, cost_s: float = 1e-5, variant: str = "second") -> Model:
    """The model as a variant of another graph, whose runs are expected to take `cost_s`."""
    runner = Runner(session, Cost(cost_s, 2 * cost_s, 64), 200)
    return replace(model, runner=runner, inner=None, variant=variant)


async def write_second(client: FeatureClient, users: int) -> None:
    """Both versions of users u0, u1, …: the second is a year older, and visits a hundred times more."""
    ids = np.arange(users)
    names = [f"u{i}" for i in ids]
    taste = np.stack([ids, -ids], axis=1).astype(np.float32)
    for view, years, more in (("user_stats@1", 0, 0), ("user_stats@2", 1, 100)):
        columns = {"user": names, "age": np.float32(ids + years), "visits": np.int32(ids + more), "taste": taste}
        await client.write(view, columns)
    await asyncio.sleep(0.05)  # what is told of the change has been heard
