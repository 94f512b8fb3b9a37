"""The ids of predictions: what an answer, its journal record and a label that comes later have in common. Pure."""

import numpy as np
import numpy.typing as npt


class PredictionIds:
    """Ids of 16 bytes: a prefix of 8 that no other process and no earlier run has, then a counter, big-endian."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self._next = 0

    def __repr__(self) -> str:
        return f"<PredictionIds {self.prefix.hex()} {self._next}>"

    def take(self, count: int) -> npt.NDArray[np.uint64]:
        """The counters of the next ids."""
        first, self._next = self._next, self._next + count
        return np.arange(first, self._next, dtype=np.uint64)
