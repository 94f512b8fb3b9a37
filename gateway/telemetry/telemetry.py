"""What the gateway tells Prometheus: records in, one page of metrics out.

    pipeline ──BatchReport, FailureReport──▶ ┐
    featureclient ──events────────────────▶  ├ Tally (counts)  ──scrape──▶ families ──▶ render(accept)
    watch(gauge), watch_caches(snapshot) ───▶ ┘

Invariants
- Whoever reports runs on one thread, the event loop, and pays for an addition per batch. Everything that Prometheus
  wants, names, labels, cumulative buckets, text, is made in the thread that scrapes.
- Counts only grow, and within one scrape a histogram's count is the sum of its buckets.
- A gauge or snapshot that raises costs its own series and is counted; the other series are still shown.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from featureclient.cache import CacheSnapshot
from featureclient.events import Event
from featureclient.warmup import WarmupEvent
from gateway.records.drift import MonitorSnapshot
from gateway.records.report import BatchReport, FailureReport
from gateway.records.violations import Violations
from gateway.telemetry import families
from gateway.telemetry.experiment_families import ExperimentsSeen, experiment_families
from gateway.telemetry.model_families import Repository, repository_families
from gateway.telemetry.shadow_families import Difference, ShadowState, shadow_families
from gateway.telemetry.tally import Tally
from gateway.telemetry.trust_families import JournalState, check_families, journal_families

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Gauge:
    name: str
    help: str
    read: Callable[[], float]


class Telemetry:
    """Counts what is reported and shows it to Prometheus.

    `version` is the version of the program, shown as `headrace_build_info`. `registry` takes further collectors.
    """

    def __init__(self, *, version: str = "unknown") -> None:
        self.registry = CollectorRegistry()
        self._version = version
        self._tally = Tally()
        self._caches: list[Callable[[], Mapping[str, CacheSnapshot]]] = []
        self._gauges: dict[str, _Gauge] = {}
        self._repositories: list[Callable[[], Repository]] = []
        self._queues: Callable[[], Mapping[str, int]] = dict
        self._turned_away: Callable[[], Mapping[int, int]] = dict
        self._monitor: Callable[[], MonitorSnapshot] | None = None
        self._journal: Callable[[], JournalState] | None = None
        self._experiments: Callable[[], ExperimentsSeen] | None = None
        self._shadow: Callable[[], tuple[ShadowState, Sequence[Difference]]] | None = None
        self._unreadable = 0
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def expect(self, model: str, views: Iterable[str]) -> None:
        """Show a loaded model and its views (`plane_stats@1`) at zero, so that `rate` sees their first requests."""
        self._tally.expect(model, views)

    def observe(self, report: BatchReport) -> None:
        """Count a batch that was answered."""
        self._tally.observe(report)

    def failed(self, report: FailureReport) -> None:
        """Count requests that got an error."""
        self._tally.fail(report)

    def violated(self, model: str, violations: Violations) -> None:
        """Count violated checks of rows that got no answer; those of answered rows come with their batch."""
        self._tally.checks.add(model, violations)

    def watch_journal(self, state: Callable[[], JournalState]) -> None:
        """Show what the journal did. `state` is called in the thread of the scrape."""
        self._journal = state

    def feature_event(self, event: Event) -> None:
        """Count what the feature client did; fits `FeatureClient(on_event=…)`."""
        self._tally.feature_event(event)

    def warmup_event(self, event: WarmupEvent) -> None:
        """Count what the warmer did; fits `Warmer(on_event=…)`."""
        self._tally.warmup.add(event)

    def watch_caches(self, snapshot: Callable[[], Mapping[str, CacheSnapshot]]) -> None:
        """Show the caches that `snapshot` gives, by view. It is called in the thread of the scrape."""
        self._caches.append(snapshot)

    def watch(self, name: str, help: str, read: Callable[[], float]) -> None:  # noqa: A002  Prometheus's own word
        """Show `headrace_<name>`, a gauge whose value is read at scrape, in the thread of the scrape.

        Raises ValueError for a name that is taken.
        """
        if name in self._gauges:
            raise ValueError(f"gauge {name!r} is watched already")
        self._gauges[name] = _Gauge(f"headrace_{name}", help, read)

    def watch_repository(self, read: Callable[[], Repository]) -> None:
        """Show the model repository; `read` is called in the thread of the scrape."""
        self._repositories.append(read)

    def watch_queues(self, queued_rows: Callable[[], Mapping[str, int]]) -> None:
        """Show the rows that wait for each model; `queued_rows` is called in the thread of the scrape."""
        self._queues = queued_rows

    def watch_turned_away(self, counts: Callable[[], Mapping[int, int]]) -> None:
        """Show the calls that the transport ended itself; `counts` gives them by the number of their gRPC code."""
        self._turned_away = counts

    def watch_experiments(self, read: Callable[[], ExperimentsSeen]) -> None:
        """Show the experiments; `read` is called in the thread of the scrape."""
        self._experiments = read

    def watch_shadow(self, state: Callable[[], ShadowState], differences: Callable[[], Sequence[Difference]]) -> None:
        """Show what was answered once more, and how it differs; both are called in the thread of the scrape."""
        self._shadow = lambda: (state(), differences())

    def watch_monitor(self, snapshot: Callable[[], MonitorSnapshot]) -> None:
        """Show drift and the second process; `snapshot` is called in the thread of the scrape."""
        self._monitor = snapshot

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page of metrics and its content type, in the format that the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Give one scrape's families; the registry calls it."""
        tally = self._tally
        yield from families.model_families(tally.models.copy())
        yield from families.view_families(tally.views.copy())
        yield from families.store_families(tally.store)
        yield from families.compute_families(tally.computes.copy(), tally.workers_lost)
        yield from families.warmup_families(tally.warmup)
        yield from check_families(tally.checks)
        if self._journal is not None:
            journal = self._read("journal", self._journal)
            yield from () if journal is None else journal_families(journal)
        if self._experiments is not None and (found := self._read("experiments", self._experiments)) is not None:
            yield from experiment_families(found)
        if self._shadow is not None and (shadow := self._read("shadow", self._shadow)) is not None:
            yield from shadow_families(*shadow)
        yield from families.cache_families(self._read_caches())
        for read in self._repositories:
            if (repository := self._read("repository", read)) is not None:
                yield from repository_families(repository)
        for gauge in tuple(self._gauges.values()):
            value = self._read(gauge.name, gauge.read)
            if value is not None:
                yield GaugeMetricFamily(gauge.name, gauge.help, value=value)
        yield families.queue_family(self._read("queues", self._queues) or {})
        yield families.turned_away_family(self._read("turned_away", self._turned_away) or {})
        monitored = self._read("monitor", self._monitor) if self._monitor is not None else None
        if monitored is not None:
            yield from families.monitor_families(monitored)
            yield from families.drift_families(monitored)
        build = GaugeMetricFamily("headrace_build_info", "Always 1; the labels say what runs.", labels=("version",))
        build.add_metric((self._version,), 1)
        yield build
        yield CounterMetricFamily(
            "headrace_unreadable_metrics",
            "Gauges and snapshots that raised when they were read.",
            value=self._unreadable,
        )

    def _read_caches(self) -> dict[str, CacheSnapshot]:
        merged: dict[str, CacheSnapshot] = {}
        for snapshot in self._caches:
            merged.update(self._read("caches", snapshot) or {})
        return merged

    def _read(self, name: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Exception:  # Whatever a watched callable raises, the other metrics are still wanted.
            self._unreadable += 1
            log.warning("metric %s could not be read", name, exc_info=True)
            return None
