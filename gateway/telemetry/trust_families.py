"""Families of what is checked before a model, and of what is kept after it."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.records.violations import KINDS, VERDICTS
from gateway.telemetry.tally import CheckTally


class JournalState(Protocol):
    """What a journal has done, as `gateway.journal` has it."""

    @property
    def rows(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...
    @property
    def pending_bytes(self) -> int: ...
    @property
    def commits_waiting(self) -> int: ...
    @property
    def syncs(self) -> int: ...
    @property
    def sync_s(self) -> float: ...
    @property
    def flush_s(self) -> float: ...
    @property
    def restarts(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def error(self) -> str: ...


def check_families(checks: CheckTally) -> Iterator[Metric]:
    """Violated checks by column and kind, and what became of the rows of batches that had any."""
    cells = CounterMetricFamily(
        "headrace_violations", "Values that a check does not pass.", labels=("model", "column", "kind")
    )
    rows = CounterMetricFamily(
        "headrace_checked_rows",
        "Rows of batches in which a check was not passed, by what became of them.",
        labels=("model", "verdict"),
    )
    for (model, column), counts in checks.cells.copy().items():
        for kind, count in zip(KINDS.values(), counts.tolist(), strict=True):
            if count:
                cells.add_metric((model, column, kind), count)
    for model, verdicts in checks.verdicts.copy().items():
        for verdict, count in zip(VERDICTS, verdicts.tolist(), strict=True):
            rows.add_metric((model, verdict), count)
    yield from (cells, rows)


def journal_families(journal: JournalState) -> Iterator[Metric]:
    """The journal of this process."""
    for name, text, value in (
        ("rows", "Rows that were written to the journal.", journal.rows),
        ("bytes", "Bytes that were written to the journal.", journal.bytes),
        ("failures", "Failed requests that were written to the journal.", journal.failures),
        ("syncs", "Flushes that waited for the disk.", journal.syncs),
        ("sync_seconds", "Time that flushes waited for the disk.", journal.sync_s),
        ("flush_seconds", "Time that the writer took to write.", journal.flush_s),
        ("writer_restarts", "Times that the writer was started again.", journal.restarts),
    ):
        yield CounterMetricFamily(f"headrace_journal_{name}", text, value=value)
    dropped = CounterMetricFamily(
        "headrace_journal_dropped_rows", "Rows that are not in the journal, and why.", labels=("reason",)
    )
    for reason, count in journal.dropped.items():
        dropped.add_metric((reason,), count)
    yield dropped
    for name, text, number in (
        ("pending_bytes", "Bytes that wait to be written.", journal.pending_bytes),
        ("waiting_commits", "Answers that wait for the disk.", journal.commits_waiting),
        ("healthy", "1 when the writer runs and the last flush wrote all.", journal.alive and not journal.error),
    ):
        yield GaugeMetricFamily(f"headrace_journal_{name}", text, value=number)
