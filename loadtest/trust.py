"""What trust costs: checks, journal and drift on and off, under the same load, in one run.

    python -m loadtest.trust [--json] [--rounds 5] [--seconds 3]

Warm predictions of one row of 50 float32 features, 64 in flight on 8 connections, and one caller alone. Five gateways
of one model, each on the same core in turn, the second process of a journal included:

    off       nothing
    checks    a learned range for each of the 50 columns, and the age of the view
    journal   every row with all its features, written every 100 ms
    drift     the journal, and the second process that compares it with the profile
    all       checks, journal and drift

Every second round goes in the opposite order, the medians of the rounds are compared. The exit status is 1 when `all`
costs more than 15 % of the throughput or 10 us of the lone caller's p50.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from loadtest import answers, gload, stack, workload
from loadtest.processes import Cores, DidNotStart, Running, exit_on_signals, running_redis

LOADS = {"64": (64, 8), "lone": (1, 1)}
"""Calls in flight, on so many connections."""
THROUGHPUT_LOST_MAX = 0.15
LONE_US_MAX = 10.0
BODIES = 4_000
BODIES_SEED = 17
VOID_RUNS_MAX = 3
_CHECKS = """
validation:
  every: {range: {learned: {quantile: 0.0, margin: 1.0}}, nan: refuse, policy: clip}
  views: {user_features: {age_max: 365d, policy: flag}}
"""
_JOURNAL = """
journal: {{enabled: true, path: "{folder}/journal-{name}", free_bytes_min: 0}}
monitor: {{enabled: {drift}}}
"""
NAMES = {
    "off": (False, None),
    "checks": (True, None),
    "journal": (False, False),
    "drift": (False, True),
    "all": (True, True),
}
"""Name -> checks, and whether the journal (None: there is none) has its second process."""


def make_models(folder: Path) -> Path:
    """A repository with two folders of the same model: one with a profile, one with checks as well."""
    data = folder / "train.parquet"
    matrix = workload.feature_matrix()
    columns = {f"user_features.{name}": matrix[:, i] for i, name in enumerate(workload.column_names())}
    pq.write_table(pa.table(columns), data)
    models = folder / "plain"
    shutil.copytree(workload.MODELS_FOLDER, models)
    config = folder / "profile.yaml"
    config.write_text(f"catalogue: {workload.CATALOGUE_FILE}\nmodels: {models}\n")
    command = [sys.executable, "-m", "gateway.server.cli", "profile", "--config", str(config)]
    subprocess.run([*command, "--model", workload.MODEL_NAME, "--data", str(data)], check=True, capture_output=True)
    checked = folder / "checked"
    shutil.copytree(models, checked)
    manifest = checked / workload.MODEL_NAME / "model.yaml"
    manifest.write_text(manifest.read_text() + _CHECKS)
    return folder


def start(folder: Path, cores: Cores, resources: ExitStack) -> dict[str, Running]:
    """All gateways, warm."""
    redis = resources.enter_context(running_redis(core=cores.client, folder=folder))
    stack.load_rows(redis.port)
    models = make_models(folder)
    started = {}
    for name, (checks, journal) in NAMES.items():
        more = "" if journal is None else _JOURNAL.format(folder=folder, name=name, drift=str(journal).lower())
        started[name] = resources.enter_context(
            stack.running_headrace(
                name,
                transport="fast",
                cache=True,
                redis_port=redis.port,
                folder=folder,
                core=cores.server,
                models=models / ("checked" if checks else "plain"),
                more=more,
            )
        )
        answers.check_headrace(started[name].port)
    return started


def measure(
    servers: Mapping[str, Running], bodies: Path, cores: Cores, rounds: int, seconds: float
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What the client says, by load and gateway, of each round."""
    binary = gload.build()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {load: {name: [] for name in servers} for load in LOADS}
    for number in range(rounds):
        for name in list(servers) if number % 2 == 0 else list(reversed(list(servers))):
            for load, (in_flight, connections) in LOADS.items():
                one = gload.Load(
                    workload.HEADRACE_METHOD,
                    seconds=seconds,
                    warmup_s=0.5,
                    all_equal=workload.ALL_PRESENT,
                    in_flight=in_flight,
                    connections=connections,
                )
                found[load][name].append(_run(binary, one, bodies, servers[name], cores))
            rps = found["64"][name][-1]["rps"]
            print(f"round {number + 1}: {name} {rps:,.0f} a second", file=sys.stderr, flush=True)
    return found


def _run(binary: Path, load: gload.Load, bodies: Path, server: Running, cores: Cores) -> dict[str, Any]:
    for attempt in range(VOID_RUNS_MAX):
        before_s = server.cpu_s()
        try:
            answer = gload.run(binary, load, bodies, port=server.port, core=cores.client)
        except gload.RunFailed as problem:
            print(f"void: {problem}", file=sys.stderr, flush=True)
            if attempt + 1 == VOID_RUNS_MAX:
                raise
            continue
        answer["server_cpu_us"] = (server.cpu_s() - before_s) * 1e6 / answer["total"]
        return answer
    raise AssertionError("unreachable")


def summarise(found: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, and what each gateway loses against `off`."""
    summary = {}
    for name in NAMES:
        busy, lone = found["64"][name], found["lone"][name]
        summary[name] = {
            "rps": statistics.median(one["rps"] for one in busy),
            "cpu_us": statistics.median(one["server_cpu_us"] for one in busy),
            "p99_ms": statistics.median(one["p99_ms"] for one in busy),
            "lone_p50_us": statistics.median(one["p50_ms"] for one in lone) * 1000,
            # Round by round, since the machine is faster in one than in another.
            "lost": statistics.median(
                1 - one["rps"] / off["rps"] for one, off in zip(busy, found["64"]["off"], strict=True)
            ),
            "lone_more_us": statistics.median(
                (one["p50_ms"] - off["p50_ms"]) * 1000 for one, off in zip(lone, found["lone"]["off"], strict=True)
            ),
        }
    return summary


def rows_of(summary: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""
    for name, one in summary.items():
        yield (
            name,
            f"{one['rps']:,.0f}",
            f"{one['lost']:.1%}",
            f"{one['cpu_us']:.1f}",
            f"{one['p99_ms']:.2f}",
            f"{one['lone_p50_us']:.0f}",
            f"{one['lone_more_us']:+.0f}",
        )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    options = parser.parse_args()
    exit_on_signals()
    cores = Cores.available()
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-trust-") as name, ExitStack() as resources:
            folder = Path(name)
            servers = start(folder, cores, resources)
            bodies = workload.headrace_bodies(workload.questions(1, BODIES, BODIES_SEED))
            file = gload.write_bodies(folder / "bodies", bodies)
            found = measure(servers, file, cores, options.rounds, options.seconds)
    except (DidNotStart, answers.WrongAnswer, gload.CannotBuild, gload.RunFailed) as problem:
        print(f"trust: {problem}", file=sys.stderr)
        return 1
    summary = summarise(found)
    if options.json:
        print(json.dumps({"medians": summary, "rounds": found}))
    else:
        table = Table(title="warm predictions of one row of 50 features")
        for index, column in enumerate(
            ("", "calls/s", "lost", "CPU us/call", "p99 ms", "lone p50 us", "more than off")
        ):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows_of(summary):
            table.add_row(*row)
        Console().print(table)
    return int(summary["all"]["lost"] > THROUGHPUT_LOST_MAX or summary["all"]["lone_more_us"] > LONE_US_MAX)


if __name__ == "__main__":
    sys.exit(main())
