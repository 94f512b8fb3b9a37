"""The token bucket against counting: no span of time lets through more than it says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featureclient.load.pacing import BURST_S, WAIT_S_MAX, Bucket, Pace

takes = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 3)), min_size=1, max_size=40)


class Clock:
    """A clock that only sleeping and `rest` move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@given(takes, st.sampled_from([0.5, 7.0, 100.0, 5000.0]))
async def test_no_span_lets_through_more_than_the_rate_and_one_burst(
    taken: list[tuple[int, float]], rows_per_s: float
) -> None:
    clock = Clock()
    pace = Pace(rows_per_s, monotonic=clock, sleep=clock.sleep)
    let_through: list[tuple[float, int]] = []
    for rows, rest_s in taken:
        clock.now += rest_s
        await pace.take(rows)
        let_through.append((clock.now, rows))
    for first, (began, _) in enumerate(let_through):
        total = 0
        for at, rows in let_through[first:]:
            total += rows
            # What was taken at the beginning of the span was waited for before it.
            allowed = rows_per_s * (at - began + BURST_S) + let_through[first][1]
            assert total <= allowed * (1 + 1e-9) + 1e-6


async def test_a_long_run_takes_as_long_as_the_rate_says() -> None:
    clock = Clock()
    pace = Pace(200, monotonic=clock, sleep=clock.sleep)
    for _ in range(100):
        await pace.take(100)
    # 10,000 rows at 200 a second, of which a quarter of a second's were there at once.
    assert sum(clock.slept) == pytest.approx(10_000 / 200 - BURST_S)


async def test_batches_of_the_size_that_it_names_wait_no_longer_than_it_says() -> None:
    clock = Clock()
    pace = Pace(30, monotonic=clock, sleep=clock.sleep)
    assert pace.batch_max == 30
    for _ in range(10):
        await pace.take(pace.batch_max)
    assert max(clock.slept) <= WAIT_S_MAX + 1e-9


async def test_without_a_rate_nobody_waits() -> None:
    clock = Clock()
    pace = Pace(None, monotonic=clock, sleep=clock.sleep)
    await pace.take(10**9)
    assert (clock.slept, pace.batch_max) == ([], None)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_is_a_number_above_0(rate: float) -> None:
    with pytest.raises(ValueError, match="rows_per_s"):
        Bucket(rate)
