"""How old the events behind a block of rows are. `now_ms` is always an argument."""

from typing import Any

import numpy as np
import numpy.typing as npt

from featureclient.schema import status
from featureclient.schema.view import View


def ages_ms(event_ms: npt.NDArray[np.int64], now_ms: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Milliseconds since each event, int64 [rows]; -1 where it is unknown, 0 where it is still to come.

    `now_ms` is one for all events, or one for each.
    """
    # Four cheap operations: np.where with np.maximum inside costs a lone caller three times as much.
    ages: npt.NDArray[np.int64] = now_ms - event_ms
    np.maximum(ages, 0, out=ages)
    np.putmask(ages, event_ms < 0, -1)
    return ages


def apply_age(view: View, block: npt.NDArray[Any], now_ms: int) -> npt.NDArray[np.uint8]:
    """The status of each row, uint8 [rows], with rows of events older than the view's `max_age` as STALE (EXPIRED).

    Age is put on here, when a row is read, because a row grows old while it sits in a cache. The block is not changed;
    without a `max_age` the result is a view of it.
    """
    statuses: npt.NDArray[np.uint8] = block["status"]
    if view.max_age_ms is None:
        return statuses
    known = (statuses == status.PRESENT) | (statuses == status.COMPUTED)
    old = known & (block["event_ms"] >= 0) & (block["event_ms"] < now_ms - view.max_age_ms)
    if not old.any():
        return statuses
    return np.where(old, np.uint8(status.STALE | status.EXPIRED), statuses)
