"""The nodes of a cluster: which of them has which slot now, and which of them answer.

The map is read from any node (CLUSTER SLOTS), at first from the seeds: when a command was redirected, when a node was
lost, and now and then while somebody depends on it without reading.

A node that imports its first slot is on no map yet, and only redirections name it. It is kept, and told of as one that
is read, until it is on the map or answers no more, because rows that were read there may be cached all the while.

A node that does not answer is down: nothing is sent to it, except what finds out whether it is back, so that its keys
cost the others no time. As long as it is down the map is read again and again, so a replica that takes its place is
found.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from featureclient.store.lane import Lane
from featureclient.store.link import Endpoint, ReplyError
from featureclient.store.protocol import StoreError, StoreUnavailable
from featureclient.store.replicas import PRIMARY, REPLICA_EVERY_S, Chooser, ReadOptions, follows
from featureclient.store.slots import SLOTS, NotATopology, Place, Redirect, Topology

REFRESH_EVERY_S: Final = 0.05
"""Between two readings of the map."""

MAP_AGE_S: Final = 5.0
"""After so long the map is read again where nothing else would show that a node has joined."""

PROBE_FIRST_S: Final = 0.05
"""Between two questions whether a node that is down is back; twice that after each, up to PROBE_MAX_S."""

PROBE_MAX_S: Final = 0.5
"""The longest of these waits: how late a node that is back may be noticed."""

NODE_KEPT_S: Final = 10.0
"""How long a node is known that only a redirection has named, though it is down."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How to reach a cluster, and how much to ask of it at once."""

    seeds: tuple[Place, ...]
    """Host and port of some of its nodes. One that answers is enough; it tells of the others."""
    endpoint: Endpoint = field(default_factory=Endpoint)
    """The login and the TLS of every node; host and port are replaced."""
    timeout_s: float = 0.25
    """The limit of one round trip of a read. A read that is redirected may take twice that."""
    write_timeout_s: float = 5.0
    """The same for a write."""
    write_rows_max: int = 4096
    """Rows in one round trip of a write."""
    reads: ReadOptions = field(default_factory=ReadOptions)
    """Whether replicas are read, and reads hedged."""
    namespace: str = "hr"
    """In front of the names of blobs."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds: a cluster is reached through at least one of its nodes")
        if min(self.timeout_s, self.write_timeout_s) <= 0 or self.write_rows_max < 1:
            raise ValueError("timeout_s and write_timeout_s must be above 0, write_rows_max at least 1")
        if self.endpoint.db:
            raise ValueError("db: a cluster has only database 0")


class Node:
    """One server: a lane for what is read of it as a primary, one as a replica, and one for writes."""

    def __init__(self, place: Place, options: ClusterOptions) -> None:
        endpoint = options.endpoint.at(*place)
        self.place = place
        self.endpoint = endpoint
        self.reads = Lane(endpoint, options.timeout_s)
        self.second_reads = Lane(endpoint, options.timeout_s)
        self.replica_reads = Lane(replace(endpoint, commands=(("READONLY",),)), options.timeout_s)
        self.writes = Lane(endpoint, options.write_timeout_s)
        self.named_at = float("-inf")
        self.on_map = False
        self.off_map = False
        self.down = False
        self.in_sync = False

    def __repr__(self) -> str:
        state = "down" if self.down else "up"
        return f"<Node {self.endpoint} {state} in_sync={self.in_sync}>"

    async def close(self) -> None:
        for lane in (self.reads, self.second_reads, self.replica_reads, self.writes):
            await lane.close()


class Shard:
    """The nodes that have the same slots. The primary is the first."""

    def __init__(self, nodes: Sequence[Node], options: ReadOptions) -> None:
        self.nodes = nodes
        self.chooser = Chooser(options.read_from, len(nodes))
        self.reads_replicas = options.read_from != "primary"

    @property
    def primary(self) -> Node:
        return self.nodes[PRIMARY]

    def usable(self) -> list[bool]:
        primary = self.primary
        return [not node.down and (node is primary or node.in_sync) for node in self.nodes]


class ClusterMap:
    """The nodes. `on_adopted` is called when a map was read, or a node is read from that is on none."""

    def __init__(self, options: ClusterOptions, on_adopted: Callable[[], None]) -> None:
        self._options = options
        self._on_adopted = on_adopted
        self.slots: list[Shard | None] = [None] * SLOTS
        self.shards: list[Shard] = []
        self._nodes: dict[Place, Node] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")
        self._asked_first = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<ClusterMap nodes={list(self._nodes.values())}>"

    async def close(self) -> None:
        """Drop the connections."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in self._nodes.values():
            await node.close()

    def node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = Node(place, self._options)
        return node

    def redirected(self, redirect: Redirect) -> Node:
        """The node that a redirection names. One for good is believed until the map is read again."""
        node = self.node(redirect.place)
        node.named_at = asyncio.get_running_loop().time()
        if not (node.on_map or node.off_map):
            node.off_map = True
            self._on_adopted()
        if not redirect.once:
            self._moved(redirect.slot, node)
        return node

    def _moved(self, slot: int, node: Node) -> None:
        shard = next((shard for shard in self.shards if shard.primary is node), None)
        self.slots[slot] = shard if shard is not None else Shard([node], self._options.reads)
        self.refresh_soon()

    def lost_sight(self, place: Place) -> None:
        node = self._nodes.get(place)
        if node is not None:
            self.lost(node)

    def lost(self, node: Node) -> None:
        """A node did not answer: leave it alone until it does, and find out who has its slots now."""
        if not (node.down or self._closed):
            node.down = True
            self._start(self._probe(node))
            self.refresh_soon()

    async def _probe(self, node: Node) -> None:
        """Ask until it answers, or is none of the cluster's any more."""
        wait_s = PROBE_FIRST_S
        while self._nodes.get(node.place) is node:
            try:
                await node.reads.call("PING")
            except (StoreError, ReplyError):
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, PROBE_MAX_S)
                self.refresh_soon()
            else:
                node.down = False
                return

    def refresh_soon(self) -> None:
        if self._refreshing is None and not self._closed:
            self._refreshing = self._start(self._refresh_in_turn())
            self._refreshing.add_done_callback(self._refreshed)

    def _refreshed(self, task: "asyncio.Task[None]") -> None:
        self._refreshing = None
        if not task.cancelled():
            # Asked for, so that nobody is told of an error that nobody waits for.
            task.exception()

    async def refresh(self) -> None:
        """Read the map. Raises StoreUnavailable, and StoreRefused."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        self.refresh_soon()
        assert self._refreshing is not None
        try:
            await asyncio.shield(self._refreshing)
        except asyncio.CancelledError:
            if self._closed:
                raise StoreUnavailable("the store is closed") from None
            raise

    def keep(self) -> None:
        """Read the map now and then from now on."""
        self._start_once("keep map", self._keep_map)

    async def _keep_map(self) -> None:
        """What is told of changes, and which replicas there are, depends on the map also while nothing is read."""
        while True:
            await asyncio.sleep(MAP_AGE_S)
            self.refresh_soon()

    async def _refresh_in_turn(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._refreshed_at + REFRESH_EVERY_S - loop.time()))
        trouble: Exception = StoreUnavailable("no node of the cluster is known to be up")
        for node in self._informants():
            try:
                reply = await node.reads.call("CLUSTER", "SLOTS")
                topology = Topology.of_reply(reply, node.place)
            except (StoreError, ReplyError, NotATopology) as error:
                trouble = error
                if isinstance(error, StoreUnavailable):
                    self.lost(node)
                continue
            self._refreshed_at = loop.time()
            await self._adopt(topology)
            return
        self._refreshed_at = loop.time()
        raise trouble if isinstance(trouble, StoreError) else StoreUnavailable(str(trouble)) from trouble

    def _informants(self) -> list[Node]:
        """Whom to ask for the map: nodes that are up, each time another first, then the seeds."""
        up = [node for node in self._nodes.values() if not node.down]
        self._asked_first += 1
        turn = self._asked_first % len(up) if up else 0
        seeds = [self.node(place) for place in self._options.seeds]
        return list(dict.fromkeys([*up[turn:], *up[:turn], *seeds]))

    async def _adopt(self, topology: Topology) -> None:
        """Have the nodes of a map, and of the last redirections, and no others."""
        shards: dict[Place, Shard] = {}
        known = {shard.primary.place: shard for shard in self.shards}
        for place, others in topology.replicas.items():
            nodes = [self.node(place), *(self.node(other) for other in others)]
            old = known.get(place)
            # One that is as it was keeps what it knows of its nodes' speed.
            shards[place] = old if old is not None and old.nodes == nodes else Shard(nodes, self._options.reads)
        self.slots = [None if owner is None else shards[owner] for owner in topology.owners]
        self.shards = list(shards.values())
        members = {node.place for shard in self.shards for node in shard.nodes}
        named_since = asyncio.get_running_loop().time() - NODE_KEPT_S
        for node in self._nodes.values():
            node.on_map = node.place in members
            node.off_map = node.off_map and not node.on_map
            if node.named_at > named_since or (node.off_map and not node.down):
                members.add(node.place)
        gone = [self._nodes.pop(place) for place in list(self._nodes) if place not in members]
        if self._options.reads.read_from != "primary":
            for shard in self.shards:
                for node in shard.nodes[1:]:
                    self._start_once(f"sync of {node.endpoint}", partial(self._watch_sync, node))
            self.keep()
        for node in gone:
            await node.close()
        self._on_adopted()

    async def _watch_sync(self, node: Node) -> None:
        """Whether a replica follows its primary, as long as it is one of the cluster's."""
        while self._nodes.get(node.place) is node:
            try:
                role = await node.reads.call("ROLE")
                node.in_sync = follows(role)
            except (StoreError, ReplyError):
                node.in_sync = False
            await asyncio.sleep(REPLICA_EVERY_S)

    def endpoints(self) -> dict[Place, Endpoint]:
        """The nodes that are read from."""
        everyone = self._options.reads.read_from != "primary"
        nodes = [node for shard in self.shards for node in (shard.nodes if everyone else shard.nodes[:1])]
        nodes += [node for node in self._nodes.values() if node.off_map]
        return {node.place: node.endpoint for node in nodes}

    def _start_once(self, name: str, work: "Callable[[], Coroutine[Any, Any, None]]") -> None:
        if not any(task.get_name() == name for task in self._tasks):
            self._start(work()).set_name(name)

    def _start(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
