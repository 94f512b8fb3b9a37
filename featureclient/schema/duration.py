"""Lengths of time as people write them: `90s`, `15m`, `36h`, `7d`, `250ms`, or a number of seconds."""

import math
import re
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")


def seconds_of(value: object) -> float:
    """The seconds in a duration. Raises ValueError with a message that says which forms there are."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('a duration is "250ms", "90s", "15m", "36h", "7d" or a number of seconds')
    return float(found[1]) * _UNIT_S[found[2]]


Duration: TypeAlias = Annotated[float, BeforeValidator(seconds_of)]
"""A pydantic field of seconds that takes every form of `seconds_of`."""
