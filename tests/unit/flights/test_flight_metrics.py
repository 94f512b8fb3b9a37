"""The measures against their definitions."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.flights.metrics import auc, log_loss

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40)


@given(scored)
def test_auc_is_the_share_of_pairs_in_the_right_order(scored: list[tuple[bool, int]]) -> None:
    late = [score for label, score in scored if label]
    punctual = [score for label, score in scored if not label]
    found = auc(np.array([label for label, _ in scored]), np.array([score for _, score in scored], np.float32))
    if not late or not punctual:
        assert math.isnan(found)
        return
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(late, punctual)]
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_log_loss() -> None:
    labels = np.array([True, False])
    assert log_loss(labels, np.array([0.8, 0.4], np.float32)) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert math.isfinite(log_loss(labels, np.array([0.0, 1.0], np.float32)))
