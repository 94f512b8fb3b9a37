"""Other versions while many callers ask: every call is answered, by a version that served when it came."""

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gateway.client import HeadraceClient
from gateway.inference.session import Session
from tests.models import PLAIN, add_scaled
from tests.running import Running, Site, make_site, running
from tests.waiting import soon, soon_blocking

IN_FLIGHT = 16
SWAPS = 12
SOON_S = 60.0


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    site = make_site(tmp_path, redis_url)
    add_scaled(site.models, "scaled", 1, 1, model__yaml=PLAIN.format(name="scaled"))
    return site


class Callers:
    """Callers that ask without a pause and check every answer."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.answered = 0
        self.versions: set[int] = set()
        self.wrong: list[str] = []
        self.stopping = False

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """They ask until the block ends; then each has its last answer."""
        task = asyncio.create_task(self._run())
        try:
            await soon(lambda: self.answered > 100 or bool(self.wrong), SOON_S)
            yield
        finally:
            self.stopping = True
            await task

    async def more(self, count: int) -> None:
        """So many more answers, or one that is wrong."""
        enough = self.answered + count
        await soon(lambda: self.answered > enough or bool(self.wrong), SOON_S)

    async def _run(self) -> None:
        async with HeadraceClient(self.target) as client:
            await asyncio.gather(*(self._ask(client, number) for number in range(IN_FLIGHT)))

    async def _ask(self, client: HeadraceClient, number: int) -> None:
        while not self.stopping:
            value = np.float32([number + 1])
            try:
                prediction = await client.predict("scaled", {}, {"c": value}, timeout_s=20)
            except Exception as error:  # noqa: BLE001 - any failure is what this looks for
                self.wrong.append(repr(error))
                return
            score = float(prediction.outputs["score"][0, 0])
            if score != prediction.version * (number + 1):
                self.wrong.append(f"version {prediction.version} gave {score} for {value}")
            self.answered += 1
            self.versions.add(prediction.version)


def load(up: Running, name: str) -> None:
    asyncio.run_coroutine_threadsafe(up.gateway.models.load(name), up.loop).result(60)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["fast", "grpcio"])
async def test_no_call_fails_and_none_is_answered_by_a_mixture(site: Site, transport: str) -> None:
    with running(site, {"transport": transport}) as up:
        callers = Callers(up.target)
        async with callers.asking():
            for version in range(2, 2 + SWAPS):
                # The version before goes away in the same swap, with callers in flight.
                add_scaled(site.models, "scaled", version, version)
                shutil.rmtree(site.models / "scaled" / str(version - 1))
                await asyncio.to_thread(load, up, "scaled")
                await callers.more(50)
        assert callers.wrong == []
        assert callers.versions >= set(range(2, 2 + SWAPS))
        states = {one.version: one.state for one in up.gateway.models.states() if one.name == "scaled"}
        assert states.pop(1 + SWAPS) == "READY"
        assert set(states.values()) == {"UNAVAILABLE"}, "each version before has been drained and put away"
        assert [model.version for model in up.gateway.models if model.name == "scaled"] == [1 + SWAPS]


@pytest.mark.slow
async def test_what_harms_the_files_harms_no_caller(site: Site, tmp_path: Path) -> None:
    """Corrupt, truncated and half-written files, a wrong manifest, and a folder that goes, while callers ask."""
    good = add_scaled(tmp_path, "good", 2, 2).read_bytes()
    with running(site, {"repository": {"watch_models": True, "watch_debounce_ms": 50}}) as up:
        models = up.gateway.models
        callers = Callers(up.target)

        async def fails_after(harm: Callable[[], object]) -> None:
            failed = models.counts.failed
            harm()
            await soon(lambda: models.counts.failed > failed, SOON_S)

        async with callers.asking():
            graph = site.models / "scaled/2/model.onnx"
            graph.parent.mkdir()
            for harm in (b"no graph", good[: len(good) // 2], b"", good[:-1]):
                await fails_after(partial(graph.write_bytes, harm))
            # Written bit by bit: it is loaded when it is whole, and not before.
            with graph.open("wb") as file:
                for start in range(0, len(good), 20):
                    file.write(good[start : start + 20])
                    file.flush()
                    await asyncio.sleep(0.02)
            await soon(lambda: models.latest("scaled").version == 2, SOON_S)
            await callers.more(100)
            await fails_after(lambda: (site.models / "scaled/model.yaml").write_text("name: ["))
            site.models.rename(tmp_path / "away")
            await callers.more(100)
            (tmp_path / "away").rename(site.models)
            (site.models / "scaled/model.yaml").write_text(PLAIN.format(name="scaled"))
            shutil.rmtree(site.models / "scaled/2")
            add_scaled(site.models, "scaled", 3, 3)
            await soon(lambda: models.latest("scaled").version == 3, SOON_S)
            await callers.more(100)
        assert callers.wrong == []
        assert callers.versions == {1, 2, 3}


def test_a_flood_of_changes_is_few_loads(site: Site) -> None:
    with running(site, {"repository": {"watch_models": True, "watch_debounce_ms": 400}}) as up:
        models = up.gateway.models
        loaded = models.counts.loaded
        for factor in range(1, 300):
            add_scaled(site.models, "scaled", 1, factor)
            (site.models / f"noise{factor % 7}").mkdir(exist_ok=True)
            (site.models / f"noise{factor % 7}/file{factor}").write_text("x")
        soon_blocking(lambda: served_factor(up) == 299, SOON_S)
        assert models.counts.loaded - loaded < 30


def served_factor(up: Running) -> float:
    model = up.gateway.models.latest("scaled")
    return float(model.runner.session.run({"x": np.float32([[1]])})[0][0, 0])


def test_polling_finds_changes_too(site: Site) -> None:
    with running(site, {"repository": {"watch_models": True, "watch_poll_s": 0.1}}) as up:
        add_scaled(site.models, "scaled", 2, 5)
        soon_blocking(lambda: up.gateway.models.latest("scaled").version == 2, SOON_S)


def test_a_folder_that_may_not_be_read(site: Site) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    with running(site) as up:
        site.models.chmod(0)
        try:
            problems = asyncio.run_coroutine_threadsafe(up.gateway.models.refresh(), up.loop).result(20)
        finally:
            site.models.chmod(0o755)
        assert "Permission denied" in str(problems[0])
        assert up.gateway.models.latest("scaled").version == 1


def test_a_stop_does_not_wait_for_a_load(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    real = Session.__init__

    def slow(self: Session, *arguments: object, **named: object) -> None:
        begun.set()
        go.wait(60)
        real(self, *arguments, **named)  # type: ignore[arg-type]  # as they came

    try:
        with running(site, {"inference": {"check_in_process": False}}) as up:
            monkeypatch.setattr(Session, "__init__", slow)
            add_scaled(site.models, "scaled", 2, 5)
            asyncio.run_coroutine_threadsafe(up.gateway.models.load("scaled"), up.loop)
            assert begun.wait(20)
    finally:
        go.set()
