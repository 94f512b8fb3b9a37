"""Rows of the journal as messages: what sinks send that take one row at a time.

    batch -> columns as plain values -> one JSON object a row, an id and a key

Invariants
- A row has the same id whenever it is sent: `<prediction id in hexadecimal>:<row>`.
- The JSON is JSON: bytes are hexadecimal digits, times are RFC 3339, and the numbers that JSON does not have are the
  strings `NaN`, `Infinity` and `-Infinity`. What is null is left out.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gateway.journal.schema import metadata_of
from gateway.journal.sink import Delivery

PREDICTION_ID = "prediction_id"
_ENTITY = "entity."


class Message(NamedTuple):
    """One row. `key` is text: whose rows keep their order; empty where there is none."""

    id: str
    key: str
    value: bytes
    """JSON in UTF-8."""


def messages(batch: pa.RecordBatch, delivery: Delivery, key_by: str = "") -> Iterator[Message]:
    """The rows of a batch. `key_by` is a request column or `prediction_id`; without it, the first request column."""
    names = batch.schema.names
    columns = [plain(column) for column in batch.columns]
    of_all: dict[str, Any] = {}
    if delivery.model:
        schema = metadata_of(batch.schema)
        of_all = {"model": schema.model, "version": schema.version, "variant": schema.variant}
    key = _key(names, key_by)
    for number, values in enumerate(zip(*columns, strict=True)):
        row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        named = f"{row[PREDICTION_ID]}:{row['row']}" if PREDICTION_ID in row else f"{delivery.id}:{number}"
        value = json.dumps(of_all | row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        yield Message(named, str(row.get(key, "")), value.encode())


def plain(column: pa.Array) -> list[Any]:
    """Values as JSON has them."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        texts = pc.strftime(column.cast(pa.timestamp("ms")), format="%Y-%m-%dT%H:%M:%S")
        return [None if text is None else f"{text}Z" for text in texts.to_pylist()]
    values: list[Any] = column.to_pylist()
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_boolean(kind):
        return values
    return values if _all_finite(column) else [_plain(value) for value in values]


def _key(names: list[str], key_by: str) -> str:
    if key_by and f"{_ENTITY}{key_by}" in names:
        return f"{_ENTITY}{key_by}"
    entities = [name for name in names if name.startswith(_ENTITY)]
    return PREDICTION_ID if key_by == PREDICTION_ID or not entities else entities[0]


def _all_finite(column: pa.Array) -> bool:
    """Whether all are numbers that JSON has. Looks at floats and lists of them only."""
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return pa.types.is_floating(column.type) and bool(pc.all(pc.is_finite(column)).as_py() is not False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value
