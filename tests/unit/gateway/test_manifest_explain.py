"""What `headrace models check` says about a manifest, right or wrong."""

import pytest

from featureclient.schema import Catalogue, document
from gateway.plan.explain import Explained, explain
from gateway.plan.manifest import Manifest
from gateway.records.signature import Signature, TensorSpec

CATALOGUE = Catalogue.parse(
    """
entities: {user: {user: string}}
views:
  stats@1:
    entity: user
    columns:
      age: float32
      visits: {dtype: int64, default: 3}
      city: "string[8]"
      seen: timestamp
      taste: {dtype: "float32[4]", default: 0.0}
  strict@1: {entity: user, on_missing: reject, columns: {level: float32}}
"""
)


def explained(manifest: str, *inputs: TensorSpec) -> Explained:
    form = document.validate(document.parse(f"name: m\n{manifest}", "model.yaml"), Manifest)
    return explain(form, CATALOGUE, Signature(inputs, (TensorSpec("y", "float32", (None, 1)),)))


def matrix(width: int | None, dtype: str = "float32", name: str = "x") -> TensorSpec:
    return TensorSpec(name, dtype, (None, width))


def test_each_column_says_where_it_comes_from_and_what_is_cast() -> None:
    found = explained(
        "views: {who: {view: stats@1, keys: {user: account}}, strict: {view: strict@1}}\n"
        "context: {hour: float32}\n"
        "derive: {late: {expression: hour > 22, dtype: bool}}\n"
        "inputs: {x: [who.age, who.visits, who.taste, hour, late, strict.level]}",
        matrix(9),
    )
    assert [(c.place, c.name, c.origin.text, c.cast, c.origin.missing, c.advice) for c in found.inputs[0].columns] == [
        ("0", "who.age", "stats@1 by account", "", "NaN", ""),
        ("1", "who.visits", "stats@1 by account", "int64 → float32", "3", ""),
        ("2:6", "who.taste", "stats@1 by account", "", "0.0 …", ""),
        ("6", "hour", "the request", "", "", ""),
        ("7", "late", "hour > 22", "bool → float32", "", ""),
        ("8", "strict.level", "strict@1 by user", "", "the row is rejected", ""),
    ]


@pytest.mark.parametrize(
    ("column", "dtype", "advice"),
    [
        ("stats.city", "float32", "encode it inside the graph"),
        ("stats.age", "string", "store stats.age as string[n]"),
        ("stats.seen", "float32", "say what the model is to see of it"),
        ("stats.age", "int64", "derive: {age_int64: {expression: stats.age, dtype: int64}}"),
        ("stats.visits", "int32", "declare the column as int32"),
        ("stats.age", "bool", "derive: {is_age: {expression: stats.age != 0, dtype: bool}}"),
        ("stats.taste", "int64", "declare the column as int64, or export the graph for float32"),
        ("stats.agee", "float32", "is it stats.age?"),
        ("age", "float32", "is it stats.age?"),
        ("TODO_age", "float32", "still to be chosen"),
    ],
)
def test_advice_about_a_column_that_does_not_fit(column: str, dtype: str, advice: str) -> None:
    found = explained(f"views: {{stats: {{view: stats@1}}}}\ninputs: {{x: [{column}]}}", matrix(1, dtype))
    assert advice in found.advice(("inputs", "x", 0))


def test_advice_about_inputs() -> None:
    found = explained(
        "views: {stats: {view: stats@1}}\ninputs: {z: [stats.age], y: [stats.age, stats.taste]}",
        matrix(1, name="age"),
        matrix(6, name="y"),
    )
    assert found.advice(("inputs", "z")) == "call it age"
    assert found.advice(("inputs", "y")) == "2 columns are listed; stats.taste is float32[4]"
    assert found.advice(("inputs",)) == "add `age: [stats.age]` to inputs"
    assert found.advice(("views", "stats")) == ""


def test_a_column_of_an_unknown_view_is_explained_too() -> None:
    found = explained("views: {stats: {view: stats@9}}\ninputs: {x: [stats.age]}", matrix(1))
    assert found.inputs[0].columns[0].origin.text == "nowhere"


@pytest.mark.parametrize(
    ("manifest", "dtype", "warning"),
    [
        ("inputs: {x: [stats.visits]}", "float32", "exactly up to 16,777,216"),
        ("inputs: {x: [stats.visits]}", "float64", "exactly up to 9,007,199,254,740,992"),
        ("inputs: {x: [stats.age]}", "float16", "float16 ends at 65,504"),
        ("inputs: {x: [stats.age]}", "float32", "reaches the model as NaN"),
        ("inputs: {x: [stats.visits, stats.visits]}", "int64", "listed 2 times"),
        ("context: {hour: float32}\ninputs: {x: [stats.visits]}", "int64", "nothing reads the context column hour"),
        ("context: {hour: float32}\ninputs: {x: [hour]}", "float32", "nothing reads a column of stats@1"),
    ],
)
def test_warnings(manifest: str, dtype: str, warning: str) -> None:
    found = explained(f"views: {{stats: {{view: stats@1}}}}\n{manifest}", matrix(None, dtype))
    assert any(warning in said for _, said in found.warnings)


def test_nothing_to_warn_about() -> None:
    found = explained(
        "views: {stats: {view: stats@1}}\ncontext: {hour: float32}\n"
        "derive: {late: {expression: hour - stats.visits, dtype: float32}}\ninputs: {x: [late, stats.taste]}",
        matrix(5),
    )
    assert found.warnings == ()


def test_a_count_in_a_float_is_no_reason_to_warn() -> None:
    found = explained("context: {count: int32}\ninputs: {x: [count]}", matrix(1))
    assert found.warnings == ()
