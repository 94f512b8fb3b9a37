"""What a worker runs for a view: a program. Three kinds of it, each in a module of its own."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from featureclient.compute.errors import Fault
from featureclient.compute.options import ComputeOptions
from featureclient.schema import Column, Id, View


class RunFailed(Exception):
    """A run did not give a table. `fault` is whose; `why` is for people."""

    def __init__(self, fault: Fault, why: str) -> None:
        self.fault = fault
        self.why = why
        super().__init__(why)


class Unfit(Exception):
    """A program that can never run: what is wrong, and what to do about it."""


class Unavailable(Exception):
    """A program that cannot run now: its source does not answer."""


class Program(Protocol):
    """Computes one view's rows."""

    def check(self) -> None:
        """Try out what can be tried without an id. Raises Unfit and Unavailable."""

    def run(self, ids: Sequence[Id]) -> Any | Awaitable[Any]:
        """The table of `ids`, or an awaitable of it. Raises RunFailed; anything else is a mistake of the program."""


class Described(NamedTuple):
    """A column that a query gives: its name, its type as the database calls it, and the kind of values it holds."""

    name: str
    type: str
    kind: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What all programs of a worker share."""

    options: ComputeOptions
    timeout_s: float


def key_columns(view: View, ids: Sequence[Id]) -> dict[str, list[str | int]]:
    """The join keys' columns of some ids, by name."""
    keys = view.entity.join_keys
    if len(keys) == 1:
        return {keys[0].name: list(ids)}  # type: ignore[arg-type]  # an id of one join key is its value
    return {key.name: [one[i] for one in ids] for i, key in enumerate(keys)}  # type: ignore[index]  # a tuple


def parameters(view: View) -> dict[str, str]:
    """The parameters that a query may name, and the join key that each is a list of. `ids` is short for a single key.

    In a query they are written `$ids`, or `$origin` and `$dest`.
    """
    names = {key.name: key.name for key in view.entity.join_keys}
    return names if len(names) > 1 else {"ids": next(iter(names)), **names}


def check_parameters(view: View, named: set[str]) -> None:
    """Raises Unfit when a query names a parameter that there is not, or none at all."""
    existing = parameters(view)
    said = ", ".join(f"${name}" for name in existing)
    unknown = sorted(named - set(existing))
    if unknown:
        raise Unfit(f"the query names ${unknown[0]}; there are: {said} (lists of the ids that are asked for)")
    if not named:
        raise Unfit(f"the query names none of {said}, so it would compute every id each time")


def check_columns(view: View, described: Sequence[Described]) -> None:
    """Raises Unfit when a query's columns are not those of the view."""
    there = {column.name: column for column in described}
    keys = {key.name: "string" if key.dtype == "string" else "number" for key in view.entity.join_keys}
    wanted = keys | {column.name: _kind_of(column) for column in view.columns}
    missing = [name for name in wanted if name not in there]
    if missing:
        raise Unfit(f"the query gives no column {missing[0]!r}; it gives: {', '.join(there)}")
    unknown = [name for name in there if name not in wanted and name != "event_time_ms"]
    if unknown:
        raise Unfit(f"the query gives {unknown[0]!r}, which the view has not; leave it out")
    for name, kind in wanted.items():
        found = there[name]
        if found.kind != kind and not (kind == "time" and found.kind == "number"):
            raise Unfit(f"the query gives {name!r} as {found.type}, the view has {_said(view, name)}: cast it")


def _kind_of(column: Column) -> str:
    if column.dtype.length is not None:
        return "list"
    kinds = {"string": "string", "bool": "bool", "timestamp": "time"}
    return kinds.get(column.dtype.kind, "number")


def _said(view: View, name: str) -> str:
    columns = {column.name: str(column.dtype) for column in view.columns}
    return columns.get(name) or next(key.dtype for key in view.entity.join_keys if key.name == name)
