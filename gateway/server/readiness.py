"""Ready or not, and why: one answer for gRPC health, for `/readyz`, and for the log.

Ready means that the models are loaded and the store has answered once (or the setting start_without_store). A later
loss of the store changes only the health service `headrace.store`: warm entities are still served.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from grpc_health.v1 import health, health_pb2

from featureclient.store import OnlineStore, StoreError
from headrace.v1 import features_pb2, prediction_pb2

STORE = "headrace.store"
JOURNAL = "headrace.journal"
MONITOR = "headrace.monitor"
SERVICES = (
    "",
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    features_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name,
)
_PING_INTERVAL_S = 1.0
_RETRY_MAX_S = 2.0
_log = logging.getLogger(__name__)


class Readiness:
    """Watches the store and keeps the health service right."""

    def __init__(self, store: OnlineStore, servicer: health.aio.HealthServicer) -> None:
        self.store = store
        self.servicer = servicer
        self.ready = False
        self.draining = False
        self.warming = False
        self.store_error = "not contacted yet"
        self._followed: dict[str, Callable[[], str]] = {}
        self._said: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Readiness {self.reason() or 'ready'}>"

    def reason(self) -> str | None:
        """Why the server is not ready; None when it is."""
        if self.draining:
            return "draining"
        if self.warming:
            return "warming the caches"
        return None if self.ready else f"the feature store has not answered yet: {self.store_error}"

    def follow(self, service: str, trouble: Callable[[], str]) -> None:
        """Give a part of the gateway a health service of its own. `trouble` says what is wrong; empty, and all is well.

        Predictions go on without it, so it changes nothing else.
        """
        self._followed[service] = trouble

    async def starting(self) -> None:
        """Nothing is served yet."""
        for service in (*SERVICES, STORE, *self._followed):
            await self.servicer.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def watch(self, on_first_contact: Callable[[], Awaitable[None]]) -> NoReturn:
        """Ping the store for ever. The first answer makes the server ready."""
        reachable: bool | None = None
        wait_s = 0.05
        while True:
            was, reachable = reachable, await self._ping()
            if reachable != was:
                await self._store_is(reachable)
            if reachable and not self.ready:
                await on_first_contact()
            await self._look()
            # A server that is not ready asks often at first: a store that starts beside it comes up in milliseconds.
            wait_s = _PING_INTERVAL_S if self.ready else min(wait_s * 1.5, _RETRY_MAX_S)
            await asyncio.sleep(wait_s)

    async def _look(self) -> None:
        """Tell how the followed parts are, when it has changed."""
        status = health_pb2.HealthCheckResponse
        for service, trouble in self._followed.items():
            found = trouble()
            if self._said.get(service) != found:
                self._said[service] = found
                await self.servicer.set(service, status.NOT_SERVING if found else status.SERVING)
                if found:
                    _log.warning("%s: %s", service, found)

    async def serve(self) -> None:
        """Everything that must be there is there."""
        self.ready, self.warming = True, False
        for service in SERVICES:
            await self.servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        _log.info("ready")

    async def drain(self) -> None:
        """The end is near: load balancers should look elsewhere."""
        self.draining = True
        await self.servicer.enter_graceful_shutdown()

    async def _ping(self) -> bool:
        try:
            await self.store.ping()
        except StoreError as error:
            self.store_error = str(error)
            return False
        except Exception as error:  # noqa: BLE001 - a bug must not end the watch, which nobody would notice
            _log.exception("the ping of the feature store failed")
            self.store_error = f"{type(error).__name__}: {error}"
            return False
        return True

    async def _store_is(self, reachable: bool) -> None:
        if reachable:
            _log.info("the feature store answers")
            await self.servicer.set(STORE, health_pb2.HealthCheckResponse.SERVING)
        else:
            _log.error("the feature store cannot be reached, retrying: %s", self.store_error)
            await self.servicer.set(STORE, health_pb2.HealthCheckResponse.NOT_SERVING)
