"""What a good engineer writes in a day: grpc.aio on uvloop, redis.asyncio with hiredis, onnxruntime.

A request's ids become one MGET of packed rows of float32, the rows one array, the array one run of the model. There is
no cache and no batching, and nothing that would slow it down either: no metrics, no checks, no metadata. Every ratio of
the benchmark is measured against this server, so it must stay as fast as such a program can be.

    python -m loadtest.baseline.handwritten --port 7103 --redis-port 6379
"""

import argparse
import os
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import redis.asyncio
import uvloop

from loadtest.baseline import scorer_pb2, scorer_pb2_grpc
from loadtest.workload import FEATURES, MODEL_FILE

KEY_PREFIX = "p:"
ROW_OF_ZEROS = bytes(4 * FEATURES)


class Scorer(scorer_pb2_grpc.ScorerServicer):
    """Answers one request at a time, each with its own round trip to Redis and its own run of the model."""

    def __init__(self, model: Path, redis_port: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._redis = redis.asyncio.Redis(host="127.0.0.1", port=redis_port, max_connections=256)

    async def Predict(
        self,
        request: scorer_pb2.PredictRequest,
        context: "grpc.aio.ServicerContext[scorer_pb2.PredictRequest, scorer_pb2.PredictResponse]",
    ) -> scorer_pb2.PredictResponse:
        """Scores `entity_ids` in their order; an unknown id is a row of zeros."""
        rows: list[Any] = await self._redis.mget([KEY_PREFIX + entity_id for entity_id in request.entity_ids])
        features = np.frombuffer(b"".join([row or ROW_OF_ZEROS for row in rows]), np.float32).reshape(-1, FEATURES)
        scores = self._session.run(None, {"x": features})[0]
        return scorer_pb2.PredictResponse(scores=scores.ravel().tolist())


async def serve(port: int, model: Path, redis_port: int) -> None:
    """Serves on loopback until the process is ended."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    scorer_pb2_grpc.add_ScorerServicer_to_server(Scorer(model, redis_port), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"baseline: process {os.getpid()} listens on port {port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--model", type=Path, default=MODEL_FILE)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.model, arguments.redis_port))


if __name__ == "__main__":
    main()
