"""The fixed work: what is asked, and that both servers are asked the same."""

import numpy as np
import onnx
import onnxruntime
import pytest

from headrace.v1 import prediction_pb2
from loadtest import workload
from loadtest.baseline import scorer_pb2
from loadtest.make_mlp import make_model


def test_bodies_ask_both_servers_about_the_same_users_in_the_same_order() -> None:
    asked = workload.questions(1, 50, seed=3) + workload.questions(200, 3, seed=3)

    for users, ours, theirs in zip(
        asked, workload.headrace_bodies(asked), workload.baseline_bodies(asked), strict=True
    ):
        request = prediction_pb2.PredictRequest.FromString(ours)
        ids = [f"user:{user}" for user in users]
        assert request.model == "mlp"
        assert [column.name for column in request.entities] == ["user_id"]
        assert list(request.entities[0].strings.values) == ids
        assert list(scorer_pb2.PredictRequest.FromString(theirs).entity_ids) == ids


@pytest.mark.parametrize("rows", [1, 200])
def test_questions_repeat_with_their_seed_and_differ_without(rows: int) -> None:
    first, again, other = (workload.questions(rows, 20, seed=seed) for seed in (1, 1, 2))

    assert [users.tolist() for users in first] == [users.tolist() for users in again]
    assert [users.tolist() for users in first] != [users.tolist() for users in other]
    assert all(len(users) == rows for users in first)


def test_popularity_follows_zipf() -> None:
    users = workload.popular_users(200_000, seed=5)

    counts = np.sort(np.bincount(users, minlength=workload.USERS))[::-1]
    weights = 1.0 / np.arange(1, workload.USERS + 1) ** 1.1
    expected = 200_000 * weights / weights.sum()
    assert counts[:20] == pytest.approx(expected[:20], rel=0.1)


def test_a_ranking_never_asks_about_a_user_twice_and_prefers_popular_ones() -> None:
    lists = workload.ranking_lists(50, seed=8)

    assert all(len(set(users.tolist())) == 200 for users in lists)
    most_popular = np.bincount(workload.popular_users(100_000, seed=1)).argmax()
    assert all(most_popular in users for users in lists[:10])


def test_everyone_is_asked_about_once() -> None:
    users = np.concatenate(workload.everyone())

    assert np.array_equal(np.sort(users), np.arange(workload.USERS))


def test_the_committed_model_takes_the_features_and_gives_one_score_a_row() -> None:
    session = onnxruntime.InferenceSession(str(workload.MODEL_FILE), providers=["CPUExecutionProvider"])

    (scores,) = session.run(None, {"x": workload.feature_matrix()[:7]})

    assert scores.shape == (7, 1)
    assert scores.dtype == np.float32
    assert len(np.unique(scores)) == 7


def test_the_committed_model_is_what_its_script_makes() -> None:
    committed = onnx.load(str(workload.MODEL_FILE))

    assert committed.graph == make_model().graph
