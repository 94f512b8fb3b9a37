"""From counts to metric families: what one scrape shows. The names here are the public ones of docs/metrics.md.

Runs in the thread of the scrape. Each function copies what it reads first, so the loop may go on counting.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from featureclient.cache import CacheSnapshot
from featureclient.schema import status
from gateway.records.drift import VERDICT_NUMBERS, MonitorSnapshot
from gateway.telemetry.histogram import Histogram
from gateway.telemetry.tally import STAGES, UNKNOWN, ComputeTally, ModelTally, StoreTally, ViewTally, WarmupTally

NONE = "none"
"""The label of a row whose status has no cause."""

_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""gRPC's codes by number."""

TURNED_AWAY_CODES = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
"""Shown from the start, so that `rate` sees the first one."""

_OUTCOMES = {
    getattr(status, name): name
    for name in ("UNSET", "PRESENT", "STALE", "COMPUTED", "DEFAULTED", "MISSING", "OVERRIDDEN")
}
_CAUSES = {getattr(status, name): name for name in ("ABSENT", "INVALID", "EXPIRED", "UNREACHED", "TIMED_OUT")}


def model_families(models: Mapping[str, ModelTally]) -> Iterator[Metric]:
    """Requests, their durations and stages, and batches, per model."""
    requests = CounterMetricFamily(
        "headrace_requests", "Requests that ended, by the gRPC status code of the answer.", labels=("model", "code")
    )
    parked = CounterMetricFamily(
        "headrace_parked_requests", "Answered requests that waited for the store.", labels=("model",)
    )
    batches = CounterMetricFamily(
        "headrace_batches", "Runs of the model, on the event loop or in its worker thread.", labels=("model", "where")
    )
    duration = HistogramMetricFamily(
        "headrace_request_duration_seconds", "From the complete request to its answer, errors too.", labels=("model",)
    )
    stages = HistogramMetricFamily(
        "headrace_stage_duration_seconds",
        "Time in one stage: wait is per request, assemble, run and reply are per batch.",
        labels=("model", "stage"),
    )
    rows = HistogramMetricFamily("headrace_batch_rows", "Rows in one run of the model.", labels=("model",))
    cpu = CounterMetricFamily(
        "headrace_model_cpu_seconds",
        "CPU time of the model's runs, of the threads that ran them; runs on the event loop are sampled.",
        labels=("model",),
    )
    padded = CounterMetricFamily(
        "headrace_model_padded_rows", "Rows that were added to batches to fill buckets.", labels=("model",)
    )
    for model, tally in models.items():
        for code, value in tally.codes.copy().items():
            requests.add_metric((model, code), value)
        parked.add_metric((model,), tally.parked)
        batches.add_metric((model, "loop"), tally.inline)
        batches.add_metric((model, "thread"), tally.threaded)
        _add_histogram(duration, (model,), tally.duration)
        for stage, histogram in zip(STAGES, tally.stages, strict=True):
            _add_histogram(stages, (model, stage), histogram)
        _add_histogram(rows, (model,), tally.batch_rows)
        cpu.add_metric((model,), tally.cpu_s)
        padded.add_metric((model,), tally.padded_rows)
    yield from (requests, parked, batches, duration, stages, rows, cpu, padded)


def queue_family(queues: Mapping[str, int]) -> Metric:
    """What waits for each model at this moment."""
    family = GaugeMetricFamily("headrace_model_queued_rows", "Rows that wait for the model.", labels=("model",))
    for model, rows in queues.items():
        family.add_metric((model,), rows)
    return family


def view_families(views: Mapping[str, ViewTally]) -> Iterator[Metric]:
    """Rows that models saw, by status, and rows that were refused, per view."""
    rows = CounterMetricFamily(
        "headrace_rows",
        "Rows that models saw, by the outcome and cause of their status.",
        labels=("view", "status", "cause"),
    )
    invalid = CounterMetricFamily(
        "headrace_invalid_rows", "Rows from the store that were refused when read.", labels=("view", "reason")
    )
    changed = CounterMetricFamily(
        "headrace_changed_rows", "Rows of which the store told that they changed, by anybody.", labels=("view",)
    )
    for view, tally in views.items():
        for byte, count in enumerate(tally.rows.tolist()):
            if count or byte == status.PRESENT:
                rows.add_metric((view, *_status_labels(byte)), count)
        for reason, count in tally.invalid.copy().items():
            invalid.add_metric((view, reason), count)
        changed.add_metric((view,), tally.changed)
    yield from (rows, invalid, changed)


def store_families(store: StoreTally) -> Iterator[Metric]:
    """Round trips to the store."""
    duration = HistogramMetricFamily(
        "headrace_store_duration_seconds", "Round trips that the store answered.", labels=("operation",)
    )
    _add_histogram(duration, ("read",), store.read)
    _add_histogram(duration, ("write",), store.write)
    errors = CounterMetricFamily(
        "headrace_store_errors", "Round trips that failed or timed out.", labels=("operation",)
    )
    errors.add_metric(("read",), store.read_errors)
    errors.add_metric(("write",), store.write_errors)
    keys = HistogramMetricFamily("headrace_store_read_keys", "Keys asked for in one read.", labels=())
    _add_histogram(keys, (), store.read_keys)
    yield from (duration, errors, keys)
    yield CounterMetricFamily("headrace_store_keys_found", "Keys that the store had a row for.", value=store.keys_found)
    yield CounterMetricFamily(
        "headrace_store_shed_keys", "Keys never asked for: too many were waiting already.", value=store.shed_keys
    )
    yield CounterMetricFamily("headrace_store_written_rows", "Rows written by this process.", value=store.written_rows)
    yield GaugeMetricFamily(
        "headrace_store_watched",
        "1 while the store tells of changed rows, 0 while ages alone decide.",
        value=int(store.watched),
    )
    yield CounterMetricFamily(
        "headrace_store_watch_losses", "Times that the store ceased to tell of changes.", value=store.watch_losses
    )


def compute_families(computes: Mapping[str, ComputeTally], workers_lost: int) -> Iterator[Metric]:
    """Rows that were computed because the store had none."""
    runs = CounterMetricFamily(
        "headrace_compute_runs", "Runs of a view's compute, by how they ended.", labels=("view", "result")
    )
    rows = CounterMetricFamily("headrace_computed_rows", "Rows that were computed.", labels=("view",))
    dropped = CounterMetricFamily(
        "headrace_compute_dropped_rows",
        "Rows not computed (refused: breaker or the view's bound; ids: the client's bound), not stored (write_back) "
        "or none of the view's (invalid).",
        labels=("view", "what"),
    )
    duration = HistogramMetricFamily("headrace_compute_duration_seconds", "Runs that gave rows.", labels=("view",))
    for view, tally in computes.items():
        for result, count in tally.results.copy().items():
            runs.add_metric((view, result), count)
        rows.add_metric((view,), tally.rows)
        for what, count in tally.dropped.copy().items():
            dropped.add_metric((view, what), count)
        _add_histogram(duration, (view,), tally.duration)
    yield from (runs, rows, dropped, duration)
    yield CounterMetricFamily(
        "headrace_compute_workers_lost",
        "Worker processes that ended or were killed, and were replaced.",
        value=workers_lost,
    )


def warmup_families(warmup: WarmupTally) -> Iterator[Metric]:
    """Rows that were read before anybody asked."""
    rows = CounterMetricFamily(
        "headrace_warmed_rows", "Rows that warmings have cached: the hottest, and those of files.", labels=("source",)
    )
    saves = CounterMetricFamily(
        "headrace_hot_counts_saves", "Times that the counts of hot ids were saved, or not.", labels=("result",)
    )
    for source, count in warmup.rows.copy().items():
        rows.add_metric((source,), count)
    for result, count in warmup.saves.copy().items():
        saves.add_metric((result,), count)
    yield from (rows, saves)


def cache_families(caches: Mapping[str, CacheSnapshot]) -> Iterator[Metric]:
    """The cache of each view at this moment."""
    entries = GaugeMetricFamily("headrace_cache_entries", "Rows in the cache.", labels=("view",))
    negatives = GaugeMetricFamily(
        "headrace_cache_negative_entries", "Ids known to be absent from the store.", labels=("view",)
    )
    size = GaugeMetricFamily("headrace_cache_size_bytes", "Bytes that the cache holds.", labels=("view",))
    limit = GaugeMetricFamily("headrace_cache_limit_bytes", "Bytes that the cache may hold.", labels=("view",))
    hits = CounterMetricFamily("headrace_cache_hits", "Lookups that the cache answered.", labels=("view",))
    misses = CounterMetricFamily("headrace_cache_misses", "Lookups that went to the store.", labels=("view",))
    evictions = CounterMetricFamily("headrace_cache_evictions", "Rows dropped for want of room.", labels=("view",))
    refreshes = CounterMetricFamily(
        "headrace_cache_refreshes", "Rows served and read again in the background.", labels=("view",)
    )
    for view, cache in caches.items():
        entries.add_metric((view,), cache.entries)
        negatives.add_metric((view,), cache.negatives)
        size.add_metric((view,), cache.bytes)
        limit.add_metric((view,), cache.bytes_max)
        hits.add_metric((view,), cache.hits)
        misses.add_metric((view,), cache.misses)
        evictions.add_metric((view,), cache.evictions)
        refreshes.add_metric((view,), cache.refreshes)
    yield from (entries, negatives, size, limit, hits, misses, evictions, refreshes)


def _status_labels(byte: int) -> tuple[str, str]:
    cause = byte & status.CAUSE_MASK
    return _OUTCOMES.get(byte & status.OUTCOME_MASK, UNKNOWN), _CAUSES.get(cause, UNKNOWN) if cause else NONE


def _add_histogram(family: HistogramMetricFamily, labels: Iterable[str], histogram: Histogram) -> None:
    reading = histogram.read()
    bounds = (*(f"{bound:.12g}" for bound in reading.bounds), "+Inf")
    family.add_metric(tuple(labels), list(zip(bounds, reading.cumulative, strict=True)), reading.sum)


def turned_away_family(counts: Mapping[int, int]) -> Metric:
    """Calls that ended before a handler answered them, by gRPC code."""
    family = CounterMetricFamily(
        "headrace_transport_turned_away",
        "Calls that the transport ended itself: refused at the door, malformed, or out of time.",
        labels=("code",),
    )
    for number, name in enumerate(_CODES):
        if number in counts or name in TURNED_AWAY_CODES:
            family.add_metric((name,), counts.get(number, 0))
    return family


def drift_families(snapshot: MonitorSnapshot) -> Iterator[Metric]:
    """The newest windows of each stream against its reference. Labels are of models and their profiles."""
    stream = ("model", "version", "variant", "window")
    numbers = {
        "psi": "Population stability index of the column against its reference.",
        "psi_excess": "The same, less what sampling alone gives so many rows.",
        "jensen_shannon": "Jensen-Shannon distance, base 2.",
        "ks": "Kolmogorov-Smirnov distance between the bins; 0 for categories.",
        "ks_pvalue": "Its p-value, not corrected.",
        "pvalue": "The least of the column's p-values, corrected for all tests of the window.",
        "null_share": "Share of nulls.",
    }
    gauges = {
        name: GaugeMetricFamily(f"headrace_drift_{name}", text, labels=(*stream, "column"))
        for name, text in numbers.items()
    }
    verdict = GaugeMetricFamily(
        "headrace_drift_verdict", "-1 too few rows, 0 stable, 1 shifted, 2 drifted.", labels=(*stream, "column")
    )
    rows = GaugeMetricFamily("headrace_drift_window_rows", "Rows of the window, as sampled.", labels=stream)
    end = GaugeMetricFamily("headrace_drift_window_end_seconds", "When the window's last row was.", labels=stream)
    for key, window in (*snapshot.streams.items(), *snapshot.tumbling.items()):
        labels = (key.model, str(key.version), key.variant, window.kind)
        rows.add_metric(labels, window.rows)
        end.add_metric(labels, window.end_ms / 1000)
        for column in window.columns:
            verdict.add_metric((*labels, column.column), VERDICT_NUMBERS[column.verdict])
            for name, gauge in gauges.items():
                gauge.add_metric((*labels, column.column), getattr(column, name))
    yield from (*gauges.values(), verdict, rows, end)


def monitor_families(snapshot: MonitorSnapshot) -> Iterator[Metric]:
    """The second process itself."""
    status = snapshot.status
    yield GaugeMetricFamily("headrace_monitor_up", "1 while the second process runs.", value=int(snapshot.up))
    yield GaugeMetricFamily(
        "headrace_monitor_standby",
        "1 while another process watches the same journal.",
        value=status.get("standby", 0),
    )
    yield CounterMetricFamily(
        "headrace_monitor_restarts",
        "Times that the second process ended and was started again.",
        value=snapshot.restarts,
    )
    rows = CounterMetricFamily(
        "headrace_monitor_rows", "Journaled rows: counted for drift, or skipped to save CPU time.", labels=("what",)
    )
    for what in ("counted", "skipped"):
        rows.add_metric((what,), status.get(f"rows_{what}", 0))
    yield rows
    for name, text in (
        ("bytes_skipped", "Bytes of the journal that were never read since too much was waiting."),
        ("compacted_rows", "Rows of the journal that became Parquet."),
        ("compacted_segments", "Segments of the journal that became Parquet."),
        ("compacted_lost_bytes", "Bytes behind the last whole batch of segments whose writer died."),
        ("deleted_files", "Parquet files that retention or the disk's quota deleted."),
        ("problems", "Files, profiles and streams that could not be used; the log names each."),
    ):
        yield CounterMetricFamily(f"headrace_monitor_{name}", text, value=status.get(name, 0))
    yield GaugeMetricFamily(
        "headrace_monitor_compaction_stopped",
        "1 while the last compaction could not do all: no room on the disk, or the folder cannot be used.",
        value=status.get("compaction_stopped", 0),
    )
    yield CounterMetricFamily("headrace_monitor_cpu_seconds", "CPU time of the process.", value=status.get("cpu_s", 0))
    yield GaugeMetricFamily("headrace_monitor_streams", "Variants that are watched.", value=status.get("streams", 0))
    yield GaugeMetricFamily(
        "headrace_monitor_lag_seconds",
        "Age of the newest row when it was read; 0 when there was none to read.",
        value=status.get("lag_s", 0),
    )
    if snapshot.sinks:
        yield from _sink_families(snapshot)


def _sink_families(snapshot: MonitorSnapshot) -> Iterator[Metric]:
    """The journal's sinks, since the second process was started."""
    rows = CounterMetricFamily(
        "headrace_journal_sink_rows",
        "Rows that a sink took (delivered), will never take (refused), or that were too many to wait (dropped).",
        labels=("sink", "what"),
    )
    waiting = GaugeMetricFamily(
        "headrace_journal_sink_waiting_bytes", "Bytes of segments that wait for the sink.", labels=("sink",)
    )
    down = GaugeMetricFamily("headrace_journal_sink_down", "1 while deliveries to the sink fail.", labels=("sink",))
    for name, state in snapshot.sinks.items():
        rows.add_metric((name, "delivered"), state.rows)
        rows.add_metric((name, "refused"), state.refused_rows)
        rows.add_metric((name, "dropped"), state.dropped_rows)
        waiting.add_metric((name,), state.waiting_bytes)
        down.add_metric((name,), int(state.down))
    yield from (rows, waiting, down)
