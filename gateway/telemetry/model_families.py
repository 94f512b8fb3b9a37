"""What one scrape shows of the model repository: where each version stands, and how loads ended."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

STATES = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
_MEANS = "1 for the state that a version of a model is in, 0 for the others; the log and `headrace models` say why."


class Stands(Protocol):
    """A version and its state."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def state(self) -> str: ...


class Loads(Protocol):
    """How loads of versions ended; `seconds` are those of loads that succeeded, `reasons` are (model, reason)."""

    loaded: int
    failed: int
    seconds: float
    reasons: dict[tuple[str, str], int]


class Repository(NamedTuple):
    """What is read of a repository."""

    states: Iterable[Stands]
    loads: Loads
    on_asked: Mapping[tuple[str, int], bool] = {}
    """By model and version, whether it runs on the hardware that was asked for."""


def repository_families(found: Repository) -> Iterator[Metric]:
    """The states and the loads. Of the versions only those of the repository's folder are labels."""
    states = GaugeMetricFamily("headrace_model_state", _MEANS, labels=("model", "version", "state"))
    for one in found.states:
        for state in STATES:
            states.add_metric((one.name, str(one.version), state), int(one.state == state))
    yield states
    hardware = GaugeMetricFamily(
        "headrace_model_on_asked_hardware",
        "1 for a version that runs on all the hardware that was asked for, 0 for one that runs on less.",
        labels=("model", "version"),
    )
    for (name, version), whole in found.on_asked.items():
        hardware.add_metric((name, str(version)), int(whole))
    yield hardware
    loads = CounterMetricFamily("headrace_model_loads", "Loads of versions, by how they ended.", labels=("result",))
    loads.add_metric(("loaded",), found.loads.loaded)
    loads.add_metric(("failed",), found.loads.failed)
    yield loads
    failures = CounterMetricFamily(
        "headrace_model_load_failures",
        "Loads that failed, by what they failed for; the log and `headrace models` have the words.",
        labels=("model", "reason"),
    )
    for (name, reason), count in found.loads.reasons.copy().items():
        failures.add_metric((name, reason), count)
    yield failures
    seconds = SummaryMetricFamily(
        "headrace_model_load_seconds", "What loads took that succeeded, from the file to the last warm-up run."
    )
    seconds.add_metric((), count_value=found.loads.loaded, sum_value=found.loads.seconds)
    yield seconds
