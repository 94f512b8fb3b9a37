"""Where a transport listens, how it proves who it is, and how it stops. The same on both transports."""

import asyncio
import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gateway.transport import TlsOptions, TransportOptions, create
from tests.contract.transport.rig import METHOD, WAIT_S, Echo, serve, until


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"),
        folder=folder,
    )


def make_certificate(folder: Path, name: str, authority: str, subject: str) -> None:
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}"),
        folder=folder,
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(
        *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
        *("-CAcreateserial", "-days", "2", "-out", f"{name}.pem", "-extfile", "names"),
        folder=folder,
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, and certificates of a server and a client."""
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "ca")
    make_authority(folder, "other")
    make_certificate(folder, "server", "ca", "headrace")
    make_certificate(folder, "renewed", "other", "headrace")
    make_certificate(folder, "client", "ca", "caller-7")
    make_certificate(folder, "stranger", "other", "stranger")
    return folder


def secure_channel(address: str, folder: Path, root: str, client: str | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        (folder / f"{root}.pem").read_bytes(),
        *((folder / f"{client}.{end}").read_bytes() for end in (("key", "pem") if client else ())),
    )
    # Subchannels are shared in the process by address and options: each test wants its own.
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def ask(address: str, payload: bytes = b"hello", **options: Any) -> bytes:
    async with grpc.aio.insecure_channel(address, **options) as channel:
        return await channel.unary_unary(METHOD)(payload, timeout=WAIT_S)


async def test_it_listens_on_tcp_unix_sockets_and_ipv6(kind: str, tmp_path: Path) -> None:
    unix = f"unix:{tmp_path}/s"
    async with serve(kind, listen=("127.0.0.1:0", unix, "[::1]:0")) as served:
        assert served.addresses[1] == unix
        for address, peer in zip(served.addresses, ("ipv4:127.0.0.1:", "unix:", "ipv6:%5B::1%5D:"), strict=True):
            assert await ask(address) == b"hello"
            waiting = asyncio.create_task(ask(address, b"hold"))
            await until(lambda: bool(served.echo.held))
            call = served.echo.held.pop()
            assert call.peer.startswith(peer)
            call.reply(b"done")
            assert await waiting == b"done"


async def test_an_address_in_use_is_an_error_unless_it_is_shared(kind: str) -> None:
    async with serve(kind) as first:
        with pytest.raises(OSError, match=r"\d"):
            async with serve(kind, listen=(first.addresses[0],)):
                pass
    local = [("grpc.use_local_subchannel_pool", 1)]
    async with serve(kind, reuse_port=True) as first:
        second = create(kind, TransportOptions(listen=(first.addresses[0],), reuse_port=True))  # type: ignore[arg-type]
        echo = Echo()
        second.add_batch_method(METHOD, echo)
        assert await second.start() == first.addresses
        assert [await ask(first.addresses[0], options=local) for _ in range(30)] == [b"hello"] * 30
        await second.stop(0)
        assert first.echo.batches
        assert echo.batches


async def test_a_method_has_one_handler(kind: str) -> None:
    transport = create(kind, TransportOptions())  # type: ignore[arg-type]
    transport.add_batch_method(METHOD, Echo())
    with pytest.raises(ValueError, match="Unary"):
        transport.add_batch_method(METHOD, Echo())


async def test_tls_is_spoken_and_plain_text_is_not(kind: str, certificates: Path) -> None:
    tls = TlsOptions(certificates / "server.pem", certificates / "server.key")
    async with serve(kind, tls=tls) as served:
        async with secure_channel(served.addresses[0], certificates, "ca") as channel:
            answers = await asyncio.gather(
                *(channel.unary_unary(METHOD)(b"x" * size) for size in (1, 100_000, 2_000_000))
            )
            assert [len(answer) for answer in answers] == [1, 100_000, 2_000_000]
        for channel in (served.channel, secure_channel(served.addresses[0], certificates, "other")):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await channel.unary_unary(METHOD)(b"", timeout=WAIT_S)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            await channel.close()


async def test_clients_prove_who_they_are(kind: str, certificates: Path) -> None:
    tls = TlsOptions(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    async with serve(kind, tls=tls) as served:
        async with secure_channel(served.addresses[0], certificates, "ca", "client") as channel:
            waiting = asyncio.ensure_future(channel.unary_unary(METHOD)(b"hold", timeout=WAIT_S))
            await until(lambda: bool(served.echo.held))
            assert served.echo.held[0].identity == "caller-7"
            served.echo.held[0].reply(b"hello")
            assert await waiting == b"hello"
        for client in ("stranger", None):
            async with secure_channel(served.addresses[0], certificates, "ca", client) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await channel.unary_unary(METHOD)(b"", timeout=WAIT_S)
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificates_are_exchanged_while_it_runs(kind: str, certificates: Path, tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def install(name: str) -> None:
        chain.write_bytes((certificates / f"{name}.pem").read_bytes())
        key.write_bytes((certificates / f"{name}.key").read_bytes())

    install("server")
    tls = TlsOptions(chain, key, reload_check_s=0.05)
    async with serve(kind, tls=tls) as served, secure_channel(served.addresses[0], certificates, "ca") as old:
        assert await old.unary_unary(METHOD)(b"1") == b"1"
        install("renewed")
        await asyncio.sleep(0.2)
        assert await old.unary_unary(METHOD)(b"2") == b"2", "an open connection keeps working"
        async with secure_channel(served.addresses[0], certificates, "other") as new:
            assert await new.unary_unary(METHOD)(b"3", timeout=WAIT_S) == b"3"
        if kind == "fast":
            # grpcio takes whatever the file has and fails the handshakes.
            key.write_bytes(b"half writ")
            await asyncio.sleep(0.2)
        async with secure_channel(served.addresses[0], certificates, "other") as new:
            assert await new.unary_unary(METHOD)(b"4", timeout=WAIT_S) == b"4"


async def test_a_stop_waits_for_the_calls_in_flight(kind: str) -> None:
    async with serve(kind) as served:
        waiting = [asyncio.ensure_future(served.call(b"hold")) for _ in range(100)]
        await until(lambda: len(served.echo.held) == 100)
        stopping = asyncio.create_task(served.transport.stop(WAIT_S))
        await asyncio.sleep(0.2)
        assert not stopping.done()
        for call in served.echo.held:
            call.reply(b"in time")
        assert await asyncio.gather(*waiting) == [b"in time"] * 100
        started = time.monotonic()
        await stopping
        assert time.monotonic() - started < 3
        host, port = served.host_port
        with pytest.raises(OSError, match="refused"), socket.create_connection((host, port)):
            pass


async def test_a_stop_ends_what_is_left_after_its_grace(kind: str) -> None:
    async with serve(kind) as served:
        waiting = asyncio.ensure_future(served.error(b"hold"))
        await until(lambda: bool(served.echo.held))
        started = time.monotonic()
        await served.transport.stop(0.2)
        assert 0.15 < time.monotonic() - started < 5
        assert (await waiting).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        await until(lambda: served.echo.held[0].cancelled)


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"\x00" * 1_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ],
)
async def test_junk_ends_its_connection_only(kind: str, junk: bytes) -> None:
    async with serve(kind) as served:
        await served.call(b"connect")
        reader, writer = await asyncio.open_connection(*served.host_port)
        writer.write(junk)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(WAIT_S):
                while await reader.read(65_536):
                    pass
        writer.close()
        assert await served.call(b"fine") == b"fine"
