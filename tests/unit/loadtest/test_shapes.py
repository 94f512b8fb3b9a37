"""Users over time."""

import pytest

from loadtest.shapes import SHAPES, users_at


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_stays_between_one_user_and_the_most(shape: str) -> None:
    counts = [users_at(shape, second, 100, users_max=40) for second in range(101)]

    assert min(counts) >= 1
    assert max(counts) == 40
    assert users_at(shape, 1000, 100, users_max=1) == 1


def test_stairs_climb_in_five_equal_steps() -> None:
    assert [users_at("stairs", second, 100, users_max=50) for second in (0, 19, 20, 45, 65, 99)] == [
        10,
        10,
        20,
        30,
        40,
        50,
    ]


def test_a_spike_comes_and_goes() -> None:
    assert [users_at("spike", second, 100, users_max=50) for second in (0, 39, 41, 59, 61)] == [10, 10, 50, 50, 10]
