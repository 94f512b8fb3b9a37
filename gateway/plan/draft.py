"""A first manifest for a graph: inputs matched with the columns of views by name.

A graph says what its inputs are called, and seldom what the columns of a matrix are. Where names are known (an input of
one value a row, or a list of names beside the graph) the columns are found by name; a vector column is found by its
length. What is not found is written as `TODO_…`, which loads nowhere and which `headrace models check` names.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from featureclient.schema import DType, View
from gateway.plan.column import may_fill
from gateway.plan.explain import TODO
from gateway.records.signature import Signature, TensorSpec

STRING_BYTES = 64
"""Room for a string that the request carries, where nothing says how long it gets."""
COLUMNS_MAX = 4096
"""Columns of one input that are written one by one."""
_SHOWN = 6
_NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "bool")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
"""What some YAML takes for something else than text."""


@dataclass(slots=True)
class _Draft:
    """What has been found so far: request columns, and each input's columns with a remark."""

    context: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def draft(
    name: str,
    signature: Signature,
    views: Sequence[View],
    *,
    names: Sequence[str] = (),
    rest_from_request: bool = False,
) -> str:
    """Return the text of a manifest.

    `names` are the columns of the widest input, in its order. With `rest_from_request`, or without any views, what no
    view has is what the caller sends. Raises ValueError when `names` fit no input.
    """
    aliases = _aliased(views)
    finder = _Finder(aliases, rest_from_request=rest_from_request or not views)
    named = _named_input(signature, names)
    for spec in signature.inputs:
        finder.fill(spec, names if spec is named else ())
    return "\n".join(_written(name, signature, aliases, finder.draft)) + "\n"


class _Finder:
    def __init__(self, views: Mapping[str, View], *, rest_from_request: bool) -> None:
        self.columns = {
            f"{alias}.{column.name}": column.dtype for alias, view in views.items() for column in view.columns
        }
        self.rest_from_request = rest_from_request
        self.draft = _Draft()

    def fill(self, spec: TensorSpec, names: Sequence[str]) -> None:
        """Find the columns of one input."""
        width = _width(spec)
        if names:
            found = [self._named(one, spec) for one in names]
        elif width == 1:
            found = [self._named(spec.name, spec)]
        else:
            found = self._wide(spec, width)
        self.draft.inputs[spec.name] = found

    def _named(self, name: str, spec: TensorSpec) -> tuple[str, str]:
        """The column for one value a row, and a remark."""
        matches = [column for column in self.columns if name in {column, column.replace(".", "__")}]
        matches = matches or [column for column in self.columns if _plain(column) == _plain(name)]
        matches = matches or [column for column in self.columns if _plain(column.partition(".")[2]) == _plain(name)]
        fitting = [
            column
            for column in matches
            if self.columns[column].length is None and may_fill(self.columns[column], spec.dtype)
        ]
        if len(fitting) == 1:
            return fitting[0], ""
        if len(fitting) > 1:
            return _todo(name), f"several have this name: {', '.join(fitting)}"
        if matches:
            return _todo(name), f"{matches[0]} is {self.columns[matches[0]]}, the graph's input is {spec.dtype}"
        if self.rest_from_request:
            dtype = f"string[{STRING_BYTES}]" if spec.dtype == "string" else spec.dtype
            return self._from_request(name, dtype, spec)
        return _todo(name), "no view has a column of this name; name another, or add it to context"

    def _wide(self, spec: TensorSpec, width: int | None) -> list[tuple[str, str]]:
        """The columns of a matrix whose columns have no names: one vector, or what the reader has to say."""
        vectors = [
            column
            for column, dtype in self.columns.items()
            if dtype.length is not None and width in {None, dtype.length} and may_fill(dtype, spec.dtype)
        ]
        same = [column for column in vectors if _plain(spec.name) == _plain(column.partition(".")[2])]
        chosen = same or (vectors if width is not None else [])
        if len(chosen) == 1:
            return [(chosen[0], "" if same else f"the only column of {width} values; is it the right one?")]
        if self.rest_from_request and width is not None and spec.dtype != "string":
            return [self._from_request(spec.name, f"{spec.dtype}[{width}]", spec)]
        values = "as many values as you like" if width is None else f"{width} values"
        remark = f"{values} of {spec.dtype} a row: list the columns in the order of training"
        if chosen:
            remark += f"; vectors that fit: {', '.join(chosen[:_SHOWN])}"
        return [(_todo(spec.name), remark)]

    def _from_request(self, name: str, text: str, spec: TensorSpec) -> tuple[str, str]:
        if spec.dtype not in {*_NUMBERS, "string"}:
            return _todo(name), f"columns are never {spec.dtype}: cast inside the graph, or send tensors (ModelInfer)"
        column = _identifier(name)
        try:
            DType.parse(text)
        except ValueError as error:
            return _todo(name), str(error)
        self.draft.context[column] = text
        return column, ""


def _named_input(signature: Signature, names: Sequence[str]) -> TensorSpec | None:
    """The input whose columns `names` are."""
    if not names:
        return None
    if len(names) > COLUMNS_MAX:
        raise ValueError(f"{len(names)} names of columns, the most is {COLUMNS_MAX}")
    fitting = [spec for spec in signature.inputs if _width(spec) == len(names)]
    fitting = fitting or [spec for spec in signature.inputs if _width(spec) is None]
    if len(fitting) != 1:
        specs = ", ".join(map(str, signature.inputs))
        raise ValueError(f"{len(names)} names of columns fit {'several inputs' if fitting else 'no input'} of {specs}")
    return fitting[0]


def _written(name: str, signature: Signature, views: Mapping[str, View], found: _Draft) -> Iterator[str]:
    used = {column.partition(".")[0] for columns in found.inputs.values() for column, _ in columns if "." in column}
    left = any(column.startswith(TODO) for columns in found.inputs.values() for column, _ in columns)
    yield f"name: {_quoted(name)}"
    kept = {alias: view for alias, view in views.items() if alias in used or left}
    yield "views:" if kept else "views: {}"
    for alias, view in kept.items():
        keys = ", ".join(f"{key.name} ({key.dtype})" for key in view.entity.join_keys)
        yield f"  {alias}: {{view: {view.ref}}}  # the request has: {keys}"
    if found.context:
        yield "context:"
    for column, dtype in found.context.items():
        yield f'  {_quoted(column)}: "{dtype}"'
    yield "inputs:"
    for spec in signature.inputs:
        yield f"  {_quoted(spec.name)}:  # {spec.dtype}{_shape(spec)}"
        if said := _about_rows(spec):
            yield f"    # {said}"
        for column, remark in found.inputs[spec.name]:
            yield f"    - {_quoted(column)}" + (f"  # TODO {remark}" if remark else "")
    yield f"# It answers {', '.join(map(str, signature.outputs))}."


def _about_rows(spec: TensorSpec) -> str:
    """What to know of an input whose first dimension is not free."""
    if spec.shape[:1] == (None,):
        return ""
    if spec.shape[:1] == (1,):
        return "fixed to one row: each row is a run of its own; export it with a dynamic first dimension if you can"
    return "TODO its first dimension is not the rows: export it so, or send tensors (ModelInfer) and have no manifest"


def _aliased(views: Sequence[View]) -> dict[str, View]:
    """Views by alias: their names, with the version where two have one name."""
    names = [view.name for view in views]
    return {view.name if names.count(view.name) == 1 else f"{view.name}_{view.version}": view for view in views}


def _width(spec: TensorSpec) -> int | None:
    """Values a row; None where the graph leaves it open."""
    if None in spec.shape[1:]:
        return None
    width = 1
    for size in spec.shape[1:]:
        width *= size or 1
    return width


def _todo(name: str) -> str:
    return f"{TODO}{_identifier(name)}"


def _identifier(name: str) -> str:
    """The name as a column can be called."""
    made = re.sub(r"[^A-Za-z0-9_\-]+", "_", name)
    return made if re.match(r"[A-Za-z_]", made) else f"_{made}"


def _quoted(name: str) -> str:
    """The name as YAML reads it back, whichever YAML that is."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_\-]*(\.[A-Za-z_][A-Za-z0-9_\-]*)?", name)
    return name if plain and name.lower() not in _WORDS else json.dumps(name, ensure_ascii=False)


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in spec.shape) + "]"


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
