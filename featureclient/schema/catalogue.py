"""The catalogue: every entity and view of an application, read from one YAML file.

    entities:
      plane: {tailnum: string}
    views:
      plane_stats@1:
        entity: plane
        columns:
          flights: {dtype: int32, default: 0}
          late_share: float32

`Catalogue.load` reads the form with pydantic, then checks what a form cannot: that names exist, that dtypes hold their
defaults, that an earlier revision can be upgraded. All problems of a file are reported together.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from featureclient.schema import document
from featureclient.schema.document import Document, Location
from featureclient.schema.dtype import DType
from featureclient.schema.duration import Duration
from featureclient.schema.errors import ConfigError, Problem, UnknownView
from featureclient.schema.view import Column, Entity, JoinKey, OnMissing, Revision, View

EVENT_TIME = "event_time_ms"
"""The column of a table that holds the event times of its rows; no column of a view may be called so."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REF = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)@([1-9][0-9]{0,8})")
_NAMESPACE = r"^[A-Za-z0-9_.-]+$"


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ColumnForm(_Form):
    dtype: str
    default: Any = None


def _spelled_out(given: object) -> object:
    """`float32` is short for `{dtype: float32}`."""
    return {"dtype": given} if isinstance(given, str) else given


_Columns = dict[str, Annotated[_ColumnForm, BeforeValidator(_spelled_out)]]


class _ViewForm(_Form):
    entity: str
    columns: _Columns = Field(min_length=1)
    revisions: list[_Columns] = []
    max_age: Duration | None = None
    ttl: Duration | None = None
    on_missing: OnMissing = "default"


class _CatalogueForm(_Form):
    namespace: str = Field("hr", pattern=_NAMESPACE)
    entities: dict[str, dict[str, Literal["string", "int64"]]]
    views: dict[str, _ViewForm]


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """The entities by name and the views by reference (`plane_stats@1`). Immutable: a change is a new catalogue."""

    views: Mapping[str, View]
    entities: Mapping[str, Entity]
    namespace: str = "hr"

    @classmethod
    def load(cls, path: str | Path) -> "Catalogue":
        """Read a catalogue. Raises ConfigError with every problem that was found."""
        return _build(document.read(path))

    @classmethod
    def parse(cls, text: str, file: str = "features.yaml") -> "Catalogue":
        """`load`, for text that is at hand; `file` is what problems call it."""
        return _build(document.parse(text, file))

    def view(self, ref: str) -> View:
        """The view `name@version`. Raises UnknownView, naming those that exist."""
        try:
            return self.views[ref]
        except KeyError:
            raise UnknownView(ref, self.views) from None


def _build(file: Document) -> Catalogue:
    form = document.validate(file, _CatalogueForm)
    builder = _Builder(file)
    entities = {name: builder.entity(name, keys) for name, keys in form.entities.items()}
    views = {ref: builder.view(ref, view, entities, form.namespace) for ref, view in form.views.items()}
    if builder.problems:
        raise ConfigError(sorted(builder.problems, key=lambda problem: problem.line))
    built = {ref: view for ref, view in views.items() if view is not None}
    return Catalogue(MappingProxyType(built), MappingProxyType(entities), form.namespace)


class _Builder:
    """Makes values from the form and collects what is wrong with it."""

    def __init__(self, file: Document) -> None:
        self._file = file
        self.problems: list[Problem] = []

    def _report(self, location: Location, message: str) -> None:
        self.problems.append(self._file.problem(location, message))

    def entity(self, name: str, keys: Mapping[str, Literal["string", "int64"]]) -> Entity:
        location: Location = ("entities", name)
        if not _NAME.fullmatch(name):
            self._report(location, "an entity's name is letters, digits and _, and starts with no digit")
        if not keys:
            self._report(location, "an entity needs at least one join key")
        for key in keys:
            self._check_column_name((*location, key), key)
        return Entity(name, tuple(JoinKey(key, dtype) for key, dtype in keys.items()))

    def view(self, ref: str, form: _ViewForm, entities: Mapping[str, Entity], namespace: str) -> View | None:
        location: Location = ("views", ref)
        known = len(self.problems)
        named = _REF.fullmatch(ref)
        if named is None:
            self._report(location, "a view is called name@version, with a version from 1: plane_stats@1")
        entity = entities.get(form.entity)
        if entity is None:
            existing = ", ".join(sorted(entities)) or "none"
            self._report((*location, "entity"), f"no entity {form.entity!r}; there are: {existing}")
        newest = self._columns((*location, "columns"), form.columns, entity)
        earlier = [
            self._columns((*location, "revisions", index), columns, entity)
            for index, columns in enumerate(form.revisions)
        ]
        if named is None or entity is None or len(self.problems) > known:
            return None
        name, version = named[1], int(named[2])
        revisions = tuple(Revision.of(name, version, columns) for columns in earlier)
        view = View(
            name,
            version,
            entity,
            newest,
            revisions,
            max_age_ms=_milliseconds(form.max_age),
            ttl_ms=_milliseconds(form.ttl),
            on_missing=form.on_missing,
            namespace=namespace,
        )
        if form.ttl is not None and not view.ttl_ms:
            self._report((*location, "ttl"), "has to be at least a millisecond")
        self._check_revisions((*location, "revisions"), view)
        return view

    def _columns(self, location: Location, form: _Columns, entity: Entity | None) -> tuple[Column, ...]:
        taken = {key.name for key in entity.join_keys} if entity else set()
        columns = []
        for name, column in form.items():
            at = (*location, name)
            self._check_column_name(at, name)
            if name in taken:
                self._report(at, "is a join key of the entity already")
            try:
                dtype = DType.parse(column.dtype)
            except ValueError as error:
                self._report((*at, "dtype"), str(error))
                continue
            try:
                default = None if column.default is None else dtype.value_of(column.default)
            except ValueError as error:
                self._report((*at, "default"), str(error))
                continue
            columns.append(Column(name, dtype, default))
        return tuple(columns)

    def _check_column_name(self, location: Location, name: str) -> None:
        if not _NAME.fullmatch(name):
            self._report(location, "a name is letters, digits and _, and starts with no digit")
        elif name == EVENT_TIME:
            self._report(location, f"{EVENT_TIME} is where a table holds the time of a row's event")

    def _check_revisions(self, location: Location, view: View) -> None:
        newest = {column.name: column.dtype for column in view.columns}
        seen = {view.fingerprint}
        for index, revision in enumerate(view.revisions):
            if revision.fingerprint in seen:
                self._report((*location, index), "has the same columns as another revision")
            seen.add(revision.fingerprint)
            for column in revision.columns:
                newer = newest.get(column.name, column.dtype)
                if not column.dtype.widens_to(newer):
                    self._report(
                        (*location, index, column.name),
                        f"{column.dtype} cannot be widened to {newer}; that is another meaning and needs a new version",
                    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
