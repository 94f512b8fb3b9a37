"""A manifest explained against a catalogue and a graph: for each input its columns, where they come from, and what is
done to them on the way.

`compile_plan` stops at what is wrong; this goes on, so that a reader sees the wrong column among the right ones. What
is wrong is the compiler's to say: here are the advice beside its problems, and the warnings about what does load.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from featureclient.schema import Catalogue, DType, View
from featureclient.schema.view import Column
from gateway.plan.column import may_fill
from gateway.plan.expression import expression_names
from gateway.plan.manifest import Manifest
from gateway.records.signature import Signature, TensorSpec

Location: TypeAlias = tuple[str | int, ...]

TODO = "TODO_"
"""How the columns begin that a drafted manifest leaves to its reader."""
_CLOSE_MAX = 3
_CLOSE = 0.75
"""How alike two names are that one may be meant by the other, as difflib counts."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a column comes from. `text` is for people; `dtype` is None where it cannot be told."""

    text: str
    dtype: DType | None
    missing: str = ""
    """What the model sees when the store has no value, for a stored column."""


@dataclass(frozen=True, slots=True)
class Filled:
    """One column of an input and its place among the values of a row."""

    name: str
    origin: Origin
    place: str
    cast: str
    """`int32 → float32`, or empty when nothing is cast."""
    advice: str
    """What to do about a column that cannot go there; empty when it can."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the graph, or of the manifest alone (`spec` is None), with its columns."""

    name: str
    spec: TensorSpec | None
    columns: tuple[Filled, ...]
    advice: str


@dataclass(frozen=True, slots=True)
class Explained:
    """A manifest, explained. `warnings` are (path in the manifest, message)."""

    inputs: tuple[Input, ...]
    warnings: tuple[tuple[Location, str], ...]

    def advice(self, where: Location) -> str:
        """What to do about the compiler's problem at a place; empty where its message says it all."""
        if where[:1] != ("inputs",) or len(where) == 1:
            missing = [one for one in self.inputs if one.spec is not None and not one.columns]
            return missing[0].advice if where == ("inputs",) and missing else ""
        for one in self.inputs:
            if one.name == where[1]:
                index = where[2] if len(where) > 2 else None  # noqa: PLR2004 - (inputs, name, index)
                return one.columns[index].advice if isinstance(index, int) else one.advice
        return ""


def explain(manifest: Manifest, catalogue: Catalogue, signature: Signature) -> Explained:
    """Explain a manifest, right or wrong."""
    return _Explainer(manifest, catalogue, signature).explain()


class _Explainer:
    def __init__(self, manifest: Manifest, catalogue: Catalogue, signature: Signature) -> None:
        self.manifest = manifest
        self.specs = {spec.name: spec for spec in signature.inputs}
        self.views = {
            alias: catalogue.views[use.view] for alias, use in manifest.views.items() if use.view in catalogue.views
        }
        self.origins = dict(self._origins())

    def explain(self) -> Explained:
        named = [self._input(name, columns) for name, columns in self.manifest.inputs.items()]
        unfilled = [
            Input(spec.name, spec, (), self._unfilled(spec))
            for spec in self.specs.values()
            if spec.name not in self.manifest.inputs
        ]
        return Explained((*named, *unfilled), (*self._narrowed(named), *self._unused()))

    def _origins(self) -> Iterator[tuple[str, Origin]]:
        for alias, view in self.views.items():
            for column in view.columns:
                text = f"{view.ref} by {', '.join(self._keys(alias, view))}"
                yield f"{alias}.{column.name}", Origin(text, column.dtype, _missing(view, column))
        for name, text in self.manifest.context.items():
            yield name, Origin("the request", _dtype(text))
        for use in self.manifest.transforms:
            for name, text in use.outputs.items():
                yield name, Origin(f"{use.function}({', '.join(use.inputs.values())})", _dtype(text))
        for name, derived in self.manifest.derive.items():
            yield name, Origin(derived.expression, _dtype(derived.dtype))

    def _keys(self, alias: str, view: View) -> list[str]:
        keys = self.manifest.views[alias].keys
        return [keys.get(key.name, key.name) for key in view.entity.join_keys]

    def _input(self, name: str, columns: list[str]) -> Input:
        spec = self.specs.get(name)
        filled: list[Filled] = []
        start: int | None = 0
        for column in columns:
            origin = self.origins.get(column)
            dtype = None if origin is None else origin.dtype
            end = None if start is None or dtype is None else start + dtype.width
            place = "?" if end is None or start is None else str(start) if end == start + 1 else f"{start}:{end}"
            filled.append(self._filled(column, origin, spec, place))
            start = end
        return Input(name, spec, tuple(filled), self._input_advice(name, spec, filled, start))

    def _filled(self, name: str, origin: Origin | None, spec: TensorSpec | None, place: str) -> Filled:
        if origin is None:
            return Filled(name, Origin("nowhere", None), place, "", self._unknown(name))
        dtype = origin.dtype
        if dtype is None or spec is None:
            return Filled(name, origin, place, "", "")
        cast = f"{dtype.kind} → {spec.dtype}" if _element(dtype) != spec.dtype else ""
        return Filled(name, origin, place, cast, "" if may_fill(dtype, spec.dtype) else _mismatch(name, dtype, spec))

    def _unknown(self, name: str) -> str:
        if name.startswith(TODO):
            return "a column that is still to be chosen; put its name here"
        last = {known.rpartition(".")[2]: known for known in self.origins}
        close = difflib.get_close_matches(name.rpartition(".")[2], last, _CLOSE_MAX, _CLOSE)
        return f"is it {' or '.join(last[found] for found in close)}?" if close else ""

    def _input_advice(self, name: str, spec: TensorSpec | None, filled: list[Filled], width: int | None) -> str:
        if spec is None:
            free = [one for one in self.specs if one not in self.manifest.inputs]
            return f"call it {' or '.join(free)}" if free else f"take {name} out"
        if not spec.shape or spec.shape[0] is not None:
            return ""
        if width is None:
            return ""
        vectors = [
            f"{one.name} is {one.origin.dtype}" for one in filled if one.origin.dtype and one.origin.dtype.length
        ]
        return f"{len(filled)} columns are listed" + (f"; {', '.join(vectors)}" if vectors else "")

    def _unfilled(self, spec: TensorSpec) -> str:
        fitting = [
            name
            for name, origin in self.origins.items()
            if origin.dtype is not None and may_fill(origin.dtype, spec.dtype)
        ]
        same = [name for name in fitting if _plain(name.rpartition(".")[2]) == _plain(spec.name)]
        chosen = ", ".join(same or fitting[:_CLOSE_MAX])
        return f"add `{spec.name}: [{chosen or '…'}]` to inputs"

    def _narrowed(self, inputs: list[Input]) -> Iterator[tuple[Location, str]]:
        for one in inputs:
            for index, column in enumerate(one.columns):
                dtype = column.origin.dtype
                if dtype is None or one.spec is None or column.advice:
                    continue
                lost = _lost(dtype, one.spec.dtype)
                if lost:
                    yield ("inputs", one.name, index), f"{column.name} is {dtype}: {lost}"
                if column.origin.missing == "NaN":
                    yield (
                        ("inputs", one.name, index),
                        f"{column.name} has no default: a missing or null value reaches the model as NaN",
                    )
            names = [column.name for column in one.columns]
            for name in dict.fromkeys(name for name in names if names.count(name) > 1):
                yield ("inputs", one.name, names.index(name)), f"{name} is listed {names.count(name)} times"

    def _unused(self) -> Iterator[tuple[Location, str]]:
        read = {name for columns in self.manifest.inputs.values() for name in columns}
        read |= {name for use in self.manifest.transforms for name in use.inputs.values()}
        read |= {name for use in self.manifest.derive.values() for name in expression_names(use.expression)}
        for name in self.manifest.context:
            if name not in read:
                yield ("context", name), f"nothing reads the context column {name}, yet each request has to send it"
        for alias, view in self.views.items():
            if not any(name.startswith(f"{alias}.") for name in read):
                yield ("views", alias), f"nothing reads a column of {view.ref}, yet each request looks it up"


def _missing(view: View, column: Column) -> str:
    """What stands for a value that is not there."""
    if view.on_missing == "reject":
        return "the row is rejected"
    if column.default is None and column.dtype.is_float:
        return "NaN"
    substitute = column.substitute
    if isinstance(substitute, tuple):
        return f"{substitute[0]!r} …"
    return repr(substitute)


def _dtype(text: str) -> DType | None:
    try:
        return DType.parse(text)
    except ValueError:
        return None


def _element(dtype: DType) -> str:
    """What the graph calls one element of it."""
    return "int64" if dtype.kind == "timestamp" else dtype.kind


def _mismatch(name: str, dtype: DType, spec: TensorSpec) -> str:
    """What to do about a column whose dtype cannot go into an input."""
    if dtype.kind == "string":
        return (
            "encode it inside the graph (export the encoder with the model, as scikit-learn's OneHotEncoder), or by a "
            "transform that returns numbers"
        )
    if spec.dtype == "string":
        return f"the graph wants text: store {name} as string[n], or export the graph for numbers"
    if dtype.kind == "timestamp":
        return "say what the model is to see of it: a transform that returns, for example, hours as a float32"
    if np.dtype(spec.dtype).kind in "iu" and not dtype.length:
        return (
            f"declare the column as {spec.dtype} in its view, or cast it knowingly: "
            f"`derive: {{{name.rpartition('.')[2]}_{spec.dtype}: {{expression: {name}, dtype: {spec.dtype}}}}}`"
        )
    if spec.dtype == "bool" and not dtype.length:
        return f"compare it: `derive: {{is_{name.rpartition('.')[2]}: {{expression: {name} != 0, dtype: bool}}}}`"
    return f"declare the column as {spec.dtype}, or export the graph for {dtype.kind}"


def _lost(dtype: DType, target: str) -> str:
    """What a cast that is allowed may lose."""
    if target == "string":
        return ""
    destination, bits = np.dtype(target), dtype.numpy.itemsize * 8
    if destination.kind != "f":
        return ""
    exact = np.finfo(destination).nmant + 1
    if dtype.is_integer and bits - 1 > exact and (bits == 64 or destination == np.float16):  # noqa: PLR2004 - an int64
        return (
            f"{target} holds integers exactly up to {2**exact:,} only; an id or a category beyond that becomes another"
        )
    if destination == np.float16 and dtype.numpy.itemsize > 2:  # noqa: PLR2004 - wider than a float16
        return "float16 ends at 65,504; a larger value becomes infinite"
    return ""


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
