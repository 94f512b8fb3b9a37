"""How fast predictions are kept: a simulated loop offers runs to the journal at a steady rate, and is watched.

    python -m loadtest.journal [--seconds 20] [--rows-per-s 50000] [--features 50] [--durability interval] [--json]

The loop wakes as a busy gateway does, every millisecond, and offers what is due as runs of `--run-rows` requests of one
row: 50 float32 features of one view, one id, one output. A second, equal stretch without the journal comes first. Said
are the rows written and dropped, the cost of an offer, the loop's lateness with and without the journal (the time that
the writer's thread keeps the interpreter's lock from the loop), the CPU time of the writer, and the memory of the
process over time. `--seconds 600` is the long run. Files go to a temporary folder and are deleted as they are closed,
as a compactor would. Progress goes to stderr, the result to stdout.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import uvloop

from featureclient.schema import Catalogue
from gateway.journal.journal import Journal
from gateway.journal.options import JournalOptions
from gateway.journal.schema import JournalSchema, schema_of
from gateway.plan import FeaturePlan, Manifest, compile_plan
from gateway.plan.transform import resolver
from gateway.records.request import Request
from gateway.records.served import Moments, Served
from gateway.records.signature import Signature, TensorSpec

TICK_S = 0.001
POOL = 200
"""Different runs that are offered over and over; each offer is a record of its own."""


class Caller:
    """Somebody who waits."""

    cancelled = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a run measured. Lateness is of the loop's wake-ups."""

    seconds: float
    rows_offered: int
    rows_written: int
    rows_dropped: int
    dropped: dict[str, int]
    """The same by reason."""
    bytes_written: int
    offer_us: float
    """The median cost of one offer of `run_rows` rows, on a loop that slept before it."""
    offer_hot_us: float
    """The same when offers follow each other."""
    offer_p99_us: float
    late_p50_us: float
    late_p99_us: float
    late_p50_without_us: float
    late_p99_without_us: float
    writer_cpu_share: float
    """CPU seconds of the writer's thread in each second."""
    flush_ms: float
    """The mean of a flush, with waiting for the interpreter's lock."""
    sync_ms: float
    answers_waited_p50_ms: float
    """With durability sync: from the commit until the answers may go."""
    answers_waited_p99_ms: float
    memory_start_mib: float
    memory_end_mib: float
    memory_max_mib: float


def model_of(features: int) -> tuple[FeaturePlan, JournalSchema]:
    """A model of so many float32 features of one view."""
    columns = ", ".join(f"f{number}: float32" for number in range(features))
    catalogue = Catalogue.parse(
        f"entities: {{user: {{user: string}}}}\nviews:\n  stats@1: {{entity: user, columns: {{{columns}}}}}\n"
    )
    names = [f"u.f{number}" for number in range(features)]
    manifest = Manifest.model_validate({"name": "bench", "views": {"u": {"view": "stats@1"}}, "inputs": {"x": names}})
    signature = Signature((TensorSpec("x", "float32", (None, features)),), (TensorSpec("score", "float32", (None, 1)),))
    plan = compile_plan(manifest, catalogue, signature, resolver(()))
    return plan, schema_of("bench", 1, plan, signature)


def runs_of(plan: FeaturePlan, rows: int) -> list[Served]:
    """The pool of runs."""
    rng = np.random.default_rng(1)
    dtype = plan.bindings[0].view.layout.block_dtype
    runs = []
    for number in range(POOL):
        block = np.zeros(rows, dtype)
        block["fresh_until"], block["status"], block["valid"] = 1e18, 1, 255
        block["f4"] = rng.random(block["f4"].shape, np.float32)
        requests = [
            Request(Caller(), "bench", "", 0.0, float("inf"), 1, ((f"user-{number}-{row}",),), (), (), (), False)
            for row in range(rows)
        ]
        assembled = plan.assemble(requests, [[row.tobytes() for row in block]], 0)
        ids = (b"bench___", np.arange(rows, dtype=np.uint64))
        outputs = [rng.random((rows, 1), np.float32)]
        moments = Moments([0.0] * rows, 0.001, 0.002, 0.003, 0.004)
        runs.append(Served("bench", 1, "default", requests, ids, 0, assembled, outputs, None, moments))
    return runs


class Load:
    """Offers runs at a rate, and times it."""

    def __init__(self, runs: list[Served], schema: JournalSchema, rows_per_s: float) -> None:
        self.runs = runs
        self.schema = schema
        self.rows_per_s = rows_per_s
        self.run_rows = len(runs[0].requests)
        self.offered = 0
        self.offer_s: list[float] = []
        self.late_s: list[float] = []
        self.waited_s: list[float] = []

    async def go(self, journal: Journal | None, seconds: float) -> None:
        """Wake every tick, offer what is due. Without a journal only wake."""
        began = time.monotonic()
        due = wake_at = began
        sync = journal is not None and journal.options.durability == "sync"
        while (now := time.monotonic()) < began + seconds:
            self.late_s.append(now - wake_at)
            while due <= now:
                run = self.runs[self.offered % POOL]._replace(at_ms=int(time.time() * 1000))
                due += self.run_rows / self.rows_per_s
                if journal is not None:
                    self._offer(journal, run, sync=sync)
                    self.offered += 1
            wake_at = max(wake_at + TICK_S, now)
            await asyncio.sleep(max(wake_at - time.monotonic(), 0))

    def _offer(self, journal: Journal, run: Served, *, sync: bool) -> None:
        at = time.perf_counter()
        if sync:
            journal.commit(self.schema, run, lambda *_: self.waited_s.append(time.perf_counter() - at))
        else:
            journal.offer(self.schema, run)
        self.offer_s.append(time.perf_counter() - at)


class Watch:
    """Deletes closed segments, as a compactor would, and remembers the memory of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory_mib: list[float] = []

    async def run(self) -> None:
        while True:
            self.memory_mib.append(_memory_mib())
            for path in sorted(self.folder.glob("segments/*/*/*.arrows"))[:-1]:
                path.unlink()
            await asyncio.sleep(1)


async def measure(args: argparse.Namespace, folder: Path) -> Result:
    """One run."""
    plan, schema = model_of(args.features)
    runs = runs_of(plan, args.run_rows)
    without, load, watch = Load(runs, schema, args.rows_per_s), Load(runs, schema, args.rows_per_s), Watch(folder)
    await without.go(None, min(args.seconds, 10))
    options = JournalOptions(
        enabled=True, path=folder, durability=args.durability, free_bytes_min=0, segment_bytes_max=32 << 20
    )
    async with Journal(options) as journal:
        await load.go(journal, 1)  # pools of memory are filled
        load.offer_s.clear()
        load.late_s.clear()
        watching = asyncio.create_task(watch.run())
        cpu = _journal_cpu_s()
        await load.go(journal, args.seconds)
        cpu = _journal_cpu_s() - cpu
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        before_end = journal.state()
    state = journal.state()
    flushes = max(state.batches, 1)
    return Result(
        seconds=args.seconds,
        rows_offered=load.offered * args.run_rows,
        rows_written=state.rows,
        rows_dropped=sum(state.dropped.values()),
        dropped=state.dropped,
        bytes_written=state.bytes,
        offer_hot_us=_hot_us(schema, runs),
        offer_us=_at(load.offer_s, 50) * 1e6,
        offer_p99_us=_at(load.offer_s, 99) * 1e6,
        late_p50_us=_at(load.late_s, 50) * 1e6,
        late_p99_us=_at(load.late_s, 99) * 1e6,
        late_p50_without_us=_at(without.late_s, 50) * 1e6,
        late_p99_without_us=_at(without.late_s, 99) * 1e6,
        writer_cpu_share=cpu / args.seconds,
        flush_ms=before_end.flush_s / flushes * 1e3,
        sync_ms=state.sync_s / max(state.syncs, 1) * 1e3,
        answers_waited_p50_ms=_at(load.waited_s, 50) * 1e3,
        answers_waited_p99_ms=_at(load.waited_s, 99) * 1e3,
        memory_start_mib=watch.memory_mib[min(2, len(watch.memory_mib) - 1)],
        memory_end_mib=watch.memory_mib[-1],
        memory_max_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _hot_us(schema: JournalSchema, runs: list[Served]) -> float:
    """Microseconds of an offer into a buffer that nobody empties; the best of some rounds."""
    journal = Journal(JournalOptions(buffer_bytes_max=1 << 50))
    journal.hold()
    rounds = []
    for _ in range(20):
        began = time.perf_counter()
        for run in runs:
            journal.offer(schema, run)
        rounds.append((time.perf_counter() - began) / len(runs))
    return min(rounds) * 1e6


def _at(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0


def _memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _journal_cpu_s() -> float:
    """CPU seconds of the writer's thread until now."""
    for thread in threading.enumerate():
        if thread.name == "journal":
            clock = time.pthread_getcpuclockid(thread.ident or 0)
            return time.clock_gettime(clock)
    return 0.0


def main() -> None:
    """Run, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rows-per-s", type=float, default=50_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--run-rows", type=int, default=64, help="rows of one run: what a busy gateway gathers")
    parser.add_argument("--durability", choices=["interval", "sync"], default="interval")
    parser.add_argument("--folder", type=Path, help="where the journal is; the default is a temporary folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.setswitchinterval(1e-4)
    with tempfile.TemporaryDirectory(prefix="headrace-journal-", dir=args.folder) as folder:
        result = uvloop.run(measure(args, Path(folder)))
    if args.json:
        print(json.dumps(asdict(result), indent=2))
        return
    for name, value in asdict(result).items():
        print(f"{name:24} {value:,.2f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    main()
