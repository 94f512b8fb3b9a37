"""The counts themselves: what happened, per model, per view and for the store, in plain integers and arrays.

The event loop adds, once per batch or event; the scrape's thread reads copies. Nothing here knows Prometheus.
"""

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from featureclient.events import (
    Changed,
    ComputeDropped,
    ComputeRefused,
    ComputeRun,
    ComputeWorkerLost,
    Event,
    ReadShed,
    RowInvalid,
    StoreRead,
    StoreWrite,
    Watched,
)
from featureclient.warmup import CountsSaved, WarmingEnded, WarmupEvent
from featureclient.wire.reader import REASONS
from gateway.records.report import BatchReport, FailureReport
from gateway.records.violations import KINDS, VERDICTS, Violations
from gateway.telemetry.histogram import FEW_VALUES, Histogram, decades
from gateway.telemetry.labels import OTHER, Labelled

MODELS_MAX = 500
VIEWS_MAX = 500
CHECKED_COLUMNS_MAX = 5000
"""Columns, of all models, whose violations are told apart."""

NO_MODEL = "none"
"""The label of a request that named no model that exists."""

OK = "OK"
UNKNOWN = "UNKNOWN"
CODES = (
    OK,
    "CANCELLED",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "INTERNAL",
    UNKNOWN,
)
"""What the gateway answers. Each exists at zero from a model's first day, since `rate` cannot see a series' birth."""

STAGES = ("wait", "assemble", "run", "reply")

REQUEST_BOUNDS_S = (*decades(-4, -1, (1, 1.5, 2, 3, 5, 7)), 1.0, 2.0, 5.0, 10.0, 30.0)
STAGE_BOUNDS_S = (5e-6, *decades(-5, -1, (1, 2, 5)), 1.0, 2.0, 5.0, 10.0)
FAILED = "failed"
HOT = "hot"
"""The source of a warming by counts; any other is a file."""
FILE = "file"
COMPUTE_ERRORS = ("ComputeFailed", "ComputeTimedOut", "InvalidTable")
"""Results of a run beside OK; others are counted as `other`."""
COMPUTE_BOUNDS_S = (*decades(-3, 0, (1, 2, 5)), 10.0)
STORE_BOUNDS_S = (*decades(-4, -1, (1, 2, 5)), 1.0, 2.0, 5.0)
COUNT_BOUNDS = tuple(float(1 << power) for power in range(15))


class ModelTally:
    """Everything that is counted per model."""

    __slots__ = ("batch_rows", "codes", "cpu_s", "duration", "inline", "padded_rows", "parked", "stages", "threaded")

    def __init__(self) -> None:
        self.codes = dict.fromkeys(CODES, 0)
        self.parked = 0
        self.cpu_s = 0.0
        self.padded_rows = 0
        self.inline = 0
        self.threaded = 0
        self.duration = Histogram(REQUEST_BOUNDS_S)
        self.stages = tuple(Histogram(STAGE_BOUNDS_S) for _ in STAGES)
        self.batch_rows = Histogram(COUNT_BOUNDS)

    def observe(self, report: BatchReport) -> None:
        """Add one batch: a duration and a wait per request, the other stages once."""
        arrived, ready, answered = report.arrived, report.ready, report.answered
        requests = len(arrived)
        wait, assemble, run, reply = self.stages
        self.codes[OK] += requests
        self.parked += report.parked
        self.cpu_s += report.cpu_s
        self.padded_rows += report.padded_rows
        if report.threaded:
            self.threaded += 1
        else:
            self.inline += 1
        if requests <= FEW_VALUES:
            self.duration.add_few([answered - moment for moment in arrived])
            wait.add_few([ready - moment for moment in arrived])
        else:
            moments = np.asarray(arrived, np.float64)
            self.duration.add_block(answered - moments)
            wait.add_block(ready - moments)
        assemble.add(report.assembled - ready)
        run.add(report.computed - report.assembled)
        reply.add(answered - report.computed)
        self.batch_rows.add(report.rows)

    def fail(self, report: FailureReport) -> None:
        """Add requests that ended in an error; their durations count as any other's."""
        code = report.code if report.code in self.codes else UNKNOWN
        self.codes[code] += len(report.arrived)
        self.duration.add_few([report.ended - moment for moment in report.arrived])


class ViewTally:
    """Rows of one view by status byte, and the rows that were refused on their way in, by reason."""

    __slots__ = ("_vector", "changed", "invalid", "rows")

    def __init__(self) -> None:
        self.rows = array("q", bytes(8 * 256))
        self._vector = np.frombuffer(self.rows, np.int64)
        self.invalid = dict.fromkeys((*REASONS, OTHER), 0)
        self.changed = 0

    def add_rows(self, statuses: npt.NDArray[np.uint8]) -> None:
        """Add one status per row. Most blocks have one status throughout, which costs one pass in C."""
        raw = statuses.tobytes()
        if not raw:
            return
        first = raw[0]
        if raw.count(first) == len(raw):
            self.rows[first] += len(raw)
        else:
            self._vector += np.bincount(statuses, minlength=256)

    def add_invalid(self, reason: str) -> None:
        """Add a row that was refused."""
        self.invalid[reason if reason in self.invalid else OTHER] += 1


class ComputeTally:
    """The computed rows of one view. The histogram holds the runs that gave an answer."""

    __slots__ = ("dropped", "duration", "results", "rows")

    def __init__(self) -> None:
        self.results = dict.fromkeys((OK, *COMPUTE_ERRORS, OTHER), 0)
        self.duration = Histogram(COMPUTE_BOUNDS_S)
        self.rows = 0
        self.dropped = {"refused": 0, "ids": 0, "write_back": 0, "invalid": 0}
        """Ids that the view's breaker or bound refused, ids beyond the client's bound, rows that were not stored, rows
        that are none of the view's."""

    def add(self, run: ComputeRun) -> None:
        """Add a run."""
        self.rows += run.found
        if run.error is None:
            self.results[OK] += 1
            self.duration.add(run.seconds)
        else:
            self.results[run.error if run.error in self.results else OTHER] += 1


class StoreTally:
    """Round trips to the store. The histograms hold those that were answered; the others are errors."""

    __slots__ = (
        "keys_found",
        "read",
        "read_errors",
        "read_keys",
        "shed_keys",
        "watch_losses",
        "watched",
        "write",
        "write_errors",
        "written_rows",
    )

    def __init__(self) -> None:
        self.read = Histogram(STORE_BOUNDS_S)
        self.read_keys = Histogram(COUNT_BOUNDS)
        self.read_errors = 0
        self.keys_found = 0
        self.shed_keys = 0
        self.write = Histogram(STORE_BOUNDS_S)
        self.write_errors = 0
        self.written_rows = 0
        self.watched = False
        self.watch_losses = 0


class WarmupTally:
    """Rows that were cached before anybody asked, by where their ids came from, and how saving the counts went."""

    __slots__ = ("rows", "saves")

    def __init__(self) -> None:
        self.rows = {HOT: 0, FILE: 0}
        self.saves = {OK: 0, FAILED: 0}

    def add(self, event: WarmupEvent) -> None:
        """Add what the warmer did."""
        match event:
            case WarmingEnded():
                self.rows[HOT if event.source == HOT else FILE] += event.cached
            case CountsSaved():
                self.saves[OK if event.error is None else FAILED] += 1


class CheckTally:
    """What the checks before the model found: cells by model, column and kind, and rows by what became of them."""

    __slots__ = ("cells", "verdicts")

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
        """Counts by the bit of `violations.KINDS`, in its order."""
        self.verdicts: dict[str, npt.NDArray[np.int64]] = {}

    def add(self, model: str, violations: Violations) -> None:
        """Add a batch that does not pass."""
        verdicts = np.bincount(violations.verdicts, minlength=len(VERDICTS))
        known = self.verdicts.get(model)
        self.verdicts[model] = verdicts if known is None else known + verdicts
        for index in np.flatnonzero(violations.mask.any(axis=0)).tolist():
            kinds = violations.kinds[:, index]
            found = np.array([np.count_nonzero(kinds & kind) for kind in KINDS], np.int64)
            key = (model, violations.columns[index])
            before = self.cells.get(key)
            if before is None and len(self.cells) >= CHECKED_COLUMNS_MAX:
                key = (model, OTHER)
                before = self.cells.get(key)
            self.cells[key] = found if before is None else before + found


class Tally:
    """All counts of the process."""

    def __init__(self) -> None:
        self.models: Labelled[ModelTally] = Labelled(ModelTally, MODELS_MAX)
        self.views: Labelled[ViewTally] = Labelled(ViewTally, VIEWS_MAX)
        self.store = StoreTally()
        self.computes: Labelled[ComputeTally] = Labelled(ComputeTally, VIEWS_MAX)
        self.workers_lost = 0
        self.warmup = WarmupTally()
        self.checks = CheckTally()

    def expect(self, model: str, views: Iterable[str]) -> None:
        """Make the entries of a model and its views, at zero."""
        for entries, names in ((self.models, (model,)), (self.views, views)):
            for name in names:
                entries[name]

    def observe(self, report: BatchReport) -> None:
        """Add a batch that was answered."""
        self.models[report.model].observe(report)
        for view, statuses in report.statuses.items():
            self.views[view].add_rows(statuses)
        if report.violations is not None:
            self.checks.add(report.model, report.violations)

    def fail(self, report: FailureReport) -> None:
        """Add requests that got an error."""
        self.models[report.model or NO_MODEL].fail(report)

    def feature_event(self, event: Event) -> None:  # noqa: C901 - one branch for each kind
        """Add what the feature client did."""
        store = self.store
        match event:
            case StoreRead(error=None):
                store.read.add(event.seconds)
                store.read_keys.add(event.keys)
                store.keys_found += event.found
            case StoreRead():
                store.read_errors += 1
            case StoreWrite(error=None):
                store.write.add(event.seconds)
                store.written_rows += event.rows
            case StoreWrite():
                store.write_errors += 1
            case RowInvalid():
                self.views[event.view].add_invalid(event.reason)
            case ReadShed():
                store.shed_keys += event.keys
            case Changed():
                self.views[event.view].changed += event.rows
            case Watched():
                store.watch_losses += store.watched and not event.on
                store.watched = event.on
            case ComputeRun():
                self.computes[event.view].add(event)
            case ComputeRefused():
                self.computes[event.view].dropped["refused"] += event.ids
            case ComputeDropped():
                self.computes[event.view].dropped[event.what] += event.rows
            case ComputeWorkerLost():
                self.workers_lost += 1
