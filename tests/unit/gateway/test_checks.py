"""Checks before the model: what each finds, what each policy does, and what a manifest is refused for."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from featureclient.schema import status
from gateway.plan import PlanError
from gateway.plan.manifest import ValidationUse
from gateway.records import violations as kinds
from gateway.validation.compiler import compile_checks
from gateway.validation.profile import ColumnProfile, GroupProfile, Profile
from tests.checking import NOW_MS, PLAN, SIGNATURE, USUAL, batch, cells_of_x, checks, column

NAN, INF = float("nan"), float("inf")


def profile(columns: dict[str, ColumnProfile] | None = None, groups: dict[str, GroupProfile] | None = None) -> Profile:
    return Profile("m", 1, "", {}, 100, "", "test", columns or {}, {}, groups or {})


def uniform(dtype: str = "float32", low: float = 0.0, high: float = 100.0) -> ColumnProfile:
    edges = tuple(np.linspace(low, high, 21).tolist())
    return ColumnProfile(dtype, "value", 1000, min=low, max=high, edges=edges, shares=(0.05,) * 20)


def problems(found: Profile | None = None, /, **use: Any) -> str:
    with pytest.raises(PlanError) as caught:
        checks(found, **use)
    assert all(where[0] == "validation" for where, _ in caught.value.problems)
    return str(caught.value)


def test_an_unviolated_batch_goes_through_as_it_is() -> None:
    made = checks(every={"range": {"min": -1e6, "max": 1e6}, "nulls": "refuse", "nan": "refuse"})
    given = batch([{}, {}])
    checked = made.apply(given)
    assert checked.assembled is given
    assert checked.violations is None
    assert not checked.replaced


@pytest.mark.parametrize(
    ("name", "use", "good", "bad", "kind"),
    [
        ("plane.speed", {"range": {"min": 0}}, 0.0, -0.5, kinds.LOW),
        ("plane.speed", {"range": {"max": 10}}, 10.0, 10.5, kinds.HIGH),
        ("plane.speed", {"range": {"max": 10}}, NAN, INF, kinds.HIGH | kinds.INFINITE),
        ("plane.speed", {"nan": "refuse"}, 1.0, NAN, kinds.NAN),
        ("plane.speed", {"nan": "allow"}, NAN, -INF, kinds.INFINITE),
        ("plane.seats", {"range": {"min": 1, "max": 400}}, 400, 401, kinds.HIGH),
        ("plane.seats", {"range": {"min": 0.5}}, 1, 0, kinds.LOW),
        ("plane.seats", {"categories": [7, 8]}, 7, 9, kinds.CATEGORY),
        ("plane.maker", {"categories": ["boeing", "airbus"]}, b"airbus", b"Airbus", kinds.CATEGORY),
        ("plane.vector", {"norm": {"max": 5}}, (0, 5, 0), (4, 4, 0), kinds.HIGH),
        ("plane.vector", {"norm": {"min": 1}}, (0, 1, 0), (0, 0.5, 0), kinds.LOW),
        ("plane.vector", {"range": {"min": -1, "max": 4}}, (4, -1, 0), (0, 0, 4.5), kinds.HIGH),
        ("plane.vector", {"nan": "refuse"}, (1, 1, 1), (1, NAN, 1), kinds.NAN),
        ("plane.exact", {"range": {"max": 1.0}}, 1.0, 1.0 + 1e-12, kinds.HIGH),
        ("plane.old", {"categories": [False]}, False, True, kinds.CATEGORY),
        ("hour", {"range": {"min": 0, "max": 23}}, 23.0, 24.0, kinds.HIGH),
        ("hour", {"categories": [1.5, 2]}, NAN, 1.25, kinds.CATEGORY),
        ("code", {"range": {"max": 2**53}}, 2**53, 2**53 + 1, kinds.HIGH),
        ("tag", {"categories": ["ab", "ü"]}, "ü", "", kinds.CATEGORY),
        ("ratio", {"range": {"max": 27}}, 12.0, 13.0, kinds.HIGH),
        ("twice", {"range": {"max": 24}}, 12.0, 13.0, kinds.HIGH),
    ],
)
def test_what_a_check_finds(name: str, use: dict[str, Any], good: Any, bad: Any, kind: int) -> None:
    made = checks(columns={name: use})
    given = "hour" if name in {"ratio", "twice"} else name
    for rows in (1, 2, 1000):  # one number, some, and more than one tile of bounds
        assert made.apply(batch([{given: good}] * rows)).violations is None
    found = made.apply(batch([{given: good}, {given: bad}, {given: good}])).violations
    assert found is not None
    assert found.columns == (name,)
    assert found.mask[:, 0].tolist() == [False, True, False]
    assert found.kinds[:, 0].tolist() == [0, kind, 0]
    assert found.verdicts.tolist() == [kinds.OK, kinds.FLAGGED, kinds.OK]
    assert found.changed == []


def test_a_null_is_a_property_of_a_row_that_is_there() -> None:
    made = checks(columns={"plane.late": {"nulls": "refuse"}, "weather.temp": {"nulls": "refuse"}})
    absent = status.DEFAULTED | status.ABSENT
    assert made.apply(batch([{}, {}], codes=[status.PRESENT, absent])).violations is None
    overridden = status.OVERRIDDEN | status.ABSENT
    found = made.apply(
        batch([{}] * 4, [["plane.late"], ["plane.late"], [], ["weather.temp"]], [status.STALE, absent, 1, overridden])
    ).violations
    assert found is not None
    assert found.mask.tolist() == [[True, False], [False, False], [False, False], [False, True]]
    assert found.kinds[0, 0] == kinds.NULL


def test_clip_changes_the_violated_cells_and_what_follows_from_them() -> None:
    made = checks(columns={"hour": {"range": {"min": 0, "max": 23}, "policy": "clip"}, "ratio": {"range": {"max": 49}}})
    given = batch([{"hour": 5.0}, {"hour": 1000.0}, {"hour": -1.0}])
    before = {name: array.copy() for name, array in given.inputs.items()}
    checked = made.apply(given)
    assert checked.assembled.context[0].tolist() == [5.0, 23.0, 0.0]
    # `ratio` is judged as it is made of the clipped hour: one wrong value is one violation.
    assert cells_of_x(checked.assembled, "ratio").ravel().tolist() == [13.0, 49.0, 3.0]
    found = checked.violations
    assert found is not None
    assert found.mask.tolist() == [[False, False], [True, False], [True, False]]
    assert found.verdicts.tolist() == [kinds.OK, kinds.CHANGED, kinds.CHANGED]
    changed = found.changed[0]
    assert (changed.column, changed.rows.tolist(), changed.raw.tolist()) == (0, [1, 2], [1000.0, -1.0])
    for name, array in before.items():
        assert np.array_equal(given.inputs[name], array)
    assert given.context[0].tolist() == [5.0, 1000.0, -1.0]


@pytest.mark.parametrize(
    ("name", "use", "bad", "seen"),
    [
        ("plane.speed", {"range": {"min": 0, "max": 9}, "nan": "refuse", "policy": "clip"}, NAN, 1.0),
        ("plane.speed", {"range": {"min": 0, "max": 9}, "policy": "clip"}, INF, 9.0),
        ("plane.speed", {"range": {"min": 0}, "policy": "clip"}, INF, 1.0),
        ("plane.speed", {"range": {"min": 0}, "policy": "default", "default": 4}, -3.0, 4.0),
        ("plane.seats", {"range": {"max": 400}, "policy": "default"}, 4000, 5),
        ("plane.seats", {"categories": [1, 2], "policy": "clip", "range": {"max": 7}}, 9, 5),
        ("plane.maker", {"categories": ["boeing"], "policy": "default"}, b"x", "none"),
        ("plane.maker", {"categories": ["boeing"], "policy": "default", "default": "bö"}, b"x", "bö"),
        ("plane.vector", {"norm": {"max": 1}, "policy": "clip"}, (0, 8, 6), [0.0, 0.8, 0.6]),
        ("plane.vector", {"norm": {"max": 1}, "policy": "clip"}, (0, INF, 6), [0.5, 0.5, 0.5]),
        ("plane.vector", {"norm": {"max": 1}, "policy": "default", "default": [1, 0, 0]}, (9, 9, 9), [1, 0, 0]),
        ("code", {"range": {"min": 0, "max": 9}, "policy": "clip"}, -5, 0),
        ("tag", {"categories": ["ab"], "policy": "default", "default": "ab"}, "zz", "ab"),
        ("ratio", {"range": {"min": 0, "max": 5}, "policy": "clip"}, None, 5.0),
    ],
)
def test_what_the_model_sees_instead(name: str, use: dict[str, Any], bad: Any, seen: Any) -> None:
    checked = checks(columns={name: use}).apply(batch([{} if bad is None else {name: bad}]))
    made = cells_of_x(checked.assembled, name)[0] if name == "ratio" else column(checked.assembled, name)
    made = made.tolist()[0]
    assert made == (seen if isinstance(seen, str) else pytest.approx(seen))
    assert checked.violations is not None
    raw = checked.violations.changed[0].raw.tolist()[0]
    before = bad.decode() if isinstance(bad, bytes) else 27.0 if bad is None else bad
    np.testing.assert_equal(raw, list(before) if isinstance(before, tuple) else before)


def test_policies_on_one_row() -> None:
    made = checks(
        policy="reject",
        reject="row",
        fallback={"constant": {"score": -1, "label": 9, "why": "fallback"}},
        columns={"plane.speed": {"range": {"max": 9}, "policy": "fallback"}, "hour": {"range": {"max": 23}}},
    )
    given = batch([{}, {"plane.speed": 10}, {"hour": 99}, {"plane.speed": 10, "hour": 99}])
    checked = made.apply(given)
    assert checked.assembled is given
    assert checked.refused is None
    assert checked.constant is not None
    assert checked.emptied is not None
    assert checked.constant.tolist() == [False, True, False, False]
    assert checked.emptied.tolist() == [False, False, True, True]
    outputs = [np.ones((4, 1), np.float32), np.arange(4), np.array(["a"] * 4, object)]
    score, label, why = made.answers(checked, outputs)
    np.testing.assert_array_equal(score.ravel(), [1, -1, NAN, NAN])
    assert label.tolist() == [0, 9, 0, 0]
    assert why.tolist() == ["a", "fallback", "", ""]
    assert outputs[0].tolist() == [[1]] * 4


def test_a_refused_request_is_told_why() -> None:
    made = checks(policy="reject", columns={"plane.speed": {"range": {"max": 9}}, "hour": {"nan": "refuse"}})
    checked = made.apply(batch([{}, {}, {"hour": NAN, "plane.speed": 11}, {"hour": NAN}]))
    assert checked.refused is not None
    assert checked.refused.tolist() == [False, False, True, True]
    said = "row 1 is refused: plane.speed is above its range, hour is not a number (2 rows in all)"
    assert made.why(checked, slice(1, 4)) == said


def test_ages_and_statuses_of_views() -> None:
    made = checks(views={"plane": {"age_max": "60s", "statuses": ["PRESENT", "DEFAULTED"], "policy": "reject"}})
    codes = [status.PRESENT, status.PRESENT, status.DEFAULTED | status.ABSENT, status.STALE | status.EXPIRED]
    events = [NOW_MS - 60_000, NOW_MS - 60_001, -1, NOW_MS]
    assert made.names == ("age(plane)", "status(plane)")
    found = made.apply(batch([{}] * 4, codes=codes, events_ms=events)).violations
    assert found is not None
    assert found.mask.tolist() == [[False, False], [True, False], [False, False], [False, True]]
    assert found.kinds[1:4:2].tolist() == [[kinds.AGE, 0], [0, kinds.STATUS]]


def test_too_many_violations_of_a_row() -> None:
    made = checks(
        columns={name: {"range": {"max": 500}} for name in ("plane.speed", "plane.late", "hour")},
        rows={"violations_max": 1},
    )
    checked = made.apply(batch([{"hour": 999}, {"hour": 999, "plane.speed": 999}]))
    assert checked.refused is not None
    assert checked.refused.tolist() == [False, True]
    assert checked.violations is not None
    assert checked.violations.counts.tolist() == [1, 2]


def test_a_learned_range_takes_the_profiles_quantiles() -> None:
    learned = {"learned": {"quantile": 0.05, "margin": 0.1}}
    made = checks(profile({"plane.speed": uniform()}), columns={"plane.speed": {"range": learned}})
    low, high = made.columns[0].low, made.columns[0].high
    assert (float(low), float(high)) == pytest.approx((5 - 9, 95 + 9))
    made = checks(profile({"plane.speed": uniform()}), columns={"plane.speed": {"range": {**learned, "min": 0}}})
    assert made.columns[0].low == 0


def test_learned_categories_are_all_or_none() -> None:
    known = ColumnProfile("string[8]", "category", 3, categories={"boeing": 0.5, "airbus": 0.5})
    made = checks(profile({"plane.maker": known}), columns={"plane.maker": {"categories": "learned"}})
    assert made.apply(batch([{}, {"plane.maker": b"cessna"}])).violations is not None
    few = ColumnProfile("string[8]", "category", 3, categories={"boeing": 0.5}, other=0.5)
    said = problems(profile({"plane.maker": few}), columns={"plane.maker": {"categories": "learned"}})
    assert "too many" in said


def test_the_mahalanobis_distance_sees_what_no_single_column_shows() -> None:
    group = GroupProfile(("plane.speed", "hour"), 1000, (3.0, 12.0), ((1.0, 0.99), (0.99, 1.0)))
    made = checks(
        profile(groups={"pair": group}),
        mahalanobis={"pair": {"columns": ["plane.speed", "hour"], "beyond": 0.001, "policy": "flag"}},
    )
    found = made.apply(
        batch([{}, {"plane.speed": 4, "hour": 13}, {"plane.speed": 4, "hour": 11}, {"plane.speed": NAN}])
    ).violations
    assert found is not None
    assert found.columns == ("mahalanobis(pair)",)
    assert found.mask[:, 0].tolist() == [False, False, True, False]
    # 3.717 is the root of the chi-square quantile of 2 degrees; the formula is right to two percent.
    assert made.distances[0].limit == pytest.approx(3.717, rel=0.02)
    singular = GroupProfile(("plane.speed", "hour"), 1000, (3.0, 12.0), ((1.0, 1.0), (1.0, 1.0)))
    use = {"pair": {"columns": ["plane.speed", "hour"], "distance_max": 3}}
    assert "follow from the others" in problems(profile(groups={"pair": singular}), mahalanobis=use)
    constant = GroupProfile(("plane.speed", "hour"), 1000, (3.0, 12.0), ((0.0, 0.0), (0.0, 1.0)))
    assert "do not vary in the profile: plane.speed" in problems(profile(groups={"pair": constant}), mahalanobis=use)
    assert "no such group" in problems(None, mahalanobis=use)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ({"columns": {"plane.sped": {"nan": "refuse"}}}, "no column 'plane.sped' (there are: plane.speed"),
        ({"columns": {"plane.maker": {"range": {"min": 0}}}}, "plane.maker: a column of string[8] has no range"),
        ({"columns": {"plane.speed": {"norm": {"min": 0}}}}, "a column of float32 has no norm"),
        ({"columns": {"plane.seats": {}}}, "nothing is checked of a column of int32"),
        ({"columns": {"plane.seats": {"range": {"min": 0.2, "max": 0.4}}}}, "no int32 is between"),
        ({"columns": {"plane.seats": {"categories": ["x"]}}}, "'x' is not of int32"),
        ({"columns": {"plane.vector": {"categories": [1]}}}, "has no categories"),
        ({"columns": {"hour": {"nulls": "refuse"}}}, "only columns of a view can be null"),
        ({"columns": {"hour": {"nan": "refuse", "policy": "default"}}}, "is required: default has nothing to put"),
        ({"columns": {"hour": {"range": {"min": 0}, "policy": "clip"}}}, "is required: clip has nothing to put"),
        ({"columns": {"plane.late": {"nan": "refuse", "policy": "default"}}}, "the default is NaN"),
        ({"columns": {"plane.maker": {"categories": ["a"], "policy": "default", "default": 7}}}, "7 is not a string"),
        ({"columns": {"plane.speed": {"nan": "refuse", "policy": "clip"}}}, "clip needs a range or a norm"),
        ({"columns": {"plane.speed": {"range": {"learned": {"quantile": 0.1}}}}}, "needs a profile beside the graph"),
        ({"columns": {"plane.speed": {"nan": "refuse", "policy": "fallback"}}}, "there is no `fallback` that says"),
        ({"columns": {"plane.speed": {"nan": "refuse"}}, "fallback": {"model": "n"}}, "nothing ever falls back"),
        ({"views": {"plain": {"age_max": 5}}}, "no view 'plain' (there are: plane, weather)"),
        ({"views": {"plane": {}}}, "needs age_max or statuses"),
        ({"policy": "clip", "views": {"plane": {"age_max": 5}}}, "a row cannot follow the policy 'clip'"),
        (
            {"rows": {"violations_max": 0, "policy": "fallback"}, "fallback": {"constant": {"score": "x", "no": 1}}},
            "no output 'no'",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(use: dict[str, Any], said: str) -> None:
    assert said in problems(**use)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ({"columns": {"a": {"range": {}}}}, "needs min, max or learned"),
        ({"columns": {"a": {"range": {"min": 2, "max": 1}}}}, "min 2 is above max 1"),
        ({"columns": {"a": {"range": {"learned": {"quantile": 0.5}}}}}, "less than 0.5"),
        ({"columns": {"a": {"range": {"min": NAN}}}}, "finite number"),
        ({"views": {"a": {"age_max": "soon"}}}, "a duration is"),
        ({"fallback": {}}, "needs one of model and constant"),
        ({"mahalanobis": {"a": {"columns": ["x", "y"]}}}, "needs one of distance_max and beyond"),
        ({"policy": "drop"}, "'flag', 'clip', 'default', 'reject' or 'fallback'"),
    ],
)
def test_a_section_that_says_nothing_sensible_is_refused(use: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        ValidationUse.model_validate(use)


def test_every_asks_of_a_column_what_its_dtype_allows() -> None:
    made = checks(every={"range": {"min": -1e6, "max": 1e6}, "nan": "refuse", "nulls": "refuse"})
    # Not the strings of the request, of which none of this can be asked.
    assert set(made.names) == {*USUAL, "twice", "ratio"} - {"tag"}


def test_a_plan_without_checks_has_none() -> None:
    assert compile_checks(PLAN, None, None, SIGNATURE) is None
    assert compile_checks(PLAN, ValidationUse(), None, SIGNATURE) is None


def test_violations_of_some_rows() -> None:
    made = checks(columns={"hour": {"range": {"min": 0, "max": 23}, "policy": "clip"}})
    found = made.apply(batch([{"hour": 99}, {}, {"hour": 98}, {"hour": 97}])).violations
    assert found is not None
    kept = found.only(np.array([False, True, True, False]))
    assert kept.mask[:, 0].tolist() == [False, True]
    assert kept.changed[0].rows.tolist() == [1]
    assert kept.changed[0].raw.tolist() == [98.0]
    assert kept.verdicts.tolist() == [kinds.OK, kinds.CHANGED]
