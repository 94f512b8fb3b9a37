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
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from featureclient.client import FeatureClient
from featureclient.compute import Computer
from featureclient.schema import Catalogue, ConfigError, Problem
from featureclient.store import OnlineStore
from featureclient.warmup import Warmer
from gateway import transport
from gateway.inference import ModelRepository
from gateway.inference.mirror import Mirror, MirrorError
from gateway.inference.watching import repeat, watch
from gateway.journal.sinks import missing
from gateway.pipeline import Pipeline
from gateway.pipeline.run import NOT_KEPT, Keeping
from gateway.plan.transform import resolver
from gateway.records.prediction_ids import PredictionIds
from gateway.records.report import BatchReport, FailureReport
from gateway.server import memory, oip, predict
from gateway.server.experiments import Experiments
from gateway.server.fallbacks import Fallbacks
from gateway.server.feature_events import FeatureEvents
from gateway.server.feature_service import FeatureService
from gateway.server.http import HttpEndpoint, alive_page, metrics_page, ready_page
from gateway.server.readiness import JOURNAL, MONITOR, Readiness
from gateway.server.reflection import add_reflection
from gateway.server.settings import Settings
from gateway.server.shadowing import by_variant, shadowed
from gateway.server.stores import RefusalLog, open_rows
from gateway.server.swaps import Swaps
from gateway.telemetry import Telemetry
from gateway.telemetry.model_families import Repository
from headrace.v1 import features_pb2, features_pb2_grpc, prediction_pb2

if TYPE_CHECKING:
    from gateway.server.keeping import Keeper

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
        self.version = importlib.metadata.version("headrace")
        self.models: ModelRepository
        """The models that serve. There when it has started."""
        self.telemetry = Telemetry(version=self.version)
        self.statistics = oip.Statistics()
        self._keeper: Keeper | None = None
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
        models = self.models = await load_models(settings, catalogue)
        stack.callback(models.close)
        fallbacks = Fallbacks(models)
        fallbacks.check(settings.models)
        experiments = Experiments(settings.experiments, models, telemetry)
        stack.callback(experiments.close)
        store, client, warmer = await self._features(stack, catalogue)

        ids = PredictionIds(secrets.token_bytes(8))
        health_servicer = health.aio.HealthServicer()
        readiness = Readiness(store, health_servicer)
        keeping = await self._journal(stack, readiness, ids.prefix)
        handler = predict.PredictHandler(
            models, settings.predict, self._failed, features_exposed=settings.features_exposed, prefix=ids.prefix
        )
        infer = oip.InferHandler(models, settings.predict, settings.oip, self._failed, prefix=ids.prefix)
        pipeline = Pipeline(
            client,
            settings.pipeline,
            handler,
            self._observe,
            ids=ids,
            keeping=keeping,
            fallback=fallbacks,
            violated=lambda model, violations: telemetry.violated(model.name, violations),
        )
        self._watch(client, pipeline, models)
        swaps = self._follow_swaps(stack, pipeline, handler, infer)
        swaps.tell(fallbacks.on_swap, fallbacks.forget)
        await self._shadow(stack, pipeline, catalogue, experiments, swaps)
        experiments.join((handler, infer), swaps, pipeline)

        await readiness.starting()
        endpoint = HttpEndpoint(
            {
                "/metrics": metrics_page(telemetry.render),
                "/healthz": alive_page,
                "/readyz": ready_page(readiness.reason),
                "/experiments": experiments.page(),
            },
            settings.http,
        )
        self.http_address = stack.enter_context(endpoint).address

        server = transport.create(settings.transport, settings.grpc)
        server.add_batch_method(predict.METHOD, handler.on_calls)
        server.add_batch_method(oip.METHOD, infer.on_calls)
        self._inference_service(models, infer, readiness).add_to(server)
        self._add_services(
            server,
            FeatureService(catalogue, client, rows_max=settings.predict.rows_max, exposed=settings.features_exposed),
            health_servicer,
        )
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
            await experiments.begin(client, settings.repository)
            handler.open(pipeline)
            infer.open(pipeline)
            self._freeze()
            await readiness.serve()
            self._ready.set()

        if settings.start_without_store:
            await open_up()
        watcher = asyncio.create_task(readiness.watch(open_up), name="headrace-readiness")
        stack.callback(watcher.cancel)

    async def _features(
        self, stack: contextlib.AsyncExitStack, catalogue: Catalogue
    ) -> tuple[OnlineStore, FeatureClient, Warmer]:
        """The store, who reads from it, and what is read before it is asked for."""
        settings, telemetry = self.settings, self.telemetry
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
        return store, client, warmer

    async def _journal(self, stack: contextlib.AsyncExitStack, readiness: Readiness, prefix: bytes) -> Keeping:
        """Where the settings ask for a journal: the journal, and the second process that reads it."""
        settings = self.settings
        if not settings.journal.enabled:
            return NOT_KEPT
        if problems := missing(settings.journal.sinks):
            raise ConfigError([Problem("journal", 0, "sinks", said) for said in problems])
        # What they need comes with an extra.
        from gateway.journal.journal import Journal
        from gateway.server.keeping import Keeper

        if settings.monitor.enabled:
            from gateway.monitor.supervisor import Supervisor

            monitor = Supervisor(settings.journal, settings.models, settings.monitor)
            await stack.enter_async_context(monitor)
            self.telemetry.watch_monitor(monitor.snapshot)
            readiness.follow(MONITOR, lambda: monitor.trouble)
        # Entered after the monitor, so that it ends first, and the monitor sees all of it.
        journal = await stack.enter_async_context(Journal(settings.journal))
        self.telemetry.watch_journal(journal.state)
        readiness.follow(JOURNAL, lambda: "" if journal.healthy else journal.state().error or "the writer has ended")
        self._keeper = Keeper(journal, prefix)
        self._keeper.begin(self.models)
        return self._keeper.keeping

    async def _shadow(
        self,
        stack: contextlib.AsyncExitStack,
        pipeline: Pipeline,
        catalogue: Catalogue,
        experiments: Experiments,
        swaps: Swaps,
    ) -> None:
        """Where there are experiments: what answers once more, with a connection to the store of its own."""
        if experiments.live is None:
            return
        settings = self.settings
        refusals = RefusalLog()
        stack.callback(refusals.close)
        shadow, comparisons = await shadowed(
            stack,
            pipeline,
            catalogue,
            experiments.live,
            settings.shadow,
            features=settings.features,
            store=open_rows(settings.store, catalogue, refusals),
            telemetry=self.telemetry,
            keep=None if self._keeper is None else self._keeper.offer,
        )
        swaps.tell(lambda swap: None, shadow.forget)
        experiments.comparisons = by_variant(comparisons)

    def _observe(self, report: BatchReport) -> None:
        self.telemetry.observe(report)
        self.statistics.observe(report)

    def _failed(self, report: FailureReport) -> None:
        self.telemetry.failed(report)
        self.statistics.failed(report)
        if self._keeper is not None:
            self._keeper.failed(report)

    def _inference_service(
        self, models: ModelRepository, infer: oip.InferHandler, readiness: Readiness
    ) -> oip.InferenceService:
        settings = self.settings
        return oip.InferenceService(
            models,
            self.statistics,
            oip.Streams(infer.on_calls, settings.oip.stream_in_flight_max),
            oip.Access(settings.admin_token.get_secret_value(), local=settings.local),
            ready=lambda: readiness.reason() is None,
            version=self.version,
        )

    def _add_services(
        self, server: transport.Transport, features: FeatureService, health_servicer: health.aio.HealthServicer
    ) -> None:
        """The rpcs that are coroutines and not of the Open Inference Protocol."""
        features_pb2_grpc.add_FeatureServiceServicer_to_server(features, server)
        # A transport has the two methods that generated code calls.
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, cast("grpc.aio.Server", server))
        add_reflection(_SERVICES, server)

    def _follow_swaps(
        self,
        stack: contextlib.AsyncExitStack,
        pipeline: Pipeline,
        handler: predict.PredictHandler,
        infer: oip.InferHandler,
    ) -> Swaps:
        """Have models swapped while they serve, when they are asked for or when their files change."""
        models, options = self.models, self.settings.repository
        swaps = Swaps(models, pipeline, self.telemetry, _freeze_again)
        swaps.tell(handler.on_swap, handler.forget)
        swaps.tell(infer.on_swap, infer.forget)
        swaps.tell(self.statistics.on_swap, self.statistics.forget)
        if self._keeper is not None:
            swaps.tell(self._keeper.on_swap, self._keeper.forget)
        models.on_swap.append(swaps)
        if options.watch_models:
            watching = asyncio.create_task(watch(self.settings.models, options, models.refresh), name="headrace-models")
            stack.callback(watching.cancel)
            if options.mirror:
                looking = asyncio.create_task(repeat(options.mirror_every_s, models.refresh), name="headrace-mirror")
                stack.callback(looking.cancel)
        return swaps

    def _watch(self, client: FeatureClient, pipeline: Pipeline, models: ModelRepository) -> None:
        for model in models:
            self.telemetry.expect(model.name, [binding.view.ref for binding in model.plan.bindings])
        self.telemetry.watch_caches(client.snapshot)
        self.telemetry.watch_repository(
            lambda: Repository(
                models.states(), models.counts, {(one.name, one.version): one.facts.on_asked for one in models}
            )
        )
        self.telemetry.watch("parked_rows", "Rows of requests that wait for the store.", lambda: pipeline.rows_parked)
        self.telemetry.watch_queues(pipeline.queued_rows)
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


def _freeze_again() -> None:
    """After a swap: only what is young is looked at, among it what the load left behind; 2 ms at most as a rule."""
    gc.collect(0)
    gc.freeze()


async def load_models(settings: Settings, catalogue: Catalogue) -> ModelRepository:
    """Load the model repository of the settings, in a thread. Raises `ConfigError` with every problem."""
    if settings.transform_path is not None and str(settings.transform_path) not in sys.path:
        sys.path.insert(0, str(settings.transform_path))
    mirror = await asyncio.to_thread(_mirror, settings)
    models = await asyncio.to_thread(
        ModelRepository.open,
        settings.models,
        catalogue,
        resolver(settings.transform_modules),
        settings.inference,
        settings.repository,
    )
    models.fetch = None if mirror is None else mirror.copy
    return models


def _mirror(settings: Settings) -> Mirror | None:
    """Copy the mirrored address into the models' folder. Where it cannot be read, what was copied before will do."""
    options = settings.repository
    if not options.mirror:
        return None
    try:
        mirror = Mirror(options.mirror, settings.models, options.mirror_options)
    except MirrorError as error:
        raise ConfigError([Problem("repository", 0, "mirror", str(error))]) from error
    try:
        done = mirror.copy()
        _log.info("copied %d files of %s", len(done.fetched), options.mirror)
        for refused in done.refused:
            _log.warning("%s: %s", options.mirror, refused)
    except MirrorError as error:
        _log.error("serving what was copied before: %s", error)
    return mirror


def _replica_name(settings: Settings) -> str:
    """The same after a restart, and another for each process of a host."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", f"{socket.gethostname()}:{settings.grpc.listen[0]}")[-100:]


_SERVICES = (
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    features_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    oip.SERVICE.full_name,
)
