"""An experiment compared after the fact, from the journal: who does better, by how much, how surely, and why.

    Experiment + window ─▶ rows ─┬─ shadow: pairs ─▶ score differences, ranks, columns, swaps ─┬─▶ Comparison, verdict
    labels ──────────────────────┴─ split, canary: arms ─▶ share check, metrics ───────────────┘

Rows of one entity are not independent and entities are what is assigned, so every interval counts entities, not rows.
Entities that the file puts into an arm by name are in no figure of a split, and rows that another arm answered than the
one their entity is assigned to (a forced variant, earlier weights) neither: they are counted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.experiments import metrics
from gateway.experiments.calibration import Reliability
from gateway.experiments.experiment import Experiment
from gateway.experiments.form import CompareForm
from gateway.experiments.lift import mean
from gateway.experiments.metrics import NoMetric, Observed
from gateway.experiments.paired import Paired, PairedOptions
from gateway.experiments.sequential import SAMPLES_MIN, Interval, MeanTest, share_mismatch_p
from gateway.experiments.sides import baseline_of, candidates_of
from gateway.experiments.verdict import Equality, Harm, Lift, Verdict, judge
from gateway.journal.schema import JournalSchema
from gateway.training.experiment_columns import PREFIX, ColumnDifferences
from gateway.training.experiment_rows import Rows, Scores
from gateway.training.experiment_swaps import Swaps, SwapsError, check, explain
from gateway.training.pinned import PinnedModel

RANKED_MAX = 512
"""Requests of a batch whose order is compared."""
LOOKS = 16
"""Points of the metric over time."""
SHADOWED = "default"
"""What the baseline of a shadow is called: the model as it is served."""
_BATCH_ROWS = 16_384

Opens = Callable[[int, str | None], PinnedModel]
"""Opens a version of the model as a variant of the experiment has it; None is the model as it is."""


@dataclass(frozen=True, slots=True)
class Side:
    """What was seen of one variant."""

    name: str
    rows: int
    units: int
    mean_score: float
    not_finite: float
    """Share of rows without a finite score."""
    violated: float
    """Share of rows with a violated check."""
    p50_us: float
    p99_us: float
    """From arrival to answer; of a shadow, from its copy on."""


class Mismatch(NamedTuple):
    """Entities per arm against the planned shares."""

    counts: Mapping[str, int]
    shares: Mapping[str, float]
    p: float


class Look(NamedTuple):
    """The metric's difference as it was at a time."""

    time_ms: int
    rows: int
    interval: Interval


@dataclass(slots=True, eq=False)
class Comparison:
    """One candidate against its baseline."""

    experiment: str
    model: str
    kind: str
    baseline: Side
    candidate: Side
    verdict: Verdict
    since_ms: int
    until_ms: int
    harm: Harm
    lifts: list[Lift] = field(default_factory=list)
    """The experiment's own metric first, where it can be had."""
    mismatch: Mismatch | None = None
    paired: Mapping[str, Any] | None = None
    shift: Interval | None = None
    """Of the mean score."""
    over_time: list[Look] = field(default_factory=list)
    calibration: tuple[Reliability, Reliability] | None = None
    columns: ColumnDifferences | None = None
    swaps: Swaps | None = None
    forced: int = 0
    """Rows of entities that got another arm than they are assigned to."""
    by_name: int = 0
    """Rows of entities that the file names."""
    notes: list[str] = field(default_factory=list)
    scores: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] = (np.zeros(0), np.zeros(0))
    """Finite scores of both sides, for plots."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        calibration = None
        if self.calibration is not None:
            names = ("baseline", "candidate")
            calibration = {
                name: {"error": one.error, "bins": [found._asdict() for found in one.bins]}
                for name, one in zip(names, self.calibration, strict=True)
            }
        return {
            "experiment": self.experiment,
            "model": self.model,
            "kind": self.kind,
            "verdict": self.verdict.action,
            "why": list(self.verdict.why),
            "since_ms": self.since_ms,
            "until_ms": self.until_ms,
            "baseline": asdict(self.baseline),
            "candidate": asdict(self.candidate),
            "lifts": [_plain_lift(one) for one in self.lifts],
            "mismatch": None if self.mismatch is None else self.mismatch._asdict(),
            "violations": asdict(self.harm.violations),
            "paired": None if self.paired is None else dict(self.paired),
            "shift": None if self.shift is None else asdict(self.shift),
            "over_time": [{**one._asdict(), "interval": asdict(one.interval)} for one in self.over_time],
            "calibration": calibration,
            "columns": None if self.columns is None else [one.plain() for one in self.columns.ranked()],
            "swaps": None if self.swaps is None else asdict(self.swaps),
            "forced_rows": self.forced,
            "named_rows": self.by_name,
            "notes": self.notes,
        }


def compare(
    experiment: Experiment, rows: Rows, options: CompareForm, *, label: str | None = None, opens: Opens | None = None
) -> Iterator[Comparison]:
    """Yield a comparison for each candidate. `label` names the column of 0 and 1 among the labels."""
    candidates = candidates_of(experiment.form)
    # Several candidates are several chances to be wrong (Bonferroni).
    options = options.model_copy(update={"alpha": options.alpha / len(candidates)})
    if experiment.kind == "shadow":
        rows.need(candidates)
        if not rows.others:
            raise NoMetric("the window has no answers but the shadow's")
        rows.label(rows.others)
        for name in candidates:
            yield _shadow(experiment, rows, options, name, label=label, opens=opens)
    else:
        yield from _arms(experiment, rows, options, candidates, label)


# ── Split and canary ────────────────────────────────────────────────────────────────────────────────────────────────


def _arms(
    experiment: Experiment, rows: Rows, options: CompareForm, candidates: Sequence[str], label: str | None
) -> Iterator[Comparison]:
    baseline = baseline_of(experiment.form)
    assert baseline is not None
    rows.need([baseline, *candidates])
    rows.label([part for parts in rows.arms.values() for part in parts])
    sorted_out = {name: _assigned(experiment, rows, name) for name in (baseline, *candidates)}
    kept = {name: found[0] for name, found in sorted_out.items()}
    mismatch = _mismatch(experiment, kept)
    for name in candidates:
        one, two = kept[baseline], kept[name]
        found = _began(experiment, rows, baseline, name, (one, two))
        found.forced = sorted_out[baseline][1] + sorted_out[name][1]
        found.by_name = sorted_out[baseline][2] + sorted_out[name][2]
        found.mismatch = mismatch
        found.notes += _arm_notes(experiment, found)
        sides = [_observed(side, options, label) for side in (one, two)]
        found.lifts = _lifts(metrics.unpaired, sides, options, found)
        if found.lifts:
            found.over_time = _over_time(metrics.unpaired, sides, (one.time_ms, two.time_ms), options, found.lifts[0])
        found.verdict = judge(
            options,
            lift=found.lifts[0] if found.lifts else None,
            harm=found.harm,
            mismatch_p=None if mismatch is None else mismatch.p,
        )
        yield found


def _assigned(experiment: Experiment, rows: Rows, arm: str) -> tuple[Scores, int, int]:
    """The rows of an arm that are there by the hash alone; how many were forced, and how many named."""
    scores = rows.scores(arm)
    ids = [*rows.units.numbers]
    named = {str(one) for listed in experiment.form.overrides.values() for one in listed}
    if rows.hashed or rows.by != experiment.by or experiment.assignment is None:
        return scores, 0, 0
    by_name = np.array([str(one) in named for one in ids], np.bool_)[scores.unit]
    forced = np.zeros(len(scores), np.bool_)
    if experiment.kind == "split":  # of a canary the shares have changed with its steps
        place = experiment.arms.index(arm)
        arms = np.array(experiment.assignment.arms.find(ids), np.int64)
        forced = (arms[scores.unit] != place) & ~by_name
    return scores.only(~by_name & ~forced), int(forced.sum()), int(by_name.sum())


def _mismatch(experiment: Experiment, kept: Mapping[str, Scores]) -> Mismatch | None:
    split = experiment.form.split
    if split is None:
        return None
    shares = {name: weight / 100 for name, weight in split.weights.items()}
    counts = {name: len(np.unique(kept[name].unit)) for name in shares}
    return Mismatch(counts, shares, share_mismatch_p([*counts.values()], [*shares.values()]))


def _arm_notes(experiment: Experiment, found: Comparison) -> Iterator[str]:
    if experiment.kind == "canary":
        yield (
            "the shares of a canary change with its steps, so days of different shares are compared: choose the time "
            "of one step with --since and --until where the days differ"
        )
    if experiment.form.everybody is not None:
        yield f"everybody gets {experiment.form.everybody} now: end the window with --until when that began"
    if found.forced > (found.baseline.rows + found.candidate.rows) * 0.01:
        yield (
            f"{found.forced:,} rows were answered by another arm than their entity has by experiments.yaml (a variant "
            "that was asked for, or other weights then) and are left out"
        )


# ── Shadow ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _shadow(
    experiment: Experiment, rows: Rows, options: CompareForm, arm: str, *, label: str | None, opens: Opens | None
) -> Comparison:
    one, two = rows.pairs(arm)
    found = _began(experiment, rows, SHADOWED, arm, (one, two))
    primaries, copies = rows.coverage(arm)
    found.notes.append(f"{len(one):,} pairs of {primaries:,} rows of the model and {copies:,} of the shadow")
    paired = _paired(one, two, options)
    found.paired = {**paired.summary(), "primaries": primaries, "copies": copies}
    apart = two.score - one.score
    kept = np.isfinite(apart)
    shift = mean(apart[kept], one.unit[kept])
    enough = shift.units >= SAMPLES_MIN
    found.shift = MeanTest(options.alpha, options.effect).look(shift.value, shift.variance, enough=enough)
    sides = [_observed(side, options, label) for side in (one, two)]
    found.lifts = _lifts(metrics.paired, sides, options, found)
    if found.lifts:
        found.over_time = _over_time(metrics.paired, sides, (one.time_ms, two.time_ms), options, found.lifts[0])
    flips = found.paired["decision_flips"]
    equality = Equality(shift.units, found.paired["share_beyond_tolerance"], flips, found.shift)
    found.verdict = judge(options, lift=found.lifts[0] if found.lifts else None, harm=found.harm, equality=equality)
    found.columns = _columns(rows, arm)
    if opens is not None:
        found.swaps = _swaps(rows, arm, opens, found.notes)
    return found


def _paired(one: Scores, two: Scores, options: CompareForm) -> Paired:
    paired = Paired(PairedOptions(options.tolerance, options.threshold, options.top_k))
    ends = [*(np.flatnonzero(np.diff(one.request)) + 1).tolist(), len(one)]
    start = begun = 0
    lengths: list[int] = []
    for end in ends:
        lengths.append(end - begun)
        begun = end
        if end - start >= _BATCH_ROWS or end == len(one):
            paired.add(one.score[start:end], two.score[start:end], lengths, RANKED_MAX)
            start, lengths = end, []
    return paired


def _columns(rows: Rows, arm: str) -> ColumnDifferences:
    first, second = rows.others[-1], rows.arms[arm][-1]
    kept = {
        column.name: not any(part.policy(column.name) for part in (first, second)) for column in first.schema.columns
    }
    found = ColumnDifferences.of(first.schema, second.schema, kept)
    if found.columns:
        for one, two in rows.values(arm, [PREFIX + name for name in found.columns]):
            found.add(one, two)
    return found


def _swaps(rows: Rows, arm: str, opens: Opens, notes: list[str]) -> Swaps | None:
    first, second = _only_schema([part.schema for part in rows.others]), rows.arms[arm][-1].schema
    try:
        if first is None:
            raise SwapsError("several variants or versions were shadowed; --since and --until choose one")
        one, two = opens(first.version, None), opens(second.version, arm)
        check(one, first)
        check(two, second)
        return explain(rows, arm, one, two)
    except SwapsError as error:
        notes.append(f"what makes the scores differ was not looked for: {error}")
        return None


def _only_schema(schemas: Sequence[JournalSchema]) -> JournalSchema | None:
    served = {(schema.variant, schema.version, schema.graph_hash) for schema in schemas}
    return schemas[-1] if len(served) == 1 and schemas[-1].variant == SHADOWED else None


# ── Both ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _began(
    experiment: Experiment, rows: Rows, baseline: str, candidate: str, both: tuple[Scores, Scores]
) -> Comparison:
    if not all(map(len, both)):
        raise NoMetric("an arm has no rows but those of named entities, and of forced variants")
    one, two = (_side(name, scores) for name, scores in zip((baseline, candidate), both, strict=True))
    parts = [mean(scores.violated.astype(np.float64), scores.unit) for scores in both]
    apart = parts[1].minus(parts[0])
    violations = MeanTest(0.001, 0.05).look(apart.value, apart.variance, enough=apart.units >= SAMPLES_MIN)
    harm = Harm(max(two.not_finite - one.not_finite, 0.0), violations)
    times = np.concatenate([scores.time_ms for scores in both])
    found = Comparison(
        experiment.name, experiment.model, experiment.kind, one, two, Verdict("keep running", ()),
        int(times.min()), int(times.max()) + 1, harm, notes=[*rows.notes],
    )  # fmt: skip
    if rows.by is None:
        found.notes.append("the model has no request column of ids: requests are taken for independent")
    elif experiment.by is None:
        found.notes.append(f"rows of one {rows.by} are taken together, in every interval")
    found.scores = tuple(scores.score[np.isfinite(scores.score)] for scores in both)  # type: ignore[assignment]  # two
    return found


def _side(name: str, scores: Scores) -> Side:
    finite = np.isfinite(scores.score)
    took = scores.took_us[np.isfinite(scores.took_us)]
    p50, p99 = np.quantile(took, (0.5, 0.99)).tolist() if len(took) else (math.nan, math.nan)
    return Side(
        name,
        len(scores),
        len(np.unique(scores.unit)),
        float(scores.score[finite].mean()) if finite.any() else math.nan,
        1 - float(finite.mean()),
        float(scores.violated.mean()),
        p50,
        p99,
    )


def _observed(scores: Scores, options: CompareForm, label: str | None) -> Observed:
    name = label or _label_of(scores.labels)
    if label is not None and label not in scores.labels:
        raise NoMetric(
            f"the labels have no column of numbers {label!r} (they have: {', '.join(scores.labels) or 'none'})"
        )
    truth = None if name is None else scores.labels[name]
    values = scores.labels.get(options.metric)
    return Observed(scores.unit, scores.score, truth, values)


def _label_of(labels: Mapping[str, npt.NDArray[np.float64]]) -> str | None:
    """The first column that has nothing but 0 and 1, and both or either."""
    for name, values in labels.items():
        there = values[np.isfinite(values)]
        if len(there) and np.isin(there, (0, 1)).all():
            return name
    return None


def _lifts(
    measure: Callable[..., Lift], sides: Sequence[Observed], options: CompareForm, found: Comparison
) -> list[Lift]:
    """The experiment's metric, and those of labels beside it."""
    if sides[0].label is None and sides[0].values is None:
        return []
    lifts = []
    for name in dict.fromkeys((options.metric, *metrics.OF_LABELS)):
        better = options.better if name == options.metric else None
        try:
            lifts.append(measure(name, *sides, alpha=options.alpha, effect=options.effect, better=better))
        except NoMetric as error:
            if name == options.metric:
                found.notes.append(f"no {name}: {error}")
    if sides[0].label is not None:
        found.calibration = _calibration(sides)
    if lifts and lifts[0].metric != options.metric:
        found.notes.append(f"the verdict is by {lifts[0].metric} in its place")
    return lifts


def _calibration(sides: Sequence[Observed]) -> tuple[Reliability, Reliability] | None:
    made = (Reliability(), Reliability())
    for one, side in zip(made, sides, strict=True):
        assert side.label is not None
        known = np.isfinite(side.label) & np.isfinite(side.score)
        one.add(side.label[known], side.score[known])
    return made if all(one.bins for one in made) else None


def _over_time(
    measure: Callable[..., Lift],
    sides: Sequence[Observed],
    times: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    options: CompareForm,
    whole: Lift,
) -> list[Look]:
    """The metric as it was when a part of the rows had come."""
    looks = []
    for until in np.quantile(np.concatenate(times), np.arange(1, LOOKS + 1) / LOOKS, method="higher").tolist():
        some = [_first(side, when <= until) for side, when in zip(sides, times, strict=True)]
        try:
            found = measure(whole.metric, *some, alpha=options.alpha, effect=options.effect, better=whole.better)
        except NoMetric:
            continue
        looks.append(Look(int(until), sum(len(one.score) for one in some), found.interval))
    return looks


def _first(side: Observed, kept: npt.NDArray[np.bool_]) -> Observed:
    return Observed(*(None if one is None else one[kept] for one in side))  # type: ignore[arg-type]  # as it was


def _plain_lift(one: Lift) -> dict[str, Any]:
    return {
        "metric": one.metric,
        "better": one.better,
        "baseline": one.baseline._asdict(),
        "candidate": one.candidate._asdict(),
        "interval": asdict(one.interval),
        "detectable": one.detectable,
        "units_needed": one.units_needed,
    }
