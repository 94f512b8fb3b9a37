"""The key of a row: `hr:{<entity>:<id>}:<view>:<version>`.

The braces make a cluster keep all views of an entity in one slot. An id's parts are UTF-8 with `% : { } |` escaped as
percent and two hexadecimal digits, and are joined by `|`; an int64 part is its canonical decimal. So no two ids share a
key, and a key tells its id.

The usual batch, of strings or of integers, costs one formatting per id: what is special in it is looked for and escaped
in all of them at once. Anything else goes through `_careful`, id by id, which also finds the one to blame.
"""

import contextlib
import operator
import re
from collections.abc import Sequence
from urllib.parse import unquote

from featureclient.schema import Id, InvalidId, JoinKey, View

SAID_MAX = 60
"""How much of a wrong id an error repeats."""

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

_special = re.compile(r"[%:{}|]").search
_ESCAPES = [(character, f"%{ord(character):02X}") for character in "%:{}|"]
"""The percent sign first: the others bring new ones."""
_TRANSLATION = str.maketrans(dict(_ESCAPES))
_BETWEEN = "\n"
"""Between ids that are escaped together. Where an id has one itself, they are escaped one by one."""
_INT64_DIGITS_MAX = 20


class KeyCodec:
    """Makes the keys of one view. `id_bytes_max` bounds the escaped id."""

    def __init__(self, view: View, id_bytes_max: int = 512) -> None:
        self._ref = view.ref
        self._join_keys = view.entity.join_keys
        self._id_bytes_max = id_bytes_max
        self._prefix = f"{view.namespace}:{{{view.entity.name}:"
        self._suffix = f"}}:{view.name}:{view.version}"
        self._around_bytes = len(self._prefix) + len(self._suffix)
        self.suffix = self._suffix.encode()
        """What every key of the view ends in."""

    def encode(self, ids: Sequence[Id]) -> tuple[Sequence[Id], list[bytes]]:
        """The ids in canonical form (int for an int64 key) and their keys. Raises InvalidId, naming the position."""
        if len(self._join_keys) == 1:
            found = self._strings(ids) if self._join_keys[0].dtype == "string" else self._integers(ids)
            if found is not None:
                return ids, found
        canonical: list[Id] = []
        keys = []
        for position, one in enumerate(ids):
            made, key = self._careful(position, one)
            canonical.append(made)
            keys.append(key)
        return canonical, keys

    def decode(self, keys: Sequence[bytes]) -> list[Id]:
        """The ids of keys that end in `suffix`. What is no key of the view is left out."""
        start, end = len(self._prefix), len(self._suffix)
        prefix = self._prefix.encode()
        ids: list[Id] = []
        for key in keys:
            if key.startswith(prefix):
                with contextlib.suppress(ValueError):
                    ids.append(self._id_of(key[start:-end].decode()))
        return ids

    def _id_of(self, text: str) -> Id:
        join_keys = self._join_keys
        texts = text.split("|")
        parts = [
            canonical_part(key, unquote(part, errors="strict")) for key, part in zip(join_keys, texts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def canonical(self, ids: Sequence[Id]) -> Sequence[Id]:
        """The ids in canonical form, as they are in caches. Raises InvalidId, naming the position."""
        kinds = set(map(type, ids))
        if len(self._join_keys) == 1 and kinds <= {str if self._join_keys[0].dtype == "string" else int}:
            return ids
        return [self._careful(position, one)[0] for position, one in enumerate(ids)]

    def _strings(self, ids: Sequence[Id]) -> list[bytes] | None:
        prefix, suffix = self._prefix, self._suffix
        texts: Sequence[Id] = ids
        try:
            joined = _BETWEEN.join(ids)  # type: ignore[arg-type]  # anything but str raises, and is looked at with care
            if _special(joined):
                for character, escape in _ESCAPES:
                    joined = joined.replace(character, escape)
                texts = joined.split(_BETWEEN)
                if len(texts) != len(ids):
                    return None
            keys = [f"{prefix}{one}{suffix}".encode() for one in texts]
        except (TypeError, UnicodeEncodeError):
            return None
        return keys if self._short(keys) else None

    def _integers(self, ids: Sequence[Id]) -> list[bytes] | None:
        if set(map(type, ids)) != {int} or min(ids) < INT64_MIN or max(ids) > INT64_MAX:  # type: ignore[operator]  # int, by then
            return None
        prefix, suffix = self._prefix, self._suffix
        keys = [f"{prefix}{one}{suffix}".encode() for one in ids]
        return keys if self._short(keys) else None

    def _short(self, keys: Sequence[bytes]) -> bool:
        return max(map(len, keys), default=0) - self._around_bytes <= self._id_bytes_max

    def _careful(self, position: int, given: object) -> tuple[Id, bytes]:
        try:
            parts = self._parts(given)
            text = "|".join([str(part).translate(_TRANSLATION) for part in parts]).encode()
        except UnicodeEncodeError:
            raise InvalidId(self._ref, position, "the string is not valid Unicode") from None
        except ValueError as error:
            raise InvalidId(self._ref, position, str(error)) from None
        if len(text) > self._id_bytes_max:
            why = f"the id has {len(text)} bytes, the limit id_bytes_max is {self._id_bytes_max}"
            raise InvalidId(self._ref, position, why)
        made: Id = parts[0] if len(parts) == 1 else tuple(parts)
        return made, b"%b%b%b" % (self._prefix.encode(), text, self._suffix.encode())

    def _parts(self, given: object) -> list[str | int]:
        keys = self._join_keys
        if len(keys) == 1:
            return [canonical_part(keys[0], given)]
        if not isinstance(given, tuple) or len(given) != len(keys):
            names = ", ".join(key.name for key in keys)
            raise ValueError(f"an id is a tuple of {names}, not {_short_repr(given)}")
        return [canonical_part(key, part) for key, part in zip(keys, given, strict=True)]


def canonical_part(key: JoinKey, given: object) -> str | int:
    """One part of an id in canonical form. Raises ValueError when it is not of the join key's dtype.

    An int64 may come as a string, in canonical decimal: no sign but `-`, no leading zero, no spaces.
    """
    if key.dtype == "string":
        if not isinstance(given, str):
            raise ValueError(f"{key.name} is a string, not {_short_repr(given)}")
        return given
    if isinstance(given, str):
        # Compared after parsing: int() also takes spaces, underscores, a plus and the digits of other scripts.
        number = int(given) if len(given) <= _INT64_DIGITS_MAX and given.lstrip("-").isdecimal() else None
        if number is None or str(number) != given:
            raise ValueError(f"{key.name} is an int64 in canonical decimal, not {_short_repr(given)}")
    else:
        try:
            number = None if isinstance(given, bool) else operator.index(given)  # type: ignore[arg-type]  # raises
        except TypeError:
            number = None
        if number is None:
            raise ValueError(f"{key.name} is an int64, not {_short_repr(given)}")
    if not INT64_MIN <= number <= INT64_MAX:
        raise ValueError(f"{key.name} is out of the range of int64")
    return number


def _short_repr(given: object) -> str:
    text = repr(given)
    return text if len(text) <= SAID_MAX else f"{text[: SAID_MAX - 3]}..."
