"""How many users a locust run has at a moment: pure functions of time, from 0 to the most users asked for.

constant   all of them from the beginning
ramp       one after another until the end: where does latency bend?
stairs     five equal steps, each long enough to settle
spike      a fifth of them, and all of them in the middle fifth: does it recover?
wave       up and down three times, between a tenth and all: does it follow?
"""

import math
from collections.abc import Callable

STAIRS = 5
SPIKE_REST_SHARE = 0.2
SPIKE_FROM, SPIKE_UNTIL = 0.4, 0.6
WAVES = 3
WAVE_LOW_SHARE = 0.1


def _constant(progress: float) -> float:
    return 1.0


def _ramp(progress: float) -> float:
    return progress


def _stairs(progress: float) -> float:
    return (math.floor(progress * STAIRS) + 1) / STAIRS


def _spike(progress: float) -> float:
    return 1.0 if SPIKE_FROM <= progress < SPIKE_UNTIL else SPIKE_REST_SHARE


def _wave(progress: float) -> float:
    height = (1 - math.cos(2 * math.pi * WAVES * progress)) / 2
    return WAVE_LOW_SHARE + (1 - WAVE_LOW_SHARE) * height


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "ramp": _ramp,
    "stairs": _stairs,
    "spike": _spike,
    "wave": _wave,
}


def users_at(shape: str, elapsed_s: float, run_time_s: float, users_max: int) -> int:
    """At least one user, at most `users_max`."""
    progress = min(elapsed_s / run_time_s, 1 - 1e-9)
    return max(1, min(users_max, math.ceil(SHAPES[shape](progress) * users_max)))
