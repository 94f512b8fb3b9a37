"""Entities, views, their columns and revisions: plain values, with what follows from them worked out once.

A view's `version` is its meaning: rows of one version are never read as another's. A `Revision` is a layout of one
version. The newest is the view's `columns`; rows of the earlier ones, in `revisions`, are upgraded when they are read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from featureclient.schema import status
from featureclient.schema.compute import Compute
from featureclient.schema.dtype import DType, Value
from featureclient.schema.feast import FeastSource
from featureclient.schema.layout import Layout, cached_layout, stored_dtype

Id: TypeAlias = str | int | tuple[str | int, ...]
"""The id of an entity: the value of its join key, or a tuple of them, in the entity's order, where it has several."""

OnMissing: TypeAlias = Literal["default", "reject", "compute", "default_now_compute_later"]
"""What a row that the store has not becomes: its defaults, a rejected row, a computed row that the caller waits for, or
its defaults at once and a computed row for the next caller."""


@dataclass(frozen=True, slots=True)
class JoinKey:
    """One part of an entity's id."""

    name: str
    dtype: Literal["string", "int64"]


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing that a prediction is about."""

    name: str
    join_keys: tuple[JoinKey, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One feature. `default` is None where none is declared."""

    name: str
    dtype: DType
    default: Value | None = None

    @property
    def substitute(self) -> Value:
        """What stands for a value that is not there: the default, else the dtype's fill."""
        return self.dtype.fill if self.default is None else self.default


@dataclass(frozen=True, slots=True, eq=False)
class Revision:
    """One layout of a version. `stored` is its row as a numpy dtype (`layout.stored_dtype`)."""

    columns: tuple[Column, ...]
    fingerprint: int
    stored: np.dtype[Any]

    @classmethod
    def of(cls, view: str, version: int, columns: Sequence[Column]) -> "Revision":
        """Work out the fingerprint and the layout of these columns."""
        declared = [(column.name, column.dtype) for column in columns]
        return cls(tuple(columns), fingerprint(view, version, declared), stored_dtype(declared))


def fingerprint(view: str, version: int, columns: Sequence[tuple[str, DType]]) -> int:
    """The u32 that every row of a revision carries, so that it is never decoded by another's layout.

    BLAKE2b with a digest of 4 bytes, read as little-endian, of `view@version`, a line feed, then for each column in
    order its name, a space, its dtype and a line feed.
    """
    text = "".join([f"{view}@{version}\n", *(f"{name} {dtype}\n" for name, dtype in columns)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A named, versioned row of features of one entity. Two views are the same only when they are one object.

    `revisions` are the earlier layouts, oldest first. Ages and `ttl_ms` are in milliseconds, None where none is
    declared; `soft_age_ms` and `hard_age_ms` then are those of the cache's options. `compute` is there exactly when
    `on_missing` is one of the computing kinds. `prefetch` are views whose rows are read ahead with a row of this one.
    `combine` are the views whose columns this one has, in order; empty for a view that has its own. `feast` is where
    the rows of a view are that Feast writes.
    """

    name: str
    version: int
    entity: Entity
    columns: tuple[Column, ...]
    revisions: tuple[Revision, ...] = ()
    max_age_ms: int | None = None
    ttl_ms: int | None = None
    on_missing: OnMissing = "default"
    namespace: str = "hr"
    compute: Compute | None = None
    prefetch: tuple[str, ...] = ()
    soft_age_ms: int | None = None
    hard_age_ms: int | None = None
    combine: tuple[str, ...] = ()
    feast: FeastSource | None = None
    newest: Revision = field(init=False, repr=False)
    layout: Layout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "newest", Revision.of(self.name, self.version, self.columns))
        object.__setattr__(self, "layout", cached_layout([(column.name, column.dtype) for column in self.columns]))

    @property
    def ref(self) -> str:
        """How the view is named everywhere: `plane_stats@1`."""
        return f"{self.name}@{self.version}"

    @property
    def fingerprint(self) -> int:
        """The fingerprint of the newest revision."""
        return self.newest.fingerprint

    @property
    def absent_outcome(self) -> int:
        """The outcome of a row that is not there: DEFAULTED when every column has a default, else MISSING.

        A view that computes its rows answers as one with `default` does where there is nothing to compute.
        """
        if self.on_missing == "reject" or any(column.default is None for column in self.columns):
            return status.MISSING
        return status.DEFAULTED
