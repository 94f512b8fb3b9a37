"""The side-by-side benchmark: Headrace, the hand-written server and the echoes, in one run on one machine.

    python -m loadtest.bench [--json] [--quick] [--transport fast|grpcio] [--only 'predict/1/*' ...]

The flow: start Redis, load both servers' rows, start every server that the chosen works need, check all their answers,
then measure. Works with the same baseline run form a group; a round runs each server of the group once, and every
second round in the opposite order, so that a machine that slows down slows all of them down. Five rounds make a median.

The rules: a server is alone on its core (the other servers are idle), Redis and the client share the other core. A run
in which one call fails is void: it is said, repeated, and after three void runs in a row the benchmark ends. What was
measured is always the answer: progress goes to stderr, the table or the JSON to stdout.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest import answers, echo, gload, stack, workload
from loadtest.processes import Cores, DidNotStart, Running, exit_on_signals, running_redis
from loadtest.results import Comparison, Sample, summarize
from loadtest.works import FULL, QUICK, Measure, Pace, Work, all_works, choose_works, group_by_baseline

CONNECTIONS = 8
"""Calls in flight are spread over this many connections: a service is called by a few other processes."""
VOID_RUNS_MAX = 3
BODIES_SEED = 1
SINGLE_BODIES = 20_000
RANKING_BODIES = 500


@dataclass(frozen=True, slots=True)
class Target:
    """A server that runs, and how to load it."""

    running: Running
    method: str
    bodies: Mapping[int, Path]
    """By the number of rows of a call."""
    all_equal: str | None = None
    tls_ca: Path | None = None


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Bench:
    """Starts servers into `resources` and measures them."""

    transport: str
    pace: Pace
    cores: Cores
    folder: Path
    resources: ExitStack
    connections: int = CONNECTIONS
    targets: dict[str, Target] = field(default_factory=dict)

    def start(self, servers: set[str]) -> None:
        """Starts the servers with these names and checks their answers."""
        predicting = servers & {"warm", "cold", "baseline"}
        if predicting:
            self._start_predicting(predicting)
        for name in sorted(servers - predicting):
            self._start_echo(name)

    def _start_predicting(self, servers: set[str]) -> None:
        say("starting Redis and loading 20,000 rows for each server")
        redis = self.resources.enter_context(running_redis(core=self.cores.client, folder=self.folder))
        stack.load_rows(redis.port)
        asked = {
            1: workload.questions(1, SINGLE_BODIES, BODIES_SEED),
            workload.RANKED_ROWS: workload.questions(workload.RANKED_ROWS, RANKING_BODIES, BODIES_SEED),
        }
        headrace_bodies = self._write_bodies("headrace", asked, workload.headrace_bodies)
        baseline_bodies = self._write_bodies("baseline", asked, workload.baseline_bodies)
        for name in sorted(servers):
            say(f"starting {name} and checking its answers for all users")
            if name == "baseline":
                server = stack.running_baseline(name, redis_port=redis.port, core=self.cores.server, folder=self.folder)
                started = self.resources.enter_context(server)
                answers.check_baseline(started.port)
                self.targets[name] = Target(started, workload.BASELINE_METHOD, baseline_bodies)
            else:
                server = stack.running_headrace(
                    name,
                    transport=self.transport,
                    cache=name == "warm",
                    redis_port=redis.port,
                    core=self.cores.server,
                    folder=self.folder,
                )
                started = self.resources.enter_context(server)
                answers.check_headrace(started.port)
                self.targets[name] = Target(
                    started, workload.HEADRACE_METHOD, headrace_bodies, all_equal=workload.ALL_PRESENT
                )

    def _start_echo(self, name: str) -> None:
        say(f"starting {name}")
        certificate = stack.make_certificate(self.folder) if "tls" in name else None
        server = stack.running_echo(
            name,
            transport=echo.DIRECT if name.endswith("direct") else self.transport,
            core=self.cores.server,
            folder=self.folder,
            certificate=certificate,
        )
        started = self.resources.enter_context(server)
        tls_ca = certificate.file if certificate else None
        answers.check_echo(started.port, tls_ca)
        # What an echo carries is what a prediction for one user would.
        asked = {0: workload.questions(1, SINGLE_BODIES, BODIES_SEED)}
        bodies = self._write_bodies(name, asked, workload.headrace_bodies)
        self.targets[name] = Target(started, echo.METHOD, bodies, tls_ca=tls_ca)

    def _write_bodies(
        self,
        name: str,
        asked: Mapping[int, list[workload.Users]],
        encode: Callable[[Sequence[workload.Users]], list[bytes]],
    ) -> dict[int, Path]:
        return {
            rows: gload.write_bodies(self.folder / f"{name}-{rows}.bodies", encode(users))
            for rows, users in asked.items()
        }

    def measure(self, works: Sequence[Work]) -> Iterator[Comparison]:
        """Gives each group's lines when its rounds are done."""
        for baseline, group in group_by_baseline(works).items():
            measures = [*(work.headrace for work in group), baseline]
            rounds: dict[Measure, list[Sample]] = {measure: [] for measure in measures}
            for number in range(self.pace.rounds):
                for measure in measures if number % 2 == 0 else reversed(measures):
                    rounds[measure].append(self._run_until_valid(measure))
            summaries = {measure: summarize(samples) for measure, samples in rounds.items()}
            for work in group:
                line = Comparison(work.name, work.headrace.rows, summaries[work.headrace], summaries[baseline])
                say(f"{line.work}: {line.headrace.rps:,.0f}/s against {line.baseline.rps:,.0f}/s")
                yield line

    def _run_until_valid(self, measure: Measure) -> Sample:
        for attempt in range(1, VOID_RUNS_MAX + 1):
            try:
                return self._run(measure)
            except gload.RunFailed as void:
                say(f"void run {attempt} of {measure}: {void}")
                last = void
        raise last

    def _run(self, measure: Measure) -> Sample:
        target = self.targets[measure.server]
        load = gload.Load(
            target.method,
            in_flight=measure.in_flight,
            connections=min(self.connections, measure.in_flight),
            seconds=self.pace.seconds,
            warmup_s=self.pace.warmup_s,
            all_equal=target.all_equal,
            tls_ca=target.tls_ca,
        )
        client = gload.build(tls=target.tls_ca is not None)
        cpu_before_s = target.running.cpu_s()
        answer = gload.run(client, load, target.bodies[measure.rows], port=target.running.port, core=self.cores.client)
        return Sample.of(answer, target.running.cpu_s() - cpu_before_s)


def show_table(lines: Sequence[Comparison], *, transport: str, pace: Pace, cores: Cores) -> None:
    """The result for people."""
    table = Table(
        title=f"Headrace ({transport}) against the hand-written server (echo: grpc.aio), median of {pace.rounds} rounds"
    )
    table.add_column("work")
    for side in ("headrace", "baseline"):
        for unit in ("calls/s", "± %", "p50 ms", "p99 ms", "CPU µs"):
            table.add_column(f"{side}\n{unit}", justify="right")
    table.add_column("ratio\ncalls/s", justify="right")
    table.add_column("ratio\np50", justify="right")
    for line in lines:
        cells = [line.work]
        for summary in (line.headrace, line.baseline):
            bound = "*" if summary.is_client_bound else ""
            cells += [f"{summary.rps:,.0f}{bound}", f"{50 * summary.spread:.0f}"]
            cells += [f"{summary.p50_ms:.3f}", f"{summary.p99_ms:.3f}", f"{summary.cpu_us:.1f}"]
        table.add_row(*cells, f"{line.ratio_rps:.2f}x", f"{line.ratio_p50:.2f}x")
    console = Console(width=160)
    console.print(table)
    if any(side.is_client_bound for line in lines for side in (line.headrace, line.baseline)):
        console.print("* the client used its whole core: the server could perhaps do more")
    if cores.are_shared:
        console.print("This machine has one core; server, Redis and client shared it.")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="shorter runs, under two minutes in all")
    parser.add_argument(
        "--transport", choices=["fast", "grpcio"], default=stack.DEFAULT_TRANSPORT, help="Headrace's transport"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="works by name: 'predict/1/warm/*'")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="that carry the calls in flight, at most")
    parser.add_argument("--list", action="store_true", help="print the names of the works and end")
    return parser.parse_args(arguments)


def main() -> int:
    """The command line; 0 when everything chosen was measured."""
    arguments = parse_arguments()
    works = choose_works(all_works(), arguments.only)
    if arguments.list or not works:
        print("\n".join(work.name for work in all_works()))
        return 0 if arguments.list else 2
    exit_on_signals()
    pace = QUICK if arguments.quick else FULL
    cores = Cores.available()
    try:
        with ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
            bench = Bench(arguments.transport, pace, cores, folder, resources, arguments.connections)
            gload.build()
            bench.start({measure.server for work in works for measure in (work.headrace, work.baseline)})
            lines = list(bench.measure(works))
    except (gload.CannotBuild, gload.RunFailed, DidNotStart, answers.WrongAnswer) as problem:
        say(f"bench: {problem}")
        return 1
    if arguments.json:
        print(json.dumps([line.as_json() for line in lines]))
    else:
        show_table(lines, transport=arguments.transport, pace=pace, cores=cores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
