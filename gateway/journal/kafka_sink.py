"""Kafka: one message for each row, acknowledged by all replicas that are in sync before the journal lets go of it.

    messages -> produce, as many as the buffer holds -> flush, up to `timeout_s` -> all delivery reports are good, or
    SinkDown

Invariants
- The producer is idempotent: what librdkafka sends again by itself is there once, and in order.
- A delivery that failed, or took too long, ends its producer with all that it still holds. The next one begins with a
  new producer and sends the whole delivery again: the header `id` tells a consumer what it has already.
- A message that is too large for the topic is refused for good, and counted. Brokers measure what librdkafka puts
  together; so what they find too large is sent once more, each message by itself.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

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
        topic = topic.replace("{model}", delivery.model)
        give_up_at = time.monotonic() + self._options.timeout_s
        try:
            if self._producer is None:
                self._producer = Producer(self._config)
            made = messages(batch, delivery, self._options.key_by)
            refused = self._send(self._producer, topic, made, delivery, give_up_at)
            if refused:
                single = Producer(self._config | {"batch.num.messages": 1})
                try:
                    refused = self._send(single, topic, refused, delivery, give_up_at)
                finally:
                    _end(single)
        except KafkaException as error:
            self.close()
            raise SinkDown(f"Kafka at {self._options.servers}: {error}") from error
        except SinkDown:
            self.close()
            raise
        return len(refused)

    def _send(
        self, producer: Producer, topic: str, rows: Iterable[RowMessage], delivery: Delivery, give_up_at: float
    ) -> list[RowMessage]:
        """Send rows and wait for their reports; returns those that are too large."""
        reports = _Reports()
        for one in rows:
            _produce(producer, topic, one, delivery, reports, give_up_at)
        left = producer.flush(max(give_up_at - time.monotonic(), 0))
        if left or reports.failed:
            raise SinkDown(
                f"Kafka at {self._options.servers} did not take {left + reports.failures} messages of {topic}: "
                f"{reports.failed or 'no acknowledgement in time'}"
            )
        return reports.refused

    def close(self) -> None:
        """End the producer, with all that it still holds."""
        producer, self._producer = self._producer, None
        if producer is not None:
            _end(producer)


class _Reports:
    """What librdkafka says of the messages of one round."""

    def __init__(self) -> None:
        self.refused: list[RowMessage] = []
        self.failures = 0
        self.failed = ""

    def take(self, row: RowMessage, error: KafkaError | None, _message: Message | None = None) -> None:
        """Called by librdkafka, in the thread that polls."""
        if error is None:
            return
        if error.code() in _REFUSED:
            self.refused.append(row)
            return
        self.failures += 1
        self.failed = self.failed or error.str()


def _produce(  # noqa: PLR0917  # what a message needs
    producer: Producer, topic: str, row: RowMessage, delivery: Delivery, reports: _Reports, give_up_at: float
) -> None:
    """Put one message into the buffer, waiting for room."""
    headers: list[tuple[str, str | bytes | None]] = [("id", row.id), ("model", delivery.model)]
    while True:
        try:
            key = row.key.encode() or None
            producer.produce(topic, row.value, key, on_delivery=partial(reports.take, row), headers=headers)
            producer.poll(0)
            return
        except BufferError:
            if time.monotonic() >= give_up_at:
                raise SinkDown(f"Kafka takes messages of {topic} too slowly, or not at all") from None
            producer.poll(_POLL_S)
        except KafkaException as error:
            if error.args[0].code() not in _REFUSED:
                raise
            reports.take(row, error.args[0])
            return


def _end(producer: Producer) -> None:
    """Give up a producer and all that it holds."""
    with suppress(KafkaException):
        producer.purge()
        producer.flush(_END_S)


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
