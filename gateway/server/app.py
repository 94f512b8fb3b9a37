"""The only constructor: settings in, a gateway that listens out. Nothing here decides anything about a request.

catalogue, models ─▶ store, workers, feature client ─▶ pipeline ─▶ HTTP, gRPC listen
                  ─▶ first contact with the store ─▶ caches warmed ─▶ ready
"""

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, cast

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from featureclient.client import FeatureClient
from featureclient.compute import Computer
from featureclient.schema import Catalogue
from featureclient.warmup import Warmer
from gateway import transport
from gateway.inference import ModelRepository
from gateway.pipeline import Pipeline
from gateway.plan.transform import resolver
from gateway.server import codec, memory, predict
from gateway.server.feature_events import FeatureEvents
from gateway.server.feature_service import FeatureService
from gateway.server.http import HttpEndpoint, alive_page, metrics_page, ready_page
from gateway.server.readiness import Readiness
from gateway.server.reflection import add_reflection
from gateway.server.settings import Settings
from gateway.server.stores import RefusalLog, open_rows
from gateway.telemetry import Telemetry
from headrace.v1 import features_pb2, features_pb2_grpc, prediction_pb2

_SWITCH_INTERVAL_S = 1e-4
"""How long another thread may keep the GIL from the loop, seconds."""
_GC_THRESHOLDS = (50_000, 20, 100)
"""A batch makes some thousand short-lived tuples and no cycles; looking for cycles every 700 costs it a tenth."""
_log = logging.getLogger(__name__)


class Gateway:
    """`async with Gateway(settings) as gateway:` serves until the block ends, then stops gracefully."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.addresses: Sequence[str] = ()
        self.http_address = ""
        self.telemetry = Telemetry(version=importlib.metadata.version("headrace"))
        self._exit = contextlib.AsyncExitStack()
        self._ready = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Gateway {', '.join(self.addresses) or 'stopped'}>"

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()
        self.addresses = ()

    async def wait_ready(self) -> None:
        """Return when the gateway is ready to answer."""
        await self._ready.wait()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        settings, telemetry = self.settings, self.telemetry
        catalogue = Catalogue.load(settings.catalogue)
        models = await load_models(settings, catalogue)
        stack.callback(models.close)

        refusals = RefusalLog()
        stack.callback(refusals.close)
        store = open_rows(settings.store, catalogue, refusals)
        events = FeatureEvents(telemetry.feature_event, telemetry.warmup_event)
        computer = await stack.enter_async_context(Computer(catalogue, settings.compute, on_event=events))
        client = await stack.enter_async_context(
            FeatureClient(catalogue, store, settings.features, computes=computer, on_event=events)
        )
        warmup = replace(settings.warmup, replica=settings.warmup.replica or _replica_name(settings))
        warmer = await stack.enter_async_context(
            Warmer(catalogue, store, client.warm, warmup, room=client.room, on_event=events.warmed)
        )
        if warmup.enabled:
            client.count_lookups(warmer.sampler, warmer.offer)
        handler = predict.PredictHandler(
            models,
            settings.predict,
            telemetry.failed,
            features_exposed=settings.features_exposed,
            ids=codec.PredictionIds(),
        )
        pipeline = Pipeline(client, settings.pipeline, handler, telemetry.observe)
        self._watch(client, pipeline, models)

        health_servicer = health.aio.HealthServicer()
        readiness = Readiness(store, health_servicer)
        await readiness.starting()
        endpoint = HttpEndpoint(
            {
                "/metrics": metrics_page(telemetry.render),
                "/healthz": alive_page,
                "/readyz": ready_page(readiness.reason),
            },
            settings.http,
        )
        self.http_address = stack.enter_context(endpoint).address

        server = transport.create(settings.transport, settings.grpc)
        server.add_batch_method(predict.METHOD, handler.on_calls)
        features_pb2_grpc.add_FeatureServiceServicer_to_server(
            FeatureService(catalogue, client, rows_max=settings.predict.rows_max, exposed=settings.features_exposed),
            server,
        )
        # A transport has the two methods that generated code calls.
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, cast("grpc.aio.Server", server))
        add_reflection(_SERVICES, server)
        telemetry.watch_turned_away(lambda: server.turned_away)
        self.addresses = await server.start()
        stack.push_async_callback(server.stop, settings.stop_grace_s)
        stack.push_async_callback(readiness.drain)
        for address in self.addresses:
            _log.info("gRPC (%s) on %s", settings.transport, address)
        _log.info("metrics and health on http://%s", self.http_address)

        async def open_up() -> None:
            readiness.warming = True
            await warmer.prefetch()
            handler.open(pipeline)
            self._freeze()
            await readiness.serve()
            self._ready.set()

        if settings.start_without_store:
            await open_up()
        watcher = asyncio.create_task(readiness.watch(open_up), name="headrace-readiness")
        stack.callback(watcher.cancel)

    def _watch(self, client: FeatureClient, pipeline: Pipeline, models: ModelRepository) -> None:
        for model in models:
            self.telemetry.expect(model.name, [binding.view.ref for binding in model.plan.bindings])
        self.telemetry.watch_caches(client.snapshot)
        self.telemetry.watch("parked_rows", "Rows of requests that wait for the store.", lambda: pipeline.rows_parked)
        self.telemetry.watch("rows_in_flight", "Rows of requests without an answer.", lambda: pipeline.rows_in_flight)
        self.telemetry.watch("computing_ids", "Ids that wait for a computed row.", lambda: client.computing_ids)
        self.telemetry.watch("pending_keys", "Keys that wait for a store read.", lambda: client.pending_keys)

    def _freeze(self) -> None:
        """Take what start-up made out of the garbage collector's sight: walking it costs 100 ms at a time."""
        if self.settings.transport == "fast":
            # grpcio has a thread that takes the GIL for every call; there a short interval costs 100 us a call.
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        memory.keep_large_blocks()


async def load_models(settings: Settings, catalogue: Catalogue) -> ModelRepository:
    """Load the model repository of the settings, in a thread. Raises `ConfigError` with every problem."""
    if settings.transform_path is not None and str(settings.transform_path) not in sys.path:
        sys.path.insert(0, str(settings.transform_path))
    models = await asyncio.to_thread(
        ModelRepository.load, settings.models, catalogue, resolver(settings.transform_modules), settings.inference
    )
    for model in models:
        _log.info("loaded %s/%s: %s", model.name, model.version, model.runner.cost)
    return models


def _replica_name(settings: Settings) -> str:
    """The same after a restart, and another for each process of a host."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", f"{socket.gethostname()}:{settings.grpc.listen[0]}")[-100:]


_SERVICES = (
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    features_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
)
