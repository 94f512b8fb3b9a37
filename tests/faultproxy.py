"""A proxy in front of a Redis, on a Unix socket, that does to replies what networks and dying servers do."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self


class FaultProxy:
    """`async with` it, and give `url` to whoever shall suffer.

    Faults concern replies, of connections that are open and of those to come, until `heal`:

    hold      replies to requests that contain `command` wait for `heal`; `held` is set when one does
    cut       after so many more bytes of replies, the connection is dropped
    trickle   replies come one byte every `every_s`
    garble    these bytes come instead of the next reply, once
    """

    def __init__(self, backend: str, folder: Path) -> None:
        self._backend = backend.removeprefix("unix://")
        self._path = str(folder / "p")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._command: bytes | None = None
        self._healed = asyncio.Event()
        self._cut_after: int | None = None
        self._every_s = 0.0
        self._garbage: bytes | None = None
        self.held = asyncio.Event()
        self.connections = 0

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    async def __aenter__(self) -> Self:
        self._server = await self._listen()
        return self

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, self._path)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._backend)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.heal()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A transport closes its socket in the next turn of the loop.
        await asyncio.sleep(0)

    def hold(self, command: bytes) -> None:
        self._healed.clear()
        self.held.clear()
        self._command = command

    def cut(self, after_bytes: int) -> None:
        self._cut_after = after_bytes

    def trickle(self, every_s: float) -> None:
        self._every_s = every_s

    def garble(self, garbage: bytes) -> None:
        self._garbage = garbage

    def heal(self) -> None:
        self._command = None
        self._garbage = None
        self._cut_after = None
        self._every_s = 0.0
        self._healed.set()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        server, to_server = await self._connect()
        state = {"holding": False}
        up = asyncio.create_task(self._requests(client, to_server, state))
        down = asyncio.create_task(self._replies(server, to_client, state))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Nothing is awaited here, where a second cancellation could leave a socket open.
            self._tasks.discard(task)
            for one in (up, down):
                one.cancel()
            to_server.close()
            to_client.close()

    async def _requests(
        self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, state: dict[str, bool]
    ) -> None:
        while data := await client.read(65_536):
            if self._command is not None and self._command in data:
                state["holding"] = True
            to_server.write(data)
            await to_server.drain()

    async def _replies(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter, state: dict[str, bool]
    ) -> None:
        while data := await server.read(65_536):
            if state["holding"]:
                self.held.set()
                await self._healed.wait()
                state["holding"] = False
            if self._garbage is not None:
                data, self._garbage = self._garbage, None
            if self._cut_after is not None:
                some, self._cut_after = data[: self._cut_after], max(0, self._cut_after - len(data))
                to_client.write(some)
                if len(some) < len(data):
                    await to_client.drain()
                    return
            elif self._every_s:
                for i in range(len(data)):
                    to_client.write(data[i : i + 1])
                    await asyncio.sleep(self._every_s)
            else:
                to_client.write(data)
            await to_client.drain()


class TcpFaultProxy(FaultProxy):
    """The same on TCP, in front of a port of this machine."""

    def __init__(self, backend_port: int) -> None:
        super().__init__("", Path())
        self._backend_port = backend_port

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._backend_port)
