"""The datatypes of the Open Inference Protocol, and which field of the contents holds their elements."""

from typing import NamedTuple

import numpy as np

from gateway.records.errors import InvalidRequest


class Datatype(NamedTuple):
    """A datatype of the protocol."""

    name: str
    """As in a tensor: `FP32`."""
    config: str
    """As in a model's configuration: `TYPE_FP32`."""
    dtype: np.dtype[np.generic]
    contents: str
    """The field of InferTensorContents; empty where there is none."""


_TABLE = (
    ("BOOL", "bool", "bool_contents"),
    ("INT8", "int8", "int_contents"),
    ("INT16", "int16", "int_contents"),
    ("INT32", "int32", "int_contents"),
    ("INT64", "int64", "int64_contents"),
    ("UINT8", "uint8", "uint_contents"),
    ("UINT16", "uint16", "uint_contents"),
    ("UINT32", "uint32", "uint_contents"),
    ("UINT64", "uint64", "uint64_contents"),
    ("FP16", "float16", ""),
    ("FP32", "float32", "fp32_contents"),
    ("FP64", "float64", "fp64_contents"),
    ("BYTES", "string", "bytes_contents"),
)
BY_SIGNATURE = {
    dtype: Datatype(
        name,
        "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}",
        np.dtype(object if dtype == "string" else dtype),
        contents,
    )
    for name, dtype, contents in _TABLE
}
"""By the name in a graph's signature: a numpy dtype's, or `string`."""
BY_NAME = {datatype.name: datatype for datatype in BY_SIGNATURE.values()}
BY_DTYPE = {datatype.dtype: datatype for datatype in BY_SIGNATURE.values()}


def of_name(name: str, field: str) -> Datatype:
    """The datatype of a tensor in a request, or `InvalidRequest`."""
    datatype = BY_NAME.get(name)
    if datatype is None:
        raise InvalidRequest(
            f"{field} has the datatype {name[:32]!r}, which is unknown (there are: {', '.join(BY_NAME)})", field=field
        )
    return datatype


def of_array(dtype: np.dtype[np.generic]) -> Datatype:
    """The datatype of an array; every kind of string is BYTES."""
    return BY_NAME["BYTES"] if dtype.kind in "OUS" else BY_DTYPE[dtype]
