"""Locust on gRPC: users who ask for popular entities, sometimes for new ones, sometimes for a ranking.

    locust -f loadtest/locustfile.py --host 127.0.0.1:8500                                  # the web page, port 8089
    locust -f loadtest/locustfile.py --host 127.0.0.1:8500 --headless -u 50 -t 60s --shape stairs

Every locust user has a connection of its own and waits for each answer, so the load is a closed loop: for latency at a
fixed rate use `loadtest.openloop`. The table has one line for each kind of request; an answer with another status than
OK is a failure, named by its code.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental.gevent
from locust import LoadTestShape, User, events, task

# `locust -f` puts the folder of this file on the path, not the root of the repository; imports from there come after.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from headrace.v1 import prediction_pb2_grpc
from loadtest import traffic
from loadtest.shapes import SHAPES, users_at

# gRPC's core waits in threads of its own; this makes it wait in gevent's loop, so that users run side by side.
grpc.experimental.gevent.init_gevent()

DEFAULT_RUN_TIME_S = 120
SPAWN_RATE_MAX = 100.0


@events.init_command_line_parser.add_listener
def add_arguments(parser: Any) -> None:
    """Shown in the web page, too."""
    parser.add_argument("--traffic", choices=sorted(traffic.SOURCES), default="flights", help="whose entities")
    parser.add_argument("--cold-share", type=float, default=0.05, help="of the requests: an entity not asked before")
    parser.add_argument("--ranking-share", type=float, default=0.05, help="of the requests: 200 candidates")
    parser.add_argument("--deadline-s", type=float, default=1.0, help="of every request")
    parser.add_argument("--shape", choices=list(SHAPES), default="constant", help="users over time")


class Caller(User):
    """Sends one request after another. `--host` is the gateway's address."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._options = environment.parsed_options
        self._rng = random.Random()
        self._traffic = traffic.make_traffic(self._options.traffic, self._rng)
        address = (self.host or "127.0.0.1:8500").removeprefix("http://")
        # Without a pool of its own a channel would share the connection of all others to this address.
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = prediction_pb2_grpc.PredictionServiceStub(self._channel)

    def on_stop(self) -> None:
        """Ends the connection."""
        self._channel.close()

    @task
    def predict(self) -> None:
        """One request of a drawn kind."""
        options = self._options
        kind = traffic.draw_kind(self._rng, cold_share=options.cold_share, ranking_share=options.ranking_share)
        request = traffic.make_request(self._traffic, kind)
        answer_bytes, failure = 0, None
        start = time.perf_counter()
        try:
            answer_bytes = self._stub.Predict(request, timeout=options.deadline_s).ByteSize()
        except grpc.RpcError as error:
            failure = RuntimeError(f"{error.code().name}: {error.details()}")
        self.environment.events.request.fire(
            request_type="Predict",
            name=kind,
            response_time=(time.perf_counter() - start) * 1e3,
            response_length=answer_bytes,
            exception=failure,
            context={},
        )


class Shape(LoadTestShape):
    """`--shape`, up to `--users`, over `--run-time` (two minutes when it is not given)."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """How many users now, and how fast to get there; None ends the run."""
        options = self.runner.environment.parsed_options
        run_time_s = float(options.run_time or DEFAULT_RUN_TIME_S)
        elapsed_s = self.get_run_time()
        if elapsed_s >= run_time_s:
            return None
        users = users_at(options.shape, elapsed_s, run_time_s, options.num_users or 1)
        return users, max(float(options.spawn_rate or 0), SPAWN_RATE_MAX)
