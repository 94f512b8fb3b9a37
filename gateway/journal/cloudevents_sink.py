"""CloudEvents 1.0 over HTTP, as KServe's logger sends them: two for each prediction, its request and its response.

    rows of one prediction -> inputs and outputs as tensors of the Open Inference Protocol, in JSON
                           -> org.kubeflow.serving.inference.request and .response, both with the prediction's id
                           -> POST, with bounded retries

Invariants
- The pair (`type`, `id`) is the same whenever an event comes again.
- The inputs are the entity ids and the features that the model saw. Redacted columns are redacted here too.
- Answers of 400, 413, 415 and 422 mean that this event will never be taken: it is counted and not sent again. Every
  other answer but 2xx is an outage.
"""

import json
import platform
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from itertools import islice
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlsplit

import pyarrow as pa

from gateway.journal.messages import plain
from gateway.journal.schema import JournalSchema, metadata_of
from gateway.journal.sink import Delivery, SinkDown
from gateway.journal.sinks import CloudEventsSinkOptions

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
_BATCH_BYTES = 256 * 1024
_ANSWER_BYTES_MAX = 64 * 1024
_RETRY_WAIT_S = 0.2
"""The wait before the first retry; it doubles."""
_OK = range(200, 300)
_REFUSED = (400, 413, 415, 422)
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_DATATYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bool": "BOOL", "string": "BYTES"}
_DATATYPES |= {f"{kind}{bits}": f"{kind}{bits}".upper() for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


class Event(NamedTuple):
    """Attributes by name, and the data, which is JSON."""

    attributes: dict[str, str]
    data: dict[str, Any]
    rows: int
    """Rows of its prediction."""


class CloudEventsSink:
    """An HTTP server that takes events. One connection, kept open."""

    def __init__(
        self,
        options: CloudEventsSinkOptions,
        name: str = "cloudevents",
        token: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self.batch_bytes = _BATCH_BYTES
        self._options = options
        self._sleep = sleep
        self._url = urlsplit(options.url)
        self._target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._source = options.source or f"urn:headrace:{quote(platform.node(), safe='')}"
        self._connection: HTTPConnection | None = None

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        """Send the events of all predictions of a batch. Failures have no event."""
        if not delivery.model:
            return 0
        refused: dict[str, int] = {}
        for headers, body, rows in self._requests(events(batch, self._options, self._source)):
            if not self._taken(headers, body):
                refused |= rows
        return sum(refused.values())

    def _requests(self, made: Iterator[Event]) -> Iterator[tuple[Mapping[str, str], bytes, dict[str, int]]]:
        """Headers and body of each request, and the rows of the predictions in it."""
        if self._options.mode == "batch":
            while some := [*islice(made, self._options.batch_events_max)]:
                body = json.dumps([_structured(one) for one in some], allow_nan=False).encode()
                yield {"Content-Type": "application/cloudevents-batch+json"}, body, _rows(some)
            return
        for one in made:
            if self._options.mode == "structured":
                body = json.dumps(_structured(one), allow_nan=False).encode()
                yield {"Content-Type": "application/cloudevents+json"}, body, _rows([one])
            else:
                headers = {f"ce-{name}": quote(value, safe=_PRINTABLE) for name, value in one.attributes.items()}
                headers["Content-Type"] = headers.pop("ce-datacontenttype")
                yield headers, json.dumps(one.data, allow_nan=False).encode(), _rows([one])

    def _taken(self, headers: Mapping[str, str], body: bytes) -> bool:
        """POST until it is taken, or refused for good. Raises SinkDown."""
        why, cause = "", cast("Exception | None", None)
        for attempt in range(self._options.retries + 1):
            if attempt:
                self._sleep(_RETRY_WAIT_S * 2 ** (attempt - 1))
            try:
                status = self._post(headers, body)
            except (OSError, HTTPException) as error:
                self.close()
                why, cause = f"{type(error).__name__}: {error}", error
                continue
            if status in _OK:
                return True
            if status in _REFUSED:
                return False
            why = f"it answered {status}"
        raise SinkDown(f"{self._options.url} takes no events: {why}") from cause

    def _post(self, headers: Mapping[str, str], body: bytes) -> int:
        connection = self._connection or self._connect()
        connection.request("POST", self._target, body, {**headers, **self._headers})
        answer: HTTPResponse = connection.getresponse()
        # A connection is used again when its answer was read whole.
        if len(answer.read(_ANSWER_BYTES_MAX)) == _ANSWER_BYTES_MAX or answer.will_close:
            self.close()
        return answer.status

    def _connect(self) -> HTTPConnection:
        host, port, wait_s = self._url.hostname or "", self._url.port, self._options.timeout_s
        if self._url.scheme == "https":
            trusted = ssl.create_default_context(cafile=self._options.ca_file)
            self._connection = HTTPSConnection(host, port, timeout=wait_s, context=trusted)
        else:
            self._connection = HTTPConnection(host, port, timeout=wait_s)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def events(batch: pa.RecordBatch, options: CloudEventsSinkOptions, source: str) -> Iterator[Event]:
    """Two events of each prediction. Its rows stand side by side in the journal."""
    schema = metadata_of(batch.schema)
    ids = plain(batch.column("prediction_id"))
    times = plain(batch.column("time"))
    request_ids = plain(batch.column("request_id"))
    inputs, outputs = _tensors(batch, schema)
    first = 0
    while first < len(ids):
        end = first + 1
        while end < len(ids) and ids[end] == ids[first]:
            end += 1
        attributes = {
            "specversion": "1.0",
            "id": ids[first],
            "source": source,
            "time": times[first],
            "datacontenttype": "application/json",
            "inferenceservicename": options.service or schema.model,
            "component": "predictor",
            "endpoint": schema.variant,
            "modelversion": str(schema.version),
        }
        if options.namespace:
            attributes["namespace"] = options.namespace
        told: dict[str, Any] = {"id": ids[first]}
        if request_ids[first]:
            told["parameters"] = {"request_id": request_ids[first]}
        asked = told | {"inputs": [one.of(first, end) for one in inputs]}
        given = {"model_name": schema.model, "model_version": str(schema.version), **told}
        given["outputs"] = [one.of(first, end) for one in outputs]
        yield Event(attributes | {"type": REQUEST}, asked, end - first)
        yield Event(attributes | {"type": RESPONSE}, given, end - first)
        first = end


class _Tensor(NamedTuple):
    """A column of a batch."""

    name: str
    datatype: str
    values: list[Any]
    shapes: list[list[int]] | None
    """Of each row, where rows have no fixed size."""
    batched: bool

    def of(self, first: int, end: int) -> dict[str, Any]:
        """Its rows, as the Open Inference Protocol writes a tensor in JSON: flat, row by row."""
        rows = self.values[first:end]
        shape = [end - first]
        if rows and isinstance(rows[0], list):
            own = [len(rows[0])] if self.shapes is None else self.shapes[first]
            shape = [*shape, *own] if self.batched else own
            rows = [value for row in rows for value in row or ()]
        return {"name": self.name, "shape": shape, "datatype": self.datatype, "data": rows}


def _tensors(batch: pa.RecordBatch, schema: JournalSchema) -> tuple[list[_Tensor], list[_Tensor]]:
    """The inputs and the outputs. Columns that were left out on purpose are not there."""
    names = set(batch.schema.names)

    def tensor(column: str, name: str, element: str) -> _Tensor:
        shapes = batch.column(f"shape.{column}").to_pylist() if f"shape.{column}" in names else None
        return _Tensor(name, _DATATYPES.get(element, "BYTES"), plain(batch.column(column)), shapes, schema.batched)

    asked = [(f"entity.{name}", name, kind) for name, kind in schema.entities.items()]
    asked += [(f"f.{column.name}", column.name, column.element) for column in schema.columns]
    given = [(f"out.{spec.name}", spec.name, spec.dtype) for spec in schema.outputs]
    return (
        [tensor(*one) for one in asked if one[0] in names],
        [tensor(*one) for one in given if one[0] in names],
    )


def _rows(some: Iterable[Event]) -> dict[str, int]:
    return {one.attributes["id"]: one.rows for one in some}


def _structured(event: Event) -> dict[str, Any]:
    return {**event.attributes, "data": event.data}
