"""A request of one model, sent to another: the fallback of a row that the checks do not let through.

The whole request goes, not only its violated rows: an answer has one model and one version. It is bound to the other
model's plan by names, which are matched once, at load: its join keys and context columns have to be among those of the
first model, and the outputs of the first among those of the other. What the other model cannot know (an override of a
column that it has not) is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.plan.compiler import Location, PlanError
from gateway.plan.plan import FeaturePlan
from gateway.records.request import Override, Request


@dataclass(frozen=True, slots=True)
class Reroute:
    """How requests of one plan become requests of another."""

    model: str
    ids: tuple[int, ...]
    """Per view of the other plan, the view of this one that is asked for by the same request columns."""
    context: tuple[int, ...]
    outputs: tuple[int, ...]
    """Per output of this plan, its place among the other's."""
    overrides: Mapping[tuple[int, str], int]
    """(view of this plan, column) -> view of the other plan."""

    @classmethod
    def compile(cls, plan: FeaturePlan, other: FeaturePlan) -> "Reroute":
        """Match the names. Raises `PlanError` saying what `other` needs and a request of `plan` has not."""
        where: Location = ("validation", "fallback", "model")
        problems: list[tuple[Location, str]] = []
        by_keys = {binding.keys: index for index, binding in enumerate(plan.bindings)}
        known = {column: index for index, column in enumerate(plan.context)}
        problems += [
            (
                where,
                f"{other.model} looks {binding.ref} up by {', '.join(binding.keys)}, which no view of this model is",
            )
            for binding in other.bindings
            if binding.keys not in by_keys
        ]
        problems += [
            (where, f"{other.model} takes the context column {column.name} ({column.dtype}), which this model does not")
            for column in other.context
            if column not in known
        ]
        problems += [
            (where, f"{other.model} has no output {name!r} (it has: {', '.join(other.outputs)})")
            for name in plan.outputs
            if name not in other.outputs
        ]
        if problems:
            raise PlanError(problems)
        aliases = {binding.alias: index for index, binding in enumerate(other.bindings)}
        return cls(
            other.model,
            tuple(by_keys[binding.keys] for binding in other.bindings),
            tuple(known[column] for column in other.context),
            tuple(other.outputs.index(name) for name in plan.outputs),
            {
                (index, column.name): aliases[binding.alias]
                for index, binding in enumerate(plan.bindings)
                for column in binding.view.columns
                if binding.alias in aliases and other.bindings[aliases[binding.alias]].ref == binding.ref
            },
        )

    def request(self, request: Request) -> Request:
        """The same request for the other model: same caller, deadline and id."""
        overrides = tuple(
            Override(self.overrides[override.binding, override.column], override.column, override.values)
            for override in request.overrides
            if (override.binding, override.column) in self.overrides
        )
        return request._replace(
            model=self.model,
            ids=tuple([request.ids[index] for index in self.ids]),
            context=tuple([request.context[index] for index in self.context]),
            overrides=overrides,
            outputs=tuple([self.outputs[index] for index in request.outputs or range(len(self.outputs))]),
        )


def circle(fallbacks: Mapping[str, str]) -> list[str]:
    """Models that fall back to each other in a circle, the first one again at the end; empty where there is none.

    `fallbacks`: model -> the model that answers instead.
    """
    for start in fallbacks:
        way = [start]
        while way[-1] in fallbacks:
            way.append(fallbacks[way[-1]])
            if way[-1] == start:
                return way
            if way[-1] in way[:-1]:
                break  # a circle that `start` only leads to; it is found from one of its own
    return []
