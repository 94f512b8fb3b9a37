"""The shape of `models/<name>/model.yaml`: which columns fill which input of the graph, in which order."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

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
