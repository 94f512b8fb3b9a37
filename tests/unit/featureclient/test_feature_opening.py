"""Which store a url names."""

from typing import Any

import pytest

from featureclient.store.cluster import RedisClusterStore
from featureclient.store.opening import StoreOptions, open_store
from featureclient.store.redis import RedisOptions, RedisStore
from featureclient.store.replicas import ReadOptions
from featureclient.store.replicated import ReplicatedStore
from featureclient.store.sentinel import SentinelStore

REPLICAS = ReadOptions(read_from="replica", replica_urls=("redis://b", "redis://c:1"))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (RedisOptions(), RedisStore),
        (StoreOptions(), RedisStore),
        (StoreOptions("rediss://user:pw@h:1/2"), RedisStore),
        (StoreOptions("unix:///run/redis.sock"), RedisStore),
        (StoreOptions("redis://a", reads=ReadOptions(hedge=True)), ReplicatedStore),
        (StoreOptions("redis://a", reads=REPLICAS), ReplicatedStore),
        (StoreOptions("redis+sentinel://a,b:1/3?primary=p", reads=ReadOptions(read_from="nearest")), SentinelStore),
        (StoreOptions("rediss+sentinel://u:p@[::1]:26379/0?primary=p&ssl_check_hostname=no"), SentinelStore),
        (
            StoreOptions("redis+cluster://a,b:7000,[::1]:7001", reads=ReadOptions(read_from="replica")),
            RedisClusterStore,
        ),
        (StoreOptions("rediss+cluster://u:p@a/0", password="other"), RedisClusterStore),
    ],
)
async def test_the_scheme_decides(options: RedisOptions, kind: type) -> None:
    store = open_store(options)
    assert type(store) is kind
    await store.close()


def test_hosts_ports_and_logins() -> None:
    options = StoreOptions("redis+sentinel://u%40:p%2C@a,b:1,[::1]:2/3?primary=p", connect_timeout_s=0.1)
    endpoint = options.endpoint()
    assert (endpoint.host, endpoint.port, endpoint.db, endpoint.tls) == ("a", 26379, 3, None)
    assert (endpoint.username, endpoint.password, endpoint.connect_timeout_s) == ("u@", "p,", 0.1)
    assert StoreOptions("rediss+cluster://a,b:1").endpoint().tls is not None
    endpoint = StoreOptions("redis+cluster://[::1],b:1", username="x", password="y").endpoint()
    assert (endpoint.host, endpoint.port, endpoint.username, endpoint.password) == ("::1", 6379, "x", "y")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://a"}, "url: http:// is none of redis"),
        ({"url": "a:6379"}, "url: "),
        ({"url": "redis+sentinel://a"}, r"url: \?primary= is missing"),
        ({"url": "redis+cluster://a?primary=x"}, r"url: \?primary= is for Sentinels"),
        ({"url": "redis+cluster://a,,b"}, "url: '' is not host or host:port"),
        ({"url": "redis+cluster://a:b"}, "url: 'a:b' is not host or host:port"),
        ({"url": "redis+cluster://a:70000"}, "url: 'a:70000' is not"),
        ({"url": "redis+cluster://a/2"}, "url: a cluster has only database 0"),
        ({"url": "redis+cluster://a?colour=red"}, "url: colour: not an option"),
        ({"url": "redis+sentinel://a/0?primary=x", "sentinel_check_s": 0}, "sentinel_check_s"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"reads": ReadOptions(read_from="replica")}, "reads.read_from: replica takes replicas, in reads.replica_urls"),
        ({"reads": ReadOptions(replica_urls=("redis://b",))}, "reads.replica_urls: nobody reads them"),
        ({"reads": ReadOptions("replica", replica_urls=("redis://b", "b"))}, r"reads.replica_urls\[1\]: url: "),
        ({"url": "redis+cluster://a", "reads": REPLICAS}, "reads.replica_urls: a cluster tells its replicas"),
    ],
)
def test_errors_name_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StoreOptions(**settings)


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(StoreOptions("redis://a", password="secret", sentinel_password="secret2"))
