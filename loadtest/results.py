"""From rounds of measurements to the numbers that are shown: medians, their spread, and the ratio of two servers.

Pure. Latencies are milliseconds, CPU is microseconds of the server's core for one call, rates are calls a second.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CLIENT_BOUND_SHARE = 0.9
"""Of a core."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the client against one server."""

    rps: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    client_cpu_us: float

    @classmethod
    def of(cls, answer: dict[str, Any], server_cpu_s: float) -> "Sample":
        """From the client's JSON and the CPU time that the server used meanwhile, warm-up included."""
        return cls(
            rps=answer["rps"],
            p50_ms=answer["p50_ms"],
            p99_ms=answer["p99_ms"],
            cpu_us=server_cpu_s * 1e6 / answer["total"],
            client_cpu_us=answer["client_cpu_us"],
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The median of each number over the rounds, and how far apart the rounds' rates were."""

    rps: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    client_cpu_us: float
    rps_min: float
    rps_max: float

    @property
    def spread(self) -> float:
        """The range of the rounds' rates as a share of the median."""
        return (self.rps_max - self.rps_min) / self.rps

    @property
    def is_client_bound(self) -> bool:
        """The client used nearly all of its core, so that the server could perhaps do more."""
        return self.client_cpu_us * 1e-6 * self.rps > CLIENT_BOUND_SHARE


def summarize(rounds: Sequence[Sample]) -> Summary:
    """The medians of at least one round."""

    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    rates = [sample.rps for sample in rounds]
    return Summary(
        rps=median(rates),
        p50_ms=median(sample.p50_ms for sample in rounds),
        p99_ms=median(sample.p99_ms for sample in rounds),
        cpu_us=median(sample.cpu_us for sample in rounds),
        client_cpu_us=median(sample.client_cpu_us for sample in rounds),
        rps_min=min(rates),
        rps_max=max(rates),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the benchmark. `rows` is how many entities a call asks about; 0 for echoes."""

    work: str
    rows: int
    headrace: Summary
    baseline: Summary

    @property
    def ratio_rps(self) -> float:
        """How many times the baseline's rate; more is better."""
        return self.headrace.rps / self.baseline.rps

    @property
    def ratio_p50(self) -> float:
        """The share of the baseline's median latency; less is better."""
        return self.headrace.p50_ms / self.baseline.p50_ms

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to what was measured."""
        line: dict[str, Any] = {"work": self.work}
        if self.rows > 1:
            line["rows"] = self.rows
        line["headrace"] = self._side(self.headrace)
        line["baseline"] = self._side(self.baseline)
        return line | {"ratio_rps": round(self.ratio_rps, 3), "ratio_p50": round(self.ratio_p50, 3)}

    def _side(self, summary: Summary) -> dict[str, Any]:
        side: dict[str, Any] = {name: round(value, 3) for name, value in asdict(summary).items()}
        if self.rows > 1:
            side["rows_per_s"] = round(summary.rps * self.rows, 1)
        return side
