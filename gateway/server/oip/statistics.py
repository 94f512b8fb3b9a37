"""What the rpc ModelStatistics answers, counted from the reports that the pipeline makes anyway.

Times of a batch are counted for each of its requests, as Triton does: `ns` divided by `count` is what a request waited
for. `queue` is everything before the model's inputs were put together: decoding, features, and the wait for the model.
Counting starts when the server does. A version that is loaded again in its own place goes on counting; one that is
unloaded is forgotten.
"""

import time
from collections.abc import Callable, Iterable
from itertools import pairwise

from gateway.inference import Model, Swap
from gateway.records.report import BatchReport, FailureReport
from headrace.inference import grpc_service_pb2 as pb

EXACT_ROWS_MAX = 64
"""Batch sizes up to which each is counted by itself; larger ones are counted as the next power of two."""
VERSIONS_MAX = 1024
"""Versions that are counted, oldest forgotten first: who reloads all day must not fill the memory."""


class _Duration:
    """A count, and seconds."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=max(0, round(self.seconds * 1e9)))


class _Batch:
    """Runs of one number of rows."""

    __slots__ = ("infer", "input", "output")

    def __init__(self) -> None:
        self.input = _Duration()
        self.infer = _Duration()
        self.output = _Duration()


class _Version:
    """The counts of one version."""

    def __init__(self) -> None:
        self.last_ms = 0
        self.rows = 0
        self.runs = 0
        self.success = _Duration()
        self.fail = _Duration()
        self.queue = _Duration()
        self.total = _Batch()
        self.by_rows: dict[int, _Batch] = {}

    def ran(self, report: BatchReport, now_ms: int) -> None:
        requests = len(report.arrived)
        began = report.taken or report.ready
        moments = (began, report.assembled, report.computed, report.answered)
        took = [after - before for before, after in pairwise(moments)]
        self.last_ms = now_ms
        self.rows += report.rows
        self.runs += 1
        waited = sum(report.arrived)
        self.success.add(requests, requests * report.answered - waited)
        self.queue.add(requests, requests * began - waited)
        for part, seconds in zip((self.total.input, self.total.infer, self.total.output), took, strict=True):
            part.add(requests, requests * seconds)
        rows = report.rows if report.rows <= EXACT_ROWS_MAX else 1 << (report.rows - 1).bit_length()
        batch = self.by_rows.get(rows)
        if batch is None:
            batch = self.by_rows[rows] = _Batch()
        for part, seconds in zip((batch.input, batch.infer, batch.output), took, strict=True):
            part.add(1, seconds)

    def message(self, name: str, version: int) -> pb.ModelStatistics:
        return pb.ModelStatistics(
            name=name,
            version=str(version),
            last_inference=self.last_ms,
            inference_count=self.rows,
            execution_count=self.runs,
            inference_stats=pb.InferStatistics(
                success=self.success.message(),
                fail=self.fail.message(),
                queue=self.queue.message(),
                compute_input=self.total.input.message(),
                compute_infer=self.total.infer.message(),
                compute_output=self.total.output.message(),
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=rows,
                    compute_input=batch.input.message(),
                    compute_infer=batch.infer.message(),
                    compute_output=batch.output.message(),
                )
                for rows, batch in sorted(self.by_rows.items())
            ],
        )


class Statistics:
    """Counts of every version of every model."""

    def __init__(self, *, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        self._versions: dict[tuple[str, int], _Version] = {}
        self._loaded: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<Statistics of {len(self._versions)} versions>"

    def observe(self, report: BatchReport) -> None:
        """Count one run."""
        self._of(report.model, report.version).ran(report, int(self._wall_s() * 1000))

    def failed(self, report: FailureReport) -> None:
        """Count requests that got an error. One that asked for no version of ours is nobody's."""
        if report.version:
            seconds = len(report.arrived) * report.ended - sum(report.arrived)
            self._of(report.model, report.version).fail.add(len(report.arrived), seconds)

    def on_swap(self, swap: Swap) -> None:
        """Other versions serve."""
        self._loaded.difference_update(map(_key, swap.removed))
        self._loaded.update(map(_key, swap.added))

    def forget(self, model: Model) -> None:
        """A removed model has answered everything it took in. One that was loaded again in its place counts on."""
        if _key(model) not in self._loaded:
            self._versions.pop(_key(model), None)

    def answer(self, versions: Iterable[tuple[str, int]]) -> pb.ModelStatisticsResponse:
        """The counts of these versions, zeros where nothing has been asked."""
        return pb.ModelStatisticsResponse(
            model_stats=[
                self._versions.get((name, version), _Version()).message(name, version) for name, version in versions
            ]
        )

    def _of(self, name: str, version: int) -> _Version:
        found = self._versions.get((name, version))
        if found is None:
            if len(self._versions) >= VERSIONS_MAX:
                del self._versions[next(iter(self._versions))]
            found = self._versions[name, version] = _Version()
        return found


def _key(model: Model) -> tuple[str, int]:
    return model.name, model.version
