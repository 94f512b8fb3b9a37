"""A first manifest: what is found by name, and what is left to its reader."""

import pytest

from featureclient.schema import Catalogue, document
from gateway.plan import compile_plan
from gateway.plan.draft import draft
from gateway.plan.manifest import Manifest
from gateway.plan.transform import resolver
from gateway.records.signature import Signature, TensorSpec

CATALOGUE = Catalogue.parse(
    """
entities: {user: {user: string}, item: {item: int64}}
views:
  stats@1: {entity: user, columns: {age: float32, visits: int64, city: "string[8]", taste: "float32[4]"}}
  items@1: {entity: item, columns: {price: float32, age: float32, picture: "float32[12]"}}
  items@2: {entity: item, columns: {price: float64}}
"""
)
ANSWER = (TensorSpec("y", "float32", (None, 1)),)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, ANSWER)


def drafted(graph: Signature, *refs: str, names: tuple[str, ...] = (), rest: bool = False) -> Manifest:
    views = [CATALOGUE.view(ref) for ref in refs]
    text = draft("m", graph, views, names=names, rest_from_request=rest)
    return document.validate(document.parse(text, "model.yaml"), Manifest)


def loads(manifest: Manifest, graph: Signature) -> None:
    compile_plan(manifest, CATALOGUE, graph, resolver(()))


def one(name: str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, (None, 1))


def test_inputs_of_one_value_are_found_by_their_names() -> None:
    graph = signature(
        one("city", "string"), one("stats__visits"), one("items.price"), TensorSpec("Taste", "float32", (None, 4))
    )
    manifest = drafted(graph, "stats@1", "items@1")
    assert manifest.inputs == {
        "city": ["stats.city"],
        "stats__visits": ["stats.visits"],
        "items.price": ["items.price"],
        "Taste": ["stats.taste"],
    }
    loads(manifest, graph)


def test_names_of_the_columns_of_a_matrix() -> None:
    graph = signature(TensorSpec("x", "float32", (None, 3)), one("city", "string"))
    manifest = drafted(graph, "stats@1", "items@1", names=("visits", "price", "stats_age"))
    assert manifest.inputs["x"] == ["stats.visits", "items.price", "stats.age"]
    loads(manifest, graph)


def test_names_that_fit_no_input_are_refused() -> None:
    with pytest.raises(ValueError, match="2 names of columns fit no input of x: float32"):
        drafted(signature(TensorSpec("x", "float32", (None, 3))), "stats@1", names=("a", "b"))


@pytest.mark.parametrize(
    ("spec", "refs", "left", "said"),
    [
        (one("age"), ("stats@1", "items@1"), "TODO_age", "several have this name: stats.age, items.age"),
        (one("city"), ("stats@1",), "TODO_city", "stats.city is string[8], the graph's input is float32"),
        (one("hour"), ("stats@1",), "TODO_hour", "no view has a column of this name"),
        (TensorSpec("x", "float32", (None, 7)), ("stats@1",), "TODO_x", "7 values of float32 a row"),
        (TensorSpec("x", "float32", (None, None)), ("stats@1",), "TODO_x", "as many values as you like"),
        (one("flag", "uint8"), ("stats@1",), "TODO_flag", "no view has a column"),
    ],
)
def test_what_cannot_be_told_is_left_to_the_reader(
    spec: TensorSpec, refs: tuple[str, ...], left: str, said: str
) -> None:
    graph = signature(spec)
    assert drafted(graph, *refs).inputs == {spec.name: [left]}
    (line,) = [line for line in draft("m", graph, [CATALOGUE.view(ref) for ref in refs]).splitlines() if left in line]
    assert f"# TODO {said}" in line


def test_a_vector_is_found_by_its_length() -> None:
    graph = signature(TensorSpec("input_1", "float32", (None, 3, 4)))
    manifest = drafted(graph, "stats@1", "items@1")
    assert manifest.inputs == {"input_1": ["items.picture"]}
    loads(manifest, graph)


def test_without_views_the_caller_sends_everything() -> None:
    graph = signature(
        one("age", "float64"), one("name", "string"), TensorSpec("onnx::Image", "float32", (None, 3, 2)), one("1st")
    )
    manifest = drafted(graph)
    assert manifest.context == {"age": "float64", "name": "string[64]", "onnx_Image": "float32[6]", "_1st": "float32"}
    loads(manifest, graph)


def test_the_rest_from_the_request() -> None:
    graph = signature(one("visits"), one("hour"), one("flag", "uint8"))
    manifest = drafted(graph, "stats@1", rest=True)
    assert manifest.inputs == {"visits": ["stats.visits"], "hour": ["hour"], "flag": ["TODO_flag"]}
    assert manifest.context == {"hour": "float32"}


def test_only_views_that_are_used_are_named_once_all_is_found() -> None:
    manifest = drafted(signature(one("visits")), "stats@1", "items@1", "items@2")
    assert {alias: use.view for alias, use in manifest.views.items()} == {"stats": "stats@1"}
    left = drafted(signature(one("nobody")), "stats@1", "items@1", "items@2")
    assert {*left.views} == {"stats", "items_1", "items_2"}


def test_a_name_that_yaml_would_misread_is_quoted() -> None:
    text = draft("null", signature(one("on"), one('a"b: #c')), [])
    read = document.validate(document.parse(text, "model.yaml"), Manifest)
    assert {*read.inputs} == {"on", 'a"b: #c'}


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 4), "# fixed to one row"),
        ((2, None), "# TODO its first dimension is not the rows"),
        ((), "# TODO its first dimension is not the rows"),
    ],
)
def test_an_input_whose_first_dimension_is_not_free(shape: tuple[int | None, ...], said: str) -> None:
    assert said in draft("m", signature(TensorSpec("x", "float32", shape)), [])
