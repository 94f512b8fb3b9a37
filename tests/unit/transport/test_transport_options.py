import math
from pathlib import Path
from typing import Any

import pytest

from gateway.transport import Address, TlsOptions, TransportOptions


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8500", Address("127.0.0.1", 8500, "")),
        ("localhost:0", Address("localhost", 0, "")),
        ("[::1]:8500", Address("::1", 8500, "")),
        ("[::]:65535", Address("::", 65535, "")),
        ("unix:/run/s", Address("", 0, "/run/s")),
        ("unix:relative", Address("", 0, "relative")),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "8500", "localhost", ":8500", "::1:8500", "[::1]", "[nothing]:1", "host:-1", "host:65536", "host:x", "unix:"],
)
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="listen"):
        TransportOptions(listen=(text,))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"listen": ()}, "listen"),
        ({"max_active_calls": 0}, "max_active_calls"),
        ({"idle_timeout_s": -1.0}, "idle_timeout_s"),
        ({"keepalive_timeout_s": math.nan}, "keepalive_timeout_s"),
        ({"handshake_timeout_s": math.inf}, "handshake_timeout_s"),
        ({"backlog": 0}, "backlog"),
        ({"max_receive_message_bytes": 2**25}, "max_buffered_request_bytes"),
        ({"max_buffered_request_bytes": 2**31}, "max_buffered_request_bytes"),
        ({"max_concurrent_streams": 2**20}, "max_concurrent_streams"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TransportOptions(**changes)


def test_half_of_the_request_bytes_are_split_and_half_are_lent() -> None:
    options = TransportOptions(max_buffered_request_bytes=32 * 2**20, max_concurrent_streams=1_024)
    assert options.stream_window_bytes == 16_384
    assert options.lendable_request_bytes == 16 * 2**20
    assert TransportOptions(max_concurrent_streams=10).stream_window_bytes == 65_535


def test_tls_files_are_there_and_looked_at_from_time_to_time(tmp_path: Path) -> None:
    chain, key = tmp_path / "chain", tmp_path / "key"
    chain.touch()
    with pytest.raises(ValueError, match=r"tls\.private_key: .*key: there is no such file"):
        TlsOptions(chain, key)
    key.touch()
    with pytest.raises(ValueError, match="reload_check_s"):
        TlsOptions(chain, key, reload_check_s=0)
