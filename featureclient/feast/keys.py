"""Our keys into Feast's, and back.

    hr:{driver:1001}:driver_hourly_stats:1   <->   the entity key of driver_id=1001, then the project's name

One of Feast's keys holds all views of an entity that a project has, so several of ours lead to one of Feast's. An
entity key has, in the order of the join keys' names, every name and then every value; numbers are unsigned, of 32 bits,
and little-endian:

    version 3    count · (STRING · length · name)…  · (type · length · value)…
    version 2            (STRING · name)…           · (type · length · value)…

Invariant: what is not the key of an id that Feast could have written leads to a key that Feast does not write, never to
the key of another id.
"""

import struct
import sys
from collections.abc import Callable, Sequence

from featureclient.feast.value_pb2 import ValueType
from featureclient.schema import Id, View
from featureclient.wire import KeyCodec

_U32 = struct.Struct("<I")
_INT64 = struct.Struct("<q")
_INT32 = struct.Struct("<i")
_INT32_MAX = 2**31 - 1
_TYPES = {"string": ValueType.STRING, "int32": ValueType.INT32, "int64": ValueType.INT64}
_COUNTED_FROM = 3
"""The version since which an entity key has counts and lengths of its names."""


def entity_key_prefix(names: Sequence[str], version: int) -> bytes:
    """The beginning of the keys of all entities with these join keys, which are sorted by name here."""
    parts = [_U32.pack(len(names))] if version >= _COUNTED_FROM else []
    for name in sorted(names):
        text = name.encode()
        parts.append(_U32.pack(ValueType.STRING))
        if version >= _COUNTED_FROM:
            parts.append(_U32.pack(len(text)))
        parts.append(text)
    return b"".join(parts)


class FeastKeys:
    """The keys of one view, which has to have a `feast` source."""

    def __init__(self, view: View) -> None:
        source = view.feast
        if source is None:
            raise ValueError(f"{view.ref} does not say where it is in Feast")
        names = [key.name for key in view.entity.join_keys]
        self.prefix = entity_key_prefix(names, source.key_version)
        """What all of Feast's keys of the entity begin with, whichever their project."""
        self.suffix = f"}}:{view.name}:{view.version}".encode()
        """What all of our keys of the view end with."""
        self._codec = KeyCodec(view, id_bytes_max=sys.maxsize)  # Feast has no bound, and so its keys may be long
        self._project = source.project.encode()
        self.ours_start = f"{view.namespace}:{{{view.entity.name}:".encode()
        """What all of our keys of the entity begin with."""
        # Where each of Feast's values comes from: the position of the join key in our id, and its type there.
        order = sorted(range(len(names)), key=names.__getitem__)
        kinds = [source.key_types.get(key.name, key.dtype) for key in view.entity.join_keys]
        self._parts = [(position, kinds[position]) for position in order]
        self._one = self._maker() if len(names) == 1 else None

    def _maker(self) -> Callable[[str], bytes]:
        """One function for ids of one part, which are most."""
        kind = self._parts[0][1]
        head, project = self.prefix + _U32.pack(_TYPES[kind]), self._project
        if kind == "int64":
            head += _U32.pack(_INT64.size)
            return lambda text: head + _INT64.pack(int(text)) + project
        if kind == "string":
            return lambda text: head + _sized(text.encode()) + project
        return lambda text: self.prefix + _value("int32", text) + project

    def of(self, keys: Sequence[bytes]) -> list[bytes]:
        """Feast's keys of some of ours, which are ones that `KeyCodec` has made for this view."""
        start, end = len(self.ours_start), -len(self.suffix)
        texts = [key[start:end].decode() for key in keys]
        one = self._one
        if one is not None and "%" not in "".join(texts):
            return [one(text) for text in texts]
        return [self._careful(text) for text in texts]

    def _careful(self, text: str) -> bytes:
        parts = [_unescaped(part) for part in text.split("|")]
        values = [_value(kind, parts[position]) for position, kind in self._parts]
        return b"".join([self.prefix, *values, self._project])

    def ours(self, feast_key: bytes) -> bytes | None:
        """Our key of one of Feast's; None where it is not of this entity and project."""
        if not feast_key.startswith(self.prefix) or not feast_key.endswith(self._project):
            return None
        at, end = len(self.prefix), len(feast_key) - len(self._project)
        parts: list[str | int] = [0] * len(self._parts)
        for position, kind in self._parts:
            if at + 2 * _U32.size > end or _U32.unpack_from(feast_key, at)[0] != _TYPES[kind]:
                return None
            size = _U32.unpack_from(feast_key, at + _U32.size)[0]
            at += 2 * _U32.size
            value = feast_key[at : at + size]
            at += size
            if at > end:
                return None
            if kind != "string":
                parts[position] = int.from_bytes(value, "little", signed=True)
                continue
            try:
                parts[position] = value.decode()
            except UnicodeDecodeError:
                return None
        if at != end:
            return None
        one: Id = parts[0] if len(parts) == 1 else tuple(parts)
        return self._codec.encode([one])[1][0]


def _sized(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _value(kind: str, text: str) -> bytes:
    if kind == "string":
        return _U32.pack(_TYPES[kind]) + _sized(text.encode())
    number = int(text)
    # Feast has no key for an int32 that is none. As an int64 it has one of its own, which Feast does not write.
    if kind == "int64" or not -_INT32_MAX - 1 <= number <= _INT32_MAX:
        return _U32.pack(_TYPES["int64"]) + _sized(_INT64.pack(number))
    return _U32.pack(_TYPES[kind]) + _sized(_INT32.pack(number))


def _unescaped(part: str) -> str:
    head, *rest = part.split("%")
    return head + "".join([chr(int(one[:2], 16)) + one[2:] for one in rest])
