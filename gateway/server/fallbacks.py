"""Which model answers for another: the pipeline asks when a check falls back to a model."""

from pathlib import Path

from featureclient.schema import ConfigError, Problem
from gateway.inference import Model, ModelRepository, Swap
from gateway.plan import FeaturePlan, PlanError
from gateway.records.errors import ModelNotFound
from gateway.validation.fallback import Reroute, circle


class Fallbacks:
    """Pairs a model with the newest version of its fallback; matched once for each pair."""

    def __init__(self, models: ModelRepository) -> None:
        self._models = models
        self._known: dict[Model, tuple[Model, Reroute]] = {}

    def __call__(self, model: Model) -> tuple[Model, Reroute] | None:
        """The other model, and how requests become its own; None where there is none that fits."""
        name = None if model.checks is None else model.checks.fallback_model
        if name is None:
            return None
        try:
            other = self._models.latest(name)
        except ModelNotFound:
            return None
        known = self._known.get(model)
        if known is None or known[0] is not other:
            if not isinstance(model.plan, FeaturePlan) or not isinstance(other.plan, FeaturePlan):
                return None
            try:
                known = self._known[model] = (other, Reroute.compile(model.plan, other.plan))
            except PlanError:
                return None
        return known

    def check(self, folder: Path) -> None:
        """Raise ConfigError when a fallback of the models that serve is missing, does not fit, or leads in a circle."""
        if wrong := self._problems():
            raise ConfigError([Problem(str(folder), 0, "validation.fallback", said) for said in wrong])

    def on_swap(self, swap: Swap) -> None:
        """Other versions serve: who stood in for whom is found again."""
        self._known.clear()

    def _problems(self) -> list[str]:
        wrong = []
        names: dict[str, str] = {}
        for model in self._models:
            name = None if model.checks is None else model.checks.fallback_model
            if name is None:
                continue
            names[model.name] = name
            try:
                other = self._models.latest(name)
                if isinstance(model.plan, FeaturePlan) and isinstance(other.plan, FeaturePlan):
                    Reroute.compile(model.plan, other.plan)
                else:
                    wrong.append(f"model {model.name} falls back to {name}, which has no manifest")
            except (ModelNotFound, PlanError) as error:
                wrong.append(f"model {model.name} falls back to {name}: {error}")
        way = circle(names)
        return wrong + ([f"models fall back in a circle: {' -> '.join(way)}"] if way else [])

    def forget(self, model: Model) -> None:
        """A model is gone: hold it no longer."""
        self._known.pop(model, None)
