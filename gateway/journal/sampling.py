"""Which rows are kept when not all are: decided by the entity, so that of one entity all rows are kept, or none.

The hash is the same in every process and release: CRC-32 of a text, then the finaliser of SplitMix64. A larger share
keeps all that a smaller one kept.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def keys_of(ids: Sequence[str] | Sequence[int]) -> npt.NDArray[np.uint64]:
    """A number for each id, spread over all of uint64."""
    if ids and isinstance(ids[0], str):
        numbers = np.fromiter((zlib.crc32(one.encode()) for one in ids), np.uint64, len(ids))  # type: ignore[union-attr]  # all are str when one is
    else:
        numbers = np.array(ids, np.int64).astype(np.uint64)
    return _mixed(numbers)


def kept(keys: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which of the keys are among the `share` (0 to 1) that is kept."""
    if share >= 1:
        return np.ones(len(keys), np.bool_)
    return keys < np.uint64(share * 2.0**64)


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, 2014): each bit of the input changes half of the output's."""
    with np.errstate(over="ignore"):
        mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
