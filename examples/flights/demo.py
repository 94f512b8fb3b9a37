"""`headrace demo`: real flights of October to December through a real gateway, watched from the first row to the last.

    embedded Redis ─▶ load the views ─▶ gateway ─▶ flights over gRPC ─▶ table, summary ─▶ stay up until Ctrl-C

A few planes are left out of the load. The gateway computes their rows when it is first asked for them, with SQL on the
files that the build writes, and stores them.

Everything that is started is ended, in the reverse order, however the demo ends: `run_demo` turns SIGINT and SIGTERM
into the cancellation of its own work, so the context managers below unwind. People read the console; with `json` that
is stderr, and the only line of stdout is the summary, printed when everything has stopped.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import uvloop
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.flights.build import write_sources
from examples.flights.data import DataMissing, Flights, read_flights
from examples.flights.features import CATALOGUE, VIEWS, Features, context_columns, entity_columns
from examples.flights.redis_process import RedisFailed, RedisMissing, embedded_redis
from examples.flights.traffic import MODEL, Answer, Summary, questions, send, summarise
from featureclient.client import FeatureClient
from featureclient.schema import Catalogue, FeatureError, status
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.client import HeadraceClient
from gateway.server import settings
from gateway.server.app import Gateway

CONFIG = Path(__file__).with_name("headrace.yaml")
HOST = "127.0.0.1"
FIRST_MONTH = 10

LOAD_ROWS = 2_000
"""Rows a write: enough to be fast, few enough for a bar that moves."""
TABLE_ROWS = 15
DEFAULTED_ROWS = 3
"""At least so many of the table's rows, where there are, have a feature that the store did not know."""
WITHHELD_PLANES = 3
"""Planes that are left out of the load. Each is first asked for alone, so that the table can show it."""
JOURNAL = "journal"
ROWS_FROM_CATALOGUE = "../../rows/"
"""Where the catalogue expects the build's files; the demo puts them beside a catalogue of its own."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How to run the demo."""

    once: bool = False
    """End after the summary instead of staying up."""
    json: bool = False
    """Print the summary as one line of JSON, last, on stdout; everything else goes to stderr."""
    rows: int = 6_000
    """How many flights to ask about."""
    port: int = 8500
    """Where gRPC listens; a free port is taken when this one is not free."""
    http_port: int = 8501
    """Where metrics and health are served; likewise."""

    def __post_init__(self) -> None:
        if not all(0 <= port <= 65535 for port in (self.port, self.http_port)):  # noqa: PLR2004  the largest port
            raise ValueError("a port is a number from 0 to 65535")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, not {self.rows}")


async def run_demo(options: DemoOptions) -> Summary | None:
    """Run the demo; return the summary, or None when a signal came before there was one.

    Raises `RedisMissing`, `RedisFailed` or `DataMissing` with a message that says what to do.
    """
    console = Console(stderr=options.json)
    demo = _Demo(options, console)
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(demo.run(), name="demo")

    def interrupt() -> None:
        # Once: a second Ctrl-C must not cut short the ending that the first one began.
        if not work.cancelling():
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        await asyncio.wait([work])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if not work.cancelled():
        work.result()
    console.print("stopped")
    if options.json and demo.summary is not None:
        print(json.dumps(asdict(demo.summary)), flush=True)
    return demo.summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, and exit: 0, 1 with a message that says what to do, or 130 when interrupted before the summary."""
    defaults = DemoOptions()
    parser = argparse.ArgumentParser(prog="headrace demo", description="Predict real flights with a real gateway.")
    parser.add_argument("--once", action="store_true", help="end after the summary instead of staying up")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, as the last line of stdout")
    parser.add_argument("--rows", type=int, default=defaults.rows, help="flights to ask about (default: %(default)s)")
    parser.add_argument("--port", type=int, default=defaults.port, help="gRPC port (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=defaults.http_port, help="metrics port (default: %(default)s)")
    try:
        options = DemoOptions(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.error(str(error))
    try:
        summary = uvloop.run(run_demo(options))
    except (RedisMissing, RedisFailed, DataMissing, FeatureError, OSError) as error:
        sys.exit(f"headrace demo: {error}")
    sys.exit(0 if summary else 130)


class _Demo:
    """The acts of the demo, in order."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self.options = options
        self.console = console
        self.summary: Summary | None = None
        self.withheld: list[str] = []

    async def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
            await self._run(Path(folder))

    async def _run(self, folder: Path) -> None:
        async with embedded_redis() as url:
            self.console.print(f"Redis on {url}")
            test = await self._load(url, folder)
            async with self._gateway(url, folder) as gateway:
                address = gateway.addresses[0]
                self.console.print(f"gateway on {address}, metrics on http://{gateway.http_address}")
                async with HeadraceClient(address) as client:
                    answers = await self._ask(client, test)
                self.summary = summarise(answers, _hit_ratio(gateway))
                self.console.print(_table(answers))
                self.console.print(_summary_text(self.summary, answers, self.withheld))
                if not self.options.once:
                    # Commands to copy are not broken into lines.
                    commands = _where_next(address, gateway.http_address, url, folder, test)
                    self.console.print(commands, soft_wrap=True)
                    await asyncio.Event().wait()

    async def _load(self, url: str, folder: Path) -> Flights:
        """Put the views of 2013-09-30 into the store, but for some planes; return the flights after that day."""
        with self.console.status("reading the flights of 2013"):
            # A thread, so that a signal is heard meanwhile.
            flights = await asyncio.to_thread(read_flights)
            features = await asyncio.to_thread(Features.read, flights)
            await asyncio.to_thread(write_sources, features, folder)
        (folder / CATALOGUE.name).write_text(CATALOGUE.read_text().replace(ROWS_FROM_CATALOGUE, ""))
        test = flights.take(flights.month >= FIRST_MONTH)
        catalogue = Catalogue.load(CATALOGUE)
        async with FeatureClient(catalogue, RedisStore(RedisOptions(url=url))) as client:
            with _progress(self.console) as progress:
                for view in VIEWS:
                    table = await asyncio.to_thread(features.table, view)
                    if view == "plane_stats":
                        self.withheld = _first_asked_alone(questions(test, self.options.rows), table)
                        table = table.filter(
                            pc.invert(pc.is_in(table["tailnum"], pa.array(self.withheld, pa.string())))
                        )
                    task = progress.add_task(f"load {view}@1", total=table.num_rows)
                    for start in range(0, table.num_rows, LOAD_ROWS):
                        part = table.slice(start, LOAD_ROWS)
                        await client.write(f"{view}@1", part)
                        progress.advance(task, part.num_rows)
        return test

    @contextlib.asynccontextmanager
    async def _gateway(self, url: str, folder: Path) -> AsyncIterator[Gateway]:
        overrides: dict[str, Any] = {
            "catalogue": str(folder / CATALOGUE.name),
            "grpc": {"listen": [f"{HOST}:{self._port('gRPC', self.options.port)}"]},
            "http": {"listen": f"{HOST}:{self._port('HTTP', self.options.http_port)}"},
            "store": {"url": url},
            "journal": {"enabled": True, "path": str(folder / JOURNAL)},
        }
        async with Gateway(settings.load(CONFIG, overrides)) as gateway:
            await gateway.wait_ready()
            yield gateway

    def _port(self, what: str, wanted: int) -> int:
        if _is_free(wanted):
            return wanted
        self.console.print(f"[yellow]port {wanted} is taken, so {what} listens on a free one[/yellow]")
        return 0

    async def _ask(self, client: HeadraceClient, test: Flights) -> list[Answer]:
        asked = questions(test, self.options.rows)
        with _progress(self.console) as progress:
            task = progress.add_task("predict", total=len(asked))
            return await send(client, asked, lambda _: progress.advance(task))


def _first_asked_alone(asked: Sequence[Flights], table: pa.Table) -> list[str]:
    """Some planes with a row, whose first question is about one flight."""
    known = set(table["tailnum"].to_pylist())
    seen: set[str] = set()
    found: list[str] = []
    for flights in asked:
        if len(flights) == 1 and flights.tailnum[0] in known - seen and len(found) < WITHHELD_PLANES:
            found.append(str(flights.tailnum[0]))
        seen.update(flights.tailnum.tolist())
    return found


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As a server does it: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _hit_ratio(gateway: Gateway) -> float | None:
    """The share of lookups that the cache answered, from the gateway's own metrics."""
    counts = {"headrace_cache_hits_total": 0.0, "headrace_cache_misses_total": 0.0}
    for family in gateway.telemetry.registry.collect():
        for sample in family.samples:
            if sample.name in counts:
                counts[sample.name] += sample.value
    hits, misses = counts.values()
    return hits / (hits + misses) if hits + misses else None


_HEADINGS: Sequence[tuple[str, JustifyMethod]] = (
    ("left", "left"),
    ("flight", "left"),
    ("plane", "left"),
    ("route", "left"),
    ("delay", "right"),
    ("prob", "right"),
    ("arrived", "left"),
)


def _table(answers: Sequence[Answer]) -> Table:
    title = "Will it arrive 15 minutes late or more? Asked when it left; delays in minutes."
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, justify in _HEADINGS:
        table.add_column(heading, justify=justify, no_wrap=True)
    table.add_column("features", min_width=max(map(len, VIEWS)))
    table.add_column("ms", justify="right", no_wrap=True)
    for answer in _shown(answers):
        table.add_row(*_cells(answer))
    return table


def _shown(answers: Sequence[Answer]) -> list[Answer]:
    """Answers about one flight: from the whole period, some without a feature, some with one that was computed."""
    single = [answer for answer in answers if len(answer.flights) == 1]
    computed = [answer for answer in single if _some_computed(answer)][:WITHHELD_PLANES]
    without = [answer for answer in single if not _all_present(answer) and not _some_computed(answer)][:DEFAULTED_ROWS]
    rest = [answer for answer in single if _all_present(answer)]
    count = min(len(rest), TABLE_ROWS - len(without) - len(computed))
    spread = [rest[place] for place in np.linspace(0, len(rest) - 1, count).astype(int)]
    return sorted(spread + without + computed, key=lambda answer: int(answer.flights.departed_min[0]))


def _all_present(answer: Answer) -> bool:
    return not answer.error and all((codes == status.PRESENT).all() for codes in answer.statuses.values())


def _some_computed(answer: Answer) -> bool:
    return any((codes & status.OUTCOME_MASK == status.COMPUTED).any() for codes in answer.statuses.values())


def _cells(answer: Answer) -> Iterable[str]:
    flight = answer.flights
    yield str(flight.departed_min.astype("datetime64[m]")[0])[5:10]
    yield f"{flight.carrier[0]} {flight.number[0]}"
    yield str(flight.tailnum[0])
    yield f"{flight.origin[0]}→{flight.dest[0]}"
    yield f"{flight.dep_delay[0]:+.0f}"
    yield "-" if answer.probability is None else f"{answer.probability[0]:.2f}"
    delay = f"{flight.arr_delay[0]:+.0f}"
    yield f"[red]late[/red] {delay}" if flight.late[0] else f"[green]fine[/green] {delay}"
    yield answer.error or _statuses(answer)
    yield f"{answer.seconds * 1e3:.1f}"


def _statuses(answer: Answer) -> str:
    others = [
        f"{alias} {status.describe(int(codes[0]))}"
        for alias, codes in answer.statuses.items()
        if codes[0] != status.PRESENT
    ]
    return ", ".join(others) or "all PRESENT"


def _summary_text(summary: Summary, answers: Sequence[Answer], withheld: Sequence[str]) -> str:
    lines = [
        f"{summary.requests:,} requests about {summary.rows:,} flights, {summary.errors} errors",
        f"left out of the load, and computed when first asked for: {', '.join(withheld) or 'none'}",
        f"latency p50 {_shown_number(summary.p50_ms)} ms, p99 {_shown_number(summary.p99_ms)} ms"
        " (seen by a client in the same process)",
        f"cache hit ratio {_shown_number(summary.cache_hit_ratio)}",
        f"AUC {_shown_number(summary.auc)}, of the departure delay alone {_shown_number(summary.auc_baseline)}",
    ]
    lines += [f"[red]first error: {answer.error}[/red]" for answer in answers if answer.error][:1]
    return "\n".join(lines)


def _shown_number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def _where_next(address: str, http_address: str, redis_url: str, folder: Path, test: Flights) -> str:
    flight = test.take(np.array([0]))
    entities = " ".join(f"-e {name}={column[0]}" for name, column in entity_columns(flight).items())
    context = " ".join(f"-c {name}={column[0]:g}" for name, column in context_columns(flight).items())
    command = Path(sys.executable).with_name("headrace")
    if command.is_relative_to(Path.cwd()):
        command = command.relative_to(Path.cwd())
    return "\n".join(
        [
            "",
            "[bold]Still up; in a second terminal:[/bold]",
            f"  {command} predict {MODEL} --target {address} {entities} {context}",
            f"  grpcurl -plaintext {address} list",
            f"  curl -s http://{http_address}/metrics",
            f"  redis-cli -s {redis_url.removeprefix('unix://')} dbsize",
            f"  {command} journal stats --journal {folder / JOURNAL}",
            f"  {command} drift --config examples/flights/headrace.yaml --model {MODEL} --journal {folder / JOURNAL}",
            "Ctrl-C ends it.",
        ]
    )


if __name__ == "__main__":
    main()
