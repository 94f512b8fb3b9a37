"""The same good engineer's day for ModelInfer: grpc.aio on uvloop, the standard's generated classes, onnxruntime.

One request, one run of the model; nothing is checked that does not have to be. Like `handwritten`, it must stay as fast
as such a program can be.

    python -m loadtest.baseline.tensors --port 7104
"""

import argparse
import os
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import uvloop

from headrace.inference import grpc_service_pb2 as pb
from headrace.inference import grpc_service_pb2_grpc as pb_grpc
from loadtest.workload import MODEL_FILE


class Inference(pb_grpc.GRPCInferenceServiceServicer):
    """Answers one request at a time with a run of its own."""

    def __init__(self, model: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        """Runs the model on the first input, which is float32 and raw."""
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        score = self._session.run(None, {"x": x})[0]
        output = pb.ModelInferResponse.InferOutputTensor(name="score", datatype="FP32", shape=score.shape)
        return pb.ModelInferResponse(
            model_name=request.model_name, id=request.id, outputs=[output], raw_output_contents=[score.tobytes()]
        )


async def serve(port: int, model: Path) -> None:
    """Serves on loopback until the process is ended."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Inference(model), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"baseline: process {os.getpid()} listens on port {port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, default=MODEL_FILE)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.model))


if __name__ == "__main__":
    main()
