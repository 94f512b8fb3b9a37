"""The shape of `experiments.yaml`, checked by pydantic. What a form cannot check, `experiment` does."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from featureclient.schema.duration import Duration
from gateway.experiments.canary import Guardrails
from gateway.plan.manifest import FunctionName, Name

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_SUM = 100.0
_ROUNDING = 1e-6


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantForm(_Form):
    """What is different from the model as it is served. Nothing at all is the model as it is."""

    version: int | None = Field(default=None, ge=0, description="a version of the model; the default is the one served")
    views: dict[Name, str] = Field(default={}, description="alias of the manifest -> another view@version")
    transforms: dict[FunctionName, FunctionName] = Field(default={}, description="function of the manifest -> another")


class SplitForm(_Form):
    """Every entity gets one arm, always the same."""

    by: Name = Field(description="the request column whose id decides")
    weights: dict[Name, Percent] = Field(min_length=2, description="variant -> percent; they add up to 100")

    @model_validator(mode="after")
    def _all(self) -> Self:
        total = sum(self.weights.values())
        if abs(total - _SUM) > _ROUNDING:
            raise ValueError(f"the weights add up to {total:g}, not to 100")
        return self


class StepForm(_Form):
    """A share of the traffic, and how long it is held."""

    share: Percent
    hold: Duration


class CanaryForm(_Form):
    """A split whose weight grows step by step, and that goes back by itself."""

    by: Name = Field(description="the request column whose id decides")
    baseline: Name
    candidate: Name
    steps: list[StepForm] = Field(min_length=1)
    guardrails: Guardrails = Guardrails()
    promote: Literal["manually", "automatically"] = "manually"
    attempt: int = Field(default=1, ge=1, description="another number begins anew, also after a rollback")

    @model_validator(mode="after")
    def _grows(self) -> Self:
        shares = [step.share for step in self.steps]
        if sorted(shares) != shares:
            raise ValueError(f"the shares of the steps {shares} do not grow")
        if self.baseline == self.candidate:
            raise ValueError("baseline and candidate are the same variant")
        return self


class ShadowForm(_Form):
    """Requests that are answered as ever, and then once more by other variants, for comparison."""

    share: Percent = 100.0
    by: Name | None = Field(default=None, description="the request column whose id decides which share; else chance")
    variants: list[Name] = Field(min_length=1, description="who answers once more")


class CompareForm(_Form):
    """What is compared, and how surely."""

    output: str | None = Field(default=None, description="an output of the model; the default is the first of numbers")
    position: int = Field(default=-1, description="which element, where a row of the output has several")
    tolerance: float = Field(default=1e-5, ge=0, description="scores further apart are different")
    threshold: float | None = Field(default=None, description="the score from which a decision is taken")
    top_k: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.05, gt=0, lt=1, description="the chance to see an effect where there is none")
    effect: float = Field(
        default=0.01, gt=0, description="the size of effect to be found fastest, in the metric's unit"
    )
    metric: str = Field(default="auc", description="auc, log_loss, or a column of numbers that comes with the labels")
    better: Literal["higher", "lower"] | None = Field(
        default=None, description="of the metric; the default is lower for log_loss and higher for all else"
    )
    margin: float = Field(default=0, ge=0, description="so much worse is still promoted; 0 asks for a proven gain")


class ExperimentForm(_Form):
    """One experiment on one model."""

    model: Name
    state: Literal["running", "stopped"] = "running"
    salt: str = Field(default="", description="the default is the experiment's name")
    variants: dict[Name, VariantForm] = Field(min_length=1)
    split: SplitForm | None = None
    canary: CanaryForm | None = None
    shadow: ShadowForm | None = None
    overrides: dict[Name, list[str | int]] = Field(default={}, description="variant -> ids that get it in any case")
    everybody: Name | None = Field(
        default=None, description="the arm that all get whom the experiment has: how a promotion or a rollback is kept"
    )
    compare: CompareForm = CompareForm()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in ("split", "canary", "shadow") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"has to be one of split, canary and shadow; this is {' and '.join(kinds) or 'none'}")
        return self


class ExperimentsForm(_Form):
    """The file."""

    layers: dict[Name, dict[Name, Percent]] = Field(
        default={}, description="layer -> experiment -> percent of the entities; in one layer they exclude each other"
    )
    experiments: dict[Name, ExperimentForm] = {}
