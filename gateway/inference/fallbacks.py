"""Which of the models that would serve fall back to one that cannot answer for them.

Asked at the start, before other versions take over, and after some are gone. Pure: models in, what is wrong out.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gateway.inference.model import Model
from gateway.plan import FeaturePlan, PlanError
from gateway.validation.fallback import Reroute, circle


class Unanswered(NamedTuple):
    """A version whose requests nobody else can answer, and why."""

    name: str
    version: int
    why: str

    def __str__(self) -> str:
        return f"model {self.name}/{self.version} falls back to {self.why}"


def problems(models: Iterable[Model]) -> list[Unanswered]:
    """The fallbacks that are missing, do not fit, or lead in a circle. The newest version of a model answers."""
    every = sorted(models, key=lambda model: (model.name, model.version))
    newest = {model.name: model for model in every}
    wrong = []
    names: dict[str, str] = {}
    for model in every:
        name = None if model.checks is None else model.checks.fallback_model
        if name is None:
            continue
        if model is newest[model.name]:
            names[model.name] = name
        why = _wrong(model, name, newest)
        if why:
            wrong.append(Unanswered(model.name, model.version, why))
    if way := circle(names):
        why = f"{names[way[0]]}, and so in a circle: {' -> '.join(way)}"
        wrong.append(Unanswered(way[0], newest[way[0]].version, why))
    return wrong


def _wrong(model: Model, name: str, newest: Mapping[str, Model]) -> str:
    other = newest.get(name)
    if other is None:
        return f"{name}, which does not serve; load it first, or name another model"
    if not isinstance(model.plan, FeaturePlan) or not isinstance(other.plan, FeaturePlan):
        return f"{name}, which has no manifest"
    try:
        Reroute.compile(model.plan, other.plan)
    except PlanError as error:
        return f"{name}, which does not fit: {error}"
    return ""
