"""Computed rows while functions hang, raise and die, workers are killed, and files are not there."""

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featureclient.compute import ComputeError, ComputeFailed, ComputeOptions, Computer, ComputeShed, ComputeTimedOut
from featureclient.events import ComputeRefused, ComputeRun, ComputeUnavailable, ComputeWorkerLost, Event
from featureclient.schema import Catalogue, ConfigError

OPTIONS = ComputeOptions(compute_modules=("tests.computing",), workers=2, breaker_open_s=0.2)
LATE_S = 30.0


def catalogue_of(**views: str) -> Catalogue:
    text = "entities: {plane: {tailnum: string}}\nviews:\n"
    for name, compute in views.items():
        text += f"  {name}@1:\n    entity: plane\n    columns: {{a: int64, b: float32}}\n    on_missing: compute\n"
        text += f"    compute: {{{compute}}}\n"
    return Catalogue.parse(text)


def python(function: str, timeout_ms: int = 20_000) -> str:
    return f'python: "tests.computing:{function}", timeout_ms: {timeout_ms}'


TEXT = (
    "entities: {plane: {tailnum: string}}\nviews:\n"
    "  v@1: {entity: plane, columns: {a: int64, b: float32}, on_missing: compute,"
    " compute: {python: 'tests.computing:sleeps', timeout_ms: 3600000}}\n"
)


class Rig:
    """A computer, its events, and the short way to ask."""

    def __init__(self, catalogue: Catalogue, options: ComputeOptions) -> None:
        self.events: list[Event] = []
        self.catalogue = catalogue
        self.computer = Computer(catalogue, options, on_event=self.events.append)

    async def ask(self, name: str, *ids: str) -> dict[str, Any]:
        async with asyncio.timeout(LATE_S):
            table = await self.computer.compute(self.catalogue.view(f"{name}@1"), ids, math.inf)
        return dict(zip(table["tailnum"], table["a"].tolist(), strict=True)) if "a" in table else {}

    async def trouble(self, name: str, *ids: str) -> ComputeError:
        with pytest.raises(ComputeError) as failed:
            await self.ask(name, *ids)
        return failed.value

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(LATE_S):
            while not true():  # noqa: ASYNC110  # what is waited for happens in other processes
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(catalogue: Catalogue, options: ComputeOptions = OPTIONS) -> AsyncIterator[Rig]:
    rig = Rig(catalogue, options)
    async with rig.computer:
        yield rig


async def test_a_function_that_hangs_is_killed_while_another_views_runs_go_on() -> None:
    async with running(catalogue_of(hangs=python("sleeps", 300), works=python("lengths"))) as rig:
        began = time.monotonic()
        hung = [asyncio.create_task(rig.trouble("hangs", "3600")) for _ in range(2)]
        answered = 0
        while not hung[0].done():
            assert await rig.ask("works", "abc") == {"abc": 3}
            answered += 1
        assert {type(one) for one in await asyncio.gather(*hung)} == {ComputeTimedOut}
        assert time.monotonic() - began < LATE_S
        assert answered > 10
        await rig.until(lambda: len(rig.computer.pids) == 2 and rig.computer.restarts == 1)
        (lost,) = rig.of(ComputeWorkerLost)
        assert lost.why == "killed: hangs@1 a run took longer than timeout_ms=300"
        assert await rig.ask("hangs", "0") != {}
        errors = [event.error for event in rig.of(ComputeRun) if event.view == "hangs@1"]
        assert errors == ["ComputeTimedOut", None]


async def test_an_async_function_that_hangs_is_stopped_without_a_kill() -> None:
    async with running(catalogue_of(v=python("slow_lengths", 1))) as rig:
        assert isinstance(await rig.trouble("v", "x"), ComputeTimedOut)
        await rig.until(lambda: len(rig.computer.pids) == 2)
        assert rig.computer.restarts == 0


async def test_a_worker_that_is_killed_is_replaced_and_only_its_run_fails() -> None:
    async with running(catalogue_of(v=python("sleeps")), replace(OPTIONS, workers=1)) as rig:
        (pid,) = rig.computer.pids
        run = asyncio.create_task(rig.trouble("v", "3600"))
        await rig.until(lambda: "busy=1" in repr(rig.computer))
        waits = asyncio.create_task(rig.ask("v", "0", "0:more"))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        error = await run
        assert isinstance(error, ComputeFailed)
        assert (error.fault, error.why) == ("worker", "the worker process was lost: ended by signal 9")
        assert set((await waits).values()) != {pid}
        assert rig.of(ComputeWorkerLost) == [ComputeWorkerLost("ended by signal 9")]
        assert rig.computer.restarts == 1


async def test_a_function_that_ends_its_process() -> None:
    async with running(catalogue_of(v=python("dies"), w=python("lengths"))) as rig:
        error = await rig.trouble("v", "x")
        assert isinstance(error, ComputeFailed)
        assert error.why == "the worker process was lost: ended with exit code 7"
        assert await rig.ask("w", "abc") == {"abc": 3}


async def test_one_bad_id_costs_the_others_nothing() -> None:
    async with running(catalogue_of(v=python("picky"))) as rig:
        ids = [f"k{n}" for n in range(100)]
        asked = [asyncio.create_task(rig.ask("v", one)) for one in ids]
        bad = asyncio.create_task(rig.trouble("v", "poison"))
        assert await asyncio.gather(*asked) == [{one: len(one)} for one in ids]
        error = await bad
        assert isinstance(error, ComputeFailed)
        assert error.fault == "function"
        assert "KeyError: 'poison' (" in error.why
        assert "computing.py:" in error.why
        assert not rig.of(ComputeRefused)


async def test_a_view_that_fails_in_a_row_is_left_alone_for_a_while() -> None:
    async with running(catalogue_of(v=python("picky"), w=python("lengths"))) as rig:
        for _ in range(3):
            assert isinstance(await rig.trouble("v", "poison"), ComputeFailed)
        runs = len(rig.of(ComputeRun))
        assert isinstance(await rig.trouble("v", "fine"), ComputeShed)
        assert len(rig.of(ComputeRun)) == runs
        assert rig.of(ComputeRefused) == [ComputeRefused("v@1", 1)]
        assert await rig.ask("w", "abc") == {"abc": 3}
        await asyncio.sleep(OPTIONS.breaker_open_s)
        assert await rig.ask("v", "fine") == {"fine": 4}
        assert await rig.ask("v", "again") == {"again": 5}


async def test_a_view_has_no_more_runs_than_it_may() -> None:
    views = catalogue_of(v=python("sleeps") + ", concurrency_max: 2, batch_rows_max: 1", w=python("lengths"))
    async with running(views, replace(OPTIONS, workers=4)) as rig:
        await rig.until(lambda: len(rig.computer.pids) == 4)
        asked = [asyncio.create_task(rig.ask("v", f"0.05:{n}")) for n in range(12)]
        busiest = 0
        while not all(task.done() for task in asked):
            busiest = max(busiest, int(repr(rig.computer).split("busy=")[1].split()[0]))
            await asyncio.sleep(0.005)
        assert busiest == 2


async def test_more_ids_than_may_wait_are_refused_at_the_door() -> None:
    options = replace(OPTIONS, workers=1, waiting_ids_max=5)
    async with running(catalogue_of(v=python("sleeps") + ", batch_rows_max: 1"), options) as rig:
        view = rig.catalogue.view("v@1")
        soon = time.monotonic() + LATE_S
        busy = asyncio.create_task(rig.computer.compute(view, ["0.2"], soon))
        await rig.until(lambda: "busy=1" in repr(rig.computer))
        waits = asyncio.create_task(rig.computer.compute(view, [f"0:{n}" for n in range(4)], soon))
        await asyncio.sleep(0)
        with pytest.raises(ComputeShed, match="4 ids wait already, the limit waiting_ids_max is 5"):
            await rig.computer.compute(view, ["0:a", "0:b"], soon)
        assert len((await waits)["tailnum"]) == 4
        await busy


async def test_a_function_in_pure_python_does_not_hold_up_the_loop() -> None:
    async with running(catalogue_of(v=python("spins"))) as rig:
        asked = asyncio.create_task(rig.ask("v", "x"))
        ticks = []
        while not asked.done():
            ticks.append(time.perf_counter())
            await asyncio.sleep(0.001)
        assert await asked == {"x": 1}
        # In a thread of this process the loop would get a turn every 5 ms, and 60 turns in all.
        assert ticks[-1] - ticks[0] >= 0.25
        assert len(ticks) > 100


async def test_files_that_are_not_there_are_a_warning_and_serve_when_they_come(tmp_path: Path) -> None:
    query = f"SELECT tailnum, a, b FROM '{tmp_path}/rows.parquet' WHERE tailnum IN $ids"
    text = f"""
entities: {{plane: {{tailnum: string}}}}
sources: {{file: {{duckdb: {{path: {tmp_path}/none.duckdb}}}}}}
views:
  v@1: {{entity: plane, columns: {{a: int64, b: float32}}, on_missing: compute, compute: {{sql: "{query}"}}}}
  w@1:
    entity: plane
    columns: {{a: int64, b: float32}}
    on_missing: compute
    compute: {{sql: "SELECT tailnum, a, b FROM t WHERE tailnum IN $ids", on: file, timeout_ms: 20000}}
"""
    async with running(Catalogue.parse(text)) as rig:
        unavailable = {event.view: event.why for event in rig.of(ComputeUnavailable)}
        assert "No files found" in unavailable["v@1"]
        assert "none.duckdb" in unavailable["w@1"]
        assert {trouble.view for trouble in rig.computer.check()} == {"v@1", "w@1"}
        assert isinstance(await rig.trouble("v", "x"), ComputeShed)
        await asyncio.sleep(OPTIONS.breaker_open_s)
        for name in ("v", "w"):
            error = await rig.trouble(name, "x")
            assert isinstance(error, ComputeFailed)
            assert error.fault == "source"
        pq.write_table(pa.table({"tailnum": ["x"], "a": [1], "b": [2.0]}), tmp_path / "rows.parquet")
        await asyncio.sleep(OPTIONS.breaker_open_s)
        assert await rig.ask("v", "x", "y") == {"x": 1}


async def test_an_error_of_the_data_is_the_querys() -> None:
    query = "SELECT unnest($ids) AS tailnum, CAST(unnest($ids) AS BIGINT) AS a, 0 AS b"
    async with running(catalogue_of(v=f'sql: "{query}", timeout_ms: 20000')) as rig:
        computed = await rig.computer.attempt(rig.catalogue.view("v@1"), ["1", "x", "3"], math.inf)
        assert sorted(computed.table["a"].tolist()) == [1, 3]
        assert str(computed.failed["x"]).startswith("v@1: the query failed: Conversion Error: Could not convert")


async def test_a_module_that_never_ends_its_import_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(3600)\n")
    options = replace(OPTIONS, compute_modules=("endless",), compute_path=(str(tmp_path),), start_timeout_s=0.5)
    with pytest.raises(ConfigError, match=r"no worker process was ready within start_timeout_s=0\.5"):
        async with running(catalogue_of(v='python: "endless:f"'), options):
            pass


async def test_workers_that_cannot_be_started_again_are_told_and_come_back(tmp_path: Path) -> None:
    module = tmp_path / "moody.py"
    good = "from tests.computing import lengths\n"
    module.write_text(good)
    options = replace(OPTIONS, compute_modules=("moody",), compute_path=(str(tmp_path),), workers=1)
    async with running(catalogue_of(v='python: "moody:lengths", timeout_ms: 20000'), options) as rig:
        assert await rig.ask("v", "abc") == {"abc": 3}
        module.write_text("import os  # not as long as the other one\nos._exit(3)\n")
        os.kill(rig.computer.pids[0], signal.SIGKILL)
        await rig.until(lambda: ComputeWorkerLost("ended with exit code 3") in rig.events)
        error = await rig.trouble("v", "abc")
        assert isinstance(error, ComputeShed)
        assert "no worker process can be started (ended with exit code 3)" in error.why
        module.write_text(good)
        await rig.until(lambda: bool(rig.computer.pids))
        assert await rig.ask("v", "abc") == {"abc": 3}


async def test_workers_end_with_the_server_however_it_ends() -> None:
    script = f"""
import asyncio, sys
sys.path[:0] = {[str(Path(__file__).parents[3])]!r}
from featureclient.compute import ComputeOptions, Computer
from featureclient.schema import Catalogue
async def main():
    catalogue = Catalogue.parse({TEXT!r})
    async with Computer(catalogue, ComputeOptions(compute_modules=("tests.computing",), workers=1)) as computer:
        print(computer.pids[0], flush=True)
        await computer.compute(catalogue.view("v@1"), ["3600"], float("inf"))
asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    async with asyncio.timeout(LATE_S):
        worker = int(await server.stdout.readline())
        await asyncio.sleep(0.1)
        server.kill()
        await server.wait()
        while cmdline(worker):  # noqa: ASYNC110  # another process's end
            await asyncio.sleep(0.01)


def cmdline(pid: int) -> bytes:
    """Empty for a process that has ended and was not reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_workers_end_with_the_computer_the_computer_and_a_caller_is_told() -> None:
    rig = Rig(catalogue_of(v=python("sleeps")), OPTIONS)
    async with rig.computer:
        await rig.until(lambda: len(rig.computer.pids) == 2)
        pids = rig.computer.pids
        asked = asyncio.create_task(rig.trouble("v", "3600"))
        await rig.until(lambda: "busy=1" in repr(rig.computer))
    assert isinstance(await asked, ComputeError)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="not open"):
        await rig.ask("v", "0")


@pytest.mark.parametrize("function", ["leaves", "leaves_later"])
async def test_a_function_that_wants_to_end_its_process_has_failed_and_no_more(function: str) -> None:
    async with running(catalogue_of(v=python(function)), replace(OPTIONS, workers=1, breaker_failures=100)) as rig:
        before = await rig.ask("v", "a")
        for end, kind in (("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("cancel", "CancelledError")):
            failed = await rig.trouble("v", end)
            assert isinstance(failed, ComputeFailed)
            assert kind in str(failed)
        assert await rig.ask("v", "a") == before, "the same process"
        assert rig.computer.restarts == 0
