"""Real clients of the Open Inference Protocol; run by the Python of `.venv-oip`, which has tritonclient.

    python oip_client.py TARGET ADMIN_TARGET

Every `check_*` runs against the gateway of `tests.oipsite`; one line of JSON says which passed, and what the others
raised. It imports nothing of this repository: its descriptors and ours cannot be in one process.
"""

import asyncio
import inspect
import json
import queue
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

Client: TypeAlias = triton.InferenceServerClient

TARGET = sys.argv[1]
REMOTE = sys.argv[2]
"""A server that does not listen on loopback alone, whose token is TOKEN."""
TOKEN = "a token of the tests"
WEIGHTS = np.float32([0.5, 1.25, -2, 3, 0.75, -1.5, 0.1])
DTYPES = {
    "BOOL": np.array([[True, False]]),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-32768, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "FP16": np.array([[-1.5, 2.25]], np.float16),
    "FP32": np.array([[1e-30, np.inf]], np.float32),
    "FP64": np.array([[1e-300, -0.0]], np.float64),
    "BYTES": np.array([["", "naïve ✓"]], object),
}


def tensor(name: str, values: np.ndarray, datatype: str, api: Any = triton) -> Any:
    made = api.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def rows(count: int) -> np.ndarray:
    return np.arange(count * 7, dtype=np.float32).reshape(count, 7)


def refused(status: str, words: str, call: Callable[[], object]) -> None:
    try:
        call()
    except InferenceServerException as error:
        caught = error
    else:
        raise AssertionError(f"not refused: {words}")
    assert caught.status() == f"StatusCode.{status}", caught.status()
    assert words in caught.message(), caught.message()


def check_health_and_metadata(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("plain")
    assert client.is_model_ready("plain", "2")
    assert not client.is_model_ready("plain", "3")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    assert server.name == "headrace"
    assert {"statistics", "model_repository"} <= {*server.extensions}
    model = client.get_model_metadata("plain")
    assert list(model.versions) == ["1", "2"]
    assert (model.inputs[0].name, model.inputs[0].datatype, list(model.inputs[0].shape)) == ("x", "FP32", [-1, 7])
    assert list(client.get_model_metadata("turned").inputs[0].shape) == [2, 3]
    assert {one.datatype for one in client.get_model_metadata("echo").outputs} == {*DTYPES}
    refused("NOT_FOUND", "no model 'nothing'", lambda: client.get_model_metadata("nothing"))


def check_configuration(client: Client) -> None:
    config = client.get_model_config("plain").config
    assert config.max_batch_size == 4096
    assert list(config.input[0].dims) == [7]
    assert not config.model_transaction_policy.decoupled
    whole = client.get_model_config("turned").config
    assert (whole.max_batch_size, list(whole.output[0].dims)) == (0, [3, 2])
    ranker = client.get_model_config("ranker").config
    assert ranker.parameters["headrace_entities"].string_value == "user (BYTES), item (INT64)"


def check_tensors(client: Client) -> None:
    for _ in range(20):  # past the point where requests are decoded by their difference
        answer = client.infer("plain", [tensor("x", rows(3), "FP32")], request_id="abc", model_version="1")
        np.testing.assert_allclose(answer.as_numpy("score")[:, 0], rows(3) @ WEIGHTS, rtol=1e-5)
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("plain", "1", "abc")
    assert len(response.parameters["headrace_prediction_id"].string_param) == 32
    latest = client.infer("plain", [tensor("x", rows(1), "FP32")])
    np.testing.assert_allclose(latest.as_numpy("score")[:, 0], 2 * rows(1) @ WEIGHTS, rtol=1e-5)
    assert latest.get_response().id == ""
    assert latest.get_response().model_version == "2"


def check_every_dtype(client: Client) -> None:
    inputs = [tensor(f"in_{name}", values, name) for name, values in DTYPES.items()]
    for _ in range(6):
        answer = client.infer("echo", inputs)
        for name, values in DTYPES.items():
            found = answer.as_numpy(f"out_{name}")
            if name == "BYTES":
                found = np.array([[one.decode() for one in row] for row in found], object)
            assert found.dtype == values.dtype, name
            np.testing.assert_array_equal(found, values)


def check_whole_arrays(client: Client) -> None:
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    for _ in range(12):
        np.testing.assert_array_equal(client.infer("turned", [tensor("x", x, "FP32")]).as_numpy("y"), x.T)


def check_selection(client: Client) -> None:
    inputs = [tensor("b", np.float32([[2, 3]]), "FP32"), tensor("a", np.float32([[5, 7]]), "FP32")]
    chosen = [triton.InferRequestedOutput("product")]
    for _ in range(12):
        answer = client.infer("pair", inputs, outputs=chosen)
        assert [one.name for one in answer.get_response().outputs] == ["product"]
        np.testing.assert_array_equal(answer.as_numpy("product"), [[10, 21]])
    both = client.infer("pair", inputs)
    np.testing.assert_array_equal(both.as_numpy("sum"), [[7, 10]])
    unknown = [triton.InferRequestedOutput("nothing")]
    refused("INVALID_ARGUMENT", "no output 'nothing'", lambda: client.infer("pair", inputs, outputs=unknown))


def check_classification(client: Client) -> None:
    inputs = [tensor(name, np.float32([[1, 9, 4], [8, 2, 3]]), "FP32") for name in ("a", "b")]
    answer = client.infer("pair", inputs, outputs=[triton.InferRequestedOutput("sum", class_count=2)])
    found = answer.as_numpy("sum")
    assert found.tolist() == [[b"18.000000:1", b"8.000000:2"], [b"16.000000:0", b"6.000000:2"]], found


def entities(api: Any = triton, count: int = 3) -> list[Any]:
    users = np.array([[f"u{number}"] for number in range(count)], object)
    items = np.arange(count, dtype=np.int64)
    hour = np.full((count, 1), 12, np.float32)
    named = (("user", users, "BYTES"), ("item", items, "INT64"), ("hour", hour, "FP32"))
    return [tensor(name, values, datatype, api) for name, values, datatype in named]


def expected(count: int) -> np.ndarray:
    ids = np.arange(count)
    columns = [ids * 0.25, ids + 0.5, ids * 10, ids, -ids, np.zeros(count), np.full(count, 12)]
    return np.stack(columns, axis=1).astype(np.float32) @ WEIGHTS


def check_entity_ids(client: Client) -> None:
    for count in (1, 3):
        for _ in range(12):
            answer = client.infer("ranker", entities(count=count))
            np.testing.assert_allclose(answer.as_numpy("score")[:, 0], expected(count), rtol=1e-5)


def check_statuses(client: Client) -> None:
    answer = client.infer("ranker", entities(count=2), parameters={"headrace_statuses": True}).get_response()
    assert answer.parameters["headrace_status.user"].string_param == "1,1"
    assert len(answer.parameters["headrace_age_ms.user"].string_param.split(",")) == 2
    # No row of the pairs was written: DEFAULTED, because ABSENT.
    assert all(int(code) & 15 == 4 for code in answer.parameters["headrace_status.pair"].string_param.split(","))
    refused(
        "INVALID_ARGUMENT",
        "no parameter 'headrace_nonsense'",
        lambda: client.infer("ranker", entities(), parameters={"headrace_nonsense": 1}),
    )


def check_features_and_tensors_of_one_model(client: Client) -> None:
    answer = client.infer("ranker", [tensor("x", rows(2), "FP32")])
    np.testing.assert_allclose(answer.as_numpy("score")[:, 0], rows(2) @ WEIGHTS, rtol=1e-5)


def check_errors(client: Client) -> None:
    x = tensor("x", rows(1), "FP32")
    refused("NOT_FOUND", "no model 'nothing'", lambda: client.infer("nothing", [x]))
    refused("NOT_FOUND", "no version 9", lambda: client.infer("plain", [x], model_version="9"))
    refused("INVALID_ARGUMENT", "no input 'y'", lambda: client.infer("plain", [tensor("y", rows(1), "FP32")]))
    double = tensor("x", rows(1).astype(np.float64), "FP64")
    refused("INVALID_ARGUMENT", "FP64, model plain takes FP32", lambda: client.infer("plain", [double]))
    narrow = tensor("x", rows(1)[:, :3], "FP32")
    refused("INVALID_ARGUMENT", "the shape", lambda: client.infer("plain", [narrow]))
    refused("INVALID_ARGUMENT", "state", lambda: client.infer("plain", [x], sequence_id=5, sequence_start=True))
    shared = triton.InferInput("x", [1, 7], "FP32")
    shared.set_shared_memory("region", 28)
    refused("INVALID_ARGUMENT", "shared memory", lambda: client.infer("plain", [shared]))
    output = triton.InferRequestedOutput("score")
    output.set_shared_memory("region", 4)
    refused("INVALID_ARGUMENT", "shared memory", lambda: client.infer("plain", [x], outputs=[output]))
    refused("UNIMPLEMENTED", "", lambda: client.register_system_shared_memory("region", "/key", 28))


def check_priority_and_timeout(client: Client) -> None:
    x = [tensor("x", rows(1), "FP32")]
    client.infer("plain", x, priority=3, timeout=5_000_000)
    refused("DEADLINE_EXCEEDED", "", lambda: client.infer("plain", x, timeout=1))
    client.infer("plain", x, client_timeout=5, compression_algorithm="gzip")


def check_statistics(client: Client) -> None:
    def of_version() -> Any:
        return client.get_inference_statistics("plain", "1").model_stats[0]

    before = of_version()
    for _ in range(5):
        client.infer("plain", [tensor("x", rows(4), "FP32")], model_version="1")
    for _ in range(2):
        wrong = tensor("x", rows(1)[:, :3], "FP32")
        refused("INVALID_ARGUMENT", "", lambda wrong=wrong: client.infer("plain", [wrong], model_version="1"))
    after = of_version()
    assert after.inference_count - before.inference_count == 20
    assert after.execution_count - before.execution_count == 5
    stats = after.inference_stats
    assert stats.success.count - before.inference_stats.success.count == 5
    assert stats.fail.count - before.inference_stats.fail.count == 2
    parts = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
    assert abs(parts - stats.success.ns) <= 5, (parts, stats.success.ns)
    assert stats.compute_infer.ns > 0
    fours = next(one for one in after.batch_stats if one.batch_size == 4)
    assert fours.compute_infer.count >= 5
    every = {(one.name, one.version) for one in client.get_inference_statistics().model_stats}
    assert {("plain", "1"), ("plain", "2"), ("ranker", "1")} <= every


def check_repository(client: Client) -> None:
    index = {(one.name, one.version): one.state for one in client.get_model_repository_index().models}
    assert index["turned", "1"] == "READY"
    client.unload_model("turned")
    assert not client.is_model_ready("turned")
    x = tensor("x", np.zeros((2, 3), np.float32), "FP32")
    refused("NOT_FOUND", "turned", lambda: client.infer("turned", [x]))
    client.load_model("turned")
    assert client.is_model_ready("turned")
    client.infer("turned", [x])
    refused("NOT_FOUND", "", lambda: client.load_model("nothing"))
    refused("INVALID_ARGUMENT", "not supported", lambda: client.load_model("turned", config="{}"))


def check_admin_needs_the_token(client: Client) -> None:
    remote = triton.InferenceServerClient(REMOTE)
    assert remote.is_server_live()
    for call in (remote.get_model_repository_index, lambda: remote.load_model("plain")):
        refused("PERMISSION_DENIED", "admin_token", call)
    wrong = {"authorization": "Bearer not the token"}
    refused("PERMISSION_DENIED", "admin_token", lambda: remote.get_model_repository_index(headers=wrong))
    right = {"authorization": f"Bearer {TOKEN}"}
    assert remote.get_model_repository_index(headers=right).models
    remote.load_model("plain", headers=right)


def check_stream(client: Client) -> None:
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(200):
        width = 3 if number == 50 else 7
        x = tensor("x", np.full((1, width), number, np.float32), "FP32")
        client.async_stream_infer("plain", [x], request_id=str(number), model_version="1")
    for number in range(200):
        result, error = answers.get(timeout=20)
        if number == 50:
            assert "the shape" in error.message(), error
            continue
        assert error is None, error
        assert result.get_response().id == str(number)
        np.testing.assert_allclose(result.as_numpy("score")[0, 0], number * WEIGHTS.sum(), rtol=1e-5)
    client.async_stream_infer("plain", [x], enable_empty_final_response=True)
    final, error = answers.get(timeout=20)
    assert final.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


def check_concurrent_callers(client: Client) -> None:
    answers: queue.Queue = queue.Queue()
    for number in range(300):
        x = np.full((1 + number % 3, 7), number, np.float32)
        inputs = [tensor("x", x, "FP32")]
        client.async_infer("plain", inputs, lambda result, error, n=number: answers.put((n, result, error)))
    for _ in range(300):
        number, result, error = answers.get(timeout=20)
        assert error is None, error
        score = result.as_numpy("score")
        assert len(score) == 1 + number % 3
        np.testing.assert_allclose(score, 2 * number * WEIGHTS.sum(), rtol=1e-5)


async def acheck_aio(client: Client) -> None:
    aio = triton_aio.InferenceServerClient(TARGET)
    assert await aio.is_model_ready("ranker")
    calls = [aio.infer("ranker", entities(triton_aio, 2)) for _ in range(50)]
    for answer in await asyncio.gather(*calls):
        np.testing.assert_allclose(answer.as_numpy("score")[:, 0], expected(2), rtol=1e-5)

    async def asked() -> AsyncIterator[dict[str, Any]]:
        for number in range(30):
            x = tensor("x", np.full((1, 7), number, np.float32), "FP32", triton_aio)
            yield {"model_name": "plain", "inputs": [x], "request_id": str(number)}

    seen = 0
    async for result, error in aio.stream_infer(asked()):
        assert error is None, error
        assert result.get_response().id == str(seen)
        seen += 1
    assert seen == 30
    await aio.close()


def run() -> dict[str, str]:
    client = triton.InferenceServerClient(TARGET)
    results = {}
    for name, check in list(globals().items()):
        if name.startswith(("check_", "acheck_")):
            try:
                outcome = check(client)
                if inspect.isawaitable(outcome):
                    asyncio.run(outcome)
                results[name] = ""
            except Exception:  # noqa: BLE001 - reported by the test that started this
                results[name] = traceback.format_exc()
    client.close()
    return results


if __name__ == "__main__":
    print(json.dumps(run()))
