"""What callers write, brought into a column's dtype, with the rows that cannot be named.

    Arrow column, array, masked array, list  ->  `given`: one array and where it is null
    that and a DType                         ->  `convert`: elements in the dtype, nulls, bad rows with why

Invariants: a value is stored exactly or refused, with one exception, rounding a float to a narrower one. NaN is a
value and not a null; null is None, a masked element, NaT, or a null of Arrow. A wrong kind of column (text for numbers)
is one ColumnError; a wrong value is a bad row.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featureclient.schema import DType
from featureclient.schema.dtype import string_trouble

Bools = npt.NDArray[np.bool_]


class ColumnError(ValueError):
    """The column as a whole cannot be of the dtype."""


class Given(NamedTuple):
    """A column as it came: [rows] or [rows, length], and where it is null (None: nowhere)."""

    values: npt.NDArray[Any]
    null: Bools | None = None


class Converted(NamedTuple):
    """A column in its dtype. `values` is [rows] or [rows, length]; those of null and bad rows mean nothing."""

    values: npt.NDArray[Any]
    null: Bools | None
    bad: dict[int, str]


def given(values: object) -> Given:
    """Take a column in whatever form it comes."""
    if type(values).__module__.partition(".")[0] == "pyarrow":
        return _from_arrow(values)
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        return Given(np.asarray(values.data), _whole_rows(mask))
    if isinstance(values, np.ndarray):
        return Given(values)
    if hasattr(values, "to_numpy"):  # a pandas or polars series
        return Given(np.asarray(values.to_numpy()))
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise ColumnError(f"a column is a sequence of values, not {type(values).__name__}")
    return Given(_array_of(list(values)))


def convert(dtype: DType, column: Given) -> Converted:
    """Bring a column into its dtype. Raises ColumnError when no row of it could be."""
    values = column.values
    if values.dtype == object and values.ndim == 1:
        return _objects(dtype, values, column.null)
    if values.shape[1:] != (() if dtype.length is None else (dtype.length,)):
        raise ColumnError(f"an array of shape {list(values.shape)} for a column of {dtype}")
    null = column.null
    if dtype.kind == "string":
        return _strings(dtype, values, null)
    if dtype.kind == "bool":
        if values.dtype.kind != "b":
            raise ColumnError(f"{values.dtype} values for a column of {dtype}")
        return Converted(values, null, {})
    if values.dtype.kind == "M":
        return _times(dtype, values, null)
    return _numbers(dtype, values, null)


def _array_of(values: list[Any]) -> npt.NDArray[Any]:
    """A list as an array; as one of objects where numpy would guess or refuse (None, ragged rows, mixed types)."""
    if not values:
        return np.empty(0, object)
    kinds = set(map(type, values))
    if len(kinds) == 1 and kinds <= {float, bool, str}:
        # Strings stay objects: numpy drops their trailing NULs, which have to be refused.
        return np.array(values, object if kinds == {str} else None)
    if all(isinstance(one, list | tuple | np.ndarray) for one in values):
        try:
            stacked = np.array(values)
        except ValueError:
            pass
        else:
            if stacked.ndim > 1 and stacked.dtype.kind in "iuf":
                return stacked
    objects = np.empty(len(values), object)
    objects[:] = values
    return objects


def _whole_rows(mask: Bools) -> Bools:
    """A vector is null when all of its elements are."""
    return np.asarray(mask.all(axis=tuple(range(1, mask.ndim))))


def _numbers(dtype: DType, values: npt.NDArray[Any], null: Bools | None) -> Converted:
    if values.dtype.kind not in "iuf":
        raise ColumnError(f"{values.dtype} values for a column of {dtype}")
    target = dtype.numpy
    if values.dtype == target:
        return Converted(values, null, {})
    with np.errstate(all="ignore"):
        if target.kind == "f":
            made = values.astype(target)
            if values.dtype.kind == "f":
                wrong = np.isfinite(values) & ~np.isfinite(made)
            else:
                # Exact is what comes back the same. From 2**63 on nothing does: the cast back has no int for it.
                beyond = ~(made.astype(np.float64) < 2.0**63)
                wrong = beyond | (made.astype(values.dtype) != values)
        else:
            bounds = np.iinfo(target)
            if values.dtype.kind == "f":
                wide = values.astype(np.float64)
                wrong = ~((wide == np.floor(wide)) & (wide >= float(bounds.min)) & (wide < float(bounds.max) + 1))
            else:
                wrong = (values < bounds.min) | (values > bounds.max)
            made = np.where(wrong, 0, values).astype(target)
    return Converted(made, null, _bad(wrong, null, values, dtype))


def _bad(wrong: Bools, null: Bools | None, values: npt.NDArray[Any], dtype: DType) -> dict[int, str]:
    rows = wrong if wrong.ndim == 1 else wrong.any(axis=1)
    if null is not None:
        rows = rows & ~null
    bad = {}
    for row in np.flatnonzero(rows).tolist():
        value = values[row] if values.ndim == 1 else values[row][wrong[row]][0]
        bad[row] = f"{value} cannot be stored as {dtype.kind}"
    return bad


def _times(dtype: DType, values: npt.NDArray[Any], null: Bools | None) -> Converted:
    if dtype.kind != "timestamp":
        raise ColumnError(f"{values.dtype} values for a column of {dtype}")
    nowhen = np.isnat(values)
    if nowhen.any():
        null = nowhen if null is None else null | nowhen
    return Converted(values.astype("datetime64[ms]").astype(np.int64), null, {})


def _strings(dtype: DType, values: npt.NDArray[Any], null: Bools | None) -> Converted:
    if values.dtype.kind == "S":
        raise ColumnError("bytes for a column of strings: decode them first")
    if values.dtype.kind not in "UT":
        raise ColumnError(f"{values.dtype} values for a column of {dtype}")
    return _objects(dtype, values.astype(object), null)


def _objects(dtype: DType, values: npt.NDArray[Any], null: Bools | None) -> Converted:
    """Value by value: slower, and able to say which one is wrong."""
    missing = np.fromiter((one is None or one is np.ma.masked for one in values), np.bool_, len(values))
    null = missing if null is None else null | missing
    convert_one = _string_of if dtype.kind == "string" else _value_of
    made, bad = _one_by_one(dtype, values, null, convert_one)
    return Converted(made, null if null.any() else None, bad)


def _one_by_one(
    dtype: DType, values: npt.NDArray[Any], null: Bools, convert_one: Callable[[DType, Any], Any]
) -> tuple[npt.NDArray[Any], dict[int, str]]:
    shape = (len(values),) if dtype.length is None else (len(values), dtype.length)
    made = np.zeros(shape, dtype.numpy)
    bad = {}
    for row, (one, is_null) in enumerate(zip(values, null.tolist(), strict=True)):
        if is_null:
            continue
        try:
            made[row] = convert_one(dtype, one)
        except ValueError as error:
            bad[row] = str(error)
    return made, bad


def _string_of(dtype: DType, one: Any) -> bytes:
    if not isinstance(one, str):
        raise ValueError(f"{one!r} is not a string")
    why = string_trouble(one, dtype.bytes_max or 0)
    if why:
        raise ValueError(why)
    return one.encode()


def _value_of(dtype: DType, one: Any) -> Any:
    if isinstance(one, np.datetime64):
        one = one.astype("datetime64[ms]").item()
    elif isinstance(one, np.generic):
        one = one.item()
    elif isinstance(one, np.ndarray):
        one = one.tolist()
    if dtype.kind == "timestamp" and not isinstance(one, datetime | int):
        raise ValueError(f"{one!r} is not a timestamp")
    if dtype.length is not None and not isinstance(one, Sequence):
        raise ValueError(f"{one!r} is not a vector of {dtype.length}")
    return dtype.value_of(one)


def _from_arrow(column: Any) -> Given:
    """An Arrow array or chunked array. Its nulls become the mask."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if pa.types.is_null(kind):
        return Given(np.full(len(column), None, object))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        whole = column.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return Given(whole.fill_null(0).to_numpy().view("datetime64[ms]"), null)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return Given(column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False), null)
    if pa.types.is_floating(kind):
        # Null floats come out as NaN here; the mask keeps them apart from NaNs that are values.
        return Given(column.to_numpy(zero_copy_only=False), null)
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _from_arrow_lists(column, null)
    return Given(column.to_numpy(zero_copy_only=False).astype(object), null)


def _from_arrow_lists(column: Any, null: Bools | None) -> Given:
    """Lists of one length without nulls inside are a matrix; any others go value by value."""
    import pyarrow.compute as pc

    inside = column.flatten()
    lengths = set(pc.list_value_length(column).drop_null().to_numpy(zero_copy_only=False).tolist())
    numbers = inside.to_numpy(zero_copy_only=False)
    if len(lengths) != 1 or inside.null_count or numbers.dtype.kind not in "iuf":
        objects = np.empty(len(column), object)
        objects[:] = column.to_pylist()
        return Given(objects, null)
    length = int(lengths.pop())
    if null is None:
        return Given(numbers.reshape(len(column), length))
    matrix = np.zeros((len(column), length), numbers.dtype)
    matrix[~null] = numbers.reshape(-1, length)
    return Given(matrix, null)
