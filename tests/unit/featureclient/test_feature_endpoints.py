"""What a url says about a server."""

import traceback

import pytest

from featureclient.store.link import Endpoint
from featureclient.store.opening import StoreOptions
from featureclient.store.redis import RedisOptions


@pytest.mark.parametrize(
    ("url", "shown", "db", "login"),
    [
        ("redis://", "127.0.0.1:6379", 0, (None, None)),
        ("redis://:secret@redis.example:7000/4", "redis.example:7000", 4, (None, "secret")),
        ("redis://ann:p%40ss@[::1]:7000", "[::1]:7000", 0, ("ann", "p@ss")),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock", 2, (None, None)),
        ("unix://ann:pw@/run/redis.sock", "/run/redis.sock", 0, ("ann", "pw")),
    ],
)
def test_urls(url: str, shown: str, db: int, login: tuple[str | None, str | None]) -> None:
    endpoint = Endpoint.of_url(url)
    assert (str(endpoint), endpoint.db, (endpoint.username, endpoint.password)) == (shown, db, login)
    assert endpoint.tls is None
    assert "secret" not in repr(endpoint)


def test_what_is_given_goes_before_the_url() -> None:
    endpoint = Endpoint.of_url("redis://ann:old@h", username="bob", password="new", connect_timeout_s=3.0)
    assert (endpoint.username, endpoint.password, endpoint.connect_timeout_s) == ("bob", "new", 3.0)
    other = Endpoint.of_url("unix://ann:pw@/s?db=1").at("h2", 7001)
    assert (str(other), other.password, other.db) == ("h2:7001", "pw", 1)


def test_tls_is_read_at_once() -> None:
    endpoint = Endpoint.of_url("rediss://h?ssl_cert_reqs=none")
    assert endpoint.tls is not None
    assert not endpoint.tls.check_hostname
    checked = Endpoint.of_url("rediss://h").tls
    assert checked is not None
    assert checked.check_hostname


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://h", "redis://"),
        ("redis://h?socket_timeout=3", "socket_timeout: not an option"),
        ("redis://h?ssl_ca_certs=/x", "only a rediss:// url"),
        ("rediss://h?ssl_ca_certs=/no/such/file", "ssl_ca_certs: /no/such/file: there is no such file"),
        ("rediss://h?ssl_nonsense=1", "TLS options"),
        ("rediss://h?ssl_cert_reqs=perhaps", "TLS options"),
        ("redis://h?db=x", "db"),
        ("redis://h:1/abc", "number of a database"),
        ("redis://h:1/0/1", "number of a database"),
        ("redis://h:70000", "port"),
    ],
)
def test_what_cannot_be_meant_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Endpoint.of_url(url)
    with pytest.raises(ValueError, match=f"url: .*{says}"):
        RedisOptions(url)


@pytest.mark.parametrize("password", ["secr#et", "secr/et", "secr?et", "12#secret", "1/secret", "1?secret", "secr[et"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "redis+sentinel"])
def test_a_password_that_ends_too_early_is_not_shown(scheme: str, password: str) -> None:
    with pytest.raises(ValueError, match="percent-encode the password") as caught:
        StoreOptions(f"{scheme}://ann:{password}@h:7000/0?primary=p")
    shown = "".join(traceback.format_exception(caught.value))
    assert "secr" not in shown.split("Error: ", 1)[1]


def test_the_last_at_sign_ends_a_password() -> None:
    assert Endpoint.of_url("redis://ann:p@ss@h:7000").password == "p@ss"
    assert StoreOptions("redis+cluster://ann:p@ss@h:7000").endpoint().password == "p@ss"
