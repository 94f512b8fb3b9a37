"""Histograms against numpy, on bins of every shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.validation.histogram import OTHER, Binning, Histogram

EDGES = np.quantile(np.random.default_rng(0).normal(size=1000), np.linspace(0, 1, 21))


def test_it_counts_as_numpy_does_with_open_ends() -> None:
    values = np.random.default_rng(1).normal(size=5000).astype(np.float32) * 3
    expected, _ = np.histogram(values, [-np.inf, *EDGES[1:-1], np.inf])
    found = Histogram.of(values, EDGES)
    assert found.counts.tolist() == expected.tolist()
    assert found.count == 5000
    assert found.mean == pytest.approx(float(values.astype(np.float64).mean()))


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=60),
    st.lists(st.floats(-100, 100), min_size=2, max_size=21).map(sorted),
    st.integers(0, 60),
)
def test_every_value_is_in_one_bin_and_parts_add_up(values: list[float], edges: list[float], cut: int) -> None:
    array, binning = np.array(values, np.float32), Binning.numeric(edges)
    whole = Histogram.of(array, binning)
    assert whole.count + whole.nulls == len(values)
    assert whole.nulls == (~np.isfinite(array)).sum()
    parts = Histogram.of(array[:cut], binning) + Histogram.of(array[cut:], binning)
    array = array[np.isfinite(array)]
    assert parts.counts.tolist() == whole.counts.tolist()
    assert (parts.nulls, parts.finite) == (whole.nulls, whole.finite)
    for edge in binning.edges:  # float32 values and float64 edges are compared exactly
        below = int(whole.counts[: int(np.searchsorted(binning.edges, edge)) + 1].sum())
        assert below == int((array.astype(np.float64) < edge).sum())


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float64", "bool"])
def test_every_dtype_is_counted(dtype: str) -> None:
    values = np.arange(100).astype(dtype)
    found = Histogram.of(values, Binning.between((0.5, 20.0, 1e9)))
    assert found.count == 100
    assert found.counts[-1] == 0
    assert found.counts[2] == (values.astype(float) >= 20).sum()


def test_a_frequent_value_has_a_bin_of_its_own() -> None:
    values = np.array([0.0] * 90 + [1.0, 2.0, 3.0] * 3 + [4.0])
    edges = np.quantile(values, np.linspace(0, 1, 21))
    shares = np.histogram(values, edges)[0] / len(values)
    binning = Binning.numeric(edges)
    assert binning.spread(edges, shares, 100).tolist() == Histogram.of(values, binning).counts.tolist()
    below = Histogram.of(values - 1, binning)
    assert below.counts[0] == 90


@pytest.mark.parametrize("value", [0.0, -3.5, float(np.float32(1e30))])
def test_a_constant_tells_what_is_below_and_above_it(value: float) -> None:
    binning = Binning.numeric([value] * 21)
    below, same, above = (
        Histogram.of(np.array([np.nextafter(np.float32(value), direction)], np.float32), binning).counts.tolist()
        for direction in (np.float32(-np.inf), np.float32(value), np.float32(np.inf))
    )
    assert (below, same, above) == ([1, 0, 0], [0, 1, 0], [0, 0, 1])


def test_infinities_count_as_nulls_as_in_a_profile() -> None:
    found = Histogram.of(np.array([-np.inf, 1.0, 3.0, np.inf, np.nan]), Binning.between((0.0, 2.0)))
    assert found.counts.tolist() == [0, 1, 1]
    assert (found.nulls, found.finite, found.mean) == (3, 2, 2.0)


def test_nulls_are_no_values() -> None:
    found = Histogram.of(np.array([1.0, 5.0, 5.0]), Binning.between((2.0,)), np.array([False, True, False]))
    assert (found.counts.tolist(), found.nulls, found.null_share) == ([1, 1], 1, 1 / 3)


def test_categories_that_are_not_known_are_others() -> None:
    binning = Binning.named(["a", "b"])
    found = Histogram.of_categories(["b", "z", None, "a"], [3, 2, 1, 4], binning)
    assert (found.counts.tolist(), found.nulls) == ([4, 3, 2], 1)
    assert binning.names()[-1] == OTHER


def test_other_bins_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        Histogram.of(np.ones(3), Binning.between((0.0,))) + Histogram.of(np.ones(3), Binning.between((0.0, 1.0)))


def test_it_goes_through_json_and_comes_back() -> None:
    found = Histogram.of(np.array([1.0, np.nan, 4.0]), EDGES)
    again = Histogram.from_plain(found.plain())
    assert again.plain() == found.plain()
