"""Redis down at the start, killed under a serving gateway, and back again: nobody has to restart anything."""

import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from featureclient.schema import status
from gateway.client import BlockingClient, CallFailed, Prediction
from tests import waiting
from tests.ownredis import OwnRedis
from tests.running import Running, make_site, running, write_items, write_users

UNREACHED = status.DEFAULTED | status.UNREACHED
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SOON_S = 10.0
soon = partial(waiting.soon_blocking, wait_s=SOON_S)


def health(gateway: Running, service: str = "") -> int:
    with grpc.insecure_channel(gateway.target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status)


def ready(gateway: Running) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{gateway.http}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(client: BlockingClient, user: str, timeout_s: float = 5.0) -> Prediction:
    return client.predict("ranker", {"user": user, "item": 1}, {"hour": [0.0]}, timeout_s=timeout_s)


def test_down_at_start_then_there(stopped_redis: OwnRedis, tmp_path: Path) -> None:
    site = make_site(tmp_path, stopped_redis.url)
    with running(site, wait_ready=False) as gateway, BlockingClient(gateway.target) as client:
        soon(lambda: "cannot be" in ready(gateway)[1] or "Error" in ready(gateway)[1])
        assert ready(gateway)[0] == 503
        assert health(gateway) == NOT_SERVING
        with pytest.raises(CallFailed) as caught:
            ask(client, "u1")
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert "has not reached its feature store yet" in caught.value.message
        stopped_redis.start()
        soon(lambda: health(gateway) == SERVING)
        assert ready(gateway) == (200, "ready\n")
        assert ask(client, "u1").views["user"].status.tolist() == [status.DEFAULTED | status.ABSENT]


def test_start_without_store(stopped_redis: OwnRedis, tmp_path: Path) -> None:
    site = make_site(tmp_path, stopped_redis.url)
    with running(site, {"start_without_store": True}) as gateway, BlockingClient(gateway.target) as client:
        assert health(gateway) == SERVING
        assert health(gateway, "headrace.store") == NOT_SERVING
        assert ask(client, "u1").views["user"].status.tolist() == [UNREACHED]


def test_killed_warm_entities_are_served_and_recovery_needs_no_restart(stopped_redis: OwnRedis, tmp_path: Path) -> None:
    stopped_redis.start()
    site = make_site(tmp_path, stopped_redis.url)
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        write_users(client, 5)
        write_items(client, 5)
        warm = ask(client, "u1")
        stopped_redis.kill()
        soon(lambda: health(gateway, "headrace.store") == NOT_SERVING)
        assert health(gateway) == SERVING
        assert ready(gateway)[0] == 200

        again = ask(client, "u1")
        assert again.views["user"].status.tolist() == [status.PRESENT]
        np.testing.assert_array_equal(again.outputs["score"], warm.outputs["score"])
        began = time.monotonic()
        assert ask(client, "u2", timeout_s=1.0).views["user"].status.tolist() == [UNREACHED]
        assert time.monotonic() - began < 1.0
        with pytest.raises(CallFailed) as caught:
            client.write_features("user_stats@1", {"user": "u9"}, {"age": np.float32([1])})
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE

        stopped_redis.start()
        soon(lambda: health(gateway, "headrace.store") == SERVING)
        write_users(client, 5)
        soon(lambda: ask(client, "u3").views["user"].status.tolist() == [status.PRESENT])


def test_expired_rows_are_served_as_stale_while_the_store_is_away(stopped_redis: OwnRedis, tmp_path: Path) -> None:
    stopped_redis.start()
    site = make_site(tmp_path, stopped_redis.url)
    overrides = {"features": {"cache": {"expire_s": 0.05}}}
    with running(site, overrides) as gateway, BlockingClient(gateway.target) as client:
        write_users(client, 5)
        warm = ask(client, "u1")
        stopped_redis.kill()
        time.sleep(0.06)
        again = ask(client, "u1")
        assert again.views["user"].status.tolist() == [status.STALE | status.UNREACHED]
        np.testing.assert_array_equal(again.outputs["score"], warm.outputs["score"])
