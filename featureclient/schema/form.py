"""The shape of a catalogue's YAML, checked by pydantic. What a form cannot check, `catalogue` does."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from featureclient.schema.compute import EMBEDDED
from featureclient.schema.duration import Duration
from featureclient.schema.feast import KeyType
from featureclient.schema.view import OnMissing

_NAMESPACE = r"^[A-Za-z0-9_.-]+$"
_FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ColumnForm(_Form):
    dtype: str
    default: Any = None


def _spelled_out(given: object) -> object:
    """`float32` is short for `{dtype: float32}`."""
    return {"dtype": given} if isinstance(given, str) else given


ColumnForms = dict[str, Annotated[ColumnForm, BeforeValidator(_spelled_out)]]


class ComputeForm(_Form):
    python: str | None = Field(None, pattern=_FUNCTION)
    sql: str | None = Field(None, min_length=1)
    on: str = EMBEDDED
    timeout_ms: int = Field(200, ge=1)
    batch_rows_max: int = Field(1000, ge=1)
    concurrency_max: int = Field(2, ge=1)
    write_back: bool = True


class FeastForm(_Form):
    project: str = Field(min_length=1)
    view: str = Field(min_length=1)
    key_version: Literal[2, 3] = 3
    key_types: dict[str, KeyType] = {}
    features: dict[str, str] = {}


class ViewForm(_Form):
    entity: str
    columns: ColumnForms = {}
    combine: list[str] = []
    revisions: list[ColumnForms] = []
    max_age: Duration | None = None
    ttl: Duration | None = None
    soft_age: Duration | None = None
    hard_age: Duration | None = None
    on_missing: OnMissing = "default"
    compute: ComputeForm | None = None
    prefetch: list[str] = []
    feast: FeastForm | None = None


class DuckdbForm(_Form):
    path: str | None = None


class PostgresForm(_Form):
    dsn: str | None = None
    dsn_env: str | None = None


class SourceForm(_Form):
    duckdb: DuckdbForm | None = None
    postgres: PostgresForm | None = None


class CatalogueForm(_Form):
    namespace: str = Field("hr", pattern=_NAMESPACE)
    entities: dict[str, dict[str, Literal["string", "int64"]]]
    sources: dict[str, SourceForm] = {}
    views: dict[str, ViewForm]
