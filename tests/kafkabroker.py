"""A real Kafka for tests: one broker that is its own controller, on a port of its own.

The jars come from Maven Central, once, into `.cache/` of the repository. Where java or mvn is missing, the tests that
ask fail and say so.
"""

import logging
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from gateway.journal.locks import locked

VERSION = "3.9.1"
CACHE = Path(__file__).parents[1] / ".cache"
FETCH_S_MAX = 300.0
START_S_MAX = 60.0
READ_S_MAX = 30.0
_JAVA = ("-Xms64m", "-Xmx256m", "-XX:TieredStopAtLevel=1")
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion><groupId>headrace</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
  </dependencies>
</project>
"""
_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
"""
_CLUSTER_ID = "aGVhZHJhY2UtdGVzdC1rYQ"


def jars() -> Path:
    """The folder of the jars, fetched when they are not there."""
    folder = CACHE / f"kafka-{VERSION}"
    with locked(CACHE / "lock"):
        if folder.is_dir():
            return folder
        if shutil.which("mvn") is None:
            pytest.fail("mvn is not there to fetch Kafka's jars: apt-get install maven")
        unfinished = CACHE / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        (unfinished / "pom.xml").write_text(_POM)
        command = ["mvn", "-q", "-B", "-f", str(unfinished / "pom.xml"), f"-Dmaven.repo.local={unfinished}/repository"]
        command += ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}/jars"]
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S_MAX, check=False)
        if fetched.returncode:
            pytest.fail(f"Kafka's jars cannot be fetched from Maven Central:\n{fetched.stdout}{fetched.stderr}")
        (unfinished / "jars").rename(folder)
        shutil.rmtree(unfinished)
        return folder


class KafkaBroker:
    """To be killed, frozen and started again with what it had."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("java") is None:
            pytest.fail("java is not there to run Kafka: apt-get install default-jre-headless")
        self._jars = jars()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port, controller = _free_port(), _free_port()
        self._settings = folder / "server.properties"
        self._settings.write_text(_PROPERTIES.format(port=self.port, controller=controller, folder=folder))
        formatting = ["format", "-t", _CLUSTER_ID, "-c", str(self._settings)]
        subprocess.run(
            self._java("kafka.tools.StorageTool", *formatting), check=True, capture_output=True, timeout=START_S_MAX
        )

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        log = self._folder / "log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self._settings)), stdout=out, stderr=subprocess.STDOUT
            )
        give_up_at = time.monotonic() + START_S_MAX
        admin = AdminClient({"bootstrap.servers": self.servers, "logger": _quiet()})
        while True:
            assert self._process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < give_up_at, log.read_text()[-4000:]
            try:
                if admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def make_topic(self, name: str, partitions: int = 1, **config: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.servers})
        made = admin.create_topics([NewTopic(name, partitions, 1, config=config)])
        made[name].result(READ_S_MAX)

    def read(self, topic: str) -> list[Message]:
        """All messages of a topic, partition by partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": "test",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        try:
            numbers = consumer.list_topics(topic, READ_S_MAX).topics[topic].partitions
            return [
                message for number in sorted(numbers) for message in _read(consumer, TopicPartition(topic, number, 0))
            ]
        finally:
            consumer.close()

    def _java(self, main: str, *arguments: str) -> list[str]:
        return ["java", *_JAVA, "-cp", f"{self._jars}/*", main, *arguments]


def _read(consumer: Consumer, partition: TopicPartition) -> Iterator[Message]:
    _, end = consumer.get_watermark_offsets(partition, READ_S_MAX)
    consumer.assign([partition])
    give_up_at = time.monotonic() + READ_S_MAX
    at = 0
    while at < end:
        assert time.monotonic() < give_up_at
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            at = (message.offset() or 0) + 1
            yield message


@contextmanager
def running_kafka(folder: Path) -> Iterator[KafkaBroker]:
    """A broker, ended whatever happens."""
    broker = KafkaBroker(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _quiet() -> logging.Logger:
    """Where librdkafka complains about a broker that is not there yet."""
    logger = logging.getLogger("tests.kafka")
    logger.setLevel(logging.CRITICAL)
    return logger
