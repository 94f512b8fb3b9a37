"""The settings of sinks, and sinks made of them. Needs nothing installed until one is opened.

    journal.sinks: {name: {kafka: {...}}}  ->  SinkOptions  ->  open_sink, in the process that delivers

Invariants
- A secret is never a setting: a setting names the environment variable, which is read where the sink is opened.
- What a sink needs installed is imported where it is opened.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gateway.journal.sink import Sink

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_EXTRAS = {"s3": ("obstore", "objects"), "kafka": ("confluent_kafka", "kafka")}
"""What a kind of sink needs besides the journal's own: the module, and the extra that installs it."""


@dataclass(frozen=True, slots=True)
class ParquetSinkOptions:
    """Parquet files in another folder, for example of a network file system."""

    path: Path
    """The folder. It has to be absolute."""

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise ValueError("path has to be absolute")


@dataclass(frozen=True, slots=True)
class ObjectSinkOptions:
    """Parquet objects in S3-compatible storage. Needs the extra `objects`."""

    url: str
    """The bucket and a prefix in it: `s3://bucket/prefix`."""
    endpoint: str = ""
    """Where the storage is, when it is not AWS: `https://minio:9000`. Plain HTTP where it says `http://`."""
    region: str = ""
    """The region. What is empty here comes from the usual `AWS_` variables."""
    access_key_id_env: str = ""
    """The environment variable that has the key's id."""
    secret_access_key_env: str = ""
    """The environment variable that has the secret key."""
    timeout_s: float = 30.0
    """The longest that one request may take; it is tried three times."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("s3://", "s3a://")):
            raise ValueError("url has to begin with s3://")
        _check_positive(timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class RedisSinkOptions:
    """A Redis stream, one entry for each row, or for each batch."""

    url: str
    """The server: `redis://host:6379/0`, `rediss://…` or `unix:///path`. Without a password."""
    username: str = ""
    """The user of Redis' ACL; empty: the default user."""
    password_env: str = ""
    """The environment variable that has the password."""
    stream: str = "headrace.predictions"
    """The stream's key. `{model}` stands for the model's name."""
    failures_stream: str = "headrace.failures"
    """The stream of requests that failed; empty: they are left out."""
    format: Literal["json", "arrow"] = "json"
    """`json`: an entry is a row. `arrow`: an entry is many rows as an Arrow IPC stream."""
    entries_max: int = 0
    """About how many entries a stream keeps (XADD MAXLEN ~), the newest. 0: 100,000 of JSON, 500 of Arrow."""
    timeout_s: float = 5.0
    """The longest wait for a connection, and for each piece of a reply."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("url has to begin with redis://, rediss:// or unix://")
        if re.match(r"\w+://[^/]*:[^/]*@", self.url):
            raise ValueError("url must not have the password; password_env names the variable that has it")
        if not self.stream:
            raise ValueError("stream must not be empty")
        if self.entries_max < 0:
            raise ValueError("entries_max must not be negative")
        _check_positive(timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class KafkaSinkOptions:
    """Topics of Kafka, one message for each row. Needs the extra `kafka`."""

    servers: str
    """The brokers to begin with: `host:9092,host:9092`."""
    topic: str = "headrace.predictions"
    """The topic. `{model}` stands for the model's name."""
    failures_topic: str = "headrace.failures"
    """The topic of requests that failed; empty: they are left out."""
    key_by: str = ""
    """What a message's key is, and so which partition: a request column, or `prediction_id`. Empty: the model's first
    request column. Rows with the same key keep their order."""
    timeout_s: float = 30.0
    """How long a delivery may take until it counts as an outage."""
    buffer_bytes_max: int = 32 * 1024 * 1024
    """Memory of messages that wait for their acknowledgement."""
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    """How the brokers are spoken to."""
    sasl_mechanism: str = "SCRAM-SHA-512"
    """With SASL: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."""
    username: str = ""
    """With SASL: the user."""
    password_env: str = ""
    """With SASL: the environment variable that has the password."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Further properties of librdkafka, for example `ssl.ca.location`."""

    def __post_init__(self) -> None:
        if not self.servers or not self.topic:
            raise ValueError("servers and topic must not be empty")
        ours = {"bootstrap.servers", "enable.idempotence", "acks", "sasl.password", "delivery.timeout.ms"}
        if taken := ours & set(self.config):
            raise ValueError(f"config must not have {', '.join(sorted(taken))}")
        if self.buffer_bytes_max < 1024 * 1024:
            raise ValueError("buffer_bytes_max must be at least 1 MiB")
        _check_positive(timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class CloudEventsSinkOptions:
    """Requests and responses as CloudEvents over HTTP, as KServe's logger sends them."""

    url: str
    """Where they are posted to: `http://broker/path` or `https://…`."""
    mode: Literal["binary", "structured", "batch"] = "binary"
    """`binary`: an event is a request, its attributes are headers, as KServe does. `structured`: an event is a request,
    and one JSON object. `batch`: a request has many events, as a JSON array."""
    batch_events_max: int = 200
    """With `batch`: events of one request."""
    source: str = ""
    """The attribute `source`, a URI. Empty: `urn:headrace:<host>`."""
    namespace: str = ""
    """The attribute `namespace`; empty: left out."""
    service: str = ""
    """The attribute `inferenceservicename`. Empty: the model's name."""
    token_env: str = ""
    """The environment variable that has a token, sent as `Authorization: Bearer …`."""
    ca_file: Path | None = None
    """Whom to trust with https, as PEM; otherwise whom the system trusts."""
    timeout_s: float = 10.0
    """The longest wait for a connection, and for each piece of an answer."""
    retries: int = 2
    """How often a request is sent again, before it counts as an outage."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]", self.url):
            raise ValueError("url has to begin with http:// or https://")
        if self.retries < 0 or self.batch_events_max < 1:
            raise ValueError("retries must not be negative, batch_events_max must be at least 1")
        if self.ca_file is not None and not self.ca_file.is_absolute():
            raise ValueError("ca_file has to be absolute")
        _check_positive(timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """A place that closed segments are delivered to. One of `parquet`, `s3`, `redis`, `kafka`, `cloudevents`."""

    parquet: ParquetSinkOptions | None = None
    """Files in another folder."""
    s3: ObjectSinkOptions | None = None
    """S3-compatible storage."""
    redis: RedisSinkOptions | None = None
    """A Redis stream."""
    kafka: KafkaSinkOptions | None = None
    """A topic of Kafka."""
    cloudevents: CloudEventsSinkOptions | None = None
    """CloudEvents over HTTP."""
    spill_bytes_max: int = 1024 * 1024 * 1024
    """Bytes of segments that may wait for the sink. Beyond it the oldest are dropped, and their rows counted."""
    retry_wait_max_s: float = 30.0
    """A sink that is down is tried again after a second, then twice as long each time, up to this."""

    def __post_init__(self) -> None:
        if len(self._given) != 1:
            raise ValueError("has to have exactly one of parquet, s3, redis, kafka, cloudevents")
        if self.spill_bytes_max < 1:
            raise ValueError("spill_bytes_max must be at least 1")
        _check_positive(retry_wait_max_s=self.retry_wait_max_s)

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return self._given[0]

    @property
    def _given(self) -> list[str]:
        return [kind for kind in ("parquet", "s3", "redis", "kafka", "cloudevents") if getattr(self, kind) is not None]


class NotSet(ValueError):
    """An environment variable that a sink's settings name is not there."""


def check_names(sinks: Mapping[str, SinkOptions]) -> None:
    """Raise ValueError for a name that cannot be a folder's and a label's."""
    for name in sinks:
        if not _NAME.fullmatch(name):
            raise ValueError(f"sinks: {name!r} is no name for one: up to 40 of a-z, 0-9, - and _")


def missing(sinks: Mapping[str, SinkOptions]) -> list[str]:
    """What has to be installed or set before the sinks can be opened: a sentence each."""
    return [f"journal.sinks.{name} {what}" for name, options in sinks.items() for what in _missing(options)]


def _missing(options: SinkOptions) -> Iterator[str]:
    module, extra = _EXTRAS.get(options.kind, ("", ""))
    if module and find_spec(module) is None:
        yield f"needs the extra `{extra}`: pip install 'headrace[{extra}]'"
    own = getattr(options, options.kind)
    for name in own.__dataclass_fields__:
        variable = getattr(own, name) if name.endswith("_env") else ""
        if variable and variable not in os.environ:
            yield f"names the environment variable {variable} ({name}), which is not set"


def open_sink(name: str, options: SinkOptions) -> "Sink":
    """Make a sink. Raises ImportError without its extra, NotSet without a secret; nothing is connected yet."""
    if options.parquet is not None:
        from gateway.journal.sink import ParquetSink

        return ParquetSink(options.parquet.path, name)
    if options.s3 is not None:
        return _object_sink(name, options.s3)
    if options.redis is not None:
        from gateway.journal.redis_sink import RedisSink

        return RedisSink(options.redis, name, secret(options.redis.password_env))
    if options.kafka is not None:
        from gateway.journal.kafka_sink import KafkaSink

        return KafkaSink(options.kafka, name, secret(options.kafka.password_env))
    assert options.cloudevents is not None
    from gateway.journal.cloudevents_sink import CloudEventsSink

    return CloudEventsSink(options.cloudevents, name, secret(options.cloudevents.token_env))


def _object_sink(name: str, options: ObjectSinkOptions) -> "Sink":
    from gateway.journal.object_sink import ObjectSink

    config = {
        "endpoint": options.endpoint,
        "region": options.region,
        "access_key_id": secret(options.access_key_id_env),
        "secret_access_key": secret(options.secret_access_key_env),
    }
    given = {key: value for key, value in config.items() if value}
    return ObjectSink(options.url, name, given, timeout_s=options.timeout_s)


def secret(variable: str) -> str:
    """The value of an environment variable; empty when none is named. Raises NotSet."""
    if not variable:
        return ""
    if variable not in os.environ:
        raise NotSet(f"the environment variable {variable} is not set")
    return os.environ[variable]


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be above 0")
