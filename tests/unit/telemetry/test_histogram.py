import threading

import numpy as np

from gateway.telemetry.histogram import Histogram, decades

BOUNDS = (1.0, 2.0, 5.0)
VALUES = (0.5, 1.0, 1.5, 2.0, 4.9, 5.0, 5.1, 1e9)


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram(BOUNDS)
    for value in VALUES:
        histogram.add(value)
    assert histogram.read().cumulative == (2, 4, 6, 8)


def test_one_by_one_and_as_a_block_count_the_same() -> None:
    single, few, block = Histogram(BOUNDS), Histogram(BOUNDS), Histogram(BOUNDS)
    for value in VALUES:
        single.add(value)
    few.add_few(VALUES)
    block.add_block(np.array(VALUES))
    assert single.read() == few.read() == block.read()
    assert single.read().sum == sum(VALUES)


def test_both_ways_feed_the_same_counts() -> None:
    histogram = Histogram(BOUNDS)
    histogram.add(0.5)
    histogram.add_block(np.array([0.5, 3.0]))
    histogram.add(9.0)
    assert histogram.read().cumulative == (2, 2, 3, 4)
    assert repr(histogram) == "<Histogram count=4 sum=13>"


def test_a_reading_does_not_change_later() -> None:
    histogram = Histogram(BOUNDS)
    histogram.add(1.0)
    before = histogram.read()
    histogram.add_block(np.ones(100))
    assert before.cumulative == (1, 1, 1, 1)


def test_readers_in_another_thread_see_counts_that_only_grow() -> None:
    histogram = Histogram(BOUNDS)
    block = np.array(VALUES)
    done = threading.Event()
    shrunk: list[tuple[int, int]] = []

    def read() -> None:
        last = 0
        while not done.is_set():
            count = histogram.read().cumulative[-1]
            if count < last:
                shrunk.append((last, count))
            last = count

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5_000):
        histogram.add_few(VALUES)
        histogram.add_block(block)
    done.set()
    reader.join()
    assert not shrunk
    assert histogram.read().cumulative[-1] == 2 * 5_000 * len(VALUES)


def test_decades() -> None:
    assert decades(-3, -2, (1, 2.5, 5)) == (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05)
