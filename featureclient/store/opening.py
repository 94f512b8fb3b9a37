"""The store that a url names.

    redis://  rediss://  unix://                        RedisStore, or ReplicatedStore when it reads replicas or hedges
    redis+sentinel://host:26379,host2/0?primary=name    SentinelStore
    redis+cluster://host:7000,host2:7001                RedisClusterStore

`rediss+sentinel` and `rediss+cluster` are the same over TLS. A user and a password before the hosts, and options such
as `ssl_ca_certs` behind the `?`, are those of the servers of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlunsplit

from featureclient.store.cluster import RedisClusterStore
from featureclient.store.cluster_map import ClusterOptions
from featureclient.store.link import Endpoint, parts_of
from featureclient.store.protocol import OnlineStore
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.store.replicas import ReadOptions
from featureclient.store.replicated import ReplicatedStore
from featureclient.store.sentinel import SentinelOptions, SentinelStore
from featureclient.store.slots import Place

SENTINEL: Final = "sentinel"
CLUSTER: Final = "cluster"
SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
PORTS: Final[Mapping[str, int]] = {SENTINEL: 26379, CLUSTER: 6379}
"""What is meant where a host has no port."""
PORT_MAX: Final = 65_535


@dataclass(frozen=True, slots=True)
class StoreOptions(RedisOptions):
    """How to reach the servers, and how much to ask of them at once.

    The fields of `RedisOptions` hold for every server; its url may also be one of Sentinels or of a cluster.
    """

    sentinel_username: str | None = None
    """The user at the Sentinels, which have users of their own."""
    sentinel_password: str | None = field(default=None, repr=False)
    """The password at the Sentinels. Without one nobody logs in there."""
    sentinel_check_s: float = 1.0
    """Between two questions to the Sentinels who is the primary. A command that fails has them asked at once."""
    reads: ReadOptions = field(default_factory=ReadOptions)
    """Whether replicas are read, and reads hedged."""

    def __post_init__(self) -> None:
        RedisOptions.__post_init__(self)  # super() does not know a class with slots that a decorator has made anew
        url = _StoreUrl.parse(self.url)
        if self.sentinel_check_s <= 0:
            raise ValueError("sentinel_check_s must be above 0")
        if self.reads.replica_urls and url.kind:
            raise ValueError(f"reads.replica_urls: a {url.kind} tells its replicas; they are named for redis:// only")
        if self.reads.read_from != "primary" and not (url.kind or self.reads.replica_urls):
            raise ValueError(f"reads.read_from: {self.reads.read_from} takes replicas, in reads.replica_urls")
        if self.reads.read_from == "primary" and self.reads.replica_urls:
            raise ValueError("reads.replica_urls: nobody reads them while reads.read_from is primary")
        for i, replica in enumerate(self.reads.replica_urls):
            try:
                RedisOptions(replica)
            except ValueError as error:
                raise ValueError(f"reads.replica_urls[{i}]: {error}") from error
        if url.kind == CLUSTER and self.endpoint().db:
            raise ValueError("url: a cluster has only database 0")

    def endpoint(self) -> Endpoint:
        """The first server of the url: its login and its TLS are those of all."""
        return Endpoint.of_url(
            _StoreUrl.parse(self.url).of_server,
            username=self.username,
            password=self.password,
            connect_timeout_s=self.connect_timeout_s,
        )


def open_store(options: RedisOptions) -> OnlineStore:
    """Make the store that the url names. It connects when it is first used."""
    if not isinstance(options, StoreOptions):
        return RedisStore(options)
    url, reads = _StoreUrl.parse(options.url), options.reads
    if url.kind == CLUSTER:
        return RedisClusterStore(
            ClusterOptions(
                seeds=url.places,
                endpoint=options.endpoint(),
                timeout_s=options.timeout_s,
                write_timeout_s=options.write_timeout_s,
                write_rows_max=options.write_rows_max * options.write_runs_max,
                reads=reads,
                namespace=options.namespace,
            )
        )
    if url.kind == SENTINEL:
        server = replace(options, url=url.of_server, reads=ReadOptions())
        login = Endpoint(
            tls=options.endpoint().tls,
            username=options.sentinel_username,
            password=options.sentinel_password,
            connect_timeout_s=options.connect_timeout_s,
        )
        return SentinelStore(
            SentinelOptions(url.places, url.primary, server, login, reads, check_s=options.sentinel_check_s)
        )
    if reads.read_from == "primary" and not reads.hedge:
        return RedisStore(options)
    replicas = [replace(options, url=replica, reads=ReadOptions()) for replica in reads.replica_urls]
    return ReplicatedStore(options, replicas, reads)


class _StoreUrl(NamedTuple):
    """A url in its parts. `of_server` is the url of its first server in redis-py's way; `kind` is empty for one."""

    kind: str
    places: tuple[Place, ...]
    primary: str
    of_server: str

    @classmethod
    def parse(cls, url: str) -> "_StoreUrl":
        """Raises ValueError, which says what is wrong with it."""
        parts = parts_of(url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"{parts.scheme or 'no scheme'}:// is none of {', '.join(SCHEMES)}")
        scheme, _, kind = parts.scheme.partition("+")
        if not kind:
            return cls("", (), "", url)
        login, sign, hosts = parts.netloc.rpartition("@")
        places = tuple(_place(host, PORTS[kind]) for host in hosts.split(","))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        primary = query.pop("primary", "")
        if kind == SENTINEL and not primary:
            raise ValueError("?primary= is missing: what the Sentinels call the primary")
        if kind == CLUSTER and primary:
            raise ValueError("?primary= is for Sentinels; a cluster has many primaries")
        host, port = places[0]
        netloc = f"{login}{sign}[{host}]:{port}" if ":" in host else f"{login}{sign}{host}:{port}"
        of_server = urlunsplit((scheme, netloc, parts.path, urlencode(query), ""))
        return cls(kind, places, primary, of_server)


def _place(text: str, default_port: int) -> Place:
    """`host`, `host:port` or `[address]:port`."""
    host, _, port = text.rpartition(":") if ":" in text and not text.endswith("]") else (text, "", str(default_port))
    if not host or not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
        raise ValueError(f"{text!r} is not host or host:port (hosts are separated by commas)")
    return host.strip("[]"), int(port)
