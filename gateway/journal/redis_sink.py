"""Redis streams: the sink for consumers that want rows soon and do not want Kafka.

    json:   XADD <stream> MAXLEN ~ n * id <prediction id>:<row> model <name> row <JSON>
    arrow:  XADD <stream> MAXLEN ~ n * id <delivery id> model <name> arrow <IPC stream>

A stream forgets what is older than its `entries_max`, read or not. A delivery that was interrupted is sent again whole:
the field `id` tells a consumer what it has already.
"""

from collections.abc import Iterator
from itertools import islice
from typing import cast

import pyarrow as pa
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from gateway.journal.messages import messages
from gateway.journal.sink import Delivery, SinkDown
from gateway.journal.sinks import RedisSinkOptions

_ENTRIES_MAX = {"json": 100_000, "arrow": 500}
_PIECE_ENTRIES = 500
"""Entries that are sent before their replies are read."""
_BATCH_BYTES = 1024 * 1024


class RedisSink:
    """A stream of one server."""

    def __init__(self, options: RedisSinkOptions, name: str = "redis", password: str = "") -> None:
        self.name = name
        self.batch_bytes = _BATCH_BYTES
        self._options = options
        self._entries_max = options.entries_max or _ENTRIES_MAX[options.format]
        user = {"username": options.username} if options.username else {}
        self._redis = Redis.from_url(
            options.url,
            **user,
            **({"password": password} if password else {}),
            socket_timeout=options.timeout_s,
            socket_connect_timeout=options.timeout_s,
            retry=Retry(NoBackoff(), 0),  # the spill tries again
        )

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        """Add the rows, some hundred at a time."""
        stream = self._options.stream if delivery.model else self._options.failures_stream
        if not stream:
            return 0
        stream = stream.replace("{model}", delivery.model)
        entries = self._rows(batch, delivery) if self._options.format == "json" else self._whole(batch, delivery)
        try:
            while piece := [*islice(entries, _PIECE_ENTRIES)]:
                with self._redis.pipeline(transaction=False) as pipeline:
                    for entry in piece:
                        # Redis' own signature asks for a dictionary of a wider type.
                        pipeline.xadd(stream, cast("dict[bytes, bytes]", entry), maxlen=self._entries_max)  # type: ignore[arg-type]  # invariant there
                    pipeline.execute()
        except (RedisError, OSError) as error:
            raise SinkDown(f"Redis does not take entries of {stream}: {error}") from error
        return 0

    def _rows(self, batch: pa.RecordBatch, delivery: Delivery) -> Iterator[dict[str, str | bytes]]:
        for one in messages(batch, delivery):
            yield {"id": one.id, "model": delivery.model, "row": one.value}

    def _whole(self, batch: pa.RecordBatch, delivery: Delivery) -> Iterator[dict[str, str | bytes]]:
        content = pa.BufferOutputStream()
        with pa.ipc.new_stream(content, batch.schema) as writer:
            writer.write_batch(batch)
        yield {"id": delivery.id, "model": delivery.model, "arrow": content.getvalue().to_pybytes()}

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
