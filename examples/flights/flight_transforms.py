"""Transforms of the flight model. The same functions run when it is trained and when it is served."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

HOURS_A_DAY = 24
DECIMALS = 6


def cyclical_hour(hour: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[np.float32]]:
    """Put an hour of the day, float32 [rows], on a circle, so that 23 and 0 are neighbours.

    Rounded, because the sines of 3 and 9 o'clock differ in the last bit, and a tree that splits there would make its
    answer depend on the processor.
    """
    angle = hour * np.float32(2 * np.pi / HOURS_A_DAY)
    return {"hour_sin": np.round(np.sin(angle), DECIMALS), "hour_cos": np.round(np.cos(angle), DECIMALS)}
