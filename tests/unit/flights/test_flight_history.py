"""`History` against counting by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from examples.flights.history import History

events = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(-5, 5)), min_size=0, max_size=30)
questions = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-30, 50)), min_size=1, max_size=20)


@given(events, questions)
def test_an_answer_is_what_counting_by_hand_gives(
    events: list[tuple[str, int, int]], questions: list[tuple[str, int]]
) -> None:
    history = History(
        np.array([group for group, _, _ in events], object),
        np.array([known for _, known, _ in events], np.int64),
        {"value": np.array([value for _, _, value in events], np.int64)},
    )
    counts, sums = history.before(
        np.array([group for group, _ in questions], object), np.array([at for _, at in questions], np.int64)
    )
    for place, (asked, at) in enumerate(questions):
        known = [value for group, known, value in events if group == asked and known < at]
        assert counts[place] == len(known)
        assert sums["value"][place] == sum(known)
