"""The shape of `models/<name>/model.yaml`: which columns fill which input of the graph, in which order."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from featureclient.schema.duration import Duration

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_\-]*$", max_length=128)]
ColumnName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_\-]*(\.[A-Za-z_][A-Za-z0-9_\-]*)?$")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ViewUse(_Part):
    """A view, bound to a role of the request."""

    view: str = Field(description="view@version")
    keys: dict[Name, Name] = Field(default={}, description="join key -> request column; the default is the same name")


class TransformUse(_Part):
    """A pure function of columns: `function(parameter=array, ...)` returns a mapping from its outputs to arrays."""

    function: FunctionName
    inputs: dict[Name, ColumnName] = Field(min_length=1, description="parameter -> column")
    outputs: dict[Name, str] = Field(min_length=1, description="column -> dtype")


class DeriveUse(_Part):
    """A column computed from others by an expression: `where(air_time > 0, distance / air_time, 0)`."""

    expression: str = Field(min_length=1, description="over stored, context and derived columns, by their names")
    dtype: str


class LatestUse(_Part):
    """The highest versions, so many of them."""

    latest: int = Field(ge=1)


Versions: TypeAlias = Literal["latest", "all"] | Annotated[list[int], Field(min_length=1)] | LatestUse
"""Which versions of a model serve. `latest` is `{latest: 1}`."""


class ExecutionUse(_Part):
    """How the model is run; what is not said is the default of `Execution`."""

    max_batch_rows: int | None = Field(default=None, ge=1, description="rows that the graph gets at once")
    instances: int | None = Field(default=None, ge=1, le=64, description="runs at one time, in threads of their own")
    buckets: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="the only numbers of rows that the graph gets, ascending"
    )
    queue_rows_max: int | None = Field(default=None, ge=1, description="rows that wait for the model")
    priority_levels: int | None = Field(default=None, ge=1, description="levels that a request may name, 1 first")
    default_priority: int | None = Field(default=None, ge=1, description="the level of requests that name none")


class HardwareUse(_Part):
    """What the graph is to run on. A field that is left out takes the server's own (`inference.hardware`)."""

    providers: Literal["auto"] | list[Name | dict[Name, dict[Name, bool | int | float | str]]] | None = Field(
        default=None, description="`auto`, or providers in order of preference, each with its options where it has any"
    )
    require: bool | None = Field(default=None, description="refuse to serve on less than asked")
    device_id: int | None = Field(default=None, ge=0, description="which of several devices of a kind")
    intra_op_threads: int | None = Field(default=None, ge=1, description="threads inside one run")
    graph_optimization: Literal["off", "basic", "extended", "all"] | None = None
    arena: bool | None = Field(default=None, description="keep memory of runs for the next ones")
    device_memory_limit_mb: int | None = Field(default=None, ge=0, description="0: no limit")
    cuda_graphs: bool | None = Field(default=None, description="record a run of each batch size once, then replay it")
    fp16: bool | None = Field(default=None, description="TensorRT may compute in float16")
    int8: bool | None = Field(default=None, description="TensorRT may compute in int8")


Policy: TypeAlias = Literal["flag", "clip", "default", "reject", "fallback"]
RowPolicy: TypeAlias = Literal["flag", "reject", "fallback"]
Outcome: TypeAlias = Literal["PRESENT", "STALE", "COMPUTED", "DEFAULTED", "MISSING", "OVERRIDDEN"]


class LearnedUse(_Part):
    """A bound from the profile: the quantiles `quantile` and 1 - `quantile`, widened by `margin` of their distance."""

    quantile: float = Field(ge=0, lt=0.5)
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class RangeUse(_Part):
    """Bounds, both included. What is written wins over what is learned."""

    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    learned: LearnedUse | None = None

    @model_validator(mode="after")
    def _bounds(self) -> "RangeUse":
        if self.min is None and self.max is None and self.learned is None:
            raise ValueError("needs min, max or learned")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class CheckUse(_Part):
    """What is checked of a column before the model runs."""

    range: RangeUse | None = Field(default=None, description="of the values; of every element of a vector")
    norm: RangeUse | None = Field(default=None, description="of a vector's Euclidean norm")
    categories: Literal["learned"] | Annotated[list[bool | int | float | str], Field(min_length=1)] | None = Field(
        default=None, description="the values that there are; `learned` takes the profile's"
    )
    nulls: Literal["allow", "refuse"] = Field(default="allow", description="of a stored row that has no such value")
    nan: Literal["allow", "refuse"] = "allow"
    infinite: Literal["allow", "refuse"] = "refuse"
    policy: Policy | None = Field(default=None, description="what becomes of a violation; else that of `validation`")
    default: bool | int | float | str | list[float] | None = Field(
        default=None, description="the value of the policies `default` and `clip`; else the view's"
    )


class ViewCheckUse(_Part):
    """What is checked of the rows of a view."""

    age_max: Duration | None = Field(default=None, description="of the event behind a row: 90s, 15m, 3h, 2d")
    statuses: list[Outcome] | None = Field(default=None, min_length=1, description="the outcomes that are welcome")
    policy: RowPolicy | None = None


class MahalanobisUse(_Part):
    """How far a row may be from the profile's middle, given how these columns vary together."""

    columns: list[ColumnName] = Field(min_length=2, max_length=256)
    distance_max: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    beyond: float | None = Field(
        default=None, gt=0, lt=0.5, description="instead: the share of normally distributed rows that would be further"
    )
    policy: RowPolicy | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "MahalanobisUse":
        if (self.distance_max is None) == (self.beyond is None):
            raise ValueError("needs one of distance_max and beyond")
        return self


class RowsUse(_Part):
    """What becomes of a row with too many violations."""

    violations_max: int = Field(ge=0, description="columns of a row that may be violated")
    policy: RowPolicy = "reject"


class FallbackUse(_Part):
    """Who answers instead: another model, or constants."""

    model: Name | None = Field(default=None, description="its newest version answers the whole request")
    constant: dict[str, bool | int | float | str] | None = Field(default=None, description="output -> the row's value")

    @model_validator(mode="after")
    def _one(self) -> "FallbackUse":
        if (self.model is None) == (self.constant is None):
            raise ValueError("needs one of model and constant")
        return self


class ValidationUse(_Part):
    """The checks before the model."""

    policy: Policy = Field(default="flag", description="of the checks that name none")
    reject: Literal["request", "row"] = Field(
        default="request", description="what `reject` refuses: the request, or only the row, whose outputs are empty"
    )
    fallback: FallbackUse | None = None
    every: CheckUse | None = Field(default=None, description="for columns that the model reads and `columns` has not")
    columns: dict[ColumnName, CheckUse] = {}
    views: dict[Name, ViewCheckUse] = Field(default={}, description="alias -> check")
    mahalanobis: dict[Name, MahalanobisUse] = {}
    rows: RowsUse | None = None


class Manifest(_Part):
    """A model's manifest. Stored columns are `alias.column`, context and derived columns bare names."""

    name: Name
    views: dict[Name, ViewUse] = Field(default={}, description="alias -> view")
    context: dict[Name, str] = Field(default={}, description="column -> dtype")
    transforms: list[TransformUse] = []
    derive: dict[Name, DeriveUse] = Field(default={}, description="column -> expression; each may use those before it")
    inputs: dict[str, Annotated[list[ColumnName], Field(min_length=1)]] = Field(
        min_length=1, description="graph input -> columns, in order"
    )
    labels: dict[Name, int] = Field(default={}, description="label -> version")
    hardware: HardwareUse = HardwareUse()
    execution: ExecutionUse = ExecutionUse()
    validation: ValidationUse | None = Field(default=None, description="checks before the model runs")
    versions: Versions = Field(default="all", description="which of the versions that are there serve")
