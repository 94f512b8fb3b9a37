"""Parquet objects in S3-compatible storage: the sink that is a bucket.

An object is named by its delivery, so one that comes twice is written over by itself: readers see each row once.
"""

from collections.abc import Mapping
from datetime import timedelta
from io import BytesIO
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import BaseError
from obstore.store import from_url

from gateway.journal.sink import BATCH_BYTES, Delivery, SinkDown, path_of

_TIMEOUT_S = 30.0
_RETRIES = 2
"""A delivery is a request and so many more."""
_CONNECT_S_MAX = 5.0


class ObjectSink:
    """A bucket, and a prefix in it, by URL: `s3://bucket/prefix`."""

    def __init__(
        self,
        url: str,
        name: str = "objects",
        config: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """`config` is obstore's: `endpoint`, `region`, `access_key_id`, …; what is missing comes from the environment.

        Plain HTTP is spoken where the endpoint's URL says so.
        """
        self.name = name
        self.batch_bytes = BATCH_BYTES
        self.url = url
        plain = str((config or {}).get("endpoint", "")).startswith("http://")
        self._store = from_url(
            url,
            config=dict(config or {}),  # type: ignore[call-overload]  # which keys there are depends on the URL
            client_options={
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=min(timeout_s, _CONNECT_S_MAX)),
                "allow_http": plain,
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=timeout_s * (1 + _RETRIES))},
        )

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        """Put one object."""
        content = BytesIO()
        pq.write_table(pa.Table.from_batches([batch]), content, compression="zstd")
        try:
            obstore.put(self._store, path_of(delivery), content.getvalue())
        except (BaseError, OSError) as error:
            raise SinkDown(f"{self.url} does not take an object: {error}") from error
        return 0

    def close(self) -> None:
        """No connection is held that would have to be closed."""
