"""The feature client beside what it is measured against: hiredis alone, and Feast. One process each, one Redis for all.

    python -m loadtest.features [--json] [--rounds 7] [--feast-python PATH]

    mget          a blocking socket and hiredis.Reader: MGET of 200 rows of 50 float32
    cold          the same 200 rows through FeatureClient without a cache: `fetch` to the rows' bytes, `read` to columns
    readers       64 callers of one row each, in one turn of the loop, without a cache: CPU for each of them
    warm          200 ids out of the cache: to the rows' bytes, to a model's input, to `Rows`
    feast         get_online_features of 200 entities and 50 features, in a process of its own, in Feast's Python
    feast layout  the same rows, which Feast has written, through FeatureClient and FeastStore

A round measures each of them once, one after the other, and every second round in the opposite order, so that a machine
that slows down slows all of them down. Shown are medians over the rounds, of medians inside a round. All of them reach
Redis through one Unix socket. CPU is the user and system time of the reading process; Redis' own is not in it. Answers
are checked before anything is measured. The part with Feast is left out, and says so, where there is no Feast.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import hiredis
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from featureclient.cache import CacheOptions
from featureclient.client import Ask, ClientOptions, FeatureClient
from featureclient.schema import Catalogue, View, status
from featureclient.store import OnlineStore
from featureclient.store.feast import FeastStore
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.wire import KeyCodec
from loadtest.processes import exit_on_signals, free_port, redis_binary, running

ENTITIES = 200
FEATURES = 50
READERS = 64
TIMEOUT_S = 30.0
RECV_BYTES = 1 << 16
FEAST_PROJECT = "headrace_bench"
"""That of loadtest/feastpeer.py, which cannot be imported here."""
FEAST_VERSION = "0.67.0"
FEAST_PYTHON = Path("/tmp/headrace-feast/bin/python")  # noqa: S108  # a suggestion, for a program run by hand
MAKE_FEAST = (
    f"python3 -m venv {FEAST_PYTHON.parent.parent} && {FEAST_PYTHON.parent}/pip install 'feast[redis]=={FEAST_VERSION}'"
)

REPEATS = {"mget": 40, "cold fetch": 40, "cold read": 40, "readers": 60, "readers gathered": 60, "feast layout": 15}
"""Measurements in a round; their median is the round's."""
WARM_REPEATS = 300
FEAST_REPEATS = 5

NAMES = [f"f{i}" for i in range(FEATURES)]
CATALOGUE = "\n".join(
    [
        "entities: {driver: {driver_id: int64}}",
        "views:",
        f"  ours@1: {{entity: driver, columns: {{{', '.join(f'{name}: float32' for name in NAMES)}}}}}",
        "  stats@1:",
        "    entity: driver",
        f"    feast: {{project: {FEAST_PROJECT}, view: stats}}",
        f"    columns: {{{', '.join(f'{name}: float32' for name in NAMES)}}}",
    ]
)


@dataclass(frozen=True, slots=True)
class Spent:
    """Milliseconds of one reading."""

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Goal:
    """A number and what is promised of it, if anything is: at most `most`, at least `least`."""

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def met(self) -> bool:
        """It holds."""
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def median_of(some: Sequence[Spent]) -> Spent:
    """Each number's median."""
    return Spent(statistics.median([one.wall_ms for one in some]), statistics.median([one.cpu_ms for one in some]))


def values() -> "np.ndarray[Any, np.dtype[np.float32]]":
    """The features of all entities; Feast writes the same."""
    made: np.ndarray[Any, np.dtype[np.float32]] = np.add.outer(np.arange(ENTITIES), np.arange(FEATURES) / 100)
    return made.astype(np.float32)


class BareRedis:
    """MGET with nothing around it."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def close(self) -> None:
        """Give the connection back."""
        self._socket.close()

    def mget(self, keys: Sequence[bytes]) -> list[bytes]:
        """Send, and read until the reply is whole."""
        reader = self._reader
        self._socket.sendall(hiredis.pack_command(("MGET", *keys)))  # type: ignore[arg-type]  # its stub takes one argument
        reply = reader.gets()
        while reply is False:
            reader.feed(self._socket.recv(RECV_BYTES))
            reply = reader.gets()
        assert isinstance(reply, list)  # of Redis
        return reply


class Feast:
    """Feast's process."""

    def __init__(self, python: Path, path: str) -> None:
        program = Path(__file__).with_name("feastpeer.py")
        command = ["setpriv", "--pdeathsig", "TERM", str(python), str(program), path, str(ENTITIES), str(FEATURES)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "FEAST_USAGE": "False"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()

    def ask(self, line: str) -> dict[str, Any]:
        """One line there, one back. Raises RuntimeError when Feast has ended."""
        assert self._process.stdin is not None  # both are pipes
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"Feast ended; make its environment anew: {MAKE_FEAST}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def read(self) -> Spent:
        """A round of Feast's."""
        answer = self.ask(f"round {FEAST_REPEATS}")
        return Spent(answer["wall_ms"], answer["cpu_ms"])


Work = Callable[[], Awaitable[Spent]]


class Works:
    """All that is measured, by name."""

    def __init__(self, path: str, feast: Feast | None) -> None:
        self.catalogue = Catalogue.parse(CATALOGUE)
        self.ours, self.theirs = self.catalogue.view("ours@1"), self.catalogue.view("stats@1")
        self.ids = list(range(ENTITIES))
        self._path = path
        self._bare = BareRedis(path)
        self._keys = KeyCodec(self.ours).encode(self.ids)[1]
        self._cold = self._client(enabled=False)
        self._cold_feast = self._client(enabled=False, feast=True)
        self._warm = self._client(enabled=True)
        self._feast = feast

    def _client(self, *, enabled: bool, feast: bool = False) -> FeatureClient:
        redis = RedisStore(RedisOptions(url=f"unix://{self._path}", timeout_s=TIMEOUT_S))
        store: OnlineStore = FeastStore(redis, self.catalogue.views.values()) if feast else redis
        options = ClientOptions(cache=CacheOptions(enabled=enabled, expire_s=3600.0), read_timeout_s=TIMEOUT_S)
        return FeatureClient(self.catalogue, store, options)

    async def __aenter__(self) -> Self:
        for client in (self._cold, self._cold_feast, self._warm):
            await client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in (self._cold, self._cold_feast, self._warm):
            await client.close()
        self._bare.close()

    async def prepare(self) -> None:
        """Write the rows, and check that everybody reads what was written."""
        expected = values()
        table = {"driver_id": self.ids} | {name: expected[:, i] for i, name in enumerate(NAMES)}
        await self._warm.write(self.ours, table)
        await self._check(self._cold, self.ours, expected)
        await self._check(self._warm, self.ours, expected)
        if self._feast is not None:
            self._feast.ask("load")
            await self._check(self._cold_feast, self.theirs, expected)
            answer = self._feast.ask("round 1")
            ends = np.array([answer["first"], answer["last"]], np.float32)
            np.testing.assert_array_equal(ends, expected[[0, -1]])

    async def _check(
        self, client: FeatureClient, view: View, expected: "np.ndarray[Any, np.dtype[np.float32]]"
    ) -> None:
        rows = await client.read(view, self.ids)
        assert set(rows.status.tolist()) == {status.PRESENT}, view.ref
        np.testing.assert_array_equal(rows.block["f4"], expected)

    def all(self) -> dict[str, Work]:
        """What a round consists of."""
        works: dict[str, Work] = {
            "mget": self._bare_mget,
            "cold fetch": lambda: self._repeat("cold fetch", lambda: self._fetch(self.ours)),
            "cold read": lambda: self._repeat("cold read", lambda: self._cold.read(self.ours, self.ids)),
            "readers": lambda: self._repeat("readers", self._readers),
            "readers gathered": lambda: self._repeat("readers gathered", self._readers_gathered),
            "warm rows": self._warm_rows,
            "warm model input": self._warm_model_input,
            "warm read": self._warm_read,
        }
        if self._feast is not None:
            works["feast"] = self._read_feast
            works["feast layout"] = lambda: self._repeat("feast layout", self._read_feast_layout)
        return works

    async def _bare_mget(self) -> Spent:
        bare, keys = self._bare, self._keys

        async def once() -> object:
            return bare.mget(keys)

        return await self._repeat("mget", once)

    async def _repeat(self, name: str, once: Callable[[], Awaitable[object]]) -> Spent:
        """The median wall time, and the mean CPU time, whose clock is coarse for one."""
        walls = []
        cpu = time.process_time()
        for _ in range(REPEATS[name]):
            wall = time.perf_counter()
            await once()
            walls.append(time.perf_counter() - wall)
        cpu_ms = (time.process_time() - cpu) * 1e3 / len(walls)
        return Spent(statistics.median(walls) * 1e3, cpu_ms)

    async def _fetch(self, view: View) -> list[bytes | None]:
        """What the gateway does: ids to rows in bytes."""
        now = time.monotonic()
        rows = self._cold.lookup(view, self.ids, now)
        settled = asyncio.get_running_loop().create_future()
        self._cold.fetch([Ask(view, self.ids, rows)], now + TIMEOUT_S, lambda _: settled.set_result(None))
        await settled
        return rows

    async def _readers(self) -> None:
        """Callers who know nothing of each other, each with a fetch of its own."""
        client, view = self._cold, self.ours
        settled = asyncio.get_running_loop().create_future()
        left = READERS

        def done(_: Sequence[int]) -> None:
            nonlocal left
            left -= 1
            if not left:
                settled.set_result(None)

        now = time.monotonic()
        for one in range(READERS):
            ids = [one]
            client.fetch([Ask(view, ids, client.lookup(view, ids, now))], now + TIMEOUT_S, done)
        await settled

    async def _readers_gathered(self) -> None:
        """Callers whom a gateway has gathered: one fetch, which tells who of them is served."""
        client, view = self._cold, self.ours
        settled = asyncio.get_running_loop().create_future()
        left = READERS

        def done(callers: Sequence[int]) -> None:
            nonlocal left
            left -= len(callers)
            if not left:
                settled.set_result(None)

        now = time.monotonic()
        ids = list(range(READERS))
        ask = Ask(view, ids, client.lookup(view, ids, now), range(READERS))
        client.fetch([ask], now + TIMEOUT_S, done, callers=READERS)
        await settled

    async def _warm_rows(self) -> Spent:
        return self._tight(lambda: self._warm.lookup(self.ours, self.ids, time.monotonic()))

    async def _warm_model_input(self) -> Spent:
        dtype = self.ours.layout.block_dtype

        def once() -> object:
            rows = self._warm.lookup(self.ours, self.ids, time.monotonic())
            # All are there: it was checked, and they do not expire.
            return np.ascontiguousarray(np.frombuffer(b"".join(rows), dtype)["f4"])  # type: ignore[arg-type]  # no None

        return self._tight(once)

    async def _warm_read(self) -> Spent:
        walls = []
        for _ in range(WARM_REPEATS):
            wall = time.perf_counter()
            await self._warm.read(self.ours, self.ids)
            walls.append(time.perf_counter() - wall)
        median = statistics.median(walls) * 1e3
        return Spent(median, median)

    @staticmethod
    def _tight(once: Callable[[], object]) -> Spent:
        """Nothing here waits, so wall is CPU."""
        walls = []
        for _ in range(WARM_REPEATS):
            wall = time.perf_counter()
            once()
            walls.append(time.perf_counter() - wall)
        median = statistics.median(walls) * 1e3
        return Spent(median, median)

    async def _read_feast_layout(self) -> None:
        await self._cold_feast.read(self.theirs, self.ids)

    async def _read_feast(self) -> Spent:
        assert self._feast is not None  # else it is not measured
        return await asyncio.get_running_loop().run_in_executor(None, self._feast.read)


async def measure(path: str, feast: Feast | None, rounds: int) -> dict[str, Spent]:
    """All rounds, and the median of each work's."""
    async with Works(path, feast) as works:
        await works.prepare()
        named = list(works.all().items())
        spent: dict[str, list[Spent]] = {name: [] for name, _ in named}
        for work in dict(named).values():
            await work()  # not counted: caches of the processor, first connections
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name, work in named if number % 2 == 0 else reversed(named):
                spent[name].append(await work())
    return {name: median_of(some) for name, some in spent.items()}


def goals(spent: dict[str, Spent]) -> list[Goal]:
    """What is promised of these numbers."""
    bare, us = spent["mget"].wall_ms, 1e3
    made = [
        Goal("cold: fetch of 200 rows, of a bare MGET", spent["cold fetch"].wall_ms / bare, "x", most=2.0),
        Goal("cold: read of 200 rows, of a bare MGET", spent["cold read"].wall_ms / bare, "x"),
        Goal("64 readers, a fetch each: CPU a reader", spent["readers"].cpu_ms * us / READERS, "us", most=4.0),
        Goal("64 readers, gathered: CPU a reader", spent["readers gathered"].cpu_ms * us / READERS, "us", most=4.0),
        Goal("warm: ids to a model's input, a row", spent["warm model input"].wall_ms * 1e6 / ENTITIES, "ns", most=60),
    ]
    if "feast" in spent:
        theirs = spent["feast"]
        made += [
            Goal("Feast, of ours in our layout: wall", theirs.wall_ms / spent["cold read"].wall_ms, "x", least=30),
            Goal("Feast, of ours in our layout: CPU", theirs.cpu_ms / spent["cold read"].cpu_ms, "x"),
            Goal(
                "Feast, of ours in Feast's layout: wall", theirs.wall_ms / spent["feast layout"].wall_ms, "x", least=8
            ),
            Goal("Feast, of ours in Feast's layout: CPU", theirs.cpu_ms / spent["feast layout"].cpu_ms, "x"),
        ]
    return made


def shown(spent: dict[str, Spent], reached: Sequence[Goal]) -> None:
    """Two tables."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    times = Table("work", "wall ms", "CPU ms", title=f"{ENTITIES} entities of {FEATURES} float32, medians")
    for name, one in spent.items():
        times.add_row(name, f"{one.wall_ms:.3f}", f"{one.cpu_ms:.3f}")
    console.print(times)
    bounds = Table("", "measured", "bound", "")
    for goal in reached:
        bound = f"<= {goal.most:g}" if goal.most is not None else f">= {goal.least:g}" if goal.least is not None else ""
        bounds.add_row(goal.name, f"{goal.value:.1f} {goal.unit}", bound, "" if goal.met else "missed")
    console.print(bounds)


@contextmanager
def running_redis() -> Iterator[str]:
    """An empty Redis on a Unix socket, whose path is given."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        path, port = f"{folder}/s", free_port()
        command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path]
        command += ["--save", "", "--appendonly", "no", "--dir", folder]
        with running("redis", command, port=port, folder=Path(folder)):
            yield path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; each median is over them (7)")
    parser.add_argument(
        "--feast-python", type=Path, default=FEAST_PYTHON, help=f"the Python with Feast ({FEAST_PYTHON})"
    )
    asked = parser.parse_args()
    exit_on_signals()
    with running_redis() as path:
        if asked.feast_python.exists():
            with Feast(asked.feast_python, path) as feast:
                spent = uvloop.run(measure(path, feast, asked.rounds))
        else:
            say(f"no Feast at {asked.feast_python}, so it is left out; make it with: {MAKE_FEAST}")
            spent = uvloop.run(measure(path, None, asked.rounds))
    reached = goals(spent)
    if asked.json:
        works = {name: asdict(one) for name, one in spent.items()}
        print(json.dumps({"works": works, "goals": [asdict(goal) | {"met": goal.met} for goal in reached]}, indent=2))
    else:
        shown(spent, reached)
    return 0


if __name__ == "__main__":
    sys.exit(main())
