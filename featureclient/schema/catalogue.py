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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypedDict

from featureclient.schema import document
from featureclient.schema.combination import combination_troubles, combined_columns, combined_revisions, shortest
from featureclient.schema.compute import (
    EMBEDDED,
    Compute,
    DuckdbSource,
    PostgresSource,
    PythonCompute,
    Source,
    SqlCompute,
)
from featureclient.schema.document import Document, Location
from featureclient.schema.dtype import DType
from featureclient.schema.errors import ConfigError, Problem, UnknownView
from featureclient.schema.feast import FeastSource
from featureclient.schema.form import CatalogueForm, ColumnForms, ComputeForm, SourceForm, ViewForm
from featureclient.schema.view import Column, Entity, JoinKey, OnMissing, Revision, View

EVENT_TIME = "event_time_ms"
"""The column of a table that holds the event times of its rows; no column of a view may be called so."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REF = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)@([1-9][0-9]{0,8})")
_PARAMETER = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_COMPUTING = ("compute", "default_now_compute_later")


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """The entities by name and the views by reference (`plane_stats@1`). Immutable: a change is a new catalogue.

    `sources` are where the SQL of computed views runs, by name.
    """

    views: Mapping[str, View]
    entities: Mapping[str, Entity]
    namespace: str = "hr"
    sources: Mapping[str, Source] = field(default_factory=dict)

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
    form = document.validate(file, CatalogueForm)
    builder = _Builder(file, form)
    for name, keys in form.entities.items():
        builder.entity(name, keys)
    for name, source in form.sources.items():
        builder.source(name, source)
    # A combined view is made of others, wherever in the file they stand.
    for ref, view in form.views.items():
        if not view.combine:
            builder.view(ref, view)
    for ref, view in form.views.items():
        if view.combine:
            builder.combined(ref, view)
    if builder.problems:
        raise ConfigError(sorted(builder.problems, key=lambda problem: problem.line))
    views = {ref: builder.views[ref] for ref in form.views}
    return Catalogue(
        MappingProxyType(views), MappingProxyType(builder.entities), form.namespace, MappingProxyType(builder.sources)
    )


class _Rest(TypedDict):
    """The fields of a view that are there for combined views too."""

    max_age_ms: int | None
    ttl_ms: int | None
    on_missing: OnMissing
    namespace: str
    prefetch: tuple[str, ...]
    soft_age_ms: int | None
    hard_age_ms: int | None
    combine: tuple[str, ...]


class _Limits(TypedDict):
    timeout_ms: int
    batch_rows_max: int
    concurrency_max: int
    write_back: bool


class _Builder:
    """Makes values from the form and collects what is wrong with it."""

    def __init__(self, file: Document, form: CatalogueForm) -> None:
        self._file = file
        self._form = form
        self._folder = Path(file.file).parent
        self.problems: list[Problem] = []
        self.entities: dict[str, Entity] = {}
        self.sources: dict[str, Source] = {EMBEDDED: DuckdbSource(None, self._folder)}
        self.views: dict[str, View] = {}

    def _report(self, location: Location, message: str) -> None:
        self.problems.append(self._file.problem(location, message))

    def entity(self, name: str, keys: Mapping[str, Literal["string", "int64"]]) -> None:
        location: Location = ("entities", name)
        if not _NAME.fullmatch(name):
            self._report(location, "an entity's name is letters, digits and _, and starts with no digit")
        if not keys:
            self._report(location, "an entity needs at least one join key")
        for key in keys:
            self._check_column_name((*location, key), key)
        self.entities[name] = Entity(name, tuple(JoinKey(key, dtype) for key, dtype in keys.items()))

    def source(self, name: str, form: SourceForm) -> None:
        location: Location = ("sources", name)
        if not _NAME.fullmatch(name):
            self._report(location, "a source's name is letters, digits and _, and starts with no digit")
        if form.duckdb is not None and form.postgres is None:
            path = form.duckdb.path
            self.sources[name] = DuckdbSource(None if path is None else self._folder / path, self._folder)
        elif form.postgres is not None and form.duckdb is None:
            if (form.postgres.dsn is None) == (form.postgres.dsn_env is None):
                self._report((*location, "postgres"), "needs one of dsn and dsn_env, the variable that holds it")
            self.sources[name] = PostgresSource(form.postgres.dsn, form.postgres.dsn_env)
        else:
            self._report(location, "is one of duckdb and postgres")

    def view(self, ref: str, form: ViewForm) -> None:
        location: Location = ("views", ref)
        known = len(self.problems)
        named, entity = self._named(location, ref), self._entity(location, form)
        if not form.columns:
            self._report((*location, "columns"), "a view needs columns, or views to combine")
        newest = self._columns((*location, "columns"), form.columns, entity)
        earlier = [
            self._columns((*location, "revisions", index), columns, entity)
            for index, columns in enumerate(form.revisions)
        ]
        compute = self._compute((*location, "compute"), form.compute, entity)
        self._check_compute(location, form)
        feast = self._feast(location, form, entity)
        if named is None or entity is None or len(self.problems) > known:
            return
        name, version = named
        revisions = tuple(Revision.of(name, version, columns) for columns in earlier)
        rest = self._rest(form)
        view = View(name, version, entity, newest, revisions, compute=compute, feast=feast, **rest)
        self._add(location, form, view)

    def combined(self, ref: str, form: ViewForm) -> None:
        """A view of the columns of others. `view` has been called for these."""
        location: Location = ("views", ref)
        known = len(self.problems)
        named, entity = self._named(location, ref), self._entity(location, form)
        for field_ in ("columns", "revisions", "compute", "max_age"):
            if getattr(form, field_):
                self._report((*location, field_), f"a combined view has no {field_} of its own, they are its members'")
        if form.feast is not None:
            self._report((*location, "feast"), "Feast writes no combined rows")
        if form.compute is None:
            self._check_compute(location, form)
        if len(set(form.combine)) < max(2, len(form.combine)):
            self._report((*location, "combine"), "needs two views or more, each once")
        members = self._members((*location, "combine"), ref, form)
        if named is None or entity is None or len(self.problems) > known:
            return
        for position, trouble in combination_troubles(entity.name, members):
            self._report((*location, "combine", position), trouble)
        if len(self.problems) == known:
            name, version = named
            columns, revisions = combined_columns(members), combined_revisions(name, version, members)
            rest = self._rest(form)
            rest["max_age_ms"] = shortest(member.max_age_ms for member in members)
            if form.ttl is None:
                rest["ttl_ms"] = shortest(member.ttl_ms for member in members)
            self._add(location, form, View(name, version, entity, columns, revisions, **rest))

    def _members(self, location: Location, ref: str, form: ViewForm) -> list[View]:
        members = []
        for position, member in enumerate(form.combine):
            other = self._form.views.get(member)
            if other is None:
                self._report((*location, position), f"no view {member!r}; there are: {_listed(self._form.views)}")
            elif other.combine:
                what = "itself" if member == ref else f"{member}, a combined view; name its members"
                self._report((*location, position), f"a combined view cannot combine {what}")
            elif member in self.views:  # else its own problem is reported
                members.append(self.views[member])
        return members

    def _named(self, location: Location, ref: str) -> tuple[str, int] | None:
        named = _REF.fullmatch(ref)
        if named is None:
            self._report(location, "a view is called name@version, with a version from 1: plane_stats@1")
            return None
        return named[1], int(named[2])

    def _entity(self, location: Location, form: ViewForm) -> Entity | None:
        entity = self.entities.get(form.entity)
        if entity is None:
            self._report((*location, "entity"), f"no entity {form.entity!r}; there are: {_listed(self.entities)}")
        return entity

    def _rest(self, form: ViewForm) -> _Rest:
        return _Rest(
            max_age_ms=_milliseconds(form.max_age),
            ttl_ms=_milliseconds(form.ttl),
            on_missing=form.on_missing,
            namespace=self._form.namespace,
            prefetch=tuple(form.prefetch),
            soft_age_ms=_milliseconds(form.soft_age),
            hard_age_ms=_milliseconds(form.hard_age),
            combine=tuple(form.combine),
        )

    def _add(self, location: Location, form: ViewForm, view: View) -> None:
        for name in ("ttl", "soft_age", "hard_age"):
            if getattr(form, name) is not None and not getattr(view, f"{name}_ms"):
                self._report((*location, name), "has to be at least a millisecond")
        if form.soft_age is not None and form.hard_age is not None and form.soft_age >= form.hard_age:
            self._report((*location, "soft_age"), "has to be shorter than hard_age: it is when a row is read again")
        for position, other in enumerate(form.prefetch):
            if other == view.ref:
                self._report((*location, "prefetch", position), "is the view itself")
            elif other not in self._form.views:
                existing = _listed(self._form.views)
                self._report((*location, "prefetch", position), f"no view {other!r}; there are: {existing}")
        self._check_revisions((*location, "revisions"), view)
        self.views[view.ref] = view

    def _check_compute(self, location: Location, form: ViewForm) -> None:
        computing = " or ".join(_COMPUTING)
        if form.compute is None and form.on_missing in _COMPUTING:
            self._report((*location, "on_missing"), f"is {form.on_missing}, and the view names no compute")
        if form.compute is not None and form.on_missing not in _COMPUTING:
            message = f"is never used while on_missing is {form.on_missing}; set on_missing: {computing}"
            self._report((*location, "compute"), message)

    def _compute(self, location: Location, form: ComputeForm | None, entity: Entity | None) -> Compute | None:
        if form is None:
            return None
        limits = _Limits(
            timeout_ms=form.timeout_ms,
            batch_rows_max=form.batch_rows_max,
            concurrency_max=form.concurrency_max,
            write_back=form.write_back,
        )
        if form.python is not None and form.sql is None:
            if "on" in form.model_fields_set:
                self._report((*location, "on"), "is where SQL runs; a python compute has none")
            return PythonCompute(function=form.python, **limits)
        if form.sql is None or form.python is not None:
            self._report(location, "is one of python and sql")
            return None
        if form.on not in self.sources:
            self._report((*location, "on"), f"no source {form.on!r}; there are: {_listed(self.sources)}")
        keys = {key.name for key in entity.join_keys} if entity else set()
        named = set(_PARAMETER.findall(form.sql))
        if entity is not None and "ids" not in named and not keys <= named:
            self._report((*location, "sql"), "names no $ids, so it would read the rows of every id each time")
        return SqlCompute(sql=form.sql, source=form.on, **limits)

    def _feast(self, location: Location, form: ViewForm, entity: Entity | None) -> FeastSource | None:
        given = form.feast
        if given is None:
            return None
        at = (*location, "feast")
        if form.revisions:
            self._report((*location, "revisions"), "Feast's rows have no revisions: change the columns")
        if form.ttl is not None:
            self._report((*location, "ttl"), "Feast writes the rows, and says how long they stay; max_age is ours")
        if form.compute is not None and form.compute.write_back:
            self._report((*location, "compute"), "a view of Feast is read-only: set write_back: false")
        join_keys = {key.name: key.dtype for key in entity.join_keys} if entity else {}
        for name, kind in given.key_types.items():
            dtype = join_keys.get(name)
            if entity is not None and dtype is None:
                self._report((*at, "key_types", name), f"no join key {name!r}; there are: {_listed(join_keys)}")
            elif dtype is not None and (dtype == "string") != (kind == "string"):
                self._report((*at, "key_types", name), f"{name} is of {dtype}, which Feast cannot have as {kind}")
        for name in given.features:
            if name not in form.columns:
                self._report((*at, "features", name), f"no column {name!r}; there are: {_listed(form.columns)}")
        return FeastSource(given.project, given.view, given.key_version, given.key_types, given.features)

    def _columns(self, location: Location, form: ColumnForms, entity: Entity | None) -> tuple[Column, ...]:
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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
