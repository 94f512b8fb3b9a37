"""Tensors between protobuf and numpy. Little-endian on the wire; strings as in the Open Inference Protocol."""

import math
import sys
from collections.abc import Iterable

import numpy as np

from gateway.records.errors import InvalidRequest
from gateway.records.request import Array
from headrace.v1 import tensor_pb2 as pb

if sys.byteorder != "little":  # pragma: no cover - nothing we run on
    raise ImportError("headrace runs on little-endian machines only")

NUMPY: dict[int, np.dtype[np.generic]] = {
    pb.DTYPE_BOOL: np.dtype(np.bool_),
    pb.DTYPE_INT8: np.dtype(np.int8),
    pb.DTYPE_INT16: np.dtype(np.int16),
    pb.DTYPE_INT32: np.dtype(np.int32),
    pb.DTYPE_INT64: np.dtype(np.int64),
    pb.DTYPE_UINT8: np.dtype(np.uint8),
    pb.DTYPE_UINT16: np.dtype(np.uint16),
    pb.DTYPE_UINT32: np.dtype(np.uint32),
    pb.DTYPE_UINT64: np.dtype(np.uint64),
    pb.DTYPE_FLOAT16: np.dtype(np.float16),
    pb.DTYPE_FLOAT32: np.dtype(np.float32),
    pb.DTYPE_FLOAT64: np.dtype(np.float64),
    pb.DTYPE_STRING: np.dtype(object),
}
DTYPES = {dtype: number for number, dtype in NUMPY.items()}
DIMENSIONS_MAX = 8
"""Dimensions of a tensor. Without a bound, multiplying the sizes of a hostile shape takes minutes."""
_CONTENTS = {"b": "bools", "i": "ints", "u": "uints", "f": "floats", "O": "strings"}


def to_array(tensor: pb.Tensor, field: str, strings_max: int | None = None) -> Array:
    """The tensor as an array of at least one dimension, or `InvalidRequest`. Numbers share the message's bytes.

    More than `strings_max` strings are refused before they are decoded: a string costs a hundred times its bytes.
    """
    dtype = NUMPY.get(tensor.dtype)
    if dtype is None:
        raise InvalidRequest(f"{field} has the dtype {tensor.dtype}, which is unspecified or unknown", field=field)
    has_raw, has_contents = tensor.HasField("raw"), tensor.HasField("contents")
    if has_raw == has_contents:
        what = "both raw and contents" if has_raw else "neither raw nor contents"
        raise InvalidRequest(f"{field} has {what}; it needs exactly one of them", field=field)
    if len(tensor.shape) > DIMENSIONS_MAX:
        raise InvalidRequest(f"{field} has {len(tensor.shape)} dimensions, the most is {DIMENSIONS_MAX}", field=field)
    shape = tuple(tensor.shape)
    flat = from_raw(tensor.raw, dtype, field, strings_max) if has_raw else _from_contents(tensor.contents, dtype, field)
    if not shape:
        return flat
    if min(shape) < 0 or math.prod(shape) != flat.size:
        raise InvalidRequest(f"{field} has {flat.size} elements, its shape is {list(shape)}", field=field)
    try:
        return flat.reshape(shape)
    except ValueError as error:  # a dimension of 0 beside one that no array can have
        raise InvalidRequest(f"{field} cannot have the shape {list(shape)}", field=field) from error


def from_array(name: str, array: Array) -> pb.Tensor:
    """The array as a tensor with raw contents."""
    return pb.Tensor(name=name, dtype=dtype_of(array.dtype), shape=array.shape, raw=to_raw(array))  # type: ignore[arg-type]  # the stub wants the enum's type


def dtype_of(dtype: np.dtype[np.generic]) -> int:
    """The wire's number of a numpy dtype; every kind of string is STRING."""
    return pb.DTYPE_STRING if dtype.kind in "OUS" else DTYPES[dtype]


def to_raw(array: Array) -> bytes:
    """The elements in row-major order, little-endian; strings with their length in front."""
    return pack_strings(array.ravel().tolist()) if array.dtype.kind in "OUS" else array.tobytes()


def pack_strings(values: Iterable[str | bytes]) -> bytes:
    """Each value as its length in bytes (uint32) and its UTF-8 bytes."""
    parts: list[bytes] = []
    for value in values:
        encoded = value.encode() if isinstance(value, str) else value
        parts += (len(encoded).to_bytes(4, "little"), encoded)
    return b"".join(parts)


def from_raw(raw: bytes, dtype: np.dtype[np.generic], field: str, strings_max: int | None) -> Array:
    """The elements of raw contents, in a row; numbers share the bytes. Raises `InvalidRequest`."""
    if dtype.hasobject:
        return objects(_unpack_strings(raw, field, strings_max))
    if len(raw) % dtype.itemsize:
        raise InvalidRequest(f"{field} has {len(raw)} raw bytes, not a multiple of {dtype.itemsize}", field=field)
    if dtype.kind == "b" and raw.translate(None, b"\0\1"):
        raise InvalidRequest(f"{field} is BOOL and has a raw byte other than 0 and 1", field=field)
    return np.frombuffer(raw, dtype)


def _from_contents(contents: pb.TensorContents, dtype: np.dtype[np.generic], field: str) -> Array:
    wanted = "doubles" if dtype == np.float64 else _CONTENTS[dtype.kind]
    for descriptor, _ in contents.ListFields():
        if descriptor.name != wanted:
            raise InvalidRequest(f"{field} has contents.{descriptor.name}, its dtype needs {wanted}", field=field)
    # A list, because numpy takes a repeated field for a buffer and wraps what does not fit.
    values = list(getattr(contents, wanted))
    if dtype.hasobject:
        return objects(values)
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype)
    except (OverflowError, FloatingPointError):
        raise InvalidRequest(f"{field} has a value outside {dtype.name}", field=field) from None


def _unpack_strings(raw: bytes, field: str, strings_max: int | None) -> list[object]:
    values: list[object] = []
    at = 0
    while at < len(raw):
        if strings_max is not None and len(values) >= strings_max:
            raise InvalidRequest(f"{field} has more than {strings_max} strings", field=field)
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or at > len(raw):
            raise InvalidRequest(f"{field} is cut short: element {len(values)} is not all there", field=field)
        try:
            values.append(raw[start:at].decode())
        except UnicodeDecodeError:
            raise InvalidRequest(f"{field} has an element {len(values)} that is not UTF-8", field=field) from None
    return values


def objects(values: list[object]) -> Array:
    """Strings as an array."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
