"""Statistics over what was known at an instant, for many groups and instants at once.

`History` sorts the events once by group and by the minute in which they became known, and sums them up cumulatively.
A question is a group and a minute; its answer is the difference of two cumulative sums, found by one binary search.

Invariant: an answer counts an event only when it was known *before* the minute that is asked for. Training asks for
each flight's departure and serving for one instant for all groups: the same function, so the two cannot drift apart.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd


class History:
    """Events of groups: `groups` str [events], `known_min` int64 [events], `values` by name, each [events]."""

    def __init__(
        self,
        groups: npt.NDArray[np.object_],
        known_min: npt.NDArray[np.int64],
        values: Mapping[str, npt.NDArray[np.generic]],
    ) -> None:
        codes, names = pd.factorize(groups)
        self._names = pd.Index(names)
        # A group and a minute become one number, so that one sorted array holds all groups one after the other.
        self._first_min = int(known_min.min(initial=0))
        self._span_min = int(known_min.max(initial=0)) - self._first_min + 2
        moments = self._moments(codes, known_min)
        order = np.argsort(moments, kind="stable")
        self._moments_sorted = moments[order]
        self._sums = {
            name: np.concatenate([[0.0], np.cumsum(column[order], dtype=np.float64)]) for name, column in values.items()
        }

    @property
    def groups(self) -> npt.NDArray[np.object_]:
        """Every group that has an event, in order of appearance."""
        names: npt.NDArray[np.object_] = self._names.to_numpy(object)
        return names

    def before(
        self, groups: npt.NDArray[np.object_], at_min: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float64]]]:
        """Return, for each group at each minute, the count and the sums of the events known before that minute."""
        codes = self._names.get_indexer(groups)
        known = codes >= 0
        first = np.searchsorted(self._moments_sorted, self._moments(codes, np.full(len(codes), self._first_min)))
        last = np.searchsorted(self._moments_sorted, self._moments(codes, at_min))
        first, last = np.where(known, first, 0), np.where(known, last, 0)
        return last - first, {name: sums[last] - sums[first] for name, sums in self._sums.items()}

    def _moments(self, codes: npt.NDArray[np.intp], at_min: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        since_min = np.clip(at_min - self._first_min, 0, self._span_min - 1)
        return codes.astype(np.int64) * self._span_min + since_min
