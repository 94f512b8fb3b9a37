"""A Feast repository's registry file as a catalogue of ours.

    registry.db ─▶ entities and feature views of one project ─▶ YAML, and what could not be brought over, by name

Columns have a fixed size here and have none in Feast, so strings and lists need what the registry does not know:
`string_bytes` for all strings, `lengths` for the lists. A list without a length is left out, like every type that no
column can hold; a view of which nothing is left is left out as a whole. Nothing is left out silently.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from google.protobuf.message import DecodeError

from featureclient.feast.registry_pb2 import Entity, FeatureSpec, FeatureView, Registry, StreamFeatureView
from featureclient.feast.value_pb2 import ValueType
from featureclient.schema import ConfigError, Problem
from featureclient.schema.dtype import LENGTH_MAX

STRING_BYTES = 64
"""How long a string may be when nobody says more."""

AnyView: TypeAlias = FeatureView | StreamFeatureView

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
_SQLITE = b"SQLite format 3\0"

_KEY_TYPES = {ValueType.STRING: "string", ValueType.INT32: "int32", ValueType.INT64: "int64"}
_SCALARS = {
    ValueType.FLOAT: "float32",
    ValueType.DOUBLE: "float64",
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.BOOL: "bool",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}
_VECTORS = {
    ValueType.FLOAT_LIST: "float32",
    ValueType.DOUBLE_LIST: "float64",
    ValueType.INT32_LIST: "int32",
    ValueType.INT64_LIST: "int64",
    ValueType.BOOL_LIST: "int8",
    ValueType.UNIX_TIMESTAMP_LIST: "int64",
}
_TEXTS = (
    ValueType.STRING,
    ValueType.BYTES,
    ValueType.JSON,
    ValueType.UUID,
    ValueType.TIME_UUID,
    ValueType.DECIMAL,
    ValueType.STRING_LIST,
    ValueType.BYTES_LIST,
    ValueType.JSON_LIST,
    ValueType.UUID_LIST,
    ValueType.TIME_UUID_LIST,
    ValueType.DECIMAL_LIST,
)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the registry does not say."""

    project: str | None = None
    """Which project; None is the only one there is."""
    key_version: int = 3
    """`entity_key_serialization_version` of the repository's feature_store.yaml: 2 or 3."""
    string_bytes: int = STRING_BYTES
    """The size of every string column."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """The length of list features, by `view:feature`."""

    def __post_init__(self) -> None:
        if self.key_version not in {2, 3}:
            raise ValueError(f"key_version is 2 or 3, not {self.key_version}")
        for name, size in (("string_bytes", self.string_bytes), *self.lengths.items()):
            if not 1 <= size <= LENGTH_MAX:
                raise ValueError(f"{name}: {size} is not between 1 and {LENGTH_MAX}")


@dataclass(frozen=True, slots=True)
class Imported:
    """A catalogue as YAML; what was left out; and what to look at before it is used."""

    catalogue: str
    views: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def import_registry(data: bytes, options: ImportOptions | None = None, *, file: str = "registry.db") -> Imported:
    """Read a registry file. `file` is what problems call it. Raises ConfigError when there is nothing to import."""
    registry = _parsed(data, file)
    chosen = options if options is not None else ImportOptions()
    project = _project(registry, chosen.project, file)
    importer = _Importer(project, chosen)
    importer.add(registry)
    if not importer.views:
        left_out = "".join(f"\n  {one}" for one in importer.left_out)
        raise ConfigError([Problem(file, 0, "", f"has no view of {project!r} that can be read online{left_out}")])
    return importer.imported()


def _parsed(data: bytes, file: str) -> Registry:
    if data.startswith(_SQLITE):
        why = (
            "is an SQL registry of Feast; only a file registry can be read: `feast apply` once with registry_type: file"
        )
        raise ConfigError([Problem(file, 0, "", why)])
    registry = Registry()
    try:
        registry.ParseFromString(data)
    except DecodeError as error:
        raise ConfigError([Problem(file, 0, "", "is not a registry file of Feast")]) from error
    if not (registry.feature_views or registry.stream_feature_views):
        raise ConfigError([Problem(file, 0, "", "has no feature views: it is empty, or no registry file of Feast")])
    return registry


def _views(registry: Registry) -> list[AnyView]:
    return [*registry.feature_views, *registry.stream_feature_views]


def _project(registry: Registry, wanted: str | None, file: str) -> str:
    projects = sorted({view.spec.project for view in _views(registry)})
    if wanted is None and len(projects) == 1:
        return projects[0]
    if wanted in projects:
        assert wanted is not None  # a project has a name
        return wanted
    asked = "says no project" if wanted is None else f"has no project {wanted!r}"
    raise ConfigError([Problem(file, 0, "project", f"{asked}; there are: {', '.join(projects)}")])


class _Importer:
    """Collects the lines of the catalogue."""

    def __init__(self, project: str, options: ImportOptions) -> None:
        self._project = project
        self._options = options
        self._entities: dict[str, dict[str, str]] = {}
        self._known: dict[str, Entity] = {}
        self._lines: list[str] = []
        self.views: list[str] = []
        self.left_out: list[str] = []
        self._notes: list[str] = []

    def add(self, registry: Registry) -> None:
        """Everything of the project."""
        self._known = {one.spec.name: one for one in registry.entities if one.spec.project == self._project}
        for view in sorted(_views(registry), key=lambda view: view.spec.name):
            if view.spec.project == self._project:
                self._view(view)
        kinds: Sequence[tuple[str, Iterable[object]]] = (
            ("an on-demand feature view, which is computed when it is read", registry.on_demand_feature_views),
            ("a label view", registry.label_views),
            ("a feature table, which Feast has replaced by feature views", registry.feature_tables),
        )
        for what, found in kinds:
            for one in found:
                spec = one.spec  # type: ignore[attr-defined]  # all three have it
                if spec.project == self._project:
                    self.left_out.append(f"{spec.name}: {what}")

    def imported(self) -> Imported:
        """What has come together."""
        head = [
            f"# Imported from the registry of the Feast project {json.dumps(self._project, ensure_ascii=False)}.",
            "# Feast writes these rows; here they are read only.",
            *(f"# Left out: {_one_line(one)}" for one in self.left_out),
            *(f"# Look at: {_one_line(one)}" for one in self._notes),
        ]
        entities = ["entities:"]
        for name, keys in self._entities.items():
            inside = ", ".join(f"{_plain(key)}: {dtype}" for key, dtype in keys.items())
            entities.append(f"  {_plain(name)}: {{{inside}}}")
        text = "\n".join([*head, *entities, "views:", *self._lines]) + "\n"
        return Imported(text, tuple(self.views), tuple(self.left_out), tuple(self._notes))

    def _view(self, view: AnyView) -> None:
        spec = view.spec
        if spec.disabled or not spec.online:
            self.left_out.append(f"{spec.name}: {'is disabled' if spec.disabled else 'is not online'}")
            return
        if any(made.partition("@")[0] == _name_of(spec.name) for made in self.views):
            self.left_out.append(f"{spec.name}: another view is called {_name_of(spec.name)} here already")
            return
        kinds = self._key_kinds(view)
        if kinds is None:
            return
        columns, renamed = self._columns(view, kinds)
        if not columns:
            self.left_out.append(f"{spec.name}: no feature of it can be a column")
            return
        entity = self._entity(spec.entities, kinds)
        ref = f"{_name_of(spec.name)}@1"
        self.views.append(ref)
        lines = [f"  {ref}:", f"    entity: {_plain(entity)}"]
        if spec.ttl.ToMilliseconds() > 0:
            lines.append(f"    max_age: {_duration(spec.ttl.ToMilliseconds())}")
        lines.append("    feast:")
        lines.append(f"      project: {json.dumps(spec.project, ensure_ascii=False)}")
        lines.append(f"      view: {json.dumps(spec.name, ensure_ascii=False)}")
        lines.append(f"      key_version: {self._options.key_version}")
        int32s = [key for key, kind in kinds.items() if kind == "int32"]
        if int32s:
            lines.append(f"      key_types: {{{', '.join(f'{_plain(key)}: int32' for key in int32s)}}}")
        if renamed:
            inside = ", ".join(f"{name}: {json.dumps(was, ensure_ascii=False)}" for name, was in renamed.items())
            lines.append(f"      features: {{{inside}}}")
        lines.append("    columns:")
        lines += [f"      {_plain(name)}: {dtype}" for name, dtype in columns.items()]
        self._lines += lines
        if view.meta.current_version_number > 0:
            number = view.meta.current_version_number
            self._notes.append(
                f"{spec.name}: is at version {number}; where enable_online_feature_view_versioning is set, it is "
                f"stored as {spec.name}_v{number}: set feast.view to that"
            )

    def _key_kinds(self, view: AnyView) -> dict[str, str] | None:
        """Feast's types of a view's join keys; None when its keys cannot be made here."""
        spec = view.spec
        typed = {column.name: column.value_type for column in spec.entity_columns}
        kinds = {}
        for name in spec.entities:
            entity = self._known.get(name)
            if entity is None:
                self.left_out.append(f"{spec.name}: its entity {name} is not in the registry")
                return None
            key = entity.spec.join_key or name
            kind = typed.get(key, entity.spec.value_type)
            if kind not in _KEY_TYPES or not _NAME.fullmatch(key):
                self.left_out.append(f"{spec.name}: its join key {key!r} is of type {_type_name(kind)}")
                return None
            kinds[key] = _KEY_TYPES[kind]
        if not kinds:
            self.left_out.append(f"{spec.name}: has no entity")
            return None
        return kinds

    def _entity(self, names: Sequence[str], kinds: Mapping[str, str]) -> str:
        """Our entity of a view's, made when it is the first. Several of Feast's are one of ours with several keys."""
        keys = {key: "string" if kind == "string" else "int64" for key, kind in kinds.items()}
        wanted = name = _name_of("_".join(names))
        number = 1
        while self._entities.get(name, keys) != keys:
            number += 1
            name = f"{wanted}_{number}"
        self._entities[name] = keys
        return name

    def _columns(self, view: AnyView, kinds: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Dtypes by column, and Feast's names of the columns that are called otherwise here."""
        columns: dict[str, str] = {}
        renamed = {}
        for feature in view.spec.features:
            place = f"{view.spec.name}:{feature.name}"
            dtype = self._dtype(place, feature)
            if dtype is None:
                continue
            name = _name_of(feature.name)
            if name in columns or name in kinds or name == "event_time_ms":
                self.left_out.append(f"{place}: a column cannot be called {name} here")
                continue
            columns[name] = dtype
            if name != feature.name:
                renamed[name] = feature.name
        return columns, renamed

    def _dtype(self, place: str, feature: FeatureSpec) -> str | None:
        kind = feature.value_type
        if kind in _SCALARS:
            return _SCALARS[kind]
        if kind in _TEXTS:
            if place not in self._options.lengths:
                self._notes.append(
                    f"{place}: {_type_name(kind)} has no size in Feast; {self._options.string_bytes} bytes"
                )
            return f"string[{self._options.lengths.get(place, self._options.string_bytes)}]"
        if kind in _VECTORS:
            length = self._options.lengths.get(place, feature.vector_length)
            if length > 0:
                return f"{_VECTORS[kind]}[{length}]"
            self.left_out.append(f"{place}: {_type_name(kind)} has no length in Feast; give it one ({place}=LENGTH)")
            return None
        self.left_out.append(f"{place}: no column can hold Feast's type {_type_name(kind)}")
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _name_of(name: str) -> str:
    made = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return made if _NAME.fullmatch(made) else f"_{made}"


def _plain(name: str) -> str:
    """A name as YAML has it: quoted where YAML would take it for something else."""
    return f'"{name}"' if name.lower() in _RESERVED else name


def _type_name(kind: int) -> str:
    return ValueType.Enum.Name(kind) if kind in ValueType.Enum.values() else f"number {kind}"


def _duration(milliseconds: int) -> str:
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
