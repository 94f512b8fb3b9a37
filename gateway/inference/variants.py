"""Variants: the same model with other feature versions, other transforms, or of another version.

    a model that serves + what a variant changes of it ─▶ the manifest with that replaced ─▶ compiled anew ─▶ a `Model`

A variant runs on the runner of its version, so it shares that version's queue and threads and goes when the version
goes. Everything that follows from a `Model` (its encoders, its journal, its metrics) has its own.

Invariants
- A request that was bound to the model fits its variants as it is: the same ids for the same views, the same context,
  the same outputs in the same order. What cannot be so is refused when the variant is made.
- The checks of a variant go by the profile of its model: the model was trained on that data, whatever is fed to it now.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from featureclient.schema import Catalogue
from gateway.experiments.assignment import Assignment, EntityId
from gateway.experiments.experiment import Change
from gateway.inference.model import Model
from gateway.plan.compiler import Location, PlanError, compile_plan
from gateway.plan.manifest import Manifest
from gateway.plan.plan import Binding, FeaturePlan, Plan
from gateway.plan.transform import Resolve
from gateway.records.request import Request
from gateway.validation.compiler import compile_checks


class Compiling(NamedTuple):
    """What manifests are compiled with."""

    catalogue: Catalogue
    resolve: Resolve


class IdsAt(NamedTuple):
    """Where the ids of a request column stand in requests that were bound to a plan."""

    binding: int
    part: int | None
    """The place in a key of several columns; None where the column is the whole key."""

    @classmethod
    def of(cls, plan: Plan, column: str) -> "IdsAt":
        """Raises KeyError where no view of the plan is looked up by the column."""
        for index, binding in enumerate(plan.bindings):
            if column in binding.keys:
                return cls(index, None if len(binding.keys) == 1 else binding.keys.index(column))
        raise KeyError(column)

    def first(self, requests: Iterable[Request]) -> list[EntityId]:
        """The id in the first row of each request: it decides for the whole request."""
        binding, part = self
        if part is None:
            return [request.ids[binding][0] for request in requests]  # type: ignore[misc]  # a key of one column
        return [request.ids[binding][0][part] for request in requests]  # type: ignore[index]  # a key of several


class Target(NamedTuple):
    """A variant that answers some requests once more, in the shadow of the model that answers them."""

    experiment: str
    model: Model
    share: float
    """Percent of the requests."""
    assignment: Assignment | None
    """Whose requests: those that get the arm 0. None, and chance decides."""
    by: IdsAt | None
    """Where the ids for `assignment` are."""

    def shadowed(self, requests: Sequence[Request]) -> list[bool]:
        """Which requests are copied, where ids decide."""
        assert self.assignment is not None
        assert self.by is not None
        return [arm == 0 for arm in self.assignment.assign(self.by.first(requests))]


def variant_of(model: Model, change: Change, name: str, compiling: Compiling) -> Model:
    """The variant of a version that serves. `change.version` has been seen to: it is the version of `model`.

    Raises `PlanError`; its locations begin with `views`, `transforms` or nothing, as those of a variant's form do.
    """
    inner = None if model.inner is None else replace(model.inner, labels=(), variant=name)
    if not change.views and not change.transforms:
        return replace(model, labels=(), inner=inner, variant=name)
    if model.manifest is None or not isinstance(model.plan, FeaturePlan):
        where: Location = ("views",) if change.views else ("transforms",)
        raise PlanError([(where, f"model {model.name} has no manifest, so there is nothing of it to replace")])
    manifest = changed(model.manifest, change)
    try:
        plan = compile_plan(manifest, compiling.catalogue, model.signature, compiling.resolve)
        checks = compile_checks(plan, manifest.validation, model.profile, model.signature)
    except PlanError as error:
        raise PlanError([_blamed(where, said, model.manifest, change) for where, said in error.problems]) from error
    variant = replace(model, labels=(), plan=plan, inner=inner, checks=checks, manifest=manifest, variant=name)
    if wrong := [*misfits(model, variant)]:
        raise PlanError(wrong)
    return variant


def misfits(model: Model, variant: Model) -> Iterator[tuple[Location, str]]:
    """What keeps requests that were bound to `model` from being answered by `variant`."""
    ours, theirs = model.plan, variant.plan
    aliases = [binding.alias for binding in ours.bindings]
    if aliases != [binding.alias for binding in theirs.bindings] or ours.context != theirs.context:
        yield (
            ("version",),
            f"version {variant.version} takes other views or context columns than version {model.version}, "
            "which is served; requests cannot go to either",
        )
        return
    for one, other in zip(ours.bindings, theirs.bindings, strict=True):
        if one.keys != other.keys or _key_types(one) != _key_types(other):
            yield (
                ("views", one.alias),
                f"{other.ref} is looked up by {_listed(other)}, {one.ref} by {_listed(one)}; they have to be the same",
            )
    if ours.outputs != theirs.outputs or ours.batched != theirs.batched:
        yield (
            ("version",),
            f"version {variant.version} answers with {', '.join(theirs.outputs)}, version {model.version}, which is "
            f"served, with {', '.join(ours.outputs)}; they have to be the same",
        )


def overridable(model: Model, variant: Model) -> frozenset[tuple[int, str]] | None:
    """The columns that a request may override in both, by the number of the view; None where nothing differs."""
    both = frozenset(
        (index, column.name)
        for index, (one, other) in enumerate(zip(model.plan.bindings, variant.plan.bindings, strict=True))
        for column in one.view.columns
        if any((column.name, column.dtype) == (theirs.name, theirs.dtype) for theirs in other.view.columns)
    )
    every = {(index, one.name) for index, binding in enumerate(model.plan.bindings) for one in binding.view.columns}
    return None if both == every else both


def without_unknown(request: Request, known: frozenset[tuple[int, str]]) -> Request:
    """The request without overrides of columns that the variant has not."""
    kept = tuple([one for one in request.overrides if (one.binding, one.column) in known])
    return request._replace(overrides=kept)


def changed(manifest: Manifest, change: Change) -> Manifest:
    views = {
        alias: use.model_copy(update={"view": change.views[alias]}) if alias in change.views else use
        for alias, use in manifest.views.items()
    }
    transforms = [
        use.model_copy(update={"function": change.transforms.get(use.function, use.function)})
        for use in manifest.transforms
    ]
    return manifest.model_copy(update={"views": views, "transforms": transforms})


def _blamed(where: Location, said: str, manifest: Manifest, change: Change) -> tuple[Location, str]:
    """A problem of the changed manifest as one of the change that made it."""
    match where:
        case ("views", str() as alias, *_) if alias in change.views:
            return ("views", alias), said
        case ("transforms", int() as index, *_) if manifest.transforms[index].function in change.transforms:
            return ("transforms", manifest.transforms[index].function), said
    if len(change.views) == 1 and not change.transforms:
        where = ("views", *change.views)
        return where, f"{said} (with {next(iter(change.views.values()))})"
    return (), f"{'.'.join(map(str, where))}: {said}"


def _key_types(binding: Binding) -> list[str]:
    return [key.dtype for key in binding.view.entity.join_keys]


def _listed(binding: Binding) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in zip(binding.keys, _key_types(binding), strict=True))
