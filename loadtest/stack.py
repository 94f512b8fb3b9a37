"""The servers of a load test, one context manager each: Redis with its rows, Headrace, the baseline, the echoes.

Both servers read the same features from the same Redis, each in its own layout: Headrace's rows are written by
`featureclient`, the baseline's are 200 bytes of float32 under `p:user:N`.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.server.settings import Settings
from loadtest import workload
from loadtest.baseline.handwritten import KEY_PREFIX
from loadtest.processes import DidNotStart, Running, free_port, running

DEFAULT_TRANSPORT: str = Settings.model_fields["transport"].default
"""What a gateway takes when its settings do not say."""
WRITE_ROWS = 2_000
READY_S_MAX = 60.0
_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for `localhost`, signed by itself; both files are PEM."""

    file: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """A fresh ECDSA P-256 certificate, valid for a day."""
    certificate = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(certificate.key), "-out", str(certificate.file)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


_HEADRACE_CONFIG = """\
transport: {transport}
grpc: {{listen: ["127.0.0.1:{grpc_port}"]}}
http: {{listen: "127.0.0.1:{http_port}"}}
catalogue: {catalogue}
models: {models}
store: {{url: "redis://127.0.0.1:{redis_port}/0"}}
features: {{cache: {{enabled: {cache}}}}}
pipeline: {{store_timeout_ms: 1000}}
"""


def redis_url(port: int) -> str:
    """The address of the load test's Redis."""
    return f"redis://127.0.0.1:{port}/0"


def load_rows(redis_port: int) -> None:
    """Writes the features of all users, for both servers."""
    asyncio.run(_load_headrace_rows(redis_port))
    _load_baseline_rows(redis_port)


async def _load_headrace_rows(redis_port: int) -> None:
    matrix = workload.feature_matrix()
    columns = {name: matrix[:, i] for i, name in enumerate(workload.column_names())}
    ids = [workload.entity_id(user) for user in range(workload.USERS)]
    catalogue = Catalogue.load(workload.CATALOGUE_FILE)
    store = RedisStore(RedisOptions(url=redis_url(redis_port), timeout_s=30))
    async with FeatureClient(catalogue, store) as client:
        for start in range(0, workload.USERS, WRITE_ROWS):
            rows = slice(start, start + WRITE_ROWS)
            block = {workload.JOIN_KEY: ids[rows]} | {name: values[rows] for name, values in columns.items()}
            await client.write(workload.VIEW, block)


def _load_baseline_rows(redis_port: int) -> None:
    with redis.Redis(port=redis_port) as client:
        pipeline = client.pipeline(transaction=False)
        for user, row in enumerate(workload.feature_matrix()):
            pipeline.set(KEY_PREFIX + workload.entity_id(user), row.tobytes())
        pipeline.execute()


@contextmanager
def running_headrace(
    name: str,
    *,
    transport: str,
    cache: bool,
    redis_port: int,
    folder: Path,
    core: int | None = None,
    port: int | None = None,
    models: Path = workload.MODELS_FOLDER,
    more: str = "",
) -> Iterator[Running]:
    """Headrace with the benchmark's catalogue and model, everything else as it is set by default, or by `more` YAML.

    But for the budget of a read: past 50 ms Headrace answers with defaults, which the benchmark counts as a failure.
    The hand-written server waits for as long as it takes.
    """
    port = port or free_port()
    config = folder / f"{name}.yaml"
    config.write_text(
        _HEADRACE_CONFIG.format(
            grpc_port=port,
            http_port=free_port(),
            transport=transport,
            catalogue=workload.CATALOGUE_FILE,
            models=models,
            redis_port=redis_port,
            cache=str(cache).lower(),
        )
        + more
    )
    command = [sys.executable, "-m", "gateway.server.cli", "serve", "--config", str(config)]
    with running(name, command, port=port, core=core, folder=folder) as started:
        _wait_until_ready(name, port)
        yield started


def _wait_until_ready(name: str, port: int) -> None:
    """It listens before it has reached its store."""
    give_up_at = time.monotonic() + READY_S_MAX
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # the stubs package leaves it out
        while check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=READY_S_MAX).status != _SERVING:
            if time.monotonic() > give_up_at:
                raise DidNotStart(f"{name} is not ready after {READY_S_MAX:.0f} s")
            time.sleep(0.05)


@contextmanager
def running_baseline(name: str, *, redis_port: int, folder: Path, core: int | None = None) -> Iterator[Running]:
    """The hand-written server."""
    port = free_port()
    module = "loadtest.baseline.handwritten"
    command = [sys.executable, "-m", module, "--port", str(port), "--redis-port", str(redis_port)]
    with running(name, command, port=port, core=core, folder=folder) as started:
        yield started


@contextmanager
def running_echo(
    name: str, *, transport: str, folder: Path, core: int | None = None, certificate: Certificate | None = None
) -> Iterator[Running]:
    """An echo server, with TLS when it gets a certificate."""
    port = free_port()
    command = [sys.executable, "-m", "loadtest.echo", "--port", str(port), "--transport", transport]
    if certificate is not None:
        command += ["--certificate", str(certificate.file), "--key", str(certificate.key)]
    with running(name, command, port=port, core=core, folder=folder) as started:
        yield started
