"""Which model answers for another: the pipeline asks when a check falls back to a model."""

from pathlib import Path

from featureclient.schema import ConfigError, Problem
from gateway.inference import Model, ModelRepository, Swap, fallbacks
from gateway.plan import FeaturePlan, PlanError
from gateway.records.errors import ModelNotFound
from gateway.validation.fallback import Reroute


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
        if wrong := fallbacks.problems(self._models):
            raise ConfigError([Problem(str(folder), 0, "validation.fallback", str(one)) for one in wrong])

    def on_swap(self, swap: Swap) -> None:
        """Other versions serve: who stood in for whom is found again."""
        self._known.clear()

    def forget(self, model: Model) -> None:
        """A model is gone: hold it no longer."""
        self._known.pop(model, None)
