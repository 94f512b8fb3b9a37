"""Where the rows of a view lie in an online store that Feast writes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

KeyType: TypeAlias = Literal["string", "int32", "int64"]
"""Feast's type of a join key: the width of an integer is part of a row's key."""

KEY_VERSIONS: Final = (2, 3)
"""`entity_key_serialization_version` of the Feast repositories whose rows can be read."""

_NONE: Final[Mapping[str, KeyType]] = MappingProxyType({})
_NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FeastSource:
    """The Feast feature view that a view reads. Such a view is read-only here: Feast writes it."""

    project: str
    """Feast's project, which is the end of every key."""
    view: str
    """Feast's name of the feature view."""
    key_version: int = 3
    """`entity_key_serialization_version` of the Feast repository: 2 or 3."""
    key_types: Mapping[str, KeyType] = field(default_factory=lambda: _NONE, hash=False)
    """Feast's types of join keys that differ from ours: an `int64` here may be an `int32` there."""
    features: Mapping[str, str] = field(default_factory=lambda: _NO_NAMES, hash=False)
    """Feast's names of columns that are called otherwise here, by our name."""

    def __post_init__(self) -> None:
        if self.key_version not in KEY_VERSIONS:
            raise ValueError(f"key_version is one of {', '.join(map(str, KEY_VERSIONS))}, not {self.key_version}")
