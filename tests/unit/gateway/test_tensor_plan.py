"""Callers who send the graph's own inputs hear what is wrong, and their rows are put together unchanged."""

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from gateway.plan.tensors import TensorPlan, fixed_rows, is_batched
from gateway.records.errors import InvalidRequest, LimitExceeded
from gateway.records.request import Array, Asked, Request
from gateway.records.signature import Signature, TensorSpec

GRAPH = Signature(
    (
        TensorSpec("ids", "int64", (None, None)),
        TensorSpec("image", "float16", (None, 3, 2)),
        TensorSpec("word", "string", (None,)),
    ),
    (TensorSpec("y", "float32", (None, 1)), TensorSpec("z", "bool", (None,))),
)
PLAN = TensorPlan("m", GRAPH, batched=True)


class Caller:
    cancelled = False


def tensors(rows: int = 2, length: int = 4, **changes: Any) -> dict[str, Array]:
    found = {
        "ids": np.arange(rows * length, dtype=np.int64).reshape(rows, length),
        "image": np.arange(rows * 6, dtype=np.float16).reshape(rows, 3, 2),
        "word": np.array([f"w{i}" for i in range(rows)], object),
    }
    return {name: array for name, array in (found | changes).items() if array is not None}


def asked(context: dict[str, Array], entities: Any = MappingProxyType({}), outputs: Any = ()) -> Asked:
    return Asked(entities, context, {}, outputs, False)


def request(plan: TensorPlan, context: dict[str, Array]) -> Request:
    bound = plan.bind(asked(context), 100)
    return Request(
        Caller(), "m", "", 0.0, 9.0, bound.rows, bound.ids, bound.context, (), bound.outputs, False, bound.shape
    )


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (tensors(word=None), "input word is missing (model m takes: ids: int64[?, ?], image: float16[?, 3, 2]"),
        (tensors(other=np.zeros(2)), "has no input 'other'"),
        (tensors(word=None, other=np.zeros(2)), "has no input 'other'"),
        (tensors(ids=np.zeros((2, 4), np.int32)), "ids is int32, the graph takes ids: int64[?, ?]; send int64"),
        (tensors(image=np.zeros((2, 3, 2), np.float32)), "send float16, nothing is cast"),
        (tensors(word=np.zeros(2)), "word is float64, the graph takes word: string[?]"),
        (tensors(image=np.zeros((2, 3, 3), np.float16)), "image has the shape [2, 3, 3], the graph takes image"),
        (tensors(image=np.zeros((2, 6), np.float16)), "image has the shape [2, 6]"),
        (tensors(ids=np.zeros((2,), np.int64)), "ids has the shape [2]"),
        (tensors(ids=np.zeros((3, 4), np.int64)), "the same in all; these are ids [3, 4], image [2, 3, 2], word [2]"),
        (tensors(rows=0), "at least 1"),
        (tensors(ids=np.int64(3)), "at least 1"),
    ],
)
def test_refused_with_what_the_graph_takes(context: dict[str, Array], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PLAN.bind(asked(context), 100)
    assert said in str(caught.value)


def test_entities_unknown_outputs_and_too_many_rows() -> None:
    with pytest.raises(InvalidRequest, match="takes no entities"):
        PLAN.bind(asked(tensors(), {"user": ["a"]}), 100)
    with pytest.raises(InvalidRequest, match="has no output 'x'"):
        PLAN.bind(asked(tensors(), outputs=["x"]), 100)
    with pytest.raises(LimitExceeded, match="rows_max is 1"):
        PLAN.bind(asked(tensors()), 1)
    assert PLAN.bind(asked(tensors(), outputs=["z"]), 100).outputs == (1,)


def test_requests_of_equal_shapes_are_put_one_after_the_other() -> None:
    requests = [request(PLAN, tensors(rows)) for rows in (2, 1, 3)]
    assert {one.shape for one in requests} == {((4,), (3, 2), ())}
    inputs = PLAN.assemble(requests, [], 7).inputs
    for name in ("ids", "image", "word"):
        np.testing.assert_array_equal(inputs[name], np.concatenate([tensors(rows)[name] for rows in (2, 1, 3)]))
        assert inputs[name].dtype == tensors()[name].dtype


def test_a_transposed_array_is_sent_as_it_reads() -> None:
    image = np.arange(12, dtype=np.float16).reshape(3, 2, 2).transpose(1, 0, 2)
    inputs = PLAN.assemble([request(PLAN, tensors(image=image))], [], 7).inputs
    np.testing.assert_array_equal(inputs["image"], image)


@pytest.mark.parametrize("batched", [True, False])
def test_a_free_dimension_of_no_elements_is_refused(batched: bool) -> None:
    """GRU and Einsum of ONNX Runtime end the process on them."""
    with pytest.raises(InvalidRequest, match=r"input ids has the shape \[2, 0\].* at least 1"):
        TensorPlan("m", GRAPH, batched).bind(Asked({}, tensors(length=0), {}, (), False), 100)


def test_a_dimension_that_the_graph_fixes_to_no_elements_is_taken() -> None:
    graph = Signature((TensorSpec("x", "float32", (None, 0)),), GRAPH.outputs)
    plan = TensorPlan("m", graph, batched=True)
    one = request(plan, {"x": np.ones((2, 0), np.float32)})
    assert plan.assemble([one, one], [], 7).inputs["x"].shape == (4, 0)


def test_dimensions_of_one_name_are_equal() -> None:
    inputs = [
        TensorSpec(name, "float32", (None, *[None] * (len(dimensions) - 1)), tuple(dimensions))
        for name, dimensions in {"a": ["", "n", "m"], "b": ["", "n"], "c": ["", "m"]}.items()
    ]
    plan = TensorPlan("m", Signature(tuple(inputs), GRAPH.outputs), batched=True)

    def asked(a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...]) -> Asked:
        return Asked(
            {}, {name: np.ones(of, np.float32) for name, of in zip("abc", (a, b, c), strict=True)}, {}, (), False
        )

    assert plan.bind(asked((1, 3, 4), (1, 3), (1, 4)), 10).shape == ((3, 4), (3,), (4,))
    message = (
        r"'n' is not the same: a \[1, 3, 4\], b \[1, 5\]; the graph takes a: float32\[\?, n, m\], b: float32\[\?, n\]"
    )
    with pytest.raises(InvalidRequest, match=message):
        plan.bind(asked((1, 3, 4), (1, 5), (1, 4)), 10)


def test_rows_that_are_columns_too_are_no_rows() -> None:
    """A matrix of distances: two of them below each other are none."""
    inputs = (TensorSpec("x", "float32", (None, None), ("n", "n")),)
    assert not is_batched(Signature(inputs, (TensorSpec("y", "float32", (None,)),)))


def test_a_graph_without_rows_gets_its_arrays_whole_and_one_request_at_a_time() -> None:
    graph = Signature((TensorSpec("x", "float32", (2, None)), TensorSpec("k", "int64", ())), GRAPH.outputs)
    plan = TensorPlan("m", graph, batched=False)
    one = request(plan, {"x": np.ones((2, 5), np.float32), "k": np.array(3)})
    assert (one.rows, one.shape) == (1, ((2, 5), ()))
    inputs = plan.assemble([one], [], 7).inputs
    assert {name: array.shape for name, array in inputs.items()} == {"x": (2, 5), "k": ()}
    with pytest.raises(ValueError, match="has no rows"):
        plan.assemble([one, one], [], 7)
    with pytest.raises(InvalidRequest, match=r"shape \[3, 5\]"):
        plan.bind(asked({"x": np.ones((3, 5), np.float32), "k": np.array(3)}), 10)


@pytest.mark.parametrize(
    ("inputs", "outputs", "batched", "fixed"),
    [
        ([(None, 3)], [(None, 1)], True, None),
        ([(None, 3), (None,)], [()], True, None),  # an output whose shape is not told
        ([(4, 3), (4,)], [(4, 1)], True, 4),
        ([(1, 3)], [(None, 1)], True, 1),
        ([(1, 3), (None, 3)], [(None, 1)], False, None),
        ([(None, 3), ()], [(None, 1)], False, None),
        ([(None, 3)], [(1,)], False, None),
        ([(2, 3)], [(3,)], False, 2),
        ([(0, 3)], [(0,)], False, 0),
        ([()], [()], False, None),
    ],
)
def test_what_counts_as_rows(inputs: Any, outputs: Any, batched: bool, fixed: int | None) -> None:
    signature = Signature(
        tuple(TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(inputs)),
        tuple(TensorSpec(f"y{i}", "float32", shape) for i, shape in enumerate(outputs)),
    )
    assert is_batched(signature) == batched
    assert fixed_rows(signature) == fixed


def test_blank_inputs_have_the_graphs_shapes() -> None:
    blank = PLAN.blank(3)
    assert {name: (array.shape, array.dtype.name) for name, array in blank.items()} == {
        "ids": ((3, 1), "int64"),
        "image": ((3, 3, 2), "float16"),
        "word": ((3,), "object"),
    }
    assert blank["word"].tolist() == [""] * 3
    assert not PLAN.steady
