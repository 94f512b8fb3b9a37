"""Windows and verdicts: what is in a window, and what odd columns give."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gateway.records.drift import WindowDrift
from gateway.validation.drift import Reference, judge, plain
from gateway.validation.histogram import Binning, Histogram
from gateway.validation.options import DriftOptions, WindowOptions
from gateway.validation.windows import Window, Windows
from tests.drifting import profile_of

BINNING = Binning.between((0.0,))


def counted(rows: int) -> dict[str, Histogram]:
    return {"x": Histogram.of(np.ones(rows), BINNING)}


def test_windows_slide_by_a_pane_and_tumble_by_all() -> None:
    windows = Windows(WindowOptions(rows=40, panes=4, seconds=1000))
    done = [window for step in range(8) for window in windows.add(counted(10), 10, step, step)]
    assert [(window.kind, window.whole.rows) for window in done] == [
        *(("sliding", rows) for rows in (10, 20, 30, 40)),
        ("tumbling", 40),
        *(("sliding", 40) for _ in range(4)),
        ("tumbling", 40),
    ]
    assert (done[-1].whole.start_ms, done[-1].whole.end_ms) == (4, 7)
    assert done[-1].whole.columns["x"].counts.tolist() == [0, 40]


def test_time_ends_a_pane_and_a_pause_ends_a_window() -> None:
    windows = Windows(WindowOptions(rows=1000, panes=2, seconds=10))
    assert windows.add(counted(5), 5, 0, 1000) == []
    (sliding,) = windows.add(counted(5), 5, 6000, 6000)
    assert sliding.whole.rows == 5
    assert windows.passed(7000) == []
    after, tumbling = windows.passed(11_000)
    assert (after.whole.rows, tumbling.kind) == (10, "tumbling")
    windows.add(counted(5), 5, 60_000, 60_000)
    (late, *_) = windows.passed(99_000)
    assert late.whole.rows == 5


def test_a_clock_that_goes_back_loses_no_row() -> None:
    windows = Windows(WindowOptions(rows=20, panes=2, seconds=10))
    windows.add(counted(5), 5, 9000, 9000)
    (window,) = windows.add(counted(5), 5, 1000, 1000)
    assert (window.whole.rows, window.whole.start_ms, window.whole.end_ms) == (10, 1000, 9000)


def test_more_than_fits_is_refused() -> None:
    windows = Windows(WindowOptions(rows=20, panes=2))
    with pytest.raises(ValueError, match="do not fit"):
        windows.add(counted(11), 11, 0, 0)


def test_windows_of_replicas_add_up() -> None:
    first, second = Windows(WindowOptions(rows=20, panes=2)), Windows(WindowOptions(rows=20, panes=2))
    (one,), (other,) = first.add(counted(10), 10, 0, 5), second.add(counted(10), 10, 3, 9)
    both = one + other
    assert (both.whole.rows, both.whole.start_ms, both.whole.end_ms) == (20, 0, 9)
    assert both.whole.columns["x"].counts.tolist() == [0, 20]


def test_a_restored_window_goes_on() -> None:
    options = WindowOptions(rows=40, panes=4)
    straight, stopped = Windows(options), Windows(options)
    for step in range(10):
        done = [(one.kind, one.whole.plain()) for one in straight.add(counted(5), 5, step, step)]
        assert [(one.kind, one.whole.plain()) for one in stopped.add(counted(5), 5, step, step)] == done
        again = Windows(options)
        again.restore(json.loads(json.dumps(stopped.plain())))
        stopped = again
    assert stopped.plain() == straight.plain()
    with pytest.raises(ValueError, match="longer windows"):
        Windows(WindowOptions(rows=4, panes=4)).restore(
            {"open": {"start_ms": 0, "end_ms": 0, "rows": 9, "columns": {}}, "closed": [], "since_tumbling": 0}
        )


def verdict_of(reference: npt.NDArray[Any], live: npt.NDArray[Any]) -> WindowDrift:
    """Judge a window of ten panes of one column."""
    known = {"x": Reference.of("feature", profile_of({"x": reference}, {}).columns["x"])}
    binning = known["x"].binning
    windows = Windows(WindowOptions(rows=len(live), panes=10))
    last: Window | None = None
    for part in np.array_split(live, 10):
        if part.dtype.kind == "O":
            names, counts = np.unique(part.astype(str), return_counts=True)
            histogram = Histogram.of_categories(names.tolist(), counts.tolist(), binning)
        else:
            histogram = Histogram.of(part, binning)
        for window in windows.add({"x": histogram}, len(part), 0, 0):
            last = window
    assert last is not None
    return judge(last, known, DriftOptions())


RANDOM = np.random.default_rng(2)
NORMAL = RANDOM.normal(size=20_000).astype(np.float32)
CONSTANT = np.full(20_000, 3.0, np.float32)
NULLS = np.full(20_000, np.nan, np.float32)
INFINITE = np.full(20_000, np.inf, np.float32)
ONE = np.full(20_000, "AA", object)
TWO = np.where(RANDOM.random(20_000) < 0.5, "AA", "UA").astype(object)


def test_a_tenth_of_infinities_in_both_is_no_drift() -> None:
    def some(rows: int) -> npt.NDArray[Any]:
        return np.where(RANDOM.random(rows) < 0.1, np.inf, RANDOM.normal(size=rows))

    (column,) = verdict_of(some(100_000), some(10_000)).columns
    assert (column.verdict, column.null_share) == ("stable", pytest.approx(0.1, abs=0.02))


@pytest.mark.parametrize(
    ("reference", "live", "verdict", "reasons"),
    [
        (NORMAL, NORMAL[:5000], "stable", ()),
        (NORMAL, NORMAL[:5000] + 1, "drifted", ("distribution",)),
        (NORMAL, NULLS[:5000], "drifted", ("nulls",)),
        (NORMAL, INFINITE[:5000], "drifted", ("nulls",)),
        (CONSTANT, CONSTANT[:5000], "stable", ()),
        (CONSTANT, CONSTANT[:5000] + 1e-3, "drifted", ("distribution",)),
        (CONSTANT, NORMAL[:5000], "drifted", ("distribution",)),
        (NORMAL, CONSTANT[:5000], "drifted", ("distribution",)),
        (NULLS, NULLS[:5000], "stable", ()),
        (NULLS, NORMAL[:5000], "drifted", ("nulls",)),
        (INFINITE, INFINITE[:5000], "stable", ()),
        (ONE, ONE[:5000], "stable", ()),
        (ONE, TWO[:5000], "drifted", ("distribution", "unknown categories")),
        (TWO, ONE[:5000], "drifted", ("distribution",)),
        (TWO, TWO[:5000], "stable", ()),
    ],
)
def test_odd_columns_have_a_verdict(
    reference: npt.NDArray[Any], live: npt.NDArray[Any], verdict: str, reasons: tuple[str, ...]
) -> None:
    drift = verdict_of(reference, live)
    (column,) = drift.columns
    assert (drift.verdict, column.reasons) == (verdict, reasons)
    json.dumps(plain(drift), allow_nan=False)


def test_few_rows_have_no_verdict() -> None:
    assert verdict_of(NORMAL, NORMAL[:400] + 9).verdict == "few"


def test_a_small_difference_that_is_certain_is_no_drift() -> None:
    reference, live = (RANDOM.normal(mean, size=200_000).astype(np.float32) for mean in (0.0, 0.05))
    (column,) = verdict_of(reference, live).columns
    assert column.pvalue < 1e-6
    assert column.verdict == "stable"


@pytest.mark.parametrize(
    "wrong",
    [{"level": 0}, {"correction": "none"}, {"rows_min": 0}, {"psi_shifted": 0.3}, {"share_shifted": 0.0}],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DriftOptions(**wrong)
