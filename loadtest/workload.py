"""The fixed work of the benchmark: who is asked about, how often, and what each server gets to read.

20,000 users with 50 float32 features each; requests ask for one user, or rank 200 of them; a user's popularity follows
Zipf with exponent 1.1. Everything is drawn from fixed seeds, so two runs, and both servers of a run, get the same
questions.
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.v1 import prediction_pb2, tensor_pb2
from loadtest.baseline import scorer_pb2

USERS = 20_000
FEATURES = 50
RANKED_ROWS = 200
ZIPF_EXPONENT = 1.1

FOLDER = Path(__file__).parent
MODELS_FOLDER = FOLDER / "models"
MODEL_FILE = MODELS_FOLDER / "mlp" / "1" / "model.onnx"
CATALOGUE_FILE = FOLDER / "features.yaml"
MODEL_NAME = "mlp"
VIEW = "user_features@1"
JOIN_KEY = "user_id"

HEADRACE_METHOD = "/headrace.v1.PredictionService/Predict"
BASELINE_METHOD = "/baseline.Scorer/Predict"
ALL_PRESENT = "5.3=1"
"""For `gload --all-equal`: PredictResponse.views.status, every row PRESENT. A default row is not an answer."""

_FEATURES_SEED = 42
_POPULARITY_SEED = 99

Users = npt.NDArray[np.int64]


def column_names() -> list[str]:
    """f0 .. f49, in the order of the model's input."""
    return [f"f{i}" for i in range(FEATURES)]


@functools.cache
def feature_matrix() -> npt.NDArray[np.float32]:
    """The features of all users, float32 [20000, 50]."""
    return np.random.default_rng(_FEATURES_SEED).standard_normal((USERS, FEATURES)).astype(np.float32)


def entity_id(user: int) -> str:
    """How both servers call a user."""
    return f"user:{user}"


@functools.cache
def _popularity() -> tuple[npt.NDArray[np.float64], Users]:
    """The probability of each popularity rank, and the user who has that rank."""
    weights = 1.0 / np.arange(1, USERS + 1) ** ZIPF_EXPONENT
    return weights / weights.sum(), np.random.default_rng(_POPULARITY_SEED).permutation(USERS)


def popular_users(count: int, seed: int) -> Users:
    """`count` users, drawn with replacement by popularity."""
    probability, by_rank = _popularity()
    drawn: Users = by_rank[np.random.default_rng(seed).choice(USERS, size=count, p=probability)]
    return drawn


def ranking_lists(count: int, seed: int, rows: int = RANKED_ROWS) -> list[Users]:
    """`count` lists of `rows` distinct users each, drawn by popularity without replacement.

    The largest keys of log p + Gumbel noise are such a draw (the Gumbel-top-k trick, Vieira 2014).
    """
    probability, by_rank = _popularity()
    log_probability = np.log(probability)
    rng = np.random.default_rng(seed)
    lists: list[Users] = []
    for _ in range(count):
        keys = log_probability + rng.gumbel(size=USERS)
        lists.append(by_rank[np.argpartition(-keys, rows)[:rows]])
    return lists


def questions(rows: int, count: int, seed: int) -> list[Users]:
    """`count` requests of `rows` users each."""
    if rows > 1:
        return ranking_lists(count, seed, rows)
    return list(popular_users(count, seed).reshape(count, 1))


def everyone() -> list[Users]:
    """All users in requests of 200, to fill a cache and to check every answer once."""
    return [np.arange(start, start + RANKED_ROWS, dtype=np.int64) for start in range(0, USERS, RANKED_ROWS)]


def headrace_request(users: Iterable[int]) -> prediction_pb2.PredictRequest:
    """What Headrace is asked about these users."""
    ids = tensor_pb2.StringIds(values=[entity_id(user) for user in users])
    return prediction_pb2.PredictRequest(
        model=MODEL_NAME, entities=[tensor_pb2.EntityColumn(name=JOIN_KEY, strings=ids)]
    )


def baseline_request(users: Iterable[int]) -> scorer_pb2.PredictRequest:
    """What the hand-written server is asked about these users."""
    return scorer_pb2.PredictRequest(entity_ids=[entity_id(user) for user in users])


def headrace_bodies(asked: Sequence[Users]) -> list[bytes]:
    """One serialised request for each question."""
    return [headrace_request(users).SerializeToString() for users in asked]


def baseline_bodies(asked: Sequence[Users]) -> list[bytes]:
    """One serialised request for each question."""
    return [baseline_request(users).SerializeToString() for users in asked]
