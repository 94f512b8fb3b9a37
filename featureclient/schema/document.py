"""YAML files into pydantic models, with every problem of a file found at once and named by file, line and field.

`read` parses the file and remembers where each value stands; `validate` checks it against a model; `load` does both.
What a model cannot check (names that have to exist elsewhere) its owner reports through `Document.problem`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt
from ruamel.yaml.scalarstring import ScalarString

from featureclient.schema.errors import ConfigError, Problem

Model = TypeVar("Model", bound=BaseModel)
Location: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file that was read. `lines` has the line, from 1, of every mapping key and sequence item."""

    file: str
    content: Any
    lines: Mapping[Location, int]

    def problem(self, location: Location, message: str) -> Problem:
        """A problem of the value at `location`, or of the closest thing around it that is in the file."""
        known = location
        while known and known not in self.lines:
            known = known[:-1]
        return Problem(self.file, self.lines.get(known, 1), _dotted(location), message)


def load(path: str | Path, model: type[Model]) -> Model:
    """Read a YAML file into a model. Raises ConfigError with every problem that was found."""
    return validate(read(path), model)


def read(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping. Raises ConfigError when it is not, or cannot be read."""
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem(file, 0, "", f"cannot be read: {error.strerror or error}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(file, 0, "", f"is not UTF-8: {error.reason} at byte {error.start}")]) from error
    return parse(text, file)


def parse(text: str, file: str) -> Document:
    """`read`, for text that is at hand; `file` is what problems call it."""
    try:
        content = YAML(typ="rt").load(StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 0
        # The rest of ruamel's message explains its own API.
        said = (error.problem or error.context or str(error)).strip().splitlines()[0]
        raise ConfigError([Problem(file, line, "", f"is not valid YAML: {said}")]) from error
    except YAMLError as error:
        raise ConfigError([Problem(file, 0, "", f"is not valid YAML: {error}")]) from error
    lines: dict[Location, int] = {}
    plain = _plain(content, (), lines)
    if not isinstance(plain, dict):
        raise ConfigError([Problem(file, 1, "", "has to be a mapping of names to values")])
    return Document(file, plain, lines)


def validate(document: Document, model: type[Model]) -> Model:
    """Check a document against a model. Raises ConfigError with every problem that was found."""
    try:
        return model.model_validate(document.content)
    except ValidationError as error:
        problems: dict[Problem, None] = {}
        for found in error.errors(include_url=False, include_context=False):
            location = _without_tags(tuple(found["loc"]), document)
            problem = document.problem(location, _message(found["type"], found["msg"], location, model))
            problems[problem] = None
        raise ConfigError(sorted(problems, key=lambda problem: problem.line)) from error


def types_at(model: type[BaseModel], location: Location) -> list[Any]:
    """The types that the value at `location` of a document may have, without None; none where nothing is known."""
    here: list[Any] = [model]
    for part in location:
        here = [inner for one in here for inner in _step(one, part)]
    return here


def _dotted(location: Location) -> str:
    """`views.plane_stats@1.revisions[0]`."""
    said = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return said.removeprefix(".")


def _plain(node: Any, location: Location, lines: dict[Location, int]) -> Any:
    """The node without ruamel's types, which keep comments; fills `lines` on the way."""
    if isinstance(node, CommentedMap):
        plain = {}
        for key, value in node.items():
            name = str(key) if isinstance(key, str) else key
            lines[(*location, name)] = node.lc.key(key)[0] + 1
            plain[name] = _plain(value, (*location, name), lines)
        return plain
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*location, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*location, index), lines) for index, value in enumerate(node)]
    for kept, simple in ((ScalarBoolean, bool), (ScalarInt, int), (ScalarFloat, float), (ScalarString, str)):
        if isinstance(node, kept):
            return simple(node)
    return node


def _without_tags(location: Location, document: Document) -> Location:
    """Pydantic puts the names of a union's members into a location; keep only what is in the file.

    The last part stays even if it is not there: a field that is required and missing.
    """
    kept: list[str | int] = []
    node = document.content
    for index, part in enumerate(location):
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if inside:
            kept.append(part)
            node = node[part]
        elif index == len(location) - 1 and isinstance(node, dict) and part != "[key]":
            kept.append(part)
    return tuple(kept)


def _message(kind: str, said: str, location: Location, model: type[BaseModel]) -> str:
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        owner = _owner_at(model, location[:-1])
        existing = f"; there are: {', '.join(sorted(_fields(owner)))}" if owner else ""
        return f"is not known{existing}"
    if kind == "missing":
        return "is required"
    if kind == "tuple_type":
        return "should be a list"
    return said.removeprefix("Value error, ")


def _fields(owner: Any) -> dict[str, Any]:
    """The fields of a pydantic model or of a dataclass inside one, by the name that they have in a file."""
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        return {found.alias or name: found.annotation for name, found in owner.model_fields.items()}
    if isinstance(owner, type) and is_dataclass(owner):
        hints = get_type_hints(owner)
        return {found.name: hints[found.name] for found in fields(owner) if found.init}
    return {}


def _owner_at(model: type[BaseModel], location: Location) -> Any:
    """The model or dataclass that describes the value at `location`; None where there is not exactly one."""
    owners = [one for one in types_at(model, location) if _fields(one)]
    return owners[0] if len(owners) == 1 else None


def _step(annotation: Any, part: str | int) -> list[Any]:
    """The types that the value at key or index `part` of an `annotation` may have."""
    known = _fields(annotation)
    if known:
        return _members(known[part]) if part in known else []
    origin = get_origin(annotation)
    inner = get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping) and inner:
        return _members(inner[-1])
    if origin in {list, tuple, set, frozenset} and inner:
        return _members(inner[0])
    return []


def _members(annotation: Any) -> list[Any]:
    """An annotation as the alternatives that it allows, without `Annotated`, `|` and None."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [member for inner in get_args(annotation) for member in _members(inner)]
    return [] if annotation is type(None) else [annotation]
