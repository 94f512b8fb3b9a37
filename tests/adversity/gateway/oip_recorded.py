"""ModelInfer bytes as tritonclient and perf_analyzer send them, as one JSON object of hexadecimal digits.

Run by the Python of `.venv-oip`. perf_analyzer's requests differ from those of tritonclient's Python: it asks for every
output by name, numbers its requests, and takes its inputs in one piece.
"""

import json
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc._utils import _get_inference_request


def request(
    rows: int, outputs: list[Any] | None, request_id: str, priority: int = 0, timeout: int | None = None
) -> str:
    """The bytes of a request for `plain`."""
    made = triton.InferInput("x", [rows, 7], "FP32")
    made.set_data_from_numpy(np.ones((rows, 7), np.float32))
    message = _get_inference_request(
        model_name="plain",
        inputs=[made],
        model_version="",
        request_id=request_id,
        outputs=outputs,
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=priority,
        timeout=timeout,
        parameters=None,
    )
    return message.SerializeToString().hex()


if __name__ == "__main__":
    score = [triton.InferRequestedOutput("score")]
    print(
        json.dumps(
            {
                "plain": request(1, None, ""),
                "as perf_analyzer": request(1, score, "0"),
                "as perf_analyzer -b 8": request(8, score, "12"),
                "with a priority": request(1, score, "13", priority=1, timeout=5_000_000),
            }
        )
    )
