"""The reference profile: what is counted of difficult columns, what the file says again, which files are refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featureclient.schema import DType
from gateway.plan import PlanError
from gateway.plan.manifest import ValidationUse
from gateway.records.request import Array
from gateway.validation.accumulator import (
    CATEGORIES_KEPT,
    NUMBERS_MAX,
    RANK_ERROR,
    SKETCH_K,
    Categories,
    ColumnAccumulator,
    GroupAccumulator,
)
from gateway.validation.compiler import columns_read, reference
from gateway.validation.profile import ColumnProfile, Profile, ProfileError
from tests.checking import PLAN

NAN, INF = math.nan, math.inf


def objects(values: list[str]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def of(dtype: str, *batches: Any, null: Any = None) -> ColumnProfile:
    parsed = DType.parse(dtype)
    made = ColumnAccumulator(parsed)
    for values in batches:
        array = objects(values) if parsed.kind == "string" else np.array(values, parsed.numpy)
        made.add(array, None if null is None else np.array(null))
    return made.profile()


def whole() -> Profile:
    generator = np.random.default_rng(1)
    columns = {name: ColumnAccumulator(column.dtype) for name, column in PLAN.columns.items()}
    for name, accumulator in columns.items():
        dtype = PLAN.columns[name].dtype
        values = generator.normal(size=(100, dtype.width) if dtype.length else 100) * 10
        accumulator.add(objects(["a", "b"] * 50) if dtype.kind == "string" else values.astype(dtype.numpy))
    group = GroupAccumulator(("hour", "plane.speed"))
    group.add({"hour": generator.normal(size=50), "plane.speed": generator.normal(size=50)})
    return Profile(
        "m",
        1,
        "ab",
        {binding.ref: binding.view.fingerprint for binding in PLAN.bindings},
        100,
        "2026-01-01T00:00:00+00:00",
        "test",
        {name: accumulator.profile() for name, accumulator in columns.items()},
        {"score": of("float32", [0.25, 0.5])},
        {"pair": group.profile()},
        RANK_ERROR,
    )


def test_a_column_of_numbers() -> None:
    found = of("float32", [1, 2, NAN, 4], [INF, -INF, 8, 1], null=[False, False, False, True])
    assert (found.count, found.nulls, found.nans, found.infinities) == (8, 2, 1, 2)
    assert (found.min, found.max, found.mean) == (1.0, 8.0, pytest.approx(11 / 3))
    assert found.std == pytest.approx(np.std([1, 2, 8], ddof=1))
    assert found.null_share == 0.25
    assert found.categories == {"1.0": 1 / 3, "2.0": 1 / 3, "8.0": 1 / 3}
    assert found.complete


def test_a_constant_column() -> None:
    found = of("int32", [7] * 1000)
    assert found.edges == (7.0,) * 21
    assert found.std == 0.0
    assert found.shares == tuple(np.histogram([7] * 1000, found.edges)[0] / 1000)
    assert found.categories == {"7": 1.0}


def test_columns_without_a_number() -> None:
    for values, null in (([1.0, 2.0], [True, True]), ([NAN, NAN], None), ([INF, -INF], None)):
        found = of("float32", values, null=null)
        assert found.count == 2
        assert (found.edges, found.mean, found.min) == ((), None, None)
        assert found.quantile(0.5) is None
    assert of("float32").count == 0


def test_strings_with_one_value_and_with_too_many() -> None:
    assert of("string[4]", ["x", "x"]).categories == {"x": 1.0}
    many = Categories(None)
    names = [f"n{i}" for i in range(CATEGORIES_KEPT * 3)]
    many.add(objects(["often"] * len(names)))
    many.add(objects(names))
    found = many.profile()
    # Too small by at most 1 in CATEGORIES_KEPT, and never too large.
    assert 0.5 - 1 / CATEGORIES_KEPT <= found["categories"]["often"] <= 0.5
    assert found["other"] > 0


def test_numbers_with_many_values_have_no_categories_in_any_order() -> None:
    few, many = np.arange(NUMBERS_MAX), np.arange(NUMBERS_MAX + 1)
    assert of("int32", few).categories is not None
    assert of("int32", many).categories is None
    assert of("int32", few[:-1], many).categories is None
    first, second = ColumnAccumulator(DType.parse("int32")), ColumnAccumulator(DType.parse("int32"))
    first.add(few.astype(np.int32))
    second.add(many[-2:].astype(np.int32))
    second.merge(first)
    assert second.profile().categories is None


def test_a_vector_column_is_known_by_its_norm_and_means() -> None:
    found = of("float32[2]", [[3, 4], [NAN, 1], [0, 0]])
    assert (found.measure, found.nans, found.min, found.max) == ("norm", 1, 0.0, 5.0)
    assert found.means == (1.5, 2.0)


def test_values_beyond_all_sums() -> None:
    found = of("float64", [1.7e308, -1.7e308, 1.7e308])
    assert found.max == 1.7e308
    assert found.std is None
    profile = whole()
    again = replace(profile, columns={**profile.columns, "plane.exact": found})
    assert Profile.from_json(again.to_json()) == again


def test_merged_parts_say_what_the_whole_says() -> None:
    values = np.random.default_rng(5).gamma(2.0, size=200_000).astype(np.float32)
    one, parts = ColumnAccumulator(DType.parse("float32")), ColumnAccumulator(DType.parse("float32"))
    one.add(values)
    for part in np.array_split(values, 7):
        other = ColumnAccumulator(DType.parse("float32"))
        other.add(part, part < 0.01)
        parts.merge(other)
    merged, single = parts.profile(), one.profile()
    kept = np.sort(values[values >= 0.01]).astype(np.float64)
    assert merged.nulls == int((values < 0.01).sum())
    assert (merged.min, merged.max) == (kept[0], kept[-1])
    assert merged.mean == pytest.approx(kept.mean(), rel=1e-12)
    assert merged.std == pytest.approx(kept.std(ddof=1), rel=1e-9)
    for quantile, edge in zip(np.linspace(0, 1, 21), merged.edges, strict=True):
        assert abs(np.searchsorted(kept, edge) / len(kept) - quantile) <= 2 * RANK_ERROR
    shares = np.histogram(kept, merged.edges)[0] / len(kept)
    np.testing.assert_allclose(merged.shares, shares, atol=3 * RANK_ERROR)
    assert single.count == merged.count
    with pytest.raises(ValueError, match="cannot be merged"):
        parts.merge(ColumnAccumulator(DType.parse("int32")))


def test_up_to_the_sketch_size_quantiles_are_exact() -> None:
    values = np.random.default_rng(2).permutation(SKETCH_K - 1).astype(np.float64)
    found = of("float64", values)
    assert found.edges[10] == pytest.approx(np.median(values), abs=1)
    np.testing.assert_allclose(found.shares, np.histogram(values, found.edges)[0] / len(values), atol=1e-12)


def test_groups_merge_to_the_covariance_of_all() -> None:
    values = np.random.default_rng(3).normal(size=(1000, 2)) @ np.array([[1, 0.5], [0, 1]])
    values[::50, 0] = NAN
    made = GroupAccumulator(("a", "b"))
    for part in np.array_split(values, 3):
        other = GroupAccumulator(("a", "b"))
        other.add({"a": part[:, 0], "b": part[:, 1]})
        made.merge(other)
    found = made.profile()
    finite = values[np.isfinite(values).all(axis=1)]
    assert found.count == len(finite)
    np.testing.assert_allclose(found.covariance, np.cov(finite.T), rtol=1e-10)
    np.testing.assert_allclose(found.mean, finite.mean(axis=0), rtol=1e-10)


def test_quantiles_between_known_ones() -> None:
    found = ColumnProfile("float32", "value", 9, min=0, max=20, edges=tuple(map(float, range(21))), shares=(0.05,) * 20)
    assert found.quantile(0.0) == 0
    assert found.quantile(0.025) == pytest.approx(0.5)
    assert found.quantile(1.0) == 20


def test_the_file_says_it_again() -> None:
    profile = whole()
    assert Profile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.pop("schema"), "schema is missing: this is no profile"),
        (lambda file: file.update(schema=2), "schema is 2, this version reads 1"),
        (lambda file: file.pop("rows"), "rows is missing"),
        (lambda file: file.update(rows="many"), "rows has to be a whole number, not 'many'"),
        (lambda file: file.update(extra=1), "extra is not known"),
        (lambda file: file.update(columns=[]), "columns has to be an object"),
        (lambda file: file["views"].update({"plane@1": "xyz"}), "fingerprint in hexadecimal"),
        (lambda file: file["columns"]["hour"].update(nulls=-1), "columns.hour.nulls has to be a whole number"),
        (lambda file: file["columns"]["hour"].update(nulls=101), "more nulls, NaN and infinities than rows"),
        (lambda file: file["columns"]["hour"].update(measure="x"), "columns.hour.measure has to be"),
        (lambda file: file["columns"]["hour"]["edges"].pop(), "columns.hour.edges has to be a list of 21"),
        (lambda file: file["columns"]["hour"]["edges"].sort(reverse=True), "edges are not in order"),
        (lambda file: file["columns"]["hour"].update(min=-1e9), "do not begin at min"),
        (lambda file: file["columns"]["hour"].update(shares=[0.1] * 20), "add up to 2, not to 1"),
        (lambda file: file["columns"]["hour"].update(tails={"x": 1}), "'x', which is no quantile"),
        (lambda file: file["columns"]["tag"]["categories"].update(c=7), "has to be a share between 0 and 1"),
        (lambda file: file["groups"]["pair"].update(mean=[1]), "groups.pair.mean has to be a list of 2"),
    ],
)
def test_a_corrupt_file_is_refused_by_the_place(change: Any, said: str) -> None:
    file = json.loads(whole().to_json())
    change(file)
    with pytest.raises(ProfileError) as caught:
        Profile.from_json(json.dumps(file), "p.json")
    assert str(caught.value).startswith("p.json: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"schema": NaN}', "[" * 100_000])
def test_what_is_no_profile_at_all(text: str) -> None:
    with pytest.raises(ProfileError, match=r"not JSON|object of JSON"):
        Profile.from_json(text)


def test_any_byte_cut_off_is_noticed() -> None:
    text = whole().to_json().rstrip()
    for end in range(0, len(text), 97):
        with pytest.raises(ProfileError):
            Profile.from_json(text[:end])


def test_a_profile_that_does_not_fit_says_why() -> None:
    profile = whole()
    views, dtypes = dict(profile.views), {name: column.dtype for name, column in profile.columns.items()}
    assert profile.mismatches("m", 1, views, dtypes) == []
    assert "of m/1, not of m/2" in profile.mismatches("m", 2, views, dtypes)[0]
    assert "revision" in profile.mismatches("m", 1, {**views, "plane@1": 1}, dtypes)[0]
    assert "knows nothing of the view n@1" in profile.mismatches("m", 1, {"n@1": 1}, {})[0]
    assert profile.mismatches("m", 1, views, {"new": "float32"}) == ["it has no column new"]
    assert "is float32, the model's is int8" in profile.mismatches("m", 1, views, {"hour": "int8"})[0]


def test_a_model_that_learns_nothing_serves_without_its_profile(tmp_path: Path) -> None:
    learned = ValidationUse.model_validate({"every": {"range": {"learned": {"quantile": 0.01}}}})
    path = tmp_path / "profile.json"
    assert reference(path, PLAN, 1, learned) == (None, "")  # compiling says what is missing, by column
    path.write_text(whole().to_json())
    assert reference(path, PLAN, 1, learned)[0] == whole()
    text = whole().to_json()
    other_revision = text.replace('"plane@1": "', '"plane@1": "1')
    for wrong, version, said in (("{", 1, "not JSON"), (other_revision, 1, "revision"), (text, 2, "not of m/2")):
        path.write_text(wrong)
        found, why = reference(path, PLAN, version, None)
        assert found is None
        assert said in why
        with pytest.raises(PlanError, match="learned from the profile"):
            reference(path, PLAN, version, learned)
    assert "twice" in columns_read(PLAN)
