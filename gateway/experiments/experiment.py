"""`experiments.yaml`, checked against the models that are there, as values that a gateway can run.

    read ──▶ form ──▶ every name looked up ──▶ Experiment(kind, arms, what each arm changes)

Rules
- Experiments of one layer exclude each other: no entity is in two of them. All of a layer are by one request column.
- Experiments of different layers may meet in one request. They have to change different things of a model, since
  nobody could say what the request should get otherwise. An experiment that no layer names has a layer of its own.
- Every problem of a file is found at once, with file and line.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from featureclient.schema import ConfigError, Problem, document
from gateway.experiments.assignment import Assignment, Stretches
from gateway.experiments.form import ExperimentForm, ExperimentsForm, VariantForm

Kind: TypeAlias = Literal["split", "canary", "shadow"]
_ALL = 100.0


class ModelShape(Protocol):
    """What experiments have to know of a model that serves."""

    @property
    def versions(self) -> Sequence[int]:
        """The versions that are loaded."""
        ...

    @property
    def views(self) -> Mapping[str, str]:
        """Alias -> view@version of its manifest."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The request columns that carry ids."""
        ...

    @property
    def functions(self) -> Sequence[str]:
        """The transforms of its manifest, `module:function`."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """What a variant changes of the model as it is served."""

    version: int | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    transforms: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: "Change") -> "Change":
        """Both changes; they are known not to touch the same things."""
        version = self.version if other.version is None else other.version
        return Change(version, {**self.views, **other.views}, {**self.transforms, **other.transforms})

    def touches(self) -> set[str]:
        """The things that are changed, by names that are the same in every experiment."""
        version = {"the version"} if self.version is not None else set()
        return version | {f"view {alias}" for alias in self.views} | {f"transform {name}" for name in self.transforms}


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment, ready to run. `assignment` is None for a shadow that takes its share by chance."""

    name: str
    model: str
    form: ExperimentForm
    variants: Mapping[str, Change]
    arms: tuple[str, ...]
    """The variants that requests are assigned to; of a shadow those that answer once more."""
    by: str | None
    assignment: Assignment | None

    @property
    def running(self) -> bool:
        """It is not stopped."""
        return self.form.state == "running"

    @property
    def kind(self) -> Kind:
        """What kind of an experiment it is."""
        return "split" if self.form.split is not None else "canary" if self.form.canary is not None else "shadow"

    @property
    def digest(self) -> str:
        """What it compares, and how: experiments of equal digests are one, whatever its weights are by now."""
        told = self.form.model_dump_json(exclude={"state", "everybody", "overrides", "compare"})
        return hashlib.sha256(f"{self.name} {told}".encode()).hexdigest()[:16]

    def weighted(self, weights: Mapping[str, float]) -> "Experiment":
        """The same with other percentages for its arms."""
        assert self.assignment is not None
        assignment = replace(self.assignment, arms=Stretches.of(self.form.salt or self.name, weights))
        return replace(self, assignment=assignment)


def variant_name(experiment: str, variant: str) -> str:
    """What answers, the journal and metrics call a variant: names are told apart by their experiment."""
    return f"{experiment}.{variant}"


def combined(names: Sequence[str]) -> str:
    """The name of what a request gets that is in several experiments."""
    return "+".join(names)


def variants_in(name: str) -> dict[str, str]:
    """Experiment -> variant of the name that an answer has; nothing for `default`."""
    return {experiment: variant for experiment, dot, variant in (one.partition(".") for one in name.split("+")) if dot}


def load(path: Path, models: Mapping[str, ModelShape], view_refs: Sequence[str]) -> tuple[Experiment, ...]:
    """Read and check a file. `view_refs` are the catalogue's `view@version`. Raises ConfigError with every problem."""
    return checked(document.read(path), models, view_refs)


def checked(
    source: document.Document, models: Mapping[str, ModelShape], view_refs: Sequence[str]
) -> tuple[Experiment, ...]:
    """The experiments of a file that was read. Raises ConfigError with every problem."""
    form = document.validate(source, ExperimentsForm)
    problems = list(_problems(source, form, models, view_refs))
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    layers = {
        name: (Stretches.of(f"layer {layer}", shares), index)
        for layer, shares in form.layers.items()
        for index, name in enumerate(shares)
    }
    return tuple(_experiment(name, one, layers.get(name)) for name, one in form.experiments.items())


def _experiment(name: str, form: ExperimentForm, place: tuple[Stretches, int] | None) -> Experiment:
    variants = {key: Change(one.version, one.views, one.transforms) for key, one in form.variants.items()}
    by, weights = _weights(form)
    if form.shadow is not None:
        arms: tuple[str, ...] = tuple(form.shadow.variants)
    else:
        arms = tuple(weights)
    if by is None:
        return Experiment(name, form.model, form, variants, arms, None, None)
    overrides = {str(one): arms.index(arm) for arm, ids in form.overrides.items() for one in ids}
    layer, index = place or (None, 0)
    assignment = Assignment(Stretches.of(form.salt or name, weights), layer, index, overrides)
    return Experiment(name, form.model, form, variants, arms, by, assignment)


def _weights(form: ExperimentForm) -> tuple[str | None, dict[str, float]]:
    """Which column decides, and the percentages of the arms as the experiment begins."""
    if form.split is not None:
        return form.split.by, dict(form.split.weights)
    if form.canary is not None:
        share = form.canary.steps[0].share
        # The candidate comes first, so that growing it moves entities from the baseline to it and none back.
        return form.canary.by, {form.canary.candidate: share, form.canary.baseline: _ALL - share}
    assert form.shadow is not None
    return form.shadow.by, {"shadowed": form.shadow.share}


def _problems(
    source: document.Document, form: ExperimentsForm, models: Mapping[str, ModelShape], view_refs: Sequence[str]
) -> Iterator[Problem]:
    for name, one in form.experiments.items():
        yield from _problems_of(source, name, one, models, view_refs)
    yield from _layer_problems(source, form)
    yield from _overlaps(source, form)


def _problems_of(
    source: document.Document,
    name: str,
    form: ExperimentForm,
    models: Mapping[str, ModelShape],
    view_refs: Sequence[str],
) -> Iterator[Problem]:
    at = ("experiments", name)
    for where, variant in _named(form):
        if variant not in form.variants:
            yield source.problem((*at, *where), f"no variant {variant!r} (there are: {_listed(form.variants)})")
    arms = _weights(form)[1]
    for variant in form.overrides:
        if form.shadow is not None or variant not in arms:
            yield source.problem((*at, "overrides", variant), f"{variant!r} is no arm of a split or canary here")
    if form.everybody is not None and (form.shadow is not None or form.everybody not in arms):
        yield source.problem((*at, "everybody"), f"{form.everybody!r} is no arm of a split or canary here")
    yield from _named_twice(source, at, form)
    if form.state == "stopped":  # what it is about may be gone
        return
    model = models.get(form.model)
    if model is None:
        yield source.problem((*at, "model"), f"no model {form.model!r} (there are: {_listed(models)})")
        return
    by = _weights(form)[0]
    if by is not None and by not in model.columns:
        kind = "split" if form.split else "canary" if form.canary else "shadow"
        message = f"model {form.model} takes no ids in {by!r} (it takes: {_listed(model.columns)})"
        yield source.problem((*at, kind, "by"), message)
    for key, variant_form in form.variants.items():
        yield from _variant_problems(source, (*at, "variants", key), variant_form, model, view_refs)


def _named_twice(source: document.Document, at: tuple[str, ...], form: ExperimentForm) -> Iterator[Problem]:
    """Ids that are to get two arms."""
    arm_of: dict[str, str] = {}
    for variant, ids in form.overrides.items():
        for index, one in enumerate(ids):
            if arm_of.setdefault(str(one), variant) != variant:
                message = f"{one!r} is to get {arm_of[str(one)]!r} already"
                yield source.problem((*at, "overrides", variant, index), message)


def _variant_problems(
    source: document.Document,
    at: tuple[str, ...],
    form: VariantForm,
    model: ModelShape,
    view_refs: Sequence[str],
) -> Iterator[Problem]:
    if form.version is not None and form.version not in model.versions:
        yield source.problem((*at, "version"), f"version {form.version} is not loaded ({_listed(model.versions)} are)")
    for alias, ref in form.views.items():
        if alias not in model.views:
            message = f"the manifest binds no view as {alias!r} (it binds: {_listed(model.views)})"
            yield source.problem((*at, "views", alias), message)
        if ref not in view_refs:
            yield source.problem((*at, "views", alias), f"no view {ref!r} (there are: {_listed(view_refs)})")
    for function in form.transforms:
        if function not in model.functions:
            message = f"the manifest has no transform {function!r} (it has: {_listed(model.functions)})"
            yield source.problem((*at, "transforms", function), message)


def _layer_problems(source: document.Document, form: ExperimentsForm) -> Iterator[Problem]:
    claimed: dict[str, str] = {}
    for layer, shares in form.layers.items():
        at = ("layers", layer)
        if sum(shares.values()) > _ALL:
            yield source.problem(at, f"the shares add up to {sum(shares.values()):g} percent, which is more than all")
        by: dict[str | None, str] = {}
        named: dict[str, str] = {}
        for name in shares:
            one = form.experiments.get(name)
            if one is None:
                message = f"no experiment {name!r} (there are: {_listed(form.experiments)})"
                yield source.problem((*at, name), message)
                continue
            if claimed.setdefault(name, layer) != layer:
                yield source.problem((*at, name), f"{name!r} is in the layer {claimed[name]!r} already")
            by.setdefault(_weights(one)[0], name)
            for variant, ids in one.overrides.items() if one.state == "running" else ():
                for index, said in enumerate(ids):
                    if named.setdefault(str(said), name) != name:
                        message = f"{said!r} is put into {named[str(said)]!r} already, which is in the same layer"
                        yield source.problem(("experiments", name, "overrides", variant, index), message)
        if len(by) > 1:
            message = f"its experiments are by different columns ({_listed(by)}); in one layer all have to be by one"
            yield source.problem(at, message)


def _overlaps(source: document.Document, form: ExperimentsForm) -> Iterator[Problem]:
    """Splits and canaries that meet in one request and change the same thing."""
    layer_of = {name: layer for layer, shares in form.layers.items() for name in shares}
    deciding = [(name, one) for name, one in form.experiments.items() if one.shadow is None and one.state == "running"]
    for (first, one), (second, two) in combinations(deciding, 2):
        if one.model != two.model or (first in layer_of and layer_of.get(first) == layer_of.get(second)):
            continue
        both = sorted(_touched(one) & _touched(two))
        if both:
            message = (
                f"changes {' and '.join(both)} of model {two.model}, which {first!r} changes too; "
                "put them into one layer, so that no request is in both"
            )
            yield source.problem(("experiments", second), message)


def _touched(form: ExperimentForm) -> set[str]:
    changes = (Change(one.version, one.views, one.transforms) for one in form.variants.values())
    return {thing for change in changes for thing in change.touches()}


def _named(form: ExperimentForm) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every place of an experiment that names a variant, but for overrides."""
    if form.split is not None:
        for variant in form.split.weights:
            yield ("split", "weights", variant), variant
    if form.canary is not None:
        yield ("canary", "baseline"), form.canary.baseline
        yield ("canary", "candidate"), form.canary.candidate
    if form.shadow is not None:
        for index, variant in enumerate(form.shadow.variants):
            yield ("shadow", "variants", index), variant


def _listed(names: object) -> str:
    return ", ".join(map(str, names)) or "none"  # type: ignore[call-overload]  # any iterable of names
