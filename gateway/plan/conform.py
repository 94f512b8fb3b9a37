"""Tensors of a request -> arrays in the dtype and shape of a column."""

import numpy as np

from featureclient.schema import DType
from gateway.plan.column import array_dtype
from gateway.records.errors import InvalidRequest
from gateway.records.request import Array


def conform(field: str, tensor: Array, dtype: DType) -> Array:
    """Check shape and dtype of a request's tensor against a column's; numbers may be cast where no meaning is lost."""
    wanted = tensor.shape[1:] == (dtype.length,) if dtype.length else tensor.ndim == 1
    if not wanted:
        shape = f"[rows, {dtype.length}]" if dtype.length else "[rows]"
        raise InvalidRequest(f"{field} has the shape {list(tensor.shape)}, it needs {shape}", field=field)
    target = array_dtype(dtype)
    if tensor.dtype == target:
        if dtype.kind == "string":
            encoded(field, tensor, dtype)
        return tensor
    source = "string" if tensor.dtype.hasobject else tensor.dtype.name
    if (
        tensor.dtype.hasobject
        or target.hasobject
        or (tensor.dtype.kind == "f" and target.kind != "f")
        or target.kind == "b"
    ):
        raise InvalidRequest(f"{field} has the dtype {source}, it needs {dtype}", field=field)
    with np.errstate(over="ignore"):  # looked for below
        cast = tensor.astype(target)
    lost = (
        not np.array_equal(cast, tensor) if target.kind == "i" else bool((np.isinf(cast) & np.isfinite(tensor)).any())
    )
    if lost:
        raise InvalidRequest(f"{field} has values that do not fit into {dtype}", field=field)
    return cast


def encoded(field: str, array: Array, dtype: DType) -> Array:
    """Strings as the block holds them, or an error where one does not fit: nothing is truncated."""
    values = [text.encode() for text in array.tolist()]
    if any(len(value) > dtype.numpy.itemsize or b"\0" in value for value in values):
        raise InvalidRequest(f"{field} has a string that does not fit into {dtype}", field=field)
    return np.array(values, dtype.numpy)
