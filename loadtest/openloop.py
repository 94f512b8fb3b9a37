"""Constant arrivals against a running gateway, and what they really waited.

    python -m loadtest.openloop --target 127.0.0.1:8500 --rate 500 1000 2000 --seconds 10 --json out.json --svg out.svg

A closed loop sends the next call when the last is answered, so a server that stalls for a second is asked nothing in
that second and the stall is one slow call among thousands (coordinated omission). Here a call is due at a fixed time
whatever happened before, and its latency counts from then. `gload` does the sending.

Prints one line for each rate and, with --json, writes a list of gload's answers, each with its `histogram_ms`. With
--svg it draws latency over percentile, a line for each rate (needs matplotlib: the extra `bench`). Ends with 1 when
a call has failed at any rate. `send_lag_p99_ms` is how late the client itself was: when it is not small beside the
latencies, the client or its machine was the bottleneck.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest import gload, traffic, workload

BODIES = 20_000
SEED = 1
PERCENTILES_SHOWN = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
NINES_MAX = 5
"""The plot goes to 99.999%."""

_NINES = {0: "0", 1: "90", 2: "99", 3: "99.9", 4: "99.99", 5: "99.999"}


def make_bodies(source: str, count: int, *, cold_share: float, ranking_share: float) -> list[bytes]:
    """`count` serialised requests, mixed by their shares."""
    rng = random.Random(SEED)
    requests = traffic.make_traffic(source, rng)
    kinds = [traffic.draw_kind(rng, cold_share=cold_share, ranking_share=ranking_share) for _ in range(count)]
    return [traffic.make_request(requests, kind).SerializeToString() for kind in kinds]


def percentile_curve(histogram_ms: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """What to plot of [[milliseconds, calls], ...] in rising order: the number of nines, and the latency there.

    "Nines" is -log10 of the share of calls that waited longer: 1 is the 90th percentile, 3 the 99.9th. The slowest call
    has no percentile and is left out.
    """
    import numpy as np

    latency_ms, calls = np.array(histogram_ms, dtype=float).reshape(-1, 2).T
    slower = 1 - np.cumsum(calls)[:-1] / calls.sum()
    # Rounding may leave a trace of a call where none is left.
    shown = slower > 0.5 / max(calls.sum(), 1)
    return (-np.log10(slower[shown])).tolist(), latency_ms[:-1][shown].tolist()


def draw(answers: Sequence[dict[str, Any]], path: Path) -> None:
    """The percentiles of each rate as an SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "headrace"  # the same numbers give the same file
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for answer in answers:
        nines, latency_ms = percentile_curve(answer["histogram_ms"])
        label = f"{answer['rate']:,.0f}/s"
        if lost := answer["failed"] + answer["unfinished"]:
            label += f" ({lost} failed)"
        axes.plot(nines, latency_ms, label=label, drawstyle="steps-post")
    axes.set_xticks(list(_NINES), list(_NINES.values()))
    axes.set_xlim(0, NINES_MAX)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("percent of the calls")
    axes.set_ylabel("milliseconds since the call was due")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(title="arrivals", loc="upper left")
    figure.savefig(path, format="svg", metadata={"Date": None})


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="127.0.0.1:8500", metavar="IPV4:PORT")
    parser.add_argument("--traffic", choices=sorted(traffic.SOURCES), default="flights", help="whose entities")
    parser.add_argument("--rate", type=float, nargs="+", default=[500.0], help="calls a second, one run for each")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run, after a second of warm-up")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--deadline-ms", type=int, help="of every call; without it a call waits as long as it takes")
    parser.add_argument("--cold-share", type=float, default=0.0, help="of the calls: an entity not asked before")
    parser.add_argument("--ranking-share", type=float, default=0.0, help="of the calls: 200 candidates")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, rate: float, bodies: Path) -> dict[str, Any]:
    """One run of gload."""
    host, _, port = options.target.rpartition(":")
    load = gload.Load(
        workload.HEADRACE_METHOD,
        rate=rate,
        connections=options.connections,
        seconds=options.seconds,
        warmup_s=1.0,
        timeout_ms=options.deadline_ms,
        histogram=True,
    )
    return gload.run(gload.build(), load, bodies, host=host, port=int(port), allow_failures=True)


def main() -> int:
    """The command line."""
    options = parse_arguments()
    answers = []
    with tempfile.TemporaryDirectory(prefix="headrace-openloop-") as folder:
        shares = {"cold_share": options.cold_share, "ranking_share": options.ranking_share}
        bodies = gload.write_bodies(Path(folder) / "bodies", make_bodies(options.traffic, BODIES, **shares))
        try:
            for rate in options.rate:
                answer = measure(options, rate, bodies)
                answers.append(answer)
                waited = "  ".join(f"{name.removesuffix('_ms')} {answer[name]:.2f} ms" for name in PERCENTILES_SHOWN)
                lost = f"{answer['failed']} failed, {answer['unfinished']} unanswered {answer['failures'] or ''}"
                print(f"{rate:,.0f}/s: {waited}  {lost}", flush=True)
        except (gload.CannotBuild, gload.RunFailed) as problem:
            print(f"openloop: {problem}", file=sys.stderr)
            return 1
    if options.json:
        options.json.write_text(json.dumps(answers) + "\n")
    if options.svg:
        draw(answers, options.svg)
    return int(any(answer["failed"] or answer["unfinished"] for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
