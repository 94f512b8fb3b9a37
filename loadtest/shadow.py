"""What a shadow costs those who wait: the same open load with and without one, at shares of what the server can do.

    python -m loadtest.shadow [--seconds 6] [--rounds 3] [--shares 0.25 0.5 0.8] [--ranking-share 0] [--json FILE]

Two servers with the benchmark's model run side by side, one of them with a shadow of every request on another version
of the view (its rows are the primary's plus a tenth). First a closed loop finds what the one without can do; then, for
each share of it, both get the same open load in turns, the first of a pair changing from round to round. Said are the
p50 and p99 of each, the median over the rounds of how many times the other's they are, what became of the copied rows,
and what the shadow took of a CPU. The bound is p50 +5%, and p99 +15% plus one slice.

`send_lag_p99_ms` is how late the client itself was. Rounds in which that was much are made again; where it stays, or
the machine's load is large, the numbers are those of the machine. Redis and the client share one core, the servers have
another. Progress goes to stderr.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.pipeline.shadow_options import ShadowOptions
from loadtest import gload, traffic, workload
from loadtest.processes import Cores, exit_on_signals, free_port, running, running_redis
from loadtest.stack import WRITE_ROWS, redis_url

BODIES = 20_000
CONNECTIONS = 8
IN_FLIGHT = 64
CAPACITY_RUNS = 5
"""The best of them counts: noise makes it less, and nothing makes it more."""
SLICE_MS = ShadowOptions().slice_us / 1000
P50_MAX, P99_MAX = 1.05, 1.15
ROUNDS_FACTOR_MAX = 4
"""How many times the rounds, if the machine is not quiet."""

_CONFIG = """\
catalogue: features.yaml
models: {models}
grpc: {{listen: ["127.0.0.1:{port}"]}}
http: {{listen: "127.0.0.1:{http_port}"}}
store: {{url: "{store}"}}
pipeline: {{store_timeout_ms: 1000}}
"""
_EXPERIMENTS = """\
experiments:
  other_rows:
    model: mlp
    variants: {second: {views: {user_features: "user_features@2"}}}
    shadow: {variants: [second], share: 100}
"""
_ROWS = re.compile(r'^headrace_shadow_rows_total\{[^}]*result="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)
_CPU = re.compile(r"^headrace_shadow_cpu_seconds_total (\S+)$", re.MULTILINE)
_SLICES = re.compile(r"^headrace_shadow_(slices|long_slices)_total (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Server:
    """A gateway that runs."""

    name: str
    port: int
    http_port: int

    def shadow(self) -> dict[str, float]:
        """What its metrics say of the shadow."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics") as answer:
            page = answer.read().decode()
        counts = {result: float(rows) for result, rows in _ROWS.findall(page)}
        counts |= {name: float(value) for name, value in _SLICES.findall(page)}
        cpu = _CPU.search(page)
        return counts if cpu is None else counts | {"cpu_s": float(cpu[1])}


@dataclass(frozen=True, slots=True)
class Answer:
    """One share of the capacity."""

    share: float
    rate: float
    p50_ms: tuple[float, float]
    """Without and with the shadow, medians over the rounds."""
    p99_ms: tuple[float, float]
    p50_ratio: float
    """The median of the rounds' ratios."""
    p99_ratio: float
    p99_bound_ratio: float
    """The same with one slice taken off the p99 with the shadow."""
    send_lag_p99_ms: float
    failed: int
    rows: dict[str, float]
    """What became of the rows that were copied, or not."""
    cpu_share: float
    slices: float
    long_slices: float
    machine_load: float
    """Of the last minute, over the number of CPUs."""

    @property
    def held(self) -> bool:
        """The bound."""
        return self.p50_ratio <= P50_MAX and self.p99_bound_ratio <= P99_MAX


@contextlib.contextmanager
def servers(folder: Path, store: str, core: int) -> Iterator[tuple[Server, Server]]:
    """Without and with a shadow."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in ("alone", "shadowed"):
            server = Server(name, free_port(), free_port())
            config = folder / f"{name}.yaml"
            text = _CONFIG.format(
                models=workload.MODELS_FOLDER, port=server.port, http_port=server.http_port, store=store
            )
            config.write_text(text + ("experiments: experiments.yaml\n" if name == "shadowed" else ""))
            command = [sys.executable, "-m", "gateway.server.cli", "serve", "--config", str(config)]
            stack.enter_context(running(name, command, port=server.port, folder=folder, core=core))
            found.append(server)
        yield found[0], found[1]


def write_catalogue(folder: Path) -> Path:
    """The benchmark's, with a second version of its view, and the experiment."""
    text = workload.CATALOGUE_FILE.read_text()
    head, view = text.split("  user_features@1:\n")
    path = folder / "features.yaml"
    path.write_text(f"{head}  user_features@1:\n{view}  user_features@2:\n{view}")
    (folder / "experiments.yaml").write_text(_EXPERIMENTS)
    return path


async def write_rows(catalogue: Path, url: str) -> None:
    """Both versions of every user."""
    matrix = workload.feature_matrix()
    ids = np.array([workload.entity_id(user) for user in range(workload.USERS)])
    async with FeatureClient(Catalogue.load(catalogue), RedisStore(RedisOptions(url=url, timeout_s=30))) as client:
        for view, more in ((workload.VIEW, np.float32(0)), ("user_features@2", np.float32(0.1))):
            for start in range(0, workload.USERS, WRITE_ROWS):
                rows = slice(start, start + WRITE_ROWS)
                block = {name: matrix[rows, i] + more for i, name in enumerate(workload.column_names())}
                await client.write(view, {workload.JOIN_KEY: ids[rows].tolist(), **block})


class Bench:
    """Both servers, and who asks them."""

    def __init__(
        self, alone: Server, shadowed: Server, bodies: Path, core: int, *, seconds: float, lag_max_ms: float
    ) -> None:
        self.alone = alone
        self.shadowed = shadowed
        self.bodies = bodies
        self.core = core
        self.seconds = seconds
        self.lag_max_ms = lag_max_ms
        self.binary = gload.build()

    def closed(self, server: Server, seconds: float) -> float:
        """Calls a second of a closed loop."""
        load = gload.Load(workload.HEADRACE_METHOD, in_flight=IN_FLIGHT, connections=CONNECTIONS, seconds=seconds)
        answer = gload.run(self.binary, load, self.bodies, port=server.port, core=self.core)
        return float(answer["rps"])

    def open(self, server: Server, rate: float) -> dict[str, Any]:
        """Latencies of an open loop."""
        load = gload.Load(
            workload.HEADRACE_METHOD, rate=rate, connections=CONNECTIONS, seconds=self.seconds, warmup_s=1.0
        )
        return gload.run(self.binary, load, self.bodies, port=server.port, core=self.core, allow_failures=True)

    def measure(self, share: float, capacity: float, rounds: int) -> Answer:
        """One share of the capacity."""
        rate = share * capacity
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
        noisy: list[tuple[dict[str, Any], dict[str, Any]]] = []
        before = self.shadowed.shadow()
        for number in range(ROUNDS_FACTOR_MAX * rounds):
            order = (self.alone, self.shadowed) if number % 2 == 0 else (self.shadowed, self.alone)
            found = {server.name: self.open(server, rate) for server in order}
            pair = (found["alone"], found["shadowed"])
            late = max(one["send_lag_p99_ms"] for one in pair) > self.lag_max_ms
            (noisy if late else pairs).append(pair)
            print(_line(share, number, *pair) + (" (noisy)" if late else ""), file=sys.stderr, flush=True)
            if len(pairs) == rounds:
                break
        runs = len(pairs) + len(noisy)
        if len(pairs) < rounds:
            pairs += noisy  # the machine was never quiet, which `send_lag_p99_ms` tells
        after = self.shadowed.shadow()
        spent = {name: value - before.get(name, 0.0) for name, value in after.items()}
        cpu_s, slices, long_slices = (spent.pop(name, 0.0) for name in ("cpu_s", "slices", "long_slices"))

        def median(name: str, which: int) -> float:
            return statistics.median(float(pair[which][name]) for pair in pairs)

        return Answer(
            share,
            rate,
            (median("p50_ms", 0), median("p50_ms", 1)),
            (median("p99_ms", 0), median("p99_ms", 1)),
            statistics.median(other["p50_ms"] / one["p50_ms"] for one, other in pairs),
            statistics.median(other["p99_ms"] / one["p99_ms"] for one, other in pairs),
            statistics.median((other["p99_ms"] - SLICE_MS) / one["p99_ms"] for one, other in pairs),
            max(answer["send_lag_p99_ms"] for pair in pairs for answer in pair),
            sum(answer["failed"] + answer["unfinished"] for pair in pairs for answer in pair),
            {name: rows for name, rows in spent.items() if rows},
            cpu_s / (runs * (self.seconds + 1.0)),
            slices,
            long_slices,
            os.getloadavg()[0] / (os.cpu_count() or 1),
        )


def _line(share: float, number: int, alone: dict[str, Any], shadowed: dict[str, Any]) -> str:
    both = " / ".join(f"p50 {one['p50_ms']:.3f} p99 {one['p99_ms']:.3f} ms" for one in (alone, shadowed))
    return f"{share:.0%} round {number + 1}: alone / shadowed {both}"


def table(capacity: float, answers: Sequence[Answer]) -> str:
    """For people."""
    lines = [f"capacity {capacity:,.0f} calls/s (closed loop, {IN_FLIGHT} in flight)"]
    for one in answers:
        rows = sum(one.rows.values())
        shares = ", ".join(f"{name} {count / rows:.0%}" for name, count in one.rows.items()) if rows else "none"
        p50, p99 = ((f"{alone:.3f} -> {shadowed:.3f} ms") for alone, shadowed in (one.p50_ms, one.p99_ms))
        held = "held" if one.held else "NOT HELD"
        less = f"{one.p99_bound_ratio:.2f}x less a slice"
        slices = f"{one.long_slices:.0f} of {one.slices:.0f} slices long"
        lines += [
            f"{one.share:>4.0%} {one.rate:>8,.0f}/s  p50 {p50} ({one.p50_ratio:.2f}x)",
            f"      p99 {p99} ({one.p99_ratio:.2f}x, {less}): {held}",
            f"      rows: {shares}; shadow CPU {one.cpu_share:.1%}; {slices}",
            f"      send lag p99 {one.send_lag_p99_ms:.2f} ms; load {one.machine_load:.2f}; {one.failed} failed",
        ]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run, after a second of warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.8], help="of the capacity")
    parser.add_argument(
        "--lag-max-ms", type=float, default=0.5, help="rounds in which the client itself was later are made again"
    )
    parser.add_argument("--ranking-share", type=float, default=0.0, help="of the calls: 200 candidates")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    exit_on_signals()
    cores = Cores.available()
    with tempfile.TemporaryDirectory(prefix="headrace-shadow-") as name:
        folder = Path(name)
        catalogue = write_catalogue(folder)
        rng = random.Random(1)
        source = traffic.make_traffic("users", rng)
        kinds = [traffic.draw_kind(rng, cold_share=0, ranking_share=options.ranking_share) for _ in range(BODIES)]
        bodies = gload.write_bodies(
            folder / "bodies", [traffic.make_request(source, kind).SerializeToString() for kind in kinds]
        )
        with running_redis(folder=folder, core=cores.client) as store:
            asyncio.run(write_rows(catalogue, redis_url(store.port)))
            with servers(folder, redis_url(store.port), cores.server) as (alone, shadowed):
                bench = Bench(
                    alone,
                    shadowed,
                    bodies,
                    cores.client,
                    seconds=options.seconds,
                    lag_max_ms=options.lag_max_ms,
                )
                bench.closed(shadowed, 2.0)
                capacity = max(bench.closed(alone, 1.0) for _ in range(CAPACITY_RUNS))
                answers = [bench.measure(share, capacity, options.rounds) for share in options.shares]
    print(table(capacity, answers))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in answers], indent=2) + "\n")
    return int(not all(one.held for one in answers))


if __name__ == "__main__":
    sys.exit(main())
