"""The way of docs/monitoring.md: a reference from what was served, a unit that changes, who notices it, and labels."""

import asyncio
import json
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from examples.flights import replay, retrain
from examples.flights.data import Flights
from examples.flights.features import VIEWS, Features
from examples.flights.train import COLUMNS, INPUT
from featureclient.client import FeatureClient
from featureclient.schema import Catalogue
from featureclient.store.redis import RedisOptions, RedisStore
from gateway.server import settings
from gateway.server.app import Gateway
from gateway.server.cli import main
from headrace.inference import grpc_service_pb2, grpc_service_pb2_grpc

REPOSITORY = Path(replay.__file__).parents[2]
CONFIG = REPOSITORY / "examples" / "flights" / "monitored.yaml"
PAGE = REPOSITORY / "docs" / "monitoring.md"

ROWS = 3_000
FAULTY_FROM = 2_000


class Walk:
    """A copy of the models, a journal, and the commands of the page against them."""

    def __init__(self, folder: Path, models: Path, url: str) -> None:
        self.folder = folder
        self.copy(models)
        self.overrides: dict[str, Any] = {
            "models": str(folder / "models"),
            "grpc": {"listen": ["127.0.0.1:0"]},
            "http": {"listen": "127.0.0.1:0"},
            "store": {"url": url},
            "journal": {"enabled": True, "path": str(folder / "journal")},
            "monitor": {"enabled": False},
        }

    def copy(self, models: Path) -> None:
        for path in (models / "model.yaml", models / "1" / "model.onnx", models / "1" / "profile.json"):
            target = self.folder / "models" / "flight_delay" / path.relative_to(models)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())

    async def replayed(self, asked: list[Flights]) -> tuple[pa.Table, str]:
        """The labels of what was asked, and the gateway's metrics."""
        async with Gateway(settings.load(CONFIG, self.overrides)) as gateway:
            await gateway.wait_ready()
            answers = await replay.ask(gateway.addresses[0], asked)
            await tensors(gateway.addresses[0])
            assert [answer.error for answer in answers if answer.error] == []
            reader, writer = await asyncio.open_connection(*str(gateway.http_address).split(":"))
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            page = (await reader.read()).decode()
            writer.close()
        return replay.labels(answers), page

    def command(self, *words: str) -> str:
        return self.exits(0, *words)

    def exits(self, code: int, *words: str) -> str:
        result = CliRunner().invoke(main, [*words, "--config", str(CONFIG), "--model", "flight_delay"])
        assert result.exit_code == code, result.output
        return result.stdout


async def tensors(target: str) -> None:
    """Somebody asks with the graph's own inputs besides; no profile is about these rows."""
    request = grpc_service_pb2.ModelInferRequest(model_name="flight_delay")
    request.inputs.add(name=INPUT, datatype="FP32", shape=[1, len(COLUMNS)])
    request.raw_input_contents.append(bytes(4 * len(COLUMNS)))
    async with grpc.aio.insecure_channel(target) as channel:
        await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)


@pytest.fixture
async def walk(
    tmp_path: Path,
    model_folder: Path,
    features: Features,
    catalogue: Catalogue,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Walk:
    async with FeatureClient(catalogue, RedisStore(RedisOptions(url=redis_url))) as writer:
        for view in VIEWS:
            await writer.write(f"{view}@1", features.table(view))
    made = Walk(tmp_path, model_folder, redis_url)
    # What a user has in the file, a test has here: the folders of its own.
    monkeypatch.setenv("HEADRACE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HEADRACE_JOURNAL__PATH", str(tmp_path / "journal"))
    return made


async def test_a_changed_unit_is_found_in_its_column_and_labels_come_back(walk: Walk, flights: Flights) -> None:
    autumn = replay.since(flights, 10)
    first, _ = await walk.replayed(replay.stream(autumn, ROWS, seed=0))
    journal = str(walk.folder / "journal")
    walk_on = asyncio.to_thread
    await walk_on(walk.command, "profile", "--from-journal", journal)
    since = datetime.now(UTC).isoformat()

    asked = replay.stream(autumn, ROWS, seed=1, fault="minutes-to-seconds", faulty_from=FAULTY_FROM)
    second, metrics = await walk.replayed(asked)
    violated = re.findall(r'headrace_violations_total\{column="(\w+)"', metrics)
    assert set(violated) == {"dep_delay"}

    (stream,) = json.loads(await walk_on(walk.exits, 3, "drift", "--json", "--since", since))
    assert stream["rows"] == ROWS
    verdicts = {column["column"]: column["verdict"] for column in stream["columns"]}
    moved = {name for name, verdict in verdicts.items() if verdict != "stable"}
    assert verdicts["dep_delay"] == "drifted"
    assert moved <= {"dep_delay", "out.probability"}

    found = json.loads(await walk_on(walk.command, "audit", "skew", "--json"))
    assert (found["rows"], found["differ"], found["unverified"]) == (2 * ROWS, 0, [])

    labels = walk.folder / "labels.parquet"
    pq.write_table(pa.concat_tables([first, second]), labels)
    out = walk.folder / "set.parquet"
    words = ["dataset", "build", "--labels", str(labels), "-o", str(out), "--json"]
    made = json.loads(await walk_on(walk.command, *words))
    # The rows of tensors, one of each replay, have no label.
    assert (made["matched"], made["unmatched"], made["unused"]) == (2 * ROWS, 2, 0)
    drawn = np.concatenate([one.late for one in replay.stream(autumn, ROWS, seed=0)])
    assert pq.read_table(out)["label.late"].to_numpy().sum() == drawn.sum() + sum(one.late.sum() for one in asked)


async def test_a_version_without_a_profile_gets_that_of_what_another_one_served(walk: Walk, flights: Flights) -> None:
    await walk.replayed(replay.stream(replay.since(flights, 10), 500, seed=0))
    model = walk.folder / "models" / "flight_delay"
    (model / "2").mkdir()
    (model / "2" / "model.onnx").write_bytes((model / "1" / "model.onnx").read_bytes())
    words = ["profile", "--version", "2", "--from-journal", str(walk.folder / "journal"), "--served-by", "1"]
    await asyncio.to_thread(walk.command, *words)
    made = json.loads((model / "2" / "profile.json").read_text())
    assert (made["version"], made["rows"]) == (2, 500)
    # Nulls of the journal are nulls, and what nothing reads is not asked for.
    assert made["columns"]["plane_stats.built"]["nulls"] > 0
    assert "plane_stats.flights" not in made["columns"]


@pytest.mark.parametrize("fault", sorted(replay.FAULTS))
def test_a_fault_begins_at_its_row_and_leaves_labels_alone(flights: Flights, fault: str) -> None:
    clean, faulty = (replay.stream(flights, 1_000, 3, name, 600) for name in (None, fault))
    row = 0
    changed = 0
    for before, after in zip(clean, faulty, strict=True):
        same = all((getattr(before, name) == getattr(after, name)).all() for name in ("dep_delay", "sched_hour"))
        same = same and (before.carrier == after.carrier).all()
        assert same or row >= 600
        assert (before.late == after.late).all()
        changed += not same
        row += len(before)
    assert (row, changed > 3) == (1_000, True)


def test_a_history_has_what_a_backfill_asks_for(flights: Flights) -> None:
    made = replay.history(flights.take(np.arange(5)))
    assert {"tailnum", "origin", "dest", "carrier", "hour", "dep_delay", "time", "late"} <= set(made.column_names)
    assert made["time"].to_pylist()[0].timestamp() == flights.departed_min[0] * 60


@pytest.mark.slow
def test_the_backfill_of_the_page_makes_a_better_model(walk: Walk, flights: Flights, features: Features) -> None:
    pq.write_table(replay.history(replay.since(flights, 10)), walk.folder / "flights.parquet")
    words = ["dataset", "backfill", "--entities", str(walk.folder / "flights.parquet")]
    for view in VIEWS:
        pq.write_table(features.table(view), walk.folder / f"{view}.parquet")
        words += ["--view", f"{view}@1={walk.folder / view}.parquet"]
    walk.command(*words, "-o", str(walk.folder / "set.parquet"))
    retrain.main(["--set", str(walk.folder / "set.parquet"), "--out", str(walk.folder / "2")])
    assert (walk.folder / "2" / "model.onnx").is_file()


def test_every_command_of_the_page_has_the_options_that_it_names() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.strip().startswith("headrace ")]
    assert len(commands) > 10
    for words in commands:
        found: click.Command = main
        rest = words[1:]
        while isinstance(found, click.Group):
            found, rest = found.commands[rest[0]], rest[1:]
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= options, words
    programs = re.findall(r"python -m (examples\.flights\.\w+)", "\n".join(lines))
    assert set(programs) == {f"examples.flights.{name}" for name in ("build", "training_set", "replay", "retrain")}
    assert (REPOSITORY / "docs" / "images" / "drift.png").is_file()
