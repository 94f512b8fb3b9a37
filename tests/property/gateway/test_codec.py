"""An encoded answer, parsed by the generated classes, says what the batch's arrays say, whatever the shapes."""

from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featureclient.schema import Catalogue
from gateway.inference import Model, Runner
from gateway.pipeline import Answers
from gateway.plan import Assembled, Manifest, compile_plan
from gateway.records.request import Array, Request
from gateway.records.signature import Signature, TensorSpec
from gateway.records.tensors import to_array
from gateway.server.codec import Encoder
from headrace.v1 import prediction_pb2 as pb

CATALOGUE = Catalogue.parse("entities: {e: {id: string}}\nviews: {v@1: {entity: e, columns: {c: float32}}}")
DTYPES = ["float32", "float64", "int64", "int8", "bool", "string"]


class Waiting:
    """A caller that stays."""

    cancelled = False


def model_of(outputs: list[TensorSpec]) -> Model:
    signature = Signature((TensorSpec("x", "float32", (None, 1)), TensorSpec("s", "string", (None,))), tuple(outputs))
    manifest = Manifest.model_validate(
        {
            "name": "m",
            "views": {"a": {"view": "v@1"}, "b": {"view": "v@1"}},
            "context": {"word": "string[9]"},
            "inputs": {"x": ["a.c"], "s": ["word"]},
        }
    )
    plan = compile_plan(manifest, CATALOGUE, signature, cast("Any", None))
    return Model("m", 7, (), plan, cast("Runner", None), signature)


def values(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> Array:
    seed = draw(st.integers(0, 2**32 - 1))
    noise = np.random.default_rng(seed).integers(0, 100, shape)
    if dtype == "string":
        return noise.astype(str).astype(object)
    return noise.astype(dtype)


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    specs = draw(
        st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=2)), min_size=1, max_size=3)
    )
    outputs = [TensorSpec(f"o{i}", dtype, (None, *shape)) for i, (dtype, shape) in enumerate(specs)]
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    rows = sum(sizes)
    requests = [
        Request(
            Waiting(),
            "m",
            draw(st.sampled_from(["", "id-1", "ü" * 80])),
            0.0,
            1.0,
            size,
            (),
            (),
            (),
            tuple(draw(st.sets(st.integers(0, len(outputs) - 1)))),
            draw(st.booleans()),
        )
        for size in sizes
    ]
    assembled = Assembled(
        {"x": values(draw, "float32", (rows, 1)), "s": values(draw, "string", (rows,))},
        tuple(values(draw, "uint8", (rows,)) for _ in range(2)),
        tuple(values(draw, "int64", (rows,)) - 1 for _ in range(2)),
        90,
        None,
    )
    arrays = [values(draw, spec.dtype, (rows, *spec.shape[1:])) for spec in outputs]  # type: ignore[arg-type]  # fixed here
    return Answers(model_of(outputs), requests, arrays, assembled, np.arange(len(requests), dtype=np.uint64))


@given(answers())
def test_encoded_is_what_was_answered(answers: Answers) -> None:
    start = 0
    for index, (request, body) in enumerate(Encoder(answers.model, b"prefix: ").encode(answers)):
        rows = slice(start, start + request.rows)
        start = rows.stop
        response = pb.PredictResponse.FromString(body)
        assert (response.model, response.version, response.variant) == ("m", 7, "default")
        assert response.prediction_id == b"prefix: " + index.to_bytes(8, "big")
        assert response.request_id == (request.request_id or response.prediction_id.hex())
        chosen = request.outputs or range(len(answers.outputs))
        assert [tensor.name for tensor in response.outputs] == [f"o{i}" for i in chosen]
        for position, tensor in zip(chosen, response.outputs, strict=True):
            expected = answers.outputs[position][rows]
            found = to_array(tensor, "o")
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        for position, view in enumerate(response.views):
            assert (view.alias, view.view) == ("ab"[position], "v@1")
            assert list(view.status) == answers.assembled.statuses[position][rows].tolist()
            assert list(view.age_ms) == answers.assembled.ages_ms()[position][rows].tolist()
        features = {tensor.name: to_array(tensor, "f") for tensor in response.features}
        if request.return_features:
            np.testing.assert_array_equal(features["a.c"], answers.assembled.inputs["x"][rows, 0])
            np.testing.assert_array_equal(features["word"], answers.assembled.inputs["s"][rows])
        else:
            assert not features
