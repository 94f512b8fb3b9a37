"""The settings of sinks: what they take, and what they say about what they do not take."""

from pathlib import Path
from typing import Any

import pytest

from featureclient.schema import ConfigError
from gateway.journal.options import JournalOptions
from gateway.journal.sinks import KafkaSinkOptions, NotSet, SinkOptions, missing, open_sink
from gateway.server import settings

SITE = Path(__file__).parents[3] / "examples/flights"


def load(tmp_path: Path, sinks: str) -> JournalOptions:
    path = tmp_path / "headrace.yaml"
    path.write_text(
        f"catalogue: {SITE}/features.yaml\nmodels: {tmp_path}\njournal:\n  enabled: true\n  sinks:\n{sinks}"
    )
    return settings.load(path).journal


def test_every_kind_is_read_from_the_settings(tmp_path: Path) -> None:
    options = load(
        tmp_path,
        """
    lake: {s3: {url: s3://bucket/served, endpoint: "https://minio:9000"}, spill_bytes_max: 1000}
    copy: {parquet: {path: /mnt/served}}
    stream: {redis: {url: redis://cache:6379/0, format: arrow, password_env: SINK_PASSWORD}}
    bus: {kafka: {servers: "kafka:9092", key_by: user, config: {ssl.ca.location: /etc/ca.pem}}}
    audit: {cloudevents: {url: http://broker/default, mode: batch}}
""",
    )
    assert {name: sink.kind for name, sink in options.sinks.items()} == {
        "lake": "s3",
        "copy": "parquet",
        "stream": "redis",
        "bus": "kafka",
        "audit": "cloudevents",
    }
    assert options.sinks["lake"].spill_bytes_max == 1000
    assert options.sinks["bus"].kafka == KafkaSinkOptions(
        "kafka:9092", key_by="user", config={"ssl.ca.location": "/etc/ca.pem"}
    )


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ("a: {}", "exactly one of"),
        ("a: {parquet: {path: /x}, redis: {url: 'redis://x'}}", "exactly one of"),
        ("a: {parquet: {path: x}}", "absolute"),
        ("A b: {parquet: {path: /x}}", "is no name"),
        ("a: {redis: {url: 'http://x'}}", "redis://"),
        ("a: {redis: {url: 'redis://user:secret@host'}}", "must not have the password"),
        ("a: {redis: {url: 'redis://h', format: xml}}", "json"),
        ("a: {kafka: {servers: h, config: {acks: '0'}}}", "acks"),
        ("a: {cloudevents: {url: 'ftp://x'}}", "http://"),
        ("a: {cloudevents: {url: 'http://x', retries: -1}}", "retries"),
        ("a: {s3: {url: 'gs://x'}}", "s3://"),
        ("a: {s3: {url: 's3://x', timeout_s: 0}}", "above 0"),
        ("a: {nats: {url: x}}", "is not known"),
        ("a: {parquet: {path: /x}, spill_bytes_max: 100000000000}", "disk_bytes_max"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, sink: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, f"    {sink}\n")


def test_what_is_missing_is_known_before_a_sink_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = load(tmp_path, "    a: {redis: {url: 'redis://h', password_env: HEADRACE_TEST_SECRET}}\n")
    monkeypatch.delenv("HEADRACE_TEST_SECRET", raising=False)
    (said,) = missing(options.sinks)
    assert said.startswith("journal.sinks.a names the environment variable HEADRACE_TEST_SECRET")
    with pytest.raises(NotSet):
        open_sink("a", options.sinks["a"])
    monkeypatch.setenv("HEADRACE_TEST_SECRET", "x")
    assert missing(options.sinks) == []
    open_sink("a", options.sinks["a"]).close()


def test_a_sink_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    sinks: Any = {"bus": SinkOptions(kafka=KafkaSinkOptions("h:9092"))}
    monkeypatch.setattr("gateway.journal.sinks.find_spec", lambda _name: None)
    assert missing(sinks) == ["journal.sinks.bus needs the extra `kafka`: pip install 'headrace[kafka]'"]
