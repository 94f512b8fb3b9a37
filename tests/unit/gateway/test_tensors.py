"""Tensors: golden bytes, round trips, and everything malformed named with its field."""

import numpy as np
import pytest

from gateway.records.errors import InvalidRequest
from gateway.records.request import Array
from gateway.records.tensors import from_array, to_array
from headrace.v1 import tensor_pb2 as pb

ARRAYS = [
    np.array([True, False]),
    np.array([[1, -2], [3, 4]], np.int8),
    np.array([-(2**63), 2**63 - 1], np.int64),
    np.array([2**64 - 1], np.uint64),
    np.array([1.5, np.nan, -np.inf], np.float16),
    np.array([1.1], np.float32),
    np.array([[1.1]], np.float64),
    np.array(["", "ü", "a\0b"], object),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.dtype.name)
def test_round_trip(array: Array) -> None:
    tensor = pb.Tensor.FromString(from_array("t", array).SerializeToString())
    back = to_array(tensor, "t")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_strings_are_laid_out_as_in_the_open_inference_protocol() -> None:
    assert from_array("t", np.array(["ab", ""])).raw == b"\x02\0\0\0ab\0\0\0\0"


@pytest.mark.parametrize(
    ("contents", "dtype", "expected"),
    [
        (pb.TensorContents(bools=[True]), pb.DTYPE_BOOL, np.array([True])),
        (pb.TensorContents(ints=[-1]), pb.DTYPE_INT16, np.array([-1], np.int16)),
        (pb.TensorContents(uints=[1]), pb.DTYPE_UINT8, np.array([1], np.uint8)),
        (pb.TensorContents(floats=[0.5]), pb.DTYPE_FLOAT16, np.array([0.5], np.float16)),
        (pb.TensorContents(doubles=[0.5]), pb.DTYPE_FLOAT64, np.array([0.5])),
        (pb.TensorContents(strings=["x"]), pb.DTYPE_STRING, np.array(["x"], object)),
    ],
)
def test_typed_contents(contents: pb.TensorContents, dtype: pb.DType, expected: Array) -> None:
    array = to_array(pb.Tensor(dtype=dtype, contents=contents), "t")
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_more_strings_than_allowed_are_not_decoded() -> None:
    with pytest.raises(InvalidRequest, match="more than 3 strings"):
        to_array(pb.Tensor(dtype=pb.DTYPE_STRING, raw=b"\0\0\0\0" * 4), "t", strings_max=3)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (pb.Tensor(raw=b""), "unspecified"),
        (pb.Tensor(dtype=99, raw=b""), "unspecified or unknown"),  # type: ignore[arg-type]  # a newer client's dtype
        (pb.Tensor(dtype=pb.DTYPE_INT8), "neither raw nor contents"),
        (pb.Tensor(dtype=pb.DTYPE_INT8, raw=b"a", contents=pb.TensorContents(ints=[1])), "both raw and contents"),
        (
            pb.Tensor(dtype=pb.DTYPE_INT8, contents=pb.TensorContents(floats=[1])),
            "contents.floats, its dtype needs ints",
        ),
        (pb.Tensor(dtype=pb.DTYPE_INT8, contents=pb.TensorContents(ints=[128])), "outside int8"),
        (pb.Tensor(dtype=pb.DTYPE_FLOAT16, contents=pb.TensorContents(floats=[1e30])), "outside float16"),
        (pb.Tensor(dtype=pb.DTYPE_INT32, raw=b"abc"), "3 raw bytes, not a multiple of 4"),
        (pb.Tensor(dtype=pb.DTYPE_BOOL, raw=b"\2"), "a raw byte other than 0 and 1"),
        (pb.Tensor(dtype=pb.DTYPE_INT8, shape=[2, 2], raw=b"abc"), "3 elements, its shape is [2, 2]"),
        (pb.Tensor(dtype=pb.DTYPE_INT8, shape=[-1, -3], raw=b"abc"), "its shape is [-1, -3]"),
        (pb.Tensor(dtype=pb.DTYPE_INT8, shape=[2**62] * 50_000, raw=b"a"), "50000 dimensions, the most is 8"),
        (pb.Tensor(dtype=pb.DTYPE_INT8, shape=[1] * 65, raw=b"a"), "65 dimensions, the most is 8"),
        (
            pb.Tensor(dtype=pb.DTYPE_INT8, shape=[0, 2**62, 4], raw=b""),
            "cannot have the shape [0, 4611686018427387904, 4]",
        ),
        (pb.Tensor(dtype=pb.DTYPE_STRING, raw=b"\x05\0\0\0ab"), "cut short: element 0"),
        (pb.Tensor(dtype=pb.DTYPE_STRING, raw=b"\x05\0"), "cut short: element 0"),
        (pb.Tensor(dtype=pb.DTYPE_STRING, raw=b"\x01\0\0\0\xff"), "element 0 that is not UTF-8"),
    ],
)
def test_malformed(tensor: pb.Tensor, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_array(tensor, "context.c")
    assert said in str(caught.value)
    assert caught.value.field == "context.c"
