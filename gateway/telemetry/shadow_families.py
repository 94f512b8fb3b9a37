"""Families of what was answered once more in the shadow, and how it differs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_PAIR = ("experiment", "variant")
_FIGURES = {
    "mean_difference": ("difference_mean", "Mean of shadow minus primary."),
    "share_beyond_tolerance": ("difference_beyond_tolerance", "Share of rows that differ by more than the tolerance."),
    "spearman_in_request": ("spearman", "Mean rank correlation within requests of several rows."),
    "decision_flips": ("decision_flips", "Share of rows on the other side of the threshold."),
}


class ShadowState(Protocol):
    """What shadows have done, as `gateway.pipeline` has it."""

    @property
    def rows(self) -> Mapping[tuple[str, str], Mapping[str, int]]: ...
    @property
    def violated_rows(self) -> Mapping[tuple[str, str], int]: ...
    @property
    def queued_rows(self) -> int: ...
    @property
    def fetching_rows(self) -> int: ...
    @property
    def cpu_s(self) -> float: ...
    @property
    def slices(self) -> int: ...
    @property
    def slices_over(self) -> int: ...
    @property
    def load(self) -> float: ...
    @property
    def broken(self) -> Sequence[tuple[str, str]]: ...


class Difference(Protocol):
    """One compared output, as `gateway.pipeline` has it."""

    @property
    def experiment(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def summary(self) -> Mapping[str, Any]: ...


def shadow_families(state: ShadowState, differences: Sequence[Difference]) -> Iterator[Metric]:
    """The shadow of this process."""
    rows = CounterMetricFamily(
        "headrace_shadow_rows", "Rows that were copied to a variant, by what became of them.", labels=(*_PAIR, "result")
    )
    violated = CounterMetricFamily(
        "headrace_shadow_violated_rows", "Rows of a variant with a violated check.", labels=_PAIR
    )
    broken = GaugeMetricFamily("headrace_shadow_broken", "1 when a variant is left alone.", labels=_PAIR)
    for pair, results in state.rows.items():
        for result, count in results.items():
            rows.add_metric((*pair, result), count)
        violated.add_metric(pair, state.violated_rows.get(pair, 0))
        broken.add_metric(pair, pair in state.broken)
    yield from (rows, violated, broken)
    for name, text, value in (
        ("cpu_seconds", "CPU time of shadows, on the event loop and in threads.", state.cpu_s),
        ("slices", "Times that the event loop was taken for shadows.", state.slices),
        ("long_slices", "Those that took more than twice what they may.", state.slices_over),
    ):
        yield CounterMetricFamily(f"headrace_shadow_{name}", text, value=value)
    for name, text, number in (
        ("queued_rows", "Rows that wait in the shadow.", state.queued_rows),
        ("fetching_rows", "Rows in the shadow that wait for the store.", state.fetching_rows),
        ("loop_load", "Share of the event loop's time that went to everything else.", state.load),
    ):
        yield GaugeMetricFamily(f"headrace_shadow_{name}", text, value=number)
    yield from _difference_families(differences)


def _difference_families(differences: Sequence[Difference]) -> Iterator[Metric]:
    labels = (*_PAIR, "output")
    compared = CounterMetricFamily("headrace_shadow_compared_rows", "Rows whose answers were compared.", labels=labels)
    quantiles = GaugeMetricFamily(
        "headrace_shadow_difference", "Quantiles of shadow minus primary.", labels=(*labels, "quantile")
    )
    figures = {
        key: GaugeMetricFamily(f"headrace_shadow_{name}", text, labels=labels) for key, (name, text) in _FIGURES.items()
    }
    for one in differences:
        where = (one.experiment, one.variant, one.output)
        compared.add_metric(where, one.summary["rows"])
        for level, value in one.summary["quantiles"].items():
            quantiles.add_metric((*where, f"{level:g}"), value)
        for key, family in figures.items():
            if key in one.summary:
                family.add_metric(where, one.summary[key])
    yield from (compared, quantiles, *figures.values())
