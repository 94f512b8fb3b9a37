"""One call, from ids to an answer, through real Redis, ONNX Runtime and gRPC."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from featureclient.schema import status
from gateway.client import BlockingClient, CallFailed, Prediction
from headrace.v1 import features_pb2, features_pb2_grpc, tensor_pb2
from tests.conftest import RedisServer
from tests.running import COLUMNS, WEIGHTS, Running, make_site, running, write_items, write_users

ABSENT = status.DEFAULTED | status.ABSENT
STRICT = """
name: strict
views: {strict: {view: strict@1}}
inputs: {x: [strict.level]}
"""


@pytest.fixture(scope="module", params=["fast", "grpcio"])
def gateway(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    site = make_site(tmp_path_factory.mktemp("site"), redis_server.url)
    site.add_model("ranker", (site.models / "ranker/model.yaml").read_text(), 2 * WEIGHTS, version=2)
    site.add_model("strict", STRICT, np.float32([[1]]))
    with running(site, {"transport": request.param, "predict": {"rows_max": 300}}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Running) -> Iterator[BlockingClient]:
    with BlockingClient(gateway.target) as client:
        client.delete_features("user_stats@1", {"user": [f"u{i}" for i in range(200)]})
        client.delete_features("item_stats@1", {"item": list(range(300))})
        write_users(client, 50)
        write_items(client, 250)
        yield client


def ask(client: BlockingClient, user: Any = "u3", item: Any = 8, **more: Any) -> Prediction:
    return client.predict("ranker", {"user": user, "item": item}, {"hour": [2.0]}, **more)


def expected(user: int, item: int, hour: float = 2.0) -> float:
    row = np.float32([item * 0.25, user + 0.5, user * 10, user, -user, 0, hour])
    return float(row @ WEIGHTS[:, 0])


def test_answer_says_who_answered_and_where_rows_came_from(client: BlockingClient) -> None:
    prediction = ask(client, request_id="mine", version=1)
    assert (prediction.model, prediction.version, prediction.variant) == ("ranker", 1, "default")
    assert prediction.request_id == "mine"
    assert len(prediction.prediction_id) == 16
    assert prediction.outputs["score"].shape == (1, 1)
    assert prediction.outputs["score"][0, 0] == pytest.approx(expected(3, 8))
    assert {alias: rows.view for alias, rows in prediction.views.items()} == {
        "user": "user_stats@1",
        "item": "item_stats@1",
        "pair": "pair_stats@1",
    }
    assert prediction.views["user"].status.tolist() == [status.PRESENT]
    assert 0 <= prediction.views["user"].age_ms[0] < 600_000
    assert prediction.views["pair"].status.tolist() == [ABSENT]
    assert prediction.views["pair"].age_ms.tolist() == [-1]


def test_versions_and_labels(client: BlockingClient) -> None:
    assert ask(client).version == 2
    assert ask(client, label="stable").version == 1
    assert ask(client).outputs["score"][0, 0] == pytest.approx(2 * expected(3, 8))


def test_request_id_and_prediction_ids_are_made(client: BlockingClient) -> None:
    first, second = ask(client), ask(client)
    assert first.request_id == first.prediction_id.hex() != second.request_id
    assert first.prediction_id[:8] == second.prediction_id[:8]


def test_one_user_with_many_items_is_one_request(client: BlockingClient) -> None:
    items = [7, 3, 7, 249, 999]
    prediction = ask(client, "u5", items, version=1)
    np.testing.assert_allclose(prediction.outputs["score"][:4, 0], [expected(5, item) for item in items[:4]], rtol=1e-6)
    assert prediction.views["user"].status.tolist() == [status.PRESENT] * 5
    assert prediction.views["item"].status.tolist() == [status.PRESENT] * 4 + [ABSENT]


def test_features_come_back_as_the_model_saw_them(client: BlockingClient) -> None:
    prediction = ask(client, ["u1", "nobody"], 4, return_features=True)
    assert tuple(prediction.features) == COLUMNS
    assert prediction.features["user.visits"].tolist() == [10, 0]
    assert prediction.features["user.age"].tolist() == [1.5, -1]
    assert prediction.features["user.taste"].tolist() == [[1, -1], [0, 0]]
    assert prediction.features["hour"].dtype == np.float32


def test_override_is_seen_by_the_model_and_by_nobody_else(client: BlockingClient) -> None:
    prediction = ask(client, overrides={"item.price": np.float32([100])}, version=1)
    assert prediction.outputs["score"][0, 0] == pytest.approx(expected(3, 400))
    assert prediction.views["item"].status.tolist() == [status.OVERRIDDEN]
    assert ask(client, version=1).outputs["score"][0, 0] == pytest.approx(expected(3, 8))


def test_a_write_is_seen_by_the_next_prediction(client: BlockingClient) -> None:
    assert ask(client, "u150").views["user"].status.tolist() == [ABSENT]
    client.write_features("user_stats@1", {"user": "u150"}, {"age": np.float32([40]), "visits": [1], "taste": [[0, 0]]})
    prediction = ask(client, "u150", return_features=True)
    assert prediction.views["user"].status.tolist() == [status.PRESENT]
    assert prediction.features["user.age"].tolist() == [40]


def test_feature_service_reads_nulls_and_statuses(client: BlockingClient) -> None:
    client.write_features("user_stats@1", {"user": ["u160"]}, {"age": np.float32([4])}, event_time_ms=[1_000])
    rows = client.get_features("user_stats@1", {"user": ["u160", "u161"]}, ["visits", "age"])
    assert rows.rows.status.tolist() == [status.PRESENT, ABSENT]
    assert {name: values.tolist() for name, values in rows.columns.items()} == {"visits": [0, 0], "age": [4, -1]}
    assert {name: valid.tolist() for name, valid in rows.valid.items()} == {
        "visits": [False, False],
        "age": [True, False],
    }
    assert client.write_features("user_stats@1", {"user": ["u160"]}, {"age": np.float32([5])}, event_time_ms=[999]) == (
        0,
        1,
    )
    assert client.delete_features("user_stats@1", {"user": ["u160", "u161"]}) == 1


def test_a_written_column_cannot_stand_for_the_entity(client: BlockingClient) -> None:
    before = client.get_features("user_stats@1", {"user": "u0"}, ["age"]).columns["age"].tolist()
    for columns, said in (
        ({"user": np.array(["u0"]), "age": np.float32([777])}, "is a join key"),
        ({"aage": np.float32([777])}, "is not in the view; user_stats@1 has: age, visits, taste"),
    ):
        with pytest.raises(CallFailed) as caught:
            client.write_features("user_stats@1", {"user": ["mine"]}, columns)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert said in caught.value.message
    assert client.get_features("user_stats@1", {"user": "u0"}, ["age"]).columns["age"].tolist() == before


def test_a_column_is_answered_once_however_often_it_is_asked_for(client: BlockingClient) -> None:
    with grpc.insecure_channel(client._client.target) as channel:
        request = features_pb2.GetFeaturesRequest(view="user_stats@1", columns=["age"] * 1000)
        request.entities.add(name="user", strings=tensor_pb2.StringIds(values=["u1"]))
        answer = features_pb2_grpc.FeatureServiceStub(channel).Get(request, timeout=5)
    assert [column.values.name for column in answer.columns] == ["age"]


def test_a_client_that_was_not_opened_says_so() -> None:
    with pytest.raises(RuntimeError, match="use `with BlockingClient"):
        ask(BlockingClient("127.0.0.1:1"))


def test_a_rejecting_view_fails_only_its_own_request(client: BlockingClient) -> None:
    client.write_features("strict@1", {"user": ["u1"]}, {"level": np.float32([3])})
    with pytest.raises(CallFailed) as caught:
        client.predict("strict", {"user": ["u1", "nobody"]})
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "strict@1 has no features for row 1 (1 rows in all)" in caught.value.message
    assert client.predict("strict", {"user": ["u1"]}).outputs["score"].tolist() == [[3]]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"model": "rankr"}, "NOT_FOUND", "there are: ranker, strict"),
        ({"version": 9}, "NOT_FOUND", "no version 9 (loaded: 1, 2)"),
        ({"label": "beta"}, "NOT_FOUND", "no label 'beta' (it has: stable)"),
        ({"entities": {"user": "u1"}}, "INVALID_ARGUMENT", "entities column item is missing"),
        ({"entities": {"user": "u1", "item": 1, "x": 1}}, "INVALID_ARGUMENT", "no entities column 'x'"),
        ({"entities": {"user": 5, "item": 1}}, "INVALID_ARGUMENT", "user is a string, not 5"),
        (
            {"entities": {"user": "u1", "item": "01"}},
            "INVALID_ARGUMENT",
            "item is an int64 in canonical decimal, not '01'",
        ),
        ({"entities": {"user": ["u1", "u2"], "item": [1, 2, 3]}}, "INVALID_ARGUMENT", "'user' has 2 rows"),
        ({"entities": {"user": [], "item": 1}}, "INVALID_ARGUMENT", "has no ids"),
        ({"entities": {"user": "u" * 2**20, "item": 1}}, "INVALID_ARGUMENT", "user_stats@1: id at position 0"),
        ({"entities": {"user": "u1", "item": list(range(301))}}, "RESOURCE_EXHAUSTED", "the limit rows_max is 300"),
        ({"context": {}}, "INVALID_ARGUMENT", "hour (float32)"),
        ({"context": {"hour": ["noon"]}}, "INVALID_ARGUMENT", "context.hour has the dtype string"),
        ({"context": {"hour": np.zeros((1, 2))}}, "INVALID_ARGUMENT", "has the shape [1, 2]"),
        ({"outputs": ["scores"]}, "INVALID_ARGUMENT", "has no output 'scores' (it has: score)"),
        ({"overrides": {"item.cost": [1.0]}}, "INVALID_ARGUMENT", "no stored column 'item.cost'"),
        ({"request_id": "x" * 300}, "RESOURCE_EXHAUSTED", "request_id_bytes_max is 256"),
    ],
)
def test_bad_requests_get_a_clear_error_and_harm_nobody(
    client: BlockingClient, change: dict[str, Any], code: str, said: str
) -> None:
    request: dict[str, Any] = {
        "model": "ranker",
        "entities": {"user": "u3", "item": 8},
        "context": {"hour": [2.0]},
        **change,
    }
    with pytest.raises(CallFailed) as caught:
        client.predict(**request)
    assert caught.value.code.name == code
    assert said in caught.value.message
    assert caught.value.reason
    assert ask(client, version=1).outputs["score"][0, 0] == pytest.approx(expected(3, 8))


def test_malformed_protobuf(gateway: Running, client: BlockingClient) -> None:
    with grpc.insecure_channel(gateway.target) as channel:
        call = channel.unary_unary("/headrace.v1.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be parsed" in caught.value.details()
    assert ask(client).version == 2


def test_ids_that_are_not_ids_never_leave_the_client(client: BlockingClient) -> None:
    with pytest.raises(TypeError, match="'user' must be all strings or all integers, found nan"):
        ask(client, [float("nan")])


def test_a_server_on_all_interfaces_does_not_show_features(redis_url: str, tmp_path: Path) -> None:
    site = make_site(tmp_path, redis_url)
    with running(site, {"grpc": {"listen": ["0.0.0.0:0"]}}) as gateway:
        target = gateway.target.replace("0.0.0.0", "127.0.0.1")
        with BlockingClient(target) as client:
            assert ask(client).views["user"].status.tolist() == [ABSENT]
            for call in (
                lambda: ask(client, return_features=True),
                lambda: client.get_features("user_stats@1", {"user": "u1"}),
                lambda: client.delete_features("user_stats@1", {"user": "u1"}),
            ):
                with pytest.raises(CallFailed) as caught:
                    call()
                assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
