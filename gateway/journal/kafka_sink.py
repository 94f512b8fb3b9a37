"""Kafka: one message for each row, acknowledged by all replicas that are in sync before the journal lets go of it.

    messages -> produce, as many as the buffer holds -> flush, up to `timeout_s` -> all delivery reports are good, or
    SinkDown

Invariants
- The producer is idempotent: what librdkafka sends again by itself is there once, and in order.
- A delivery that failed, or took too long, ends its producer with all that it still holds. The next one begins with a
  new producer and sends the whole delivery again: the header `id` tells a consumer what it has already.
- A message that is too large for the topic is refused for good, and counted.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gateway.journal.messages import Message as RowMessage
from gateway.journal.messages import messages
from gateway.journal.sink import Delivery, SinkDown
from gateway.journal.sinks import KafkaSinkOptions

_BATCH_BYTES = 1024 * 1024
_END_S = 1.0
"""What a producer that failed has to report of what it held."""
_POLL_S = 0.1
_REFUSED = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG)


class KafkaSink:
    """Topics of one cluster."""

    def __init__(self, options: KafkaSinkOptions, name: str = "kafka", password: str = "") -> None:
        self.name = name
        self.batch_bytes = _BATCH_BYTES
        self._options = options
        self._config = _config(options, password)
        self._producer: Producer | None = None

    def deliver(self, batch: pa.RecordBatch, delivery: Delivery) -> int:
        """Send the rows and wait until they are acknowledged."""
        topic = self._options.topic if delivery.model else self._options.failures_topic
        if not topic:
            return 0
        round_ = _Round(time.monotonic() + self._options.timeout_s)
        try:
            if self._producer is None:
                self._producer = Producer(self._config)
            for one in messages(batch, delivery, self._options.key_by):
                self._produce(topic.replace("{model}", delivery.model), delivery.model, one, round_)
            left = self._producer.flush(max(round_.give_up_at - time.monotonic(), 0))
        except KafkaException as error:
            self._end()
            raise SinkDown(f"Kafka at {self._options.servers}: {error}") from error
        if left or round_.failed:
            self._end()
            raise SinkDown(
                f"Kafka at {self._options.servers} did not take {left + round_.failures} of {batch.num_rows} messages "
                f"of {topic}: {round_.failed or 'no acknowledgement in time'}"
            )
        return round_.refused

    def _produce(self, topic: str, model: str, one: RowMessage, round_: "_Round") -> None:
        """Put one message into the buffer, waiting for room."""
        assert self._producer is not None
        headers: list[tuple[str, str | bytes | None]] = [("id", one.id), ("model", model)]
        while True:
            try:
                self._producer.produce(
                    topic, one.value, one.key.encode() or None, on_delivery=round_.reported, headers=headers
                )
                self._producer.poll(0)
                return
            except BufferError:
                if time.monotonic() >= round_.give_up_at:
                    raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from None
                self._producer.poll(_POLL_S)
            except KafkaException as error:
                if error.args[0].code() not in _REFUSED:
                    raise
                round_.refused += 1
                return

    def _end(self) -> None:
        """Give up the producer and all that it holds."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaException):
                producer.purge()
                producer.flush(_END_S)

    def close(self) -> None:
        """Nothing waits: each delivery has waited for its acknowledgements."""
        self._end()


class _Round:
    """What the reports of one delivery say."""

    def __init__(self, give_up_at: float) -> None:
        self.give_up_at = give_up_at
        self.refused = self.failures = 0
        self.failed = ""

    def reported(self, error: KafkaError | None, _message: Message) -> None:
        """Called by librdkafka, in the thread that polls."""
        if error is None:
            return
        if error.code() in _REFUSED:
            self.refused += 1
            return
        self.failures += 1
        self.failed = self.failed or error.str()


def _config(options: KafkaSinkOptions, password: str) -> dict[str, str | int | float | bool | Callable[..., None]]:
    timeout_ms = int(options.timeout_s * 1000)
    config: dict[str, str | int | float | bool | Callable[..., None]] = {
        "client.id": "headrace",
        "linger.ms": 20,
        "compression.type": "zstd",
        **options.config,
        "bootstrap.servers": options.servers,
        "enable.idempotence": True,
        "acks": "all",
        "delivery.timeout.ms": timeout_ms,
        "socket.timeout.ms": min(timeout_ms, 60_000),
        "queue.buffering.max.kbytes": options.buffer_bytes_max // 1024,
        "security.protocol": options.security,
    }
    if options.security.startswith("sasl"):
        config |= {
            "sasl.mechanism": options.sasl_mechanism,
            "sasl.username": options.username,
            "sasl.password": password,
        }
    return config
