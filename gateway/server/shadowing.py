"""Puts the shadow among the other parts of a gateway: what it reads with, and who hears what it found.

pipeline ─answers─▶ Shadow ─Compared─▶ Comparisons ─▶ the page of experiments, metrics
                      ├─▶ a feature client of its own        └ answers of variants ─▶ journal
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from featureclient.client import ClientOptions, FeatureClient
from featureclient.schema import Catalogue
from featureclient.store import OnlineStore
from gateway.experiments.form import CompareForm
from gateway.experiments.paired import PairedOptions
from gateway.inference import Model
from gateway.pipeline import Answers, Pipeline
from gateway.pipeline.comparison import Compare, Comparisons
from gateway.pipeline.shadow import Shadow
from gateway.pipeline.shadow_options import ShadowOptions
from gateway.records.served import Moments
from gateway.server.experiments import Live
from gateway.telemetry import Telemetry

READ_KEYS_MAX = 64
"""Keys of one read of the shadow's: Redis does nothing else meanwhile, and primaries may be waiting."""


def client_options(options: ClientOptions, shadow: ShadowOptions) -> ClientOptions:
    """Those of the shadow's client: small reads, one at a time."""
    return replace(
        options,
        cache=replace(options.cache, bytes_max=shadow.cache_bytes_max),
        reads_in_flight_max=1,
        read_keys_max=READ_KEYS_MAX,
    )


async def shadowed(
    stack: contextlib.AsyncExitStack,
    pipeline: Pipeline,
    catalogue: Catalogue,
    live: Live,
    options: ShadowOptions,
    *,
    features: ClientOptions,
    store: OnlineStore,
    telemetry: Telemetry,
    keep: Callable[[Answers, Moments], None] | None,
) -> tuple[Shadow, Comparisons]:
    """Start the shadow of a pipeline, and have it end with the stack. `store` is the shadow's own."""

    def compare(experiment: str) -> Compare | None:
        running = live.running.get(experiment)
        return None if running is None else compare_of(running.experiment.form.compare)

    def violated(model: Model, violations: Any) -> None:
        telemetry.violated(f"{model.name}/{model.variant}", violations)

    client = await stack.enter_async_context(FeatureClient(catalogue, store, client_options(features, options)))
    comparisons = stack.enter_context(Comparisons(compare))
    shadow = Shadow(pipeline, client, options, live.targets, comparisons.offer, keep=keep, violated=violated)
    stack.callback(shadow.close)
    telemetry.watch_shadow(shadow.state, comparisons.differences)
    return shadow, comparisons


def compare_of(form: CompareForm) -> Compare:
    """What an experiment's form asks to compare."""
    return Compare(form.output, form.position, PairedOptions(form.tolerance, form.threshold, form.top_k))


def by_variant(comparisons: Comparisons) -> Callable[[str], Mapping[str, Any]]:
    """Fits `Experiments.comparisons`."""
    return lambda experiment: comparisons.summaries().get(experiment, {})
