"""Experiments in a real gateway: who gets which variant, edits while it serves, canaries that move and go back."""

import asyncio
import json
import shutil
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from featureclient.schema import ConfigError
from gateway.client import BlockingClient, CallFailed, HeadraceClient, Prediction
from gateway.experiments.assignment import Stretches
from tests.conftest import RedisServer
from tests.running import CATALOGUE, MANIFEST, WEIGHTS, Running, Site, make_site, running, write_graph, write_items
from tests.running import write_users as write_first_users
from tests.waiting import eventually

USERS = 200
SECOND = """
  user_stats@2:
    entity: user
    columns:
      age: {dtype: float32, default: -1.0}
      visits: {dtype: int32, default: 0}
      taste: {dtype: "float32[2]", default: 0.0}
  by_item@1: {entity: item, columns: {price: {dtype: float32, default: 9.0}}}
"""
SPLIT = """
experiments:
  window:
    model: ranker
    variants:
      control: {}
      second: {views: {user: user_stats@2}}
    split: {by: user, weights: {control: 70, second: 30}}
    overrides: {second: [u0], control: [u1]}
"""
CANARY = """
experiments:
  fresh:
    model: ranker
    variants: {old: {version: 1}, new: {version: 2}}
    canary:
      by: user
      baseline: old
      candidate: new
      steps: %s
      guardrails: {requests_min: 80, latency_ratio: null%s}
"""
STEADY = "[{share: 50, hold: 1h}]"


def site_for(folder: Path, redis_url: str, experiments: str, validation: str = "") -> Site:
    """The ranker in two versions, a second version of its view, and an experiment."""
    site = make_site(folder, redis_url)
    (folder / "features.yaml").write_text(CATALOGUE + SECOND)
    site.add_model("ranker", MANIFEST + validation, WEIGHTS)
    site.add_model("ranker", MANIFEST + validation, WEIGHTS, version=2)
    (folder / "experiments.yaml").write_text(experiments)
    with site.config.open("a") as file:
        file.write("experiments: experiments.yaml\n")
    return site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write_users(client: BlockingClient, *, factor: float = 1.0) -> None:
    """The same users in both versions of the view, but that in the second one everybody is 1000 years older."""
    write_first_users(client, USERS)
    ids = np.arange(USERS)
    client.write_features(
        "user_stats@2",
        {"user": [f"u{i}" for i in ids]},
        {
            "age": ((ids + 0.5) * factor + 1000).astype(np.float32),
            "visits": (ids * 10).astype(np.int32),
            "taste": np.stack([ids, -ids], axis=1).astype(np.float32),
        },
    )
    write_items(client, 20)


def ask(client: BlockingClient, user: Any, item: Any = 1, **more: Any) -> Prediction:
    return client.predict("ranker", {"user": user, "item": item}, {"hour": [2.0]}, **more)


def ask_all(target: str, users: list[str], item: int = 1, **more: Any) -> list[Prediction | CallFailed]:
    """Many at a time."""

    async def one(client: HeadraceClient, user: str) -> Prediction | CallFailed:
        try:
            return await client.predict("ranker", {"user": user, "item": item}, {"hour": [2.0]}, **more)
        except CallFailed as error:
            return error

    async def every() -> list[Prediction | CallFailed]:
        async with HeadraceClient(target) as client:
            return await asyncio.gather(*[one(client, user) for user in users])

    return asyncio.run(every())


def variants(target: str, **more: Any) -> dict[str, str]:
    """User -> the variant of the answer."""
    users = [f"u{number}" for number in range(USERS)]
    answers = ask_all(target, users, **more)
    return {user: answer.variant for user, answer in zip(users, answers, strict=True)}  # type: ignore[union-attr]


def page(gateway: Running) -> dict[str, Any]:
    with urllib.request.urlopen(f"{gateway.http}/experiments", timeout=10) as answer:
        content: dict[str, Any] = json.load(answer)
    return content


def metric(gateway: Running, name: str) -> float | None:
    with urllib.request.urlopen(f"{gateway.http}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
    return None


def state(gateway: Running, number: int = 0) -> str:
    found: str = page(gateway)["experiments"][number]["state"]
    return found


def score_of(user: int, item: int, age: float) -> float:
    row = np.float32([item * 0.25, age, user * 10, user, -user, 0, 2.0])
    return float(row @ WEIGHTS[:, 0])


# ── Splits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def split(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    site = site_for(tmp_path_factory.mktemp("split"), redis_server.url, SPLIT)
    with running(site) as gateway:
        with BlockingClient(gateway.target) as client:
            write_users(client)
        yield gateway


def test_weights_names_and_features(split: Running) -> None:
    got = variants(split.target)
    assert 35 <= Counter(got.values())["window.second"] <= 85
    assert (got["u0"], got["u1"]) == ("window.second", "window.control")
    assert {*got.values()} == {"window.control", "window.second"}
    with BlockingClient(split.target) as client:
        for user, variant in [*got.items()][:20]:
            number = int(user[1:])
            age = number + 0.5 + (1000 if variant == "window.second" else 0)
            answer = ask(client, user)
            assert answer.variant == variant
            assert answer.version == 2
            assert answer.outputs["score"][0, 0] == pytest.approx(score_of(number, 1, age), rel=1e-5)
    arms = {arm["name"]: arm for arm in page(split)["experiments"][0]["arms"]}
    assert arms["control"]["share"] == 70
    assert arms["second"]["seen"]["requests"] >= 35
    assert metric(split, 'headrace_experiment_requests_total{experiment="window",variant="second"}') >= 35  # type: ignore[operator]
    assert metric(split, 'headrace_experiment_state{experiment="window",state="running"}') == 1


def test_another_process_agrees(split: Running, tmp_path: Path) -> None:
    got = variants(split.target)
    program = """
        import json, sys
        from gateway.experiments.assignment import Stretches
        stretches = Stretches.of("window", {"control": 70, "second": 30})
        print(json.dumps(stretches.find([f"u{number}" for number in range(200)])))
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, timeout=60,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    arms = json.loads(said.stdout)
    expected = {f"u{number}": f"window.{('control', 'second')[arm]}" for number, arm in enumerate(arms)}
    expected |= {"u0": "window.second", "u1": "window.control"}
    assert got == expected


def test_requests_of_many_rows_are_assigned_whole_by_their_first(split: Running) -> None:
    alone = variants(split.target)
    with BlockingClient(split.target) as client:
        for first in ("u0", "u1", "u7"):
            answer = ask(client, [first, "u2", "u3", "u4", "u5"])
            assert answer.variant == alone[first]
            assert len(answer.outputs["score"]) == 5


def test_pinned_requests_are_in_no_experiment(split: Running) -> None:
    assert {*variants(split.target, version=2).values()} == {"default"}
    assert {*variants(split.target, label="stable").values()} == {"default"}
    before = page(split)["experiments"][0]["arms"]
    variants(split.target, version=1)
    after = page(split)["experiments"][0]["arms"]
    assert [arm["seen"]["requests"] for arm in before] == [arm["seen"]["requests"] for arm in after]


def test_forced_variants(split: Running) -> None:
    assert {*variants(split.target, variant="window.second").values()} == {"window.second"}
    assert {*variants(split.target, variant="second").values()} == {"window.second"}
    assert {*variants(split.target, variant="default").values()} == {"default"}
    with BlockingClient(split.target) as client:
        with pytest.raises(CallFailed, match=r"no variant 'third' \(there are: default, window.control") as caught:
            ask(client, "u0", variant="third")
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        with pytest.raises(CallFailed, match="name the variant, or a version or label") as caught:
            ask(client, "u0", variant="second", version=1)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_overrides_of_features_reach_the_variant(split: Running) -> None:
    with BlockingClient(split.target) as client:
        answer = ask(client, "u0", overrides={"user.age": np.float32([5])})
    assert answer.variant == "window.second"
    assert answer.outputs["score"][0, 0] == pytest.approx(score_of(0, 1, 5), rel=1e-5)


def test_the_open_inference_protocol_is_assigned_too(split: Running) -> None:
    from headrace.inference import grpc_service_pb2 as pb
    from headrace.inference import grpc_service_pb2_grpc as services

    def request(user: str, **more: Any) -> pb.ModelInferRequest:
        tensor = pb.ModelInferRequest.InferInputTensor
        contents = pb.InferTensorContents
        return pb.ModelInferRequest(
            model_name="ranker",
            inputs=[
                tensor(name="user", datatype="BYTES", shape=[1], contents=contents(bytes_contents=[user.encode()])),
                tensor(name="item", datatype="INT64", shape=[1], contents=contents(int64_contents=[1])),
                tensor(name="hour", datatype="FP32", shape=[1], contents=contents(fp32_contents=[2.0])),
            ],
            **more,
        )

    forced = {"headrace_variant": pb.InferParameter(string_param="window.second")}
    with grpc.insecure_channel(split.target) as channel:
        stub = services.GRPCInferenceServiceStub(channel)

        def score(user: str, **more: Any) -> float:
            answer = stub.ModelInfer(request(user, **more), timeout=10)
            return float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0])

        assert score("u0") == pytest.approx(score_of(0, 1, 1000.5), rel=1e-5)
        assert score("u1") == pytest.approx(score_of(1, 1, 1.5), rel=1e-5)
        assert score("u1", parameters=forced) == pytest.approx(score_of(1, 1, 1001.5), rel=1e-5)
        assert score("u0", model_version="2") == pytest.approx(score_of(0, 1, 0.5), rel=1e-5)
        with pytest.raises(grpc.RpcError) as caught:
            score("u1", parameters={"headrace_variant": pb.InferParameter(string_param="no")})
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_restart_changes_nobodys_arm(redis_url: str, folder: Path) -> None:
    site = site_for(folder, redis_url, SPLIT)
    with running(site) as gateway:
        with BlockingClient(gateway.target) as client:
            write_users(client)
        first = variants(gateway.target)
    with running(site) as gateway:
        assert variants(gateway.target) == first


LAYERED = """
layers: {users: {one: 40, two: 40}}
experiments:
  one:
    model: ranker
    variants: {a: {}, b: {views: {user: user_stats@2}}}
    split: {by: user, weights: {a: 50, b: 50}}
  two:
    model: ranker
    variants: {a: {}, c: {views: {user: user_stats@2}}}
    split: {by: user, weights: {a: 50, c: 50}}
  prices:
    model: ranker
    variants: {plain: {}, other: {views: {item: by_item@1}}}
    split: {by: item, weights: {plain: 50, other: 50}}
"""


def test_layers_exclude_and_combine(redis_url: str, folder: Path) -> None:
    site = site_for(folder, redis_url, LAYERED)
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        write_users(client)
        item = {
            arm: next(i for i in range(20) if Stretches.of("prices", {"plain": 50, "other": 50}).find([i]) == [arm])
            for arm in (0, 1)
        }
        plain, other = variants(gateway.target, item=item[0]), variants(gateway.target, item=item[1])
        expected = ask(client, "u3", item[1], version=2).outputs["score"][0, 0]
        mixed = next(user for user, variant in other.items() if variant == "one.a+prices.other")
        answer = ask(client, mixed, item[1])
    shares = Counter(variant.partition("+")[0].partition(".")[0] for variant in plain.values())
    assert {*shares} == {"one", "two", "prices"}
    assert 20 <= shares["prices"] <= 65  # those that neither `one` nor `two` has
    assert all(variant.endswith("prices.plain") for variant in plain.values())
    assert all(variant.endswith("prices.other") for variant in other.values())
    assert {u: v.removesuffix("prices.plain") for u, v in plain.items()} == {
        u: v.removesuffix("prices.other") for u, v in other.items()
    }
    # by_item@1 has no rows: its default of 9 is the price.
    number = int(mixed[1:])
    assert expected != answer.outputs["score"][0, 0]
    assert answer.outputs["score"][0, 0] == pytest.approx(score_of(number, 36, number + 0.5), rel=1e-5)


# ── Edits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_edits_while_it_serves(redis_url: str, folder: Path) -> None:
    """Good ones are taken, bad ones told with their line, and no request is lost on the way."""
    site = site_for(folder, redis_url, SPLIT)
    path = folder / "experiments.yaml"
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        write_users(client)
        first = variants(gateway.target)

        path.write_text(SPLIT.replace("user_stats@2", "user_stats@7"))
        eventually(lambda: page(gateway)["failure"])
        assert "experiments.yaml:7" in page(gateway)["failure"]
        assert "no view 'user_stats@7'" in page(gateway)["failure"]
        assert page(gateway)["reload_failures"] == 1
        assert metric(gateway, "headrace_experiment_reload_failures_total") == 1
        assert variants(gateway.target) == first

        path.write_text("experiments: {window: {model: ranker")
        eventually(lambda: page(gateway)["reload_failures"] == 2)
        assert variants(gateway.target) == first

        path.write_text(SPLIT.replace("control: 70, second: 30", "control: 10, second: 90"))
        answered = []
        eventually(lambda: answered.append(variants(gateway.target)) or page(gateway)["failure"] is None)
        assert all({*got} == {*first} for got in answered)
        eventually(lambda: Counter(variants(gateway.target).values())["window.second"] > 150)
        moved = variants(gateway.target)
        assert all(moved[user] == "window.second" for user, variant in first.items() if variant == "window.second")

        path.write_text(SPLIT + "    state: stopped\n")
        eventually(lambda: state(gateway) == "stopped")
        assert {*variants(gateway.target).values()} == {"default"}
        path.write_text(SPLIT + "    everybody: second\n")
        eventually(lambda: state(gateway) == "decided")
        assert {*variants(gateway.target).values()} == {"window.second"}


def test_edits_under_load_lose_no_request(redis_url: str, folder: Path) -> None:
    """Weights go up and down, the views of an arm change, an edit is wrong now and then; everybody is answered."""
    site = site_for(folder, redis_url, SPLIT)
    path = folder / "experiments.yaml"
    stop = threading.Event()
    answers: list[Prediction | CallFailed] = []
    with running(site) as gateway:
        with BlockingClient(gateway.target) as client:
            write_users(client)

        def load() -> None:
            while not stop.is_set():
                answers.extend(ask_all(gateway.target, [f"u{number}" for number in range(50)]))

        loading = threading.Thread(target=load)
        loading.start()
        try:
            for text in (
                SPLIT.replace("control: 70, second: 30", "control: 10, second: 90"),
                SPLIT.replace("control: {}", "control: {version: 1}"),
                SPLIT.replace("by: user", "by: nobody"),
                SPLIT.replace("window", "door"),
                "experiments: {}\n",
                SPLIT,
            ):
                before = page(gateway)
                path.write_text(text)
                eventually(
                    lambda before=before: (
                        (page(gateway)["loaded_at_s"], page(gateway)["failure"])  # type: ignore[misc]
                        != (before["loaded_at_s"], before["failure"])
                    )
                )
        finally:
            stop.set()
            loading.join(30)
        assert [answer for answer in answers if isinstance(answer, CallFailed)] == []
        seen = {answer.variant for answer in answers if isinstance(answer, Prediction)}
        assert {"default", "window.control", "window.second", "door.control", "door.second"} == seen
        assert {*variants(gateway.target).values()} == {"window.control", "window.second"}


def test_a_wrong_file_keeps_the_server_from_starting(redis_url: str, folder: Path) -> None:
    site = site_for(folder, redis_url, SPLIT.replace("by: user", "by: users"))
    with pytest.raises(ConfigError, match="takes no ids in 'users'"), running(site):
        pass


def test_swapped_models_take_their_variants_with_them(redis_url: str, folder: Path) -> None:
    site = site_for(folder, redis_url, SPLIT.replace("control: {}", "control: {version: 1}"))
    # A process for each graph that is tried takes longer than all the rest here.
    quick = {"inference": {"check_in_process": False}}
    with running(site, quick) as gateway, BlockingClient(gateway.target) as client:
        write_users(client)
        models = gateway.gateway.models
        first = variants(gateway.target)

        site.add_model("ranker", MANIFEST, 2 * WEIGHTS, version=3)
        asyncio.run_coroutine_threadsafe(models.load("ranker"), gateway.loop).result(30)
        assert variants(gateway.target) == first
        answer = ask(client, "u0")
        assert (answer.version, answer.variant) == (3, "window.second")
        assert answer.outputs["score"][0, 0] == pytest.approx(2 * score_of(0, 1, 1000.5), rel=1e-5)

        shutil.rmtree(site.models / "ranker/1")
        (site.models / "ranker/model.yaml").write_text(MANIFEST.replace("labels: {stable: 1}", "labels: {stable: 2}"))
        asyncio.run_coroutine_threadsafe(models.load("ranker"), gateway.loop).result(30)
        assert state(gateway) == "suspended"
        assert "version 1 is not loaded (2, 3 are)" in page(gateway)["experiments"][0]["why"]
        assert {*variants(gateway.target).values()} == {"default"}


def test_a_view_without_rows_is_told(redis_url: str, folder: Path) -> None:
    site = site_for(folder, redis_url, SPLIT)
    with running(site) as gateway, BlockingClient(gateway.target) as client:
        write_first_users(client, USERS)
        write_items(client, 20)
        variants(gateway.target, version=2)
        warnings = eventually(lambda: page(gateway)["experiments"][0]["warnings"])
        assert "no row of user_stats@2" in warnings[0]
        assert "features backfill user_stats@2" in warnings[0]
        write_users(client)
        variants(gateway.target, version=2)  # a write takes what it changes out of the cache
        eventually(lambda: not page(gateway)["experiments"][0]["warnings"])


# ── Canaries ────────────────────────────────────────────────────────────────────────────────────────────────────────


def failing(path: Path) -> None:
    """A graph that fails for prices of 1 and more."""
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["price"], axis=1),
        helper.make_node("Cast", ["price"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["one", "index"], ["picked"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["scored"]),
        helper.make_node("Add", ["scored", "picked"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "failing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(WEIGHTS)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [
            numpy_helper.from_array(np.int64([0]), "zero"),
            numpy_helper.from_array(np.float32([0]), "one"),
            numpy_helper.from_array(WEIGHTS, "w"),
        ],
    )
    write_graph(path, graph)
    onnx.checker.check_model(str(path))


def until_rolled_back(gateway: Running, item: int = 1, rounds: int = 10) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask until it is rolled back; the experiment, and the candidate's arm."""
    for _ in range(rounds):
        for start in range(0, USERS, 20):
            ask_all(gateway.target, [f"u{number}" for number in range(start, start + 20)], item)
            if state(gateway) == "rolled_back":
                one = page(gateway)["experiments"][0]
                return one, next(arm for arm in one["arms"] if arm["name"] == "new")
    raise AssertionError(f"it was not rolled back: {page(gateway)}")


REQUESTS_MIN = 80
ROLLED_BACK_WITHIN = REQUESTS_MIN * 5 // 4 + 20
"""Requests of the candidate: looks come every quarter of requests_min, and 20 at most are under way."""


@pytest.mark.parametrize("planted", ["errors", "scores"])
def test_a_bad_version_is_rolled_back(redis_url: str, folder: Path, planted: str) -> None:
    site = site_for(folder, redis_url, CANARY % (STEADY, ""))
    if planted == "errors":
        failing(site.models / "ranker/2/model.onnx")
    else:
        site.add_model("ranker", MANIFEST, 60 * WEIGHTS, version=2)  # minutes turned into seconds
    with running(site) as gateway:
        with BlockingClient(gateway.target) as client:
            write_users(client)
        one, candidate = until_rolled_back(gateway, item=8)
        assert ("requests that fail" if planted == "errors" else "mean score") in one["why"]
        assert REQUESTS_MIN <= candidate["seen"]["requests"] <= ROLLED_BACK_WITHIN
        assert candidate["share"] == 0
        assert metric(gateway, 'headrace_experiment_rollbacks_total{experiment="fresh"}') == 1
        assert {*variants(gateway.target, item=8).values()} == {"fresh.old"}
        eventually(lambda: page(gateway)["store_trouble"] is None)


def test_violated_checks_roll_a_feature_version_back(redis_url: str, folder: Path) -> None:
    """The planted fault is in the data: ages of the second view are far out of range."""
    experiments = (CANARY % (STEADY, "")).replace(
        "{old: {version: 1}, new: {version: 2}}", "{old: {}, new: {views: {user: user_stats@2}}}"
    )
    site = site_for(folder, redis_url, experiments, "validation: {columns: {user.age: {range: {max: 500}}}}\n")
    with running(site) as gateway:
        with BlockingClient(gateway.target) as client:
            write_users(client)
        one, candidate = until_rolled_back(gateway)
        assert "violated check" in one["why"]
        assert candidate["seen"]["requests"] <= ROLLED_BACK_WITHIN
        assert {*variants(gateway.target).values()} == {"fresh.old"}


def test_a_rollback_outlives_a_restart_and_reaches_other_replicas(redis_url: str, folder: Path) -> None:
    site = site_for(folder, redis_url, CANARY % (STEADY, ""))
    site.add_model("ranker", MANIFEST, 60 * WEIGHTS, version=2)
    (folder / "other").mkdir()
    other = site_for(folder / "other", redis_url, CANARY % (STEADY, ""))
    with running(site) as gateway, running(other) as replica:
        with BlockingClient(gateway.target) as client:
            write_users(client)
        assert {*variants(replica.target).values()} == {"fresh.old", "fresh.new"}
        until_rolled_back(gateway)
        eventually(lambda: state(replica) == "rolled_back")
        assert {*variants(replica.target).values()} == {"fresh.old"}
    with running(site) as gateway:
        assert {*variants(gateway.target).values()} == {"fresh.old"}
        assert state(gateway) == "rolled_back"
        assert "mean score" in page(gateway)["experiments"][0]["why"]
        path = folder / "experiments.yaml"
        path.write_text(path.read_text().replace("baseline: old", "baseline: old\n      attempt: 2"))
        eventually(lambda: state(gateway) == "running")
        assert {*variants(gateway.target).values()} == {"fresh.old", "fresh.new"}


@pytest.mark.parametrize(("promote", "ends"), [("manually", "finished"), ("automatically", "promoted")])
def test_a_good_version_advances(redis_url: str, folder: Path, promote: str, ends: str) -> None:
    steps = "[{share: 10, hold: 1s}, {share: 40, hold: 1s}]"
    experiments = (CANARY % (steps, "")).replace("canary:\n", f"canary:\n      promote: {promote}\n")
    site = site_for(folder, redis_url, experiments)
    with running(site) as gateway:
        with BlockingClient(gateway.target) as client:
            write_users(client)
        seen = []
        eventually(lambda: seen.append(variants(gateway.target)) or state(gateway) == ends)
        before = [{user for user, variant in one.items() if variant == "fresh.new"} for one in seen]
        assert all(one <= two for one, two in pairwise(before))  # nobody goes back
        last = Counter(variants(gateway.target).values())
        assert last["fresh.new"] == USERS if ends == "promoted" else 50 <= last["fresh.new"] <= 110
    with running(site) as gateway:
        assert state(gateway) == ends
        assert Counter(variants(gateway.target).values()) == last


def test_without_the_store_everybody_gets_the_baseline(folder: Path) -> None:
    """It may have been rolled back, and nobody can tell."""
    site = site_for(folder, f"unix://{folder}/nothing", CANARY % (STEADY, ""))
    with running(site, {"start_without_store": True, "pipeline": {"store_timeout_ms": 20}}) as gateway:
        assert {*variants(gateway.target).values()} == {"fresh.old"}
        assert state(gateway) == "waiting"
        assert page(gateway)["store_trouble"]
