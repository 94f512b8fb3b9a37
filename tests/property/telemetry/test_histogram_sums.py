import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.histogram import Histogram

blocks = st.lists(st.lists(st.floats(0, 1e6), max_size=40), max_size=10)
bounds = st.lists(st.floats(0, 1e6), min_size=1, max_size=12, unique=True).map(sorted)


@given(bounds, blocks)
def test_any_mix_of_ways_counts_every_value_once(edges: list[float], fed: list[list[float]]) -> None:
    histogram = Histogram(edges)
    for number, block in enumerate(fed):
        if number % 2:
            histogram.add_few(block)
        else:
            histogram.add_block(np.array(block, np.float64))
    values = [value for block in fed for value in block]
    reading = histogram.read()
    assert reading.cumulative == (*(sum(value <= edge for value in values) for edge in edges), len(values))
    assert math.isclose(reading.sum, math.fsum(values), rel_tol=1e-9)
