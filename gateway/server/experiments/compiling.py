"""`experiments.yaml` -> the variants that it asks for, compiled against the models that serve.

    read ─▶ names checked ─▶ every variant of every running experiment ─▶ what requests get that are in several

May run in a thread: it reads a repository's snapshot and changes nothing. A variant that was compiled before, for the
same experiment and the same loaded model, is taken as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import or_
from typing import NamedTuple, TypeAlias

from featureclient.schema import ConfigError, Problem, document
from gateway.experiments.experiment import Change, Experiment, checked, combined, variant_name
from gateway.inference import Model, ModelRepository
from gateway.inference.variants import misfits, variant_of
from gateway.plan.compiler import Location, PlanError
from gateway.plan.plan import FeaturePlan
from gateway.records.errors import ModelNotFound
from gateway.server.experiments.routes import score_output

COMBINATIONS_MAX = 256
"""Variants of a model that stand for being in several experiments at once. Each costs its compiled plan."""

Key: TypeAlias = tuple[Model, str, tuple[str, ...]]
"""A loaded model, a variant's name, and the digests of its experiments."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What experiments have to know of a model that serves."""

    versions: Sequence[int]
    views: Mapping[str, str]
    columns: Sequence[str]
    functions: Sequence[str]


class Compiled(NamedTuple):
    """What a file comes to."""

    source: document.Document
    experiments: Sequence[Experiment]
    variants: Mapping[tuple[str, str], Model]
    """(experiment, variant), of running experiments."""
    mixed: Mapping[frozenset[tuple[str, str]], Model]
    """What requests get that are in several experiments."""
    known: Mapping[Key, Model]
    """All of these, for the next time."""
    suspended: Mapping[str, str]
    """Running experiments that the models do not fit any more, and why."""


def compile_experiments(
    source: document.Document, models: ModelRepository, known: Mapping[Key, Model], *, strict: bool
) -> Compiled:
    """Compile a file. Raises ConfigError with every problem.

    Where it is not `strict`, the file was right and the models have changed: what does not fit is suspended.
    """
    shapes = {name: shape_of(models, name) for name in dict.fromkeys(model.name for model in models)}
    refs = list(models.compiling.catalogue.views)
    if strict:
        return _Compiler(source, checked(source, shapes, refs), models, known).all()
    try:
        experiments = checked(source, shapes, refs)
    except ConfigError as error:
        return _without(source, error, models, known)
    return _Compiler(source, experiments, models, known).those_that_fit()


def shape_of(models: ModelRepository, name: str) -> Shape:
    """The shape of a model that serves."""
    latest = models.latest(name)
    plan = latest.plan
    functions = () if latest.manifest is None else tuple(use.function for use in latest.manifest.transforms)
    columns = tuple(plan.entities) if isinstance(plan, FeaturePlan) else ()
    versions = sorted(model.version for model in models if model.name == name)
    return Shape(versions, {binding.alias: binding.ref for binding in plan.bindings}, columns, functions)


def by_layer(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """Experiments of one model that decide about requests, those of one layer together, in the file's order."""
    layers: dict[object, list[Experiment]] = {}
    for one in experiments:
        if one.assignment is not None and one.kind != "shadow":
            layers.setdefault(one.assignment.layer or one.name, []).append(one)
    return list(layers.values())


class _Compiler:
    def __init__(
        self,
        source: document.Document,
        experiments: Sequence[Experiment],
        models: ModelRepository,
        known: Mapping[Key, Model],
    ) -> None:
        self.source = source
        self.experiments = experiments
        self.models = models
        self.before = known
        self.known: dict[Key, Model] = {}
        self.variants: dict[tuple[str, str], Model] = {}
        self.problems: list[Problem] = []
        self.suspended: dict[str, str] = {}

    def all(self) -> Compiled:
        for one in self._running():
            self._compile(one)
        mixed = {} if self.problems else self._mixed()
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda problem: problem.line))
        return self._compiled(mixed)

    def those_that_fit(self) -> Compiled:
        for one in self._running():
            self._compile(one)
            if self.problems:
                self.suspended[one.name] = "; ".join(map(str, self.problems))
                self.variants = {key: model for key, model in self.variants.items() if key[0] != one.name}
                self.problems = []
        mixed = self._mixed()
        for problem in self.problems:
            name = problem.field.split(".")[1]
            self.suspended[name] = str(problem)
        return self._compiled({} if self.problems else mixed)

    def _compiled(self, mixed: Mapping[frozenset[tuple[str, str]], Model]) -> Compiled:
        return Compiled(self.source, self.experiments, self.variants, mixed, self.known, self.suspended)

    def _running(self) -> Iterator[Experiment]:
        return (one for one in self.experiments if one.running and one.name not in self.suspended)

    def _compile(self, experiment: Experiment) -> None:
        """Every variant of an experiment."""
        form, at = experiment.form, ("experiments", experiment.name)
        latest = self.models.latest(experiment.model)
        try:
            score = score_output(latest, form.compare.output)
        except KeyError:
            names = ", ".join(spec.name for spec in latest.signature.outputs)
            message = f"model {latest.name} has no output of numbers {form.compare.output!r} (its outputs: {names})"
            self._wrong((*at, "compare", "output"), message)
        else:
            self._check_position(experiment, latest, score)
        for name, change in experiment.variants.items():
            where = (*at, "variants", name)
            model = self._made(where, change, variant_name(experiment.name, name), (experiment.digest,), latest)
            if model is not None:
                self.variants[experiment.name, name] = model

    def _check_position(self, experiment: Experiment, latest: Model, score: int | None) -> None:
        if score is None:
            return
        width = latest.signature.outputs[score].shape[-1] if len(latest.signature.outputs[score].shape) > 1 else 1
        position = experiment.form.compare.position
        if isinstance(width, int) and not -width <= position < width:
            message = f"a row of {latest.signature.outputs[score]} has no element {position}"
            self._wrong(("experiments", experiment.name, "compare", "position"), message)

    def _made(
        self, where: Location, change: Change, name: str, digests: tuple[str, ...], latest: Model
    ) -> Model | None:
        base = latest
        if change.version is not None:
            try:
                base = self.models.version(latest.name, change.version)
            except ModelNotFound as error:
                self._wrong((*where, "version"), str(error))
                return None
        key = (base, name, digests)
        model = self.before.get(key)
        if model is None:
            try:
                model = variant_of(base, change, name, self.models.compiling)
            except PlanError as error:
                for at, said in error.problems:
                    self._wrong((*where, *at), said)
                return None
        wrong = [*misfits(latest, model)]
        for at, said in wrong:
            self._wrong((*where, *at), said)
        if wrong:
            return None
        self.known[key] = model
        return model

    def _mixed(self) -> dict[frozenset[tuple[str, str]], Model]:
        """Requests may be in one experiment of each layer, so every such combination has a variant."""
        mixed: dict[frozenset[tuple[str, str]], Model] = {}
        for name in dict.fromkeys(one.model for one in self.experiments):
            layers = by_layer(one for one in self._running() if one.model == name)
            options = [[None, *((one, arm) for one in layer for arm in one.arms)] for layer in layers]
            several = [
                chosen
                for row in product(*options)
                if len(chosen := [choice for choice in row if choice is not None]) > 1
            ]
            if len(several) > COMBINATIONS_MAX:
                message = (
                    f"requests for {name} may be in {len(several)} combinations of experiments, the limit is "
                    f"{COMBINATIONS_MAX}; put some of them into one layer"
                )
                self._wrong(("experiments", layers[-1][0].name), message)
                continue
            latest = self.models.latest(name)
            for chosen in several:
                change = reduce(or_, (one.variants[arm] for one, arm in chosen))
                called = combined([variant_name(one.name, arm) for one, arm in chosen])
                where = ("experiments", chosen[-1][0].name, "variants", chosen[-1][1])
                model = self._made(where, change, called, tuple(one.digest for one, _ in chosen), latest)
                if model is not None:
                    mixed[frozenset((one.name, arm) for one, arm in chosen)] = model
        return mixed

    def _wrong(self, where: Location, message: str) -> None:
        self.problems.append(self.source.problem(where, message))


def _without(
    source: document.Document, error: ConfigError, models: ModelRepository, known: Mapping[Key, Model]
) -> Compiled:
    """Compile a file of which some experiments do not fit the models any more: those are left out, with why."""
    suspended: dict[str, str] = {}
    for problem in error.problems:
        section, _, rest = problem.field.partition(".")
        if section == "experiments" and rest:
            suspended[rest.partition(".")[0]] = str(problem)
    if not suspended:
        raise error
    content = source.content
    stopped = {
        name: {**one, "state": "stopped"} if name in suspended else one for name, one in content["experiments"].items()
    }
    reduced = document.Document(source.file, {**content, "experiments": stopped}, source.lines)
    compiled = compile_experiments(reduced, models, known, strict=False)
    return compiled._replace(source=source, suspended={**suspended, **compiled.suspended})
