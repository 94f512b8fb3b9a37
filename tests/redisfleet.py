"""Redis servers that belong together: a cluster, and a primary with a replica under two Sentinels.

Flow: choose ports → write what the servers would have found out about each other by gossip (`nodes.conf`,
`known-replica`) → start all at once → ask until each says that it is ready. So a cluster is up in the two seconds that
its nodes wait before they believe themselves, and a Sentinel pair in less than one.

Servers listen on TCP, because cluster and Sentinel tell addresses as host and port. They are ended by the `finally` of
the context managers and, should this process be killed, by the kernel where Linux' setpriv is there. Redis 6.2 does.
"""

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from examples.flights.redis_process import find_server

START_S_MAX = 20.0
STOP_S_MAX = 10.0
ASK_EVERY_S = 0.02
SLOTS = 16_384
PRIMARY_NAME = "headrace"
"""What the Sentinels call the primary."""
# Below the ports that the kernel gives to clients; a cluster's node takes the port 10,000 above its own as well.
PORTS = range(11_000, 22_000)
BUS = 10_000


class Server:
    """One redis-server in a folder of its own. It may be killed, frozen and started again."""

    def __init__(self, folder: Path, port: int, settings: Sequence[str], *, sentinel: bool = False) -> None:
        self.folder = folder
        self.port = port
        self._settings = settings
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Server {self.address} {'running' if self.running else 'down'}>"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"

    def prepare(self) -> None:
        """Write the configuration, which the server itself may write again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        common = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", f"logfile {self.folder}/log"]
        if not self._sentinel:
            common += ['save ""', "appendonly no", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
        (self.folder / "conf").write_text("\n".join([*common, *self._settings]) + "\n")

    def start(self) -> None:
        command = [find_server(), str(self.folder / "conf"), *(["--sentinel"] if self._sentinel else [])]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "TERM", "--", *command]
        self._process = subprocess.Popen(command)

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S_MAX)
            self._process = None

    def freeze(self) -> None:
        """The server hangs: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def call(self, *command: str | bytes | int) -> Any:
        """The reply to one command from outside, as the server sent it."""
        connection = redis.Connection(host="127.0.0.1", port=self.port, socket_timeout=STOP_S_MAX, protocol=2)
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

    def info(self, *command: str) -> dict[str, str]:
        """What a command that answers in lines of `name:value` says, by default INFO."""
        lines = self.call(*(command or ("INFO",))).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def wait_until(self, what: Callable[["Server"], bool]) -> None:
        """Ask until it is so. A server that ended or does not get there fails the test with its log."""
        give_up_at = time.monotonic() + START_S_MAX
        while time.monotonic() < give_up_at:
            if self._process is not None and self._process.poll() is not None:
                break
            try:
                if what(self):
                    return
            except redis.RedisError:
                pass
            time.sleep(ASK_EVERY_S)
        raise AssertionError(f"{self} did not get ready:\n{self.log}")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


def row(event_ms: int, text: str = "") -> bytes:
    """Bytes that a store takes for a row with an event at that time."""
    return struct.pack("<BBHIqII", 1, 0, 0, 7, event_ms, 0, 0) + text.encode()


def answers(server: Server) -> bool:
    return bool(server.call("PING"))


def _cluster_is_up(server: Server) -> bool:
    return server.info("CLUSTER", "INFO")["cluster_state"] == "ok"


def _is_in_sync(server: Server) -> bool:
    return server.info().get("master_link_status") == "up"


class Cluster:
    """`primaries` nodes that share the slots evenly, each with `replicas` replicas."""

    def __init__(self, folder: Path, *, primaries: int = 3, replicas: int = 0, node_timeout_ms: int = 2000) -> None:
        ports = _free_ports(primaries * (1 + replicas), bus=True)
        settings = [
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {node_timeout_ms}",
            # Nodes answer for their slots while another is down. (Redis' own default is that none does.)
            "cluster-require-full-coverage no",
            "cluster-replica-validity-factor 0",
            # A replica is on nobody's map before it has received something.
            "repl-ping-replica-period 1",
        ]
        servers = [Server(folder / str(port), port, settings) for port in ports]
        self.primaries = servers[:primaries]
        self.replicas = servers[primaries:]
        """`replicas[i]` follows `primaries[i % len(primaries)]` when the cluster starts."""
        self.servers = servers

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(server.address for server in self.primaries)

    def start(self) -> None:
        for server in self.servers:
            server.prepare()
            (server.folder / "nodes.conf").write_text(self._nodes_file(server))
            server.start()
        self.wait_until_up()
        for server in self.servers:
            server.wait_until(self._knows_all)

    def wait_until_up(self) -> None:
        """Every node sees all slots served, and every replica has all of its primary's keys."""
        for server in self.servers:
            server.wait_until(_cluster_is_up)
        for server in self.replicas:
            server.wait_until(lambda one: one.info()["role"] == "master" or _is_in_sync(one))

    def end(self) -> None:
        for server in self.servers:
            server.kill()

    def repair(self) -> None:
        """Start who is down, and wait until all is well."""
        for server in self.servers:
            if not server.running:
                server.start()
        self.wait_until_up()

    def flush(self) -> None:
        for server in self.servers:
            if server.info()["role"] == "master":
                server.call("FLUSHALL")

    def owner(self, key: bytes) -> Server:
        """The server that holds a key now."""
        return self.owner_of(self.slot(key))

    def owner_of(self, slot: int) -> Server:
        """The server that holds a slot now."""
        for first, last, (_, port, *_), *_ in self.primaries[0].call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.at(port)
        raise AssertionError(f"nobody has slot {slot}")

    def slot(self, key: bytes) -> int:
        """As the server itself computes it."""
        slot: int = self.primaries[0].call("CLUSTER", "KEYSLOT", key)
        return slot

    def at(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def node_id(self, server: Server) -> str:
        return f"{self.servers.index(server) + 1:040x}"

    def begin_move(self, slot: int, source: Server, target: Server) -> None:
        """From now on keys that the source has not are asked for at the target."""
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))

    def move_keys(self, slot: int, source: Server, target: Server, count: int = 1000) -> int:
        """Move some keys of the slot, and return how many."""
        keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, target: Server) -> None:
        """The target owns the slot; the others hear of it at once."""
        for server in [target, *(one for one in self.primaries if one is not target)]:
            server.call("CLUSTER", "SETSLOT", slot, "NODE", self.node_id(target))

    def move(self, slot: int, source: Server, target: Server) -> None:
        """Move a slot, a few keys at a time."""
        self.begin_move(slot, source, target)
        while self.move_keys(slot, source, target, 3):
            pass
        self.end_move(slot, target)

    def _knows_all(self, server: Server) -> bool:
        members = 1 + len(self.replicas) // len(self.primaries)
        return all(len(nodes) == members for _, _, *nodes in server.call("CLUSTER", "SLOTS"))

    def _nodes_file(self, me: Server) -> str:
        count = len(self.primaries)
        lines = []
        for i, server in enumerate(self.servers):
            flags = "myself," if server is me else ""
            place = f"{self.node_id(server)} {server.address}@{server.port + BUS}"
            if i < count:
                slots = f"{SLOTS * i // count}-{SLOTS * (i + 1) // count - 1}"
                lines.append(f"{place} {flags}master - 0 0 {i + 1} connected {slots}")
            else:
                primary = self.node_id(self.primaries[i % count])
                lines.append(f"{place} {flags}slave {primary} 0 0 {i % count + 1} connected")
        return "\n".join([*lines, f"vars currentEpoch {count} lastVoteEpoch 0"]) + "\n"


class SentinelFleet:
    """A primary, a replica, and two Sentinels that know both."""

    def __init__(self, folder: Path, *, down_after_ms: int = 700) -> None:
        primary, replica, *sentinels = _free_ports(4, bus=False)
        self.servers = [
            Server(folder / "a", primary, []),
            Server(folder / "b", replica, [f"replicaof 127.0.0.1 {primary}"]),
        ]
        ids = [f"{i:040x}" for i in range(1, len(sentinels) + 1)]
        self.sentinels = []
        for i, port in enumerate(sentinels):
            settings = [
                f"sentinel myid {ids[i]}",
                f"sentinel monitor {PRIMARY_NAME} 127.0.0.1 {primary} 2",
                f"sentinel down-after-milliseconds {PRIMARY_NAME} {down_after_ms}",
                f"sentinel failover-timeout {PRIMARY_NAME} 3000",
                f"sentinel known-replica {PRIMARY_NAME} 127.0.0.1 {replica}",
            ]
            others = [(other, one) for other, one in zip(sentinels, ids, strict=True) if other != port]
            settings += [f"sentinel known-sentinel {PRIMARY_NAME} 127.0.0.1 {other} {one}" for other, one in others]
            self.sentinels.append(Server(folder / f"s{i}", port, settings, sentinel=True))

    @property
    def url(self) -> str:
        hosts = ",".join(server.address for server in self.sentinels)
        return f"redis+sentinel://{hosts}/0?primary={PRIMARY_NAME}"

    @property
    def primary(self) -> Server:
        """Whoever says that it is one."""
        for server in self.servers:
            try:
                if server.info()["role"] == "master":
                    return server
            except redis.RedisError:
                continue
        raise AssertionError("no server is a primary")

    @property
    def replica(self) -> Server:
        return next(server for server in self.servers if server is not self.primary)

    def start(self) -> None:
        for server in [*self.servers, *self.sentinels]:
            server.prepare()
            server.start()
        self.wait_until_up()

    def wait_until_up(self) -> None:
        """One of the two follows the other, and both Sentinels agree about it."""
        for server in self.servers:
            server.wait_until(lambda one: one.info()["role"] == "master" or _is_in_sync(one))
        primary = self.primary
        for sentinel in self.sentinels:
            sentinel.wait_until(lambda one: self._sees(one, primary))

    def end(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.kill()

    def _sees(self, sentinel: Server, primary: Server) -> bool:
        fields = [field.decode() for field in sentinel.call("SENTINEL", "MASTER", PRIMARY_NAME)]
        state = dict(zip(fields[::2], fields[1::2], strict=True))
        return (
            state["port"] == str(primary.port)
            and state["flags"] == "master"
            and state["num-slaves"] == "1"
            and state["num-other-sentinels"] == str(len(self.sentinels) - 1)
        )


@contextmanager
def running_cluster(**settings: int) -> Iterator[Cluster]:
    """A cluster in a folder of its own, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="headrace-c-") as folder:
        cluster = Cluster(Path(folder), **settings)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.end()


@contextmanager
def running_sentinels(**settings: int) -> Iterator[SentinelFleet]:
    """A Sentinel fleet in a folder of its own, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="headrace-f-") as folder:
        fleet = SentinelFleet(Path(folder), **settings)
        try:
            fleet.start()
            yield fleet
        finally:
            fleet.end()


@contextmanager
def running_server(*settings: str) -> Iterator[Server]:
    """One server in a folder of its own, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="headrace-o-") as folder:
        server = Server(Path(folder, "o"), _free_ports(1, bus=False)[0], settings)
        try:
            server.prepare()
            server.start()
            server.wait_until(answers)
            yield server
        finally:
            server.kill()


def _free_ports(count: int, *, bus: bool) -> list[int]:
    """Ports that nobody listens on. Workers of one test run start at places of their own, by chance."""
    found: list[int] = []
    chance = random.Random(os.urandom(8))
    while len(found) < count:
        port = chance.choice(PORTS)
        if port not in found and _is_free(port) and (not bus or _is_free(port + BUS)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
