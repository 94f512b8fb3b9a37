"""Asks a server about every user once and compares its scores with onnxruntime run offline.

A benchmark of wrong answers is worth nothing, so no server is measured before this has passed. For a server with a
cache it is also what fills the cache.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime

from headrace.v1 import prediction_pb2, tensor_pb2
from loadtest import echo, workload
from loadtest.baseline import scorer_pb2

ANSWER_TIMEOUT_S = 30.0
SCORE_TOLERANCE = 1e-5
STATUS_PRESENT = 1

Scores = npt.NDArray[np.float32]


class WrongAnswer(Exception):
    """A server does not answer what the model says about the rows that were stored."""


def check_headrace(port: int) -> None:
    """Every user's score, and every row PRESENT: a default row would be an answer without the work."""
    for users, answer in _ask_about_everyone(port, workload.HEADRACE_METHOD, workload.headrace_request):
        response = prediction_pb2.PredictResponse.FromString(answer)
        for view in response.views:
            if set(view.status) != {STATUS_PRESENT} or len(view.status) != len(users):
                raise WrongAnswer(f"headrace: rows of {view.view} are not all PRESENT: {view.status[:20]!r}")
        _compare("headrace", users, tensor_values(response.outputs[0]))


def check_baseline(port: int) -> None:
    """Every user's score."""
    for users, answer in _ask_about_everyone(port, workload.BASELINE_METHOD, workload.baseline_request):
        scores = scorer_pb2.PredictResponse.FromString(answer).scores
        _compare("baseline", users, np.array(scores, np.float32))


def check_echo(port: int, tls_ca: Path | None = None) -> None:
    """One message comes back."""
    with _method(port, echo.METHOD, tls_ca) as call:
        sent = b"is anybody there?"
        if (received := call(sent, timeout=ANSWER_TIMEOUT_S)) != sent:
            raise WrongAnswer(f"the echo of {sent!r} is {received!r}")


def tensor_values(tensor: tensor_pb2.Tensor) -> Scores:
    """A FLOAT32 tensor's elements, whichever of the two forms they came in."""
    if tensor.HasField("raw"):
        return np.frombuffer(tensor.raw, "<f4")
    return np.array(tensor.contents.floats, np.float32)


def _ask_about_everyone(
    port: int, method: str, make_request: Callable[[workload.Users], Any]
) -> Iterator[tuple[workload.Users, bytes]]:
    with _method(port, method) as call:
        for users in workload.everyone():
            request: bytes = make_request(users).SerializeToString()
            yield users, call(request, timeout=ANSWER_TIMEOUT_S, wait_for_ready=True)


@contextmanager
def _method(
    port: int, method: str, tls_ca: Path | None = None
) -> Iterator["grpc.UnaryUnaryMultiCallable[bytes, bytes]"]:
    """A method of the server on `port`, from bytes to bytes."""
    if tls_ca is None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    else:
        channel = grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(tls_ca.read_bytes()))
    with channel:
        yield channel.unary_unary(method)


def _compare(server: str, users: workload.Users, scores: Scores) -> None:
    expected = _offline_scores()[users]
    if scores.shape != expected.shape:
        raise WrongAnswer(f"{server}: {len(scores)} scores for {len(users)} users")
    if not np.allclose(scores, expected, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE):
        worst = int(np.argmax(np.abs(scores - expected)))
        asked = workload.entity_id(int(users[worst]))
        raise WrongAnswer(f"{server}: {asked} scored {scores[worst]}, offline it is {expected[worst]}")


@functools.cache
def _offline_scores() -> Scores:
    """Of all users."""
    session = onnxruntime.InferenceSession(str(workload.MODEL_FILE), providers=["CPUExecutionProvider"])
    scores: Scores = session.run(None, {"x": workload.feature_matrix()})[0].ravel()
    return scores
