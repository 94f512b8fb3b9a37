"""What people and Prometheus see of the experiments: the page `/experiments` as JSON, and counts per arm."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from gateway.experiments.experiment import Change, variant_name
from gateway.experiments.health import ArmCounts
from gateway.inference import Model
from gateway.server.experiments.live import Live, Running
from gateway.server.http import Page, Request, Response
from gateway.telemetry.experiment_families import ArmSeen, ExperimentSeen, ExperimentsSeen

JSON = "application/json"
Comparisons = Callable[[str], Mapping[str, Any]]
"""Of an experiment by its name: what comparing shadows' answers has come to, by variant; empty for other kinds."""


def experiments_page(live: Live | None, comparisons: Comparisons) -> Page:
    """The page. It is made in a worker thread, from what is never changed but replaced, and from counts."""

    def page(request: Request) -> Response:
        content = {"file": None, "experiments": []} if live is None else described(live, comparisons)
        return Response(200, JSON, json.dumps(content, default=str).encode() + b"\n")

    return page


def described(live: Live, comparisons: Comparisons) -> dict[str, Any]:
    """The content of the page."""
    return {
        "file": str(live.path),
        "loaded_at_s": live.loaded_at_s,
        "failure": live.failure or None,
        "reload_failures": live.reload_failures,
        "store_trouble": live.store_trouble or None,
        "experiments": [_experiment(live, name, one, comparisons) for name, one in live.running.items()],
    }


def seen(live: Live) -> ExperimentsSeen:
    """The counts of this process."""
    return ExperimentsSeen(
        live.reload_failures,
        [
            ExperimentSeen(
                name,
                live.state_of(name),
                one.rollbacks,
                [
                    ArmSeen(arm, live.share_of(name, arm), counts.requests, counts.errors)
                    for arm, counts in one.counts.items()
                ],
            )
            for name, one in live.running.items()
        ],
    )


def _experiment(live: Live, name: str, one: Running, comparisons: Comparisons) -> dict[str, Any]:
    experiment, canary = one.experiment, one.canary
    told: dict[str, Any] = {
        "name": name,
        "model": experiment.model,
        "kind": experiment.kind,
        "state": live.state_of(name),
        "why": live.suspended.get(name) or (canary.verdict.why if canary is not None else ""),
        "by": experiment.by,
        "digest": experiment.digest,
        "since_s": one.since_s,
        "warnings": list(one.warnings.values()),
        "arms": [_arm(live, one, arm) for arm in experiment.arms],
        "compare": experiment.form.compare.model_dump(),
        "everybody": experiment.form.everybody,
    }
    if canary is not None:
        progress = canary.progress
        told["canary"] = {
            "baseline": canary.form.baseline,
            "candidate": canary.form.candidate,
            "steps": [{"share": step.share, "hold_s": step.hold} for step in canary.form.steps],
            "step": None if progress is None else progress.step,
            "step_since_s": None if progress is None else progress.since_s,
            "promote": canary.form.promote,
            "rollbacks": one.rollbacks,
        }
    if experiment.kind == "shadow":
        told["comparisons"] = comparisons(name)
    return told


def _arm(live: Live, one: Running, arm: str) -> dict[str, Any]:
    experiment = one.experiment
    change: Change = experiment.variants[arm]
    model: Model | None = live.variants.get((experiment.name, arm))
    told: dict[str, Any] = {
        "name": arm,
        "variant": variant_name(experiment.name, arm),
        "version": change.version if model is None else model.version,
        "views": dict(change.views),
        "transforms": dict(change.transforms),
        "share": live.share_of(experiment.name, arm),
    }
    if experiment.kind != "shadow":
        told["seen"] = _counts(one.counts[arm])
        if one.canary is not None:
            told["seen_by_all"] = _counts(one.canary.pooled(arm))
    return told


def _counts(counts: ArmCounts) -> dict[str, Any]:
    scores = counts.scores
    return {
        "requests": counts.requests,
        "errors": counts.errors,
        "rows": counts.rows,
        "violations": counts.violations,
        "scores": {
            "count": scores.count,
            "mean": scores.mean if scores.count else None,
            "std": math.sqrt(scores.variance) if scores.count > 1 else None,
        },
        "p50_s": counts.durations.quantile_s(0.5),
        "p99_s": counts.durations.quantile_s(0.99),
    }
