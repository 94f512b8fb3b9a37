"""Which ids are looked up most, per view, in bounded memory. Pure: no clock, no I/O; who calls decides when.

    offer ──▶ a dict of counts per view ──(more than 3 x keys_max ids)──▶ a round of forgetting, a few ids per offer
    decay ──▶ all counts x factor            merge ──▶ the counts of another replica added

It is the algorithm of Misra and Gries in batches, as in Apache DataSketches' frequent items. A round takes a step (the
median of a sample of the counts) off every count and drops what is left with nothing, so about half of the ids go. It
was chosen because counting is then one `Counter.update`, in C; Space-Saving has to find the smallest count for every
new id, a count-min sketch has to hash every id several times, and both do so in Python here. Such summaries merge
(Agarwal and others, "Mergeable Summaries", 2012): the errors add up, whatever the order.

A round is not done at once, which would hold the loop for milliseconds: each new id pays for `SWEEP_PER_NEW` of it.
What else takes long is written as a generator that yields every `SLICE` ids (0.1 to 0.3 ms), for a caller who wants to
do other things in between: `decaying`, `merging`, `packing`, `unpacking`. `decay`, `merge`, `to_bytes` and `from_bytes`
are the same without a stop.

Invariants
- A count is never above the truth, and at most `missed(view)` below it; the truth being every offer, decayed. (Where
  offers come between the steps of a generator, an offer may be decayed once more or less.)
- A view holds at most `HELD_MAX` x keys_max ids, and there are at most `VIEWS_MAX` views.
- Packed bytes are at most `bytes_max`; what does not fit is what was seen least.
"""

import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from featureclient.schema import FeatureError, Id
from featureclient.wire.keys import INT64_MAX, INT64_MIN

Result = TypeVar("Result")
Steps = Generator[None, None, Result]
"""Work in slices; the result comes with StopIteration."""

SWEEP_AT = 3
"""A round begins when a view holds more than so many times `keys_max` ids."""
HELD_MAX = 4
"""The hard bound on what a view holds, in times of `keys_max`. Rounds usually keep it below 3.5."""
SWEEP_PER_NEW = 4
"""Ids of a round that each new id pays for."""
SAMPLE = 512
"""Counts that a median is taken of."""
SLICE = 250
"""Ids between two stops of a generator."""
FLOOR = 0.05
"""A count that decays below this is dropped."""
VIEWS_MAX = 1024
BLOB_BYTES_MAX = 4 * 1024 * 1024

_MAGIC = b"HRHOT"
_FORMAT = 1
_HEAD = struct.Struct("<5sBI")
"""Magic, format, number of frames. A frame is its length (u32) and that many bytes: zlib of a JSON array of the view's
reference, its `missed`, its ids (a composite one as an array) and their counts."""
_LENGTH = struct.Struct("<I")
_FRAME_TEXT_MAX = 4 * 1024 * 1024
_FRAMES_MAX = 65_536
_COMPRESSION = 1
_PARTS_MAX = 32


class HotKeysInvalid(FeatureError, ValueError):
    """Bytes are not saved counts of this version. They can be deleted: counts are only ever a hint."""


class _Counts:
    """The counts of one view, and the round that is under way."""

    __slots__ = ("add", "counts", "decayed", "dropped", "round", "round_at", "step")

    def __init__(self) -> None:
        counter: Counter[Id] = Counter()
        self.counts: dict[Id, float] = counter  # type: ignore[assignment]  # a Counter's counts may be any numbers
        self.add: Callable[[Iterable[Id]], None] = counter.update
        self.dropped = 0.0
        self.decayed = False
        self.round: Sequence[Id] = ()
        self.round_at = 0
        self.step = 0.0

    @property
    def missed(self) -> float:
        # What decays away is dropped at FLOOR, and what came before that has decayed to a twentieth by then.
        return self.dropped + (2 * FLOOR if self.decayed else 0.0)

    def begin(self) -> None:
        """Begin a round."""
        self.round, self.round_at = list(self.counts), 0
        self.step = _median([self.counts[one] for one in _sample(self.round)])
        self.dropped += self.step + (FLOOR if self.decayed else 0.0)

    def sweep(self, ids_max: int) -> None:
        """Go on with the round, or begin one."""
        if self.round_at >= len(self.round):
            self.begin()
        counts, step = self.counts, self.step
        upto = self.round_at + ids_max
        for one in self.round[self.round_at : upto]:
            left = counts.get(one, 0.0) - step
            if left > 0:
                counts[one] = left
            else:
                counts.pop(one, None)
        self.round_at = upto
        if upto >= len(self.round):
            self.round = ()  # it would keep ids alive that were dropped

    def shrink(self, ids_max: int) -> Steps[None]:
        """Finish rounds until at most `ids_max` ids are held."""
        while len(self.counts) > ids_max:
            self.sweep(SLICE)
            yield


class HotKeys:
    """Counts of ids per view, for the `keys_max` hottest of each."""

    def __init__(self, keys_max: int) -> None:
        if keys_max < 1:
            raise ValueError("keys_max must be at least 1")
        self.keys_max = keys_max
        self._views: dict[str, _Counts] = {}

    def __repr__(self) -> str:
        held = {ref: len(counted.counts) for ref, counted in self._views.items()}
        return f"<HotKeys keys_max={self.keys_max} held={held}>"

    def __len__(self) -> int:
        """Ids that are held, of all views."""
        return sum(len(counted.counts) for counted in self._views.values())

    @property
    def views(self) -> list[str]:
        """The references of the views that were counted."""
        return list(self._views)

    def offer(self, view_ref: str, ids: Sequence[Id]) -> None:
        """Count one lookup of each of `ids`, which are in canonical form. Duplicates count."""
        counted = self._views.get(view_ref)
        if counted is None:
            counted = self._view(view_ref)
        counts = counted.counts
        before = len(counts)
        counted.add(ids)
        held = len(counts)
        if held > SWEEP_AT * self.keys_max and held > before:
            counted.sweep(SWEEP_PER_NEW * (held - before))
            if len(counts) > HELD_MAX * self.keys_max:
                _at_once(counted.shrink(SWEEP_AT * self.keys_max))

    def count(self, view_ref: str, one: Id) -> float:
        """How often an id was seen, at least."""
        counted = self._views.get(view_ref)
        return 0.0 if counted is None else counted.counts.get(one, 0.0)

    def missed(self, view_ref: str) -> float:
        """How much lower than the truth a count of the view may be. Also the most that an id not held was seen."""
        counted = self._views.get(view_ref)
        return 0.0 if counted is None else counted.missed

    def hottest(self, view_ref: str, n: int) -> list[Id]:
        """At most `n` ids, those seen most often first."""
        return [one for one, _ in self.ranked(view_ref, n)]

    def ranked(self, view_ref: str, n: int) -> list[tuple[Id, float]]:
        """The same, with counts."""
        counted = self._views.get(view_ref)
        return [] if counted is None else sorted(counted.counts.items(), key=itemgetter(1), reverse=True)[:n]

    def slices(self, view_ref: str) -> Iterable[Sequence[tuple[Id, float]]]:
        """The ids of a view with their counts, as they are held, `SLICE` at a time."""
        counted = self._views.get(view_ref)
        return () if counted is None else _slices(list(counted.counts.items()))

    def decay(self, factor: float) -> None:
        """Multiply every count by a factor from 0 to 1, so that what was hot makes room for what is."""
        _at_once(self.decaying(factor))

    def decaying(self, factor: float) -> Steps[None]:
        """`decay` in slices."""
        if not 0 <= factor <= 1:
            raise ValueError("a factor of decay is from 0 to 1")
        for counted in list(self._views.values()):
            counts = counted.counts
            counted.dropped *= factor
            counted.step *= factor  # a round that is under way takes off what it would have taken before
            counted.decayed = True
            for some in _slices(list(counts)):
                for one in some:
                    left = counts.get(one, 0.0) * factor
                    if left > FLOOR:
                        counts[one] = left
                    else:
                        counts.pop(one, None)
                yield

    def merge(self, other: "HotKeys") -> None:
        """Add the counts of another replica. Their errors add up, too."""
        _at_once(self.merging(other))

    def merging(self, other: "HotKeys") -> Steps[None]:
        """`merge` in slices."""
        for ref, theirs in other._views.items():
            counted = self._view(ref)
            counts = counted.counts
            counted.dropped += theirs.missed
            for some in _slices(list(theirs.counts.items())):
                for one, count in some:
                    counts[one] = counts.get(one, 0.0) + count
                yield
            yield from counted.shrink(SWEEP_AT * self.keys_max)

    def to_bytes(self, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        """The counts of about the `keys_max` hottest ids of each view, in at most `bytes_max` bytes."""
        return _at_once(self.packing(bytes_max))

    def packing(self, bytes_max: int = BLOB_BYTES_MAX) -> Steps[bytes]:
        """`to_bytes` in slices."""
        keys_max = self.keys_max
        while True:
            packed = yield from self._pack(keys_max, bytes_max)
            if packed is not None:
                return packed
            keys_max //= 2  # ends at 0 ids, which fit into any bound that is of use

    def _pack(self, keys_max: int, bytes_max: int) -> Steps[bytes | None]:
        frames: list[bytes] = []
        room = bytes_max - _HEAD.size
        for ref, counted in list(self._views.items()) if keys_max else ():
            counts = counted.counts
            held = list(counts)
            least = _least(counts, held, keys_max)
            for number, some in enumerate([*_slices(held)] or [()]):
                # Rounded down, since a count is never above the truth.
                found = [(one, math.floor(counts.get(one, 0.0) * 100) / 100) for one in some]
                chosen = [(one, count) for one, count in found if count >= least and count > 0]
                if chosen or not number:  # what was missed is told, even where nothing is held
                    missed = math.ceil((counted.missed + least) * 1000 + 10) / 1000
                    text = json.dumps([ref, missed, [one for one, _ in chosen], [count for _, count in chosen]])
                    frame = zlib.compress(text.encode(), _COMPRESSION)
                    room -= _LENGTH.size + len(frame)
                    if room < 0:
                        return None
                    frames.append(_LENGTH.pack(len(frame)) + frame)
                yield
        return b"".join([_HEAD.pack(_MAGIC, _FORMAT, len(frames)), *frames])

    @classmethod
    def from_bytes(cls, data: bytes, keys_max: int) -> "HotKeys":
        """Counts that were packed. Raises HotKeysInvalid."""
        return _at_once(cls.unpacking(data, keys_max))

    @classmethod
    def unpacking(cls, data: bytes, keys_max: int) -> Steps["HotKeys"]:
        """`from_bytes` in slices."""
        made = cls(keys_max)
        frames, at = _head(data)
        for number in range(frames):
            (length,) = _LENGTH.unpack_from(data, at) if at + _LENGTH.size <= len(data) else (-1,)
            at += _LENGTH.size
            if length < 0 or at + length > len(data):
                raise HotKeysInvalid(f"saved counts end within frame {number} of {frames}")
            ref, missed, ids, counts = _frame(data[at : at + length], number)
            at += length
            if len(made._views) >= VIEWS_MAX and ref not in made._views:
                raise HotKeysInvalid(f"saved counts are of more than VIEWS_MAX ({VIEWS_MAX}) views")
            counted = made._view(ref)
            counted.dropped = max(counted.dropped, missed)
            dict.update(counted.counts, zip(ids, counts, strict=True))  # Counter.update would count the pairs
            yield
            yield from counted.shrink(HELD_MAX * keys_max)
        if at != len(data):
            raise HotKeysInvalid(f"saved counts have {len(data) - at} bytes behind their last frame")
        return made

    def _view(self, ref: str) -> _Counts:
        counted = self._views.get(ref)
        if counted is None:
            if len(self._views) >= VIEWS_MAX:
                raise ValueError(f"more than VIEWS_MAX ({VIEWS_MAX}) views are counted")
            counted = self._views[ref] = _Counts()
        return counted


def _at_once(steps: Steps[Result]) -> Result:
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            result: Result = ended.value
            return result


def _slices(items: Sequence[Result]) -> Iterable[Sequence[Result]]:
    return (items[start : start + SLICE] for start in range(0, len(items), SLICE))


def _sample(held: Sequence[Id]) -> Sequence[Id]:
    return held[:: -(-len(held) // SAMPLE)] if held else ()


def _median(counts: list[float]) -> float:
    return sorted(counts)[(len(counts) - 1) // 2] if counts else 0.0


def _least(counts: dict[Id, float], held: Sequence[Id], keys_max: int) -> float:
    """The count from which on an id is among the `keys_max` hottest, by a sample; 0 where all are."""
    if len(held) <= keys_max:
        return 0.0
    sample = sorted([counts[one] for one in _sample(held)], reverse=True)
    return math.floor(sample[min(len(sample) - 1, keys_max * len(sample) // len(held))] * 100) / 100


def _head(data: bytes) -> tuple[int, int]:
    """The number of frames, and where the first one starts."""
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise HotKeysInvalid("these bytes are not saved counts: they do not start with HRHOT")
    _, version, frames = _HEAD.unpack_from(data)
    if version != _FORMAT:
        raise HotKeysInvalid(f"saved counts of format {version}; this version of headrace reads format {_FORMAT}")
    if frames > _FRAMES_MAX:
        raise HotKeysInvalid(f"saved counts say that they have {frames} frames; there are at most {_FRAMES_MAX}")
    return frames, _HEAD.size


def _frame(packed: bytes, number: int) -> tuple[str, float, list[Id], list[float]]:
    """One frame, checked. Raises HotKeysInvalid."""
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(packed, _FRAME_TEXT_MAX)
        if not inflate.eof or inflate.unused_data:
            raise ValueError("it is cut off, too long, or has something behind it")
        # A number too long for int() raises ValueError as well, and nesting too deep RecursionError.
        ref, missed, ids, counts = json.loads(text)
        if not isinstance(ref, str) or not isinstance(ids, list) or not isinstance(counts, list):
            raise TypeError("it is not a view, a number, ids and counts")
        if len(ids) != len(counts):
            raise ValueError(f"it has {len(ids)} ids and {len(counts)} counts")
        return ref, _amount(missed), [_id_of(one) for one in ids], [_amount(count) for count in counts]
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise HotKeysInvalid(f"frame {number} of the saved counts cannot be read: {error}") from error


def _amount(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
        raise ValueError(f"{given!r:.60} is not a count")
    return float(given)


def _id_of(given: Any) -> Id:
    if isinstance(given, list):
        if not 0 < len(given) <= _PARTS_MAX:
            raise ValueError(f"an id of {len(given)} parts")
        return tuple([_part_of(part) for part in given])
    return _part_of(given)


def _part_of(given: Any) -> str | int:
    if isinstance(given, str) or (type(given) is int and INT64_MIN <= given <= INT64_MAX):
        return given
    raise ValueError(f"{given!r:.60} is not an id, or a part of one")
