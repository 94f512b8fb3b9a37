"""The plan: what compiling refuses, what binding refuses, and that every value lands in its own place."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from featureclient.schema import Catalogue, View, status
from gateway.plan import FeaturePlan, Manifest, PlanError, compile_plan
from gateway.plan.transform import TransformError
from gateway.records.errors import InvalidRequest, LimitExceeded
from gateway.records.request import Array, Asked, Request
from gateway.records.signature import Signature, TensorSpec

NOW_MS = 1_000_000
CATALOGUE = Catalogue.parse(
    """
entities:
  plane: {tailnum: string}
  route: {origin: string, dest: string}
  hour: {origin: string, hour: int64}
views:
  plane@1:
    entity: plane
    columns: {seats: int32, speed: float32, maker: "string[8]", late: float32}
  route@1: {entity: route, max_age: 60s, columns: {distance: float32, embedding: "float32[3]"}}
  weather@1: {entity: hour, on_missing: reject, columns: {temp: float32}}
"""
)
SCORE = TensorSpec("score", "float32", (None, 1))


class Waiting:
    """A caller that stays."""

    cancelled = False


def doubled(*, value: Array) -> dict[str, Array]:
    return {"twice": value * np.float32(2)}


def ranked(*, value: Array) -> dict[str, Array]:
    return {"twice": np.argsort(value).astype(np.float32)}


def clipped(*, value: Array) -> dict[str, Array]:
    return {"twice": np.clip(value, 0, 1, out=value)}


def resolve(reference: str) -> Callable[..., Mapping[str, Array]]:
    found = {"t:doubled": doubled, "t:ranked": ranked, "t:clipped": clipped, "t:nothing": lambda **_: {}}.get(reference)
    if found is None:
        raise TransformError(f"no {reference}")
    return found


def compiled(graph: Sequence[TensorSpec], **manifest: Any) -> FeaturePlan:
    return compile_plan(
        Manifest.model_validate({"name": "m", **manifest}), CATALOGUE, Signature(tuple(graph), (SCORE,)), resolve
    )


def problems(graph: Sequence[TensorSpec], **manifest: Any) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(PlanError) as caught:
        compiled(graph, **manifest)
    return dict(caught.value.problems)


def matrix(width: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec("x", dtype, (None, width))


def row(view: View, *, code: int = status.PRESENT, event_ms: int = NOW_MS, **values: Any) -> bytes:
    block = np.zeros(1, view.layout.block_dtype)
    block["status"], block["event_ms"] = code, event_ms
    for name, value in values.items():
        place = view.layout.places[name]
        block[place.run][0, place.start : place.start + place.width] = value
    return block.tobytes()


def request(plan: FeaturePlan, asked: Asked) -> Request:
    bound = plan.bind(asked, 1000)
    return Request(
        Waiting(), "m", "", 0.0, 9.9, bound.rows, bound.ids, bound.context, bound.overrides, bound.outputs, False
    )


def asked(entities: Mapping[str, Any], context: Mapping[str, Any] = {}, overrides: Mapping[str, Any] = {}) -> Asked:
    return Asked(
        entities,
        {name: np.asarray(values) for name, values in context.items()},
        {name: np.asarray(values) for name, values in overrides.items()},
        (),
        False,
    )


class TestCompile:
    """Everything wrong is named, at once, with what exists."""

    def test_every_problem_is_reported_together(self) -> None:
        found = problems(
            [matrix(2)],
            views={"plane": {"view": "plane@9"}, "route": {"view": "route@1", "keys": {"tail": "x"}}},
            context={"d": "float31"},
            transforms=[{"function": "t:gone", "inputs": {"value": "nope"}, "outputs": {"o": "float32"}}],
            inputs={"x": ["route.distance", "gone"], "y": ["route.distance"]},
        )
        assert set(found) == {
            ("views", "plane", "view"),
            ("views", "route", "keys", "tail"),
            ("context", "d"),
            ("transforms", 0, "inputs", "value"),
            ("transforms", 0, "function"),
            ("inputs", "x", 1),
            ("inputs", "y"),
        }
        assert "plane@1" in found["views", "plane", "view"]
        assert "origin, dest" in found["views", "route", "keys", "tail"]

    def test_input_that_nothing_fills(self) -> None:
        inputs = [matrix(1), TensorSpec("z", "int64", (None,))]
        found = problems(inputs, context={"c": "float32"}, inputs={"x": ["c"]})
        assert found == {("inputs",): "nothing fills the graph's input z: int64[?]"}

    def test_width_is_checked(self) -> None:
        found = problems([matrix(5)], views={"r": {"view": "route@1"}}, inputs={"x": ["r.distance", "r.embedding"]})
        assert found["inputs", "x"].startswith("the columns have 4 values a row")

    @pytest.mark.parametrize(
        ("column", "dtype"),
        [("plane.speed", "int64"), ("plane.maker", "float32"), ("plane.speed", "string"), ("plane.seats", "int16")],
    )
    def test_dtypes_that_would_lose_meaning(self, column: str, dtype: str) -> None:
        found = problems([matrix(1, dtype)], views={"plane": {"view": "plane@1"}}, inputs={"x": [column]})
        assert column in found["inputs", "x", 0]
        assert dtype in found["inputs", "x", 0]

    def test_fixed_and_free_batch_dimensions_do_not_go_together(self) -> None:
        graph = [TensorSpec("x", "float32", (4, 1)), TensorSpec("y", "float32", (None, 1))]
        found = problems(graph, context={"c": "float32"}, inputs={"x": ["c"], "y": ["c"]})
        assert "dynamic batch dimension" in found["inputs",]
        assert "x: float32[4, 1], y: float32[?, 1]" in found["inputs",]

    def test_a_name_is_taken_once(self) -> None:
        found = problems(
            [matrix(1)], views={"plane": {"view": "plane@1"}}, context={"tailnum": "float32"}, inputs={"x": ["tailnum"]}
        )
        assert found["context", "tailnum"] == "the name 'tailnum' is taken"

    def test_one_request_column_cannot_have_two_dtypes(self) -> None:
        views = {"route": {"view": "route@1"}, "weather": {"view": "weather@1", "keys": {"hour": "dest"}}}
        found = problems([matrix(1)], views=views, inputs={"x": ["weather.temp"]})
        assert "'dest' is string for another view and int64 here" in found["views", "weather", "keys"]

    @pytest.mark.parametrize(
        ("function", "said"),
        [
            ("t:ranked", "depends on the other rows"),
            ("t:nothing", "does not return 'twice'"),
            ("t:clipped", "read-only"),
        ],
    )
    def test_transforms_that_break_their_promise(self, function: str, said: str) -> None:
        transform = {"function": function, "inputs": {"value": "c"}, "outputs": {"twice": "float32"}}
        found = problems([matrix(1)], context={"c": "float32"}, transforms=[transform], inputs={"x": ["twice"]})
        assert said in found["transforms", 0, "function"]


class TestBind:
    """A caller hears what is wrong, and what the model takes."""

    plan = compiled(
        [matrix(3)],
        views={"plane": {"view": "plane@1"}, "weather": {"view": "weather@1"}},
        context={"c": "float32"},
        inputs={"x": ["plane.speed", "weather.temp", "c"]},
    )
    good: ClassVar = {"tailnum": ["N1", "N2"], "origin": ["JFK"], "hour": [5]}

    def test_columns_of_one_are_broadcast(self) -> None:
        bound = self.plan.bind(asked(self.good, {"c": np.float32([7])}), 10)
        assert bound.rows == 2
        assert bound.ids == (["N1", "N2"], [("JFK", 5)])
        assert bound.context == (np.float32([7, 7]).tobytes(),)

    @pytest.mark.parametrize(
        ("entities", "context", "said"),
        [
            ({"tailnum": ["N1"]}, {"c": np.float32([1])}, "hour, origin is missing"),
            (good | {"extra": ["x"]}, {"c": np.float32([1])}, "takes no entities column 'extra'"),
            (good, {}, "context column c is missing"),
            (good, {"d": np.float32([1])}, "takes no context column 'd'"),
            (good | {"tailnum": ["N1", "N2", "N3"], "hour": [1, 2]}, {"c": np.float32([1])}, "'hour' has 2 rows"),
            (good | {"tailnum": []}, {"c": np.float32([1])}, "'tailnum' is empty"),
            (good | {"tailnum": [1, 2]}, {"c": np.float32([1])}, "tailnum is a string, not 1"),
            (good | {"hour": ["05"]}, {"c": np.float32([1])}, "hour is an int64 in canonical decimal, not '05'"),
            (good | {"hour": [str(2**63)]}, {"c": np.float32([1])}, "hour is "),
            (good, {"c": np.array(["a"], object)}, "context.c has the dtype string, it needs float32"),
            (good, {"c": np.float32([[1, 2]])}, "has the shape [1, 2], it needs [rows]"),
            (good, {"c": np.float64([1e300])}, "values that do not fit into float32"),
        ],
    )
    def test_refused(self, entities: dict[str, Any], context: dict[str, Any], said: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            self.plan.bind(asked(entities, context), 1000)
        assert said in str(caught.value)

    def test_canonical_string_of_an_int64_key(self) -> None:
        bound = self.plan.bind(asked(self.good | {"hour": ["-5"]}, {"c": np.float32([1])}), 10)
        assert bound.ids[1] == [("JFK", -5)]

    def test_numbers_are_cast_where_nothing_is_lost(self) -> None:
        for array in (np.float64([1]), np.int64([1]), np.float16([1])):
            bound = self.plan.bind(asked(self.good, {"c": array}), 10)
            assert bound.context == (np.float32([1, 1]).tobytes(),)

    def test_row_limit_has_a_name(self) -> None:
        with pytest.raises(LimitExceeded, match="rows_max is 1") as caught:
            self.plan.bind(asked(self.good, {"c": np.float32([1])}), 1)
        assert caught.value.limit == "rows_max"

    def test_an_override_with_the_name_of_a_ragged_column_does_not_hide_it(self) -> None:
        request = asked(
            self.good | {"tailnum": ["N1", "N2", "N3"], "hour": [1, 2]}, {"c": np.float32([1])}, {"hour": [1]}
        )
        with pytest.raises(InvalidRequest, match="entities column 'hour' has 2 rows") as caught:
            self.plan.bind(request, 10)
        assert caught.value.field == "entities.hour"

    def test_strings_of_the_context_are_not_truncated(self) -> None:
        plan = compiled([TensorSpec("x", "string", (None,))], context={"word": "string[4]"}, inputs={"x": ["word"]})
        with pytest.raises(InvalidRequest, match=r"context\.word has a string that does not fit"):
            plan.bind(asked({}, {"word": np.array(["12345"], object)}), 10)

    def test_unknown_output_and_override(self) -> None:
        with pytest.raises(InvalidRequest, match="has no output 'x' \\(it has: score\\)"):
            self.plan.bind(asked(self.good, {"c": np.float32([1])})._replace(outputs=["x"]), 10)
        with pytest.raises(InvalidRequest, match=r"no stored column 'plane\.gone' to override"):
            self.plan.bind(asked(self.good, {"c": np.float32([1])}, {"plane.gone": np.float32([1])}), 10)


class TestAssemble:
    """Every value lands in its own row and column."""

    plan = compiled(
        [matrix(7), TensorSpec("maker", "string", (None,))],
        views={
            "a": {"view": "plane@1", "keys": {"tailnum": "first"}},
            "b": {"view": "plane@1", "keys": {"tailnum": "second"}},
            "route": {"view": "route@1"},
        },
        context={"c": "float32"},
        transforms=[{"function": "t:doubled", "inputs": {"value": "b.speed"}, "outputs": {"twice": "float32"}}],
        inputs={"x": ["b.late", "route.embedding", "a.seats", "c", "twice"], "maker": ["a.maker"]},
    )
    plane = CATALOGUE.view("plane@1")
    route = CATALOGUE.view("route@1")

    def ask(self, **changes: Any) -> Asked:
        entities = {"first": ["1", "2"], "second": ["3"], "origin": ["JFK"], "dest": ["LAX", "SFO"]}
        return asked(entities, {"c": np.float32([5, 6])}, changes)

    def stored(self) -> list[list[bytes]]:
        return [
            [row(self.plane, seats=10, maker=b"boeing"), row(self.plane, seats=20, maker=b"airbus")],
            [row(self.plane, late=0.5, speed=3.0)],
            [row(self.route, embedding=[1, 2, 3]), row(self.route, embedding=[4, 5, 6], event_ms=NOW_MS - 60_001)],
        ]

    def test_values_statuses_and_ages(self) -> None:
        assembled = self.plan.assemble([request(self.plan, self.ask())], self.stored(), NOW_MS)
        np.testing.assert_array_equal(assembled.inputs["x"], [[0.5, 1, 2, 3, 10, 5, 6], [0.5, 4, 5, 6, 20, 6, 6]])
        assert assembled.inputs["x"].dtype == np.float32
        assert assembled.inputs["maker"].tolist() == ["boeing", "airbus"]
        assert assembled.statuses[2].tolist() == [status.PRESENT, status.STALE | status.EXPIRED]
        assert assembled.ages_ms()[2].tolist() == [0, 60_001]

    def test_two_requests_are_the_same_as_each_alone(self) -> None:
        one, two = request(self.plan, self.ask()), request(self.plan, self.ask())
        both = self.plan.assemble([one, two], [rows + rows for rows in self.stored()], NOW_MS)
        alone = self.plan.assemble([one], self.stored(), NOW_MS)
        np.testing.assert_array_equal(both.inputs["x"], np.concatenate([alone.inputs["x"]] * 2))

    def test_override_replaces_one_value_of_its_own_request_only(self) -> None:
        overriding = request(
            self.plan, self.ask(**{"b.speed": np.float32([50, 60]), "a.maker": np.array(["x"], object)})
        )
        plain = request(self.plan, self.ask())
        stored = self.stored()
        before = [list(rows) for rows in stored]
        assembled = self.plan.assemble([overriding, plain], [rows + rows for rows in stored], NOW_MS)
        assert assembled.inputs["x"][:, 6].tolist() == [100, 120, 6, 6]
        assert assembled.inputs["maker"].tolist() == ["x", "x", "boeing", "airbus"]
        assert assembled.statuses[1].tolist() == [status.OVERRIDDEN] * 2 + [status.PRESENT] * 2
        assert stored == before

    def test_override_of_a_row_that_is_not_there_keeps_the_cause(self) -> None:
        stored = self.stored()
        stored[1] = [row(self.plane, code=status.DEFAULTED | status.ABSENT)]
        overriding = request(self.plan, self.ask(**{"b.speed": np.float32([1])}))
        assembled = self.plan.assemble([overriding], stored, NOW_MS)
        assert assembled.statuses[1].tolist() == [status.OVERRIDDEN | status.ABSENT] * 2

    def test_rejecting_view_marks_its_rows(self) -> None:
        plan = compiled([matrix(1)], views={"w": {"view": "weather@1"}}, inputs={"x": ["w.temp"]})
        view = CATALOGUE.view("weather@1")
        bound = request(plan, asked({"origin": ["JFK"], "hour": [1, 2]}))
        stored = [[row(view, temp=1), row(view, code=status.MISSING | status.ABSENT)]]
        rejected = plan.assemble([bound], stored, NOW_MS).rejected
        assert rejected is not None
        assert rejected.tolist() == [False, True]
        assert plan.assemble([bound], [[stored[0][0]] * 2], NOW_MS).rejected is None

    def test_an_override_does_not_make_up_for_a_rejected_row(self) -> None:
        plan = compiled([matrix(1)], views={"w": {"view": "weather@1"}}, inputs={"x": ["w.temp"]})
        view = CATALOGUE.view("weather@1")
        overriding = request(plan, asked({"origin": ["JFK"], "hour": [1]}, {}, {"w.temp": np.float32([1])}))
        rejected = plan.assemble([overriding], [[row(view, code=status.MISSING | status.ABSENT)]], NOW_MS).rejected
        assert rejected is not None
        assert rejected.all()


@pytest.mark.parametrize("seed", range(30))
def test_columns_land_where_the_manifest_says_in_any_order(seed: int) -> None:
    """Whole runs, slices with and without steps, and so many pieces that index arrays copy them."""
    noise = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(40)]
    dtypes = noise.choice(["float32", "int32", "float32[3]"] if seed % 2 else ["float32"], 40).tolist()
    columns = ", ".join(f'{name}: "{dtype}"' for name, dtype in zip(names, dtypes, strict=True))
    catalogue = Catalogue.parse(
        f"entities: {{e: {{k: string}}}}\nviews: {{v@1: {{entity: e, columns: {{{columns}}}}}}}"
    )
    step = int(noise.integers(1, 4))
    chosen = [names, names[::step], noise.permutation(names).tolist(), names[3:20]][seed % 4]
    width = sum(3 if dtypes[names.index(name)].endswith("]") else 1 for name in chosen)
    graph = [TensorSpec("x", "float32", (None, width))]
    manifest = Manifest.model_validate(
        {"name": "m", "views": {"v": {"view": "v@1"}}, "inputs": {"x": [f"v.{name}" for name in chosen]}}
    )
    plan = compile_plan(manifest, catalogue, Signature(tuple(graph), (SCORE,)), resolve)
    view = catalogue.view("v@1")
    block = np.zeros(5, view.layout.block_dtype)
    expected = []
    for name in chosen:
        run, start, size = view.layout.places[name]
        values = noise.integers(-1000, 1000, (5, size))
        block[run][:, start : start + size] = values
        expected.append(values)
    stored = [block[i : i + 1].tobytes() for i in range(5)]
    requests = [Request(Waiting(), "m", "", 0.0, 1e9, 1, (["a"],), (), (), (), False) for _ in range(5)]
    inputs = plan.assemble(requests, [stored], NOW_MS).inputs["x"]
    np.testing.assert_array_equal(inputs, np.concatenate(expected, axis=1).astype(np.float32))
    assert inputs.flags.c_contiguous
