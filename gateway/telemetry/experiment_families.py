"""What one scrape shows of experiments. Labels are names of `experiments.yaml`."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

STATES = ("running", "stopped", "suspended", "decided", "waiting", "finished", "promoted", "rolled_back")


class ArmSeen(NamedTuple):
    """An arm, in this process."""

    variant: str
    share: float
    requests: int
    errors: int


class ExperimentSeen(NamedTuple):
    """An experiment, in this process."""

    name: str
    state: str
    rollbacks: int
    arms: Sequence[ArmSeen]


class ExperimentsSeen(NamedTuple):
    """All of them."""

    reload_failures: int
    experiments: Sequence[ExperimentSeen]


def experiment_families(found: ExperimentsSeen) -> Iterator[Metric]:
    """Requests by arm, and how each experiment stands."""
    arm = ("experiment", "variant")
    requests = CounterMetricFamily(
        "headrace_experiment_requests", "Requests that were assigned to the variant, and ended.", labels=arm
    )
    errors = CounterMetricFamily(
        "headrace_experiment_errors", "Of them those that failed, and not by the caller's fault.", labels=arm
    )
    share = GaugeMetricFamily("headrace_experiment_share", "Percent of the requests that it is to get.", labels=arm)
    state = GaugeMetricFamily(
        "headrace_experiment_state",
        "1 for the state that an experiment is in, 0 for the others.",
        labels=("experiment", "state"),
    )
    rollbacks = CounterMetricFamily(
        "headrace_experiment_rollbacks", "Times that this process rolled a canary back.", labels=("experiment",)
    )
    for one in found.experiments:
        for seen in one.arms:
            labels = (one.name, seen.variant)
            requests.add_metric(labels, seen.requests)
            errors.add_metric(labels, seen.errors)
            share.add_metric(labels, seen.share)
        for name in STATES:
            state.add_metric((one.name, name), int(one.state == name))
        rollbacks.add_metric((one.name,), one.rollbacks)
    yield from (requests, errors, share, state, rollbacks)
    yield CounterMetricFamily(
        "headrace_experiment_reload_failures",
        "Edits of experiments.yaml that were wrong; the log names file and line.",
        value=found.reload_failures,
    )
