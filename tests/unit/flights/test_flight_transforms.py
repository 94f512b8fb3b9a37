"""The transform is a function of its row."""

import numpy as np

from examples.flights.flight_transforms import cyclical_hour

HOURS = np.arange(24, dtype=np.float32)


def test_a_row_does_not_depend_on_the_others() -> None:
    whole = cyclical_hour(np.tile(HOURS, 10))
    for place, hour in enumerate(HOURS):
        alone = cyclical_hour(np.array([hour]))
        for name in ("hour_sin", "hour_cos"):
            assert alone[name].tobytes() == whole[name][place : place + 1].tobytes()


def test_the_hours_are_a_circle() -> None:
    found = cyclical_hour(HOURS)
    assert {name: array.dtype for name, array in found.items()} == {"hour_sin": np.float32, "hour_cos": np.float32}
    np.testing.assert_allclose(found["hour_sin"] ** 2 + found["hour_cos"] ** 2, 1, atol=1e-5)
    steps = np.hypot(*(np.diff(found[name], append=found[name][0]) for name in ("hour_sin", "hour_cos")))
    np.testing.assert_allclose(steps, steps[0], atol=1e-5)


def test_equal_sines_are_equal_bits() -> None:
    sines = cyclical_hour(np.array([3, 9, 0, 12], np.float32))["hour_sin"]
    assert sines[0] == sines[1]
    assert sines[2] == sines[3] == 0


def test_the_input_is_left_alone() -> None:
    hours = HOURS.copy()
    hours.flags.writeable = False
    cyclical_hour(hours)
