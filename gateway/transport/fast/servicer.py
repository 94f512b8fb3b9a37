"""Ordinary generated servicers on the fast transport: one coroutine per call, with a context like that of `grpc.aio`.

A `StreamCall` arrives with its headers. `Servicers` starts a task for it, which reads the request or gives the
handler an iterator of requests, runs the handler, and sends what it returns, yields or writes. A unary method is a
stream that happens to have one message each way.

Invariants: the task of a call that ends without our doing is cancelled; whatever a handler does, its call ends; a
writer that is `WRITE_AHEAD_BYTES` ahead of its client waits.
"""

import asyncio
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import grpc
import grpc.aio

from gateway.transport import metadata as rules
from gateway.transport.call import Metadata
from gateway.transport.fast.protocol import ENDED, HANDLER_FAILED, WRITE_AHEAD_BYTES, Route, StreamCall

log = logging.getLogger(__name__)

_OK = 0
_UNIMPLEMENTED = 12
_INTERNAL = 13


class Metadatum(NamedTuple):
    """One pair of metadata, with the names that grpcio gives its parts."""

    key: str
    value: str | bytes


class _Aborted(Exception):
    """Raised by `ServicerContext.abort` to leave the handler."""


class ServicerContext(grpc.aio.ServicerContext):  # type: ignore[type-arg]  # generic in the stubs only
    """What a handler can do with its call. The documentation is that of `grpc.aio.ServicerContext`."""

    def __init__(
        self, call: StreamCall, deserialize: Callable[[bytes], Any] | None, serialize: Callable[[Any], bytes] | None
    ) -> None:
        self._call = call
        self._deserialize = deserialize
        self._serialize = serialize
        self._code = _OK
        self._details = ""
        self._trailing: Metadata = ()
        self._waiter: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._task: asyncio.Task[None] | None = None
        call.listener = self

    # What the connection tells

    def readable(self) -> None:
        """See `protocol.Listener`."""
        self._wake()

    def writable(self) -> None:
        """See `protocol.Listener`."""
        self._wake()

    def gone(self) -> None:
        """See `protocol.Listener`."""
        if self._task is not None:
            self._task.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # What a handler does

    async def read(self) -> Any:
        """The next request, or `grpc.aio.EOF`."""
        call = self._call
        while (message := call.take()) is None:
            if call.state == ENDED:
                raise asyncio.CancelledError
            if call.exhausted:
                return grpc.aio.EOF
            await self._wait()
        if self._deserialize is None:
            return message
        try:
            return self._deserialize(message)
        except Exception as error:  # noqa: BLE001 - whatever a deserialiser raises, the bytes are the client's
            log.debug("%s: %s", call.method, error)
            await self.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")

    async def write(self, message: Any) -> None:
        """Send one response; wait while the client is behind."""
        call = self._call
        call.send(message if self._serialize is None else self._serialize(message))
        while call.unsent_bytes >= WRITE_AHEAD_BYTES:
            call.connection.throttle(call)
            await self._wait()
        if call.state == ENDED:
            raise asyncio.CancelledError

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send initial metadata, once."""
        if self._call.began:
            raise RuntimeError("the initial metadata has been sent")
        initial = tuple(initial_metadata)
        rules.check(initial)
        self._call.begin(initial)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Send this metadata at the end."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """What `set_trailing_metadata` was given."""
        return self._trailing

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with an error, by leaving the handler."""
        self._code = _number(code) or grpc.StatusCode.UNKNOWN.value[0]
        self._details = details
        self._trailing = tuple(trailing_metadata) or self._trailing
        raise _Aborted

    async def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with a `grpc.Status`, as of `rpc_status.to_status`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_code(self, code: Any) -> None:
        """End the call with this code when the handler returns."""
        self._code = _number(code)

    def set_details(self, details: str) -> None:
        """End the call with this message when the handler returns."""
        self._details = details

    def code(self) -> Any:
        """What `set_code` was given, as a number."""
        return self._code

    def details(self) -> str:
        """What `set_details` was given."""
        return self._details

    def set_compression(self, compression: Any) -> None:
        """Answers are never compressed; asking for it is allowed."""

    def disable_next_message_compression(self) -> None:
        """Answers are never compressed."""

    # What a handler asks

    def invocation_metadata(self) -> Any:
        """The metadata of the client."""
        return tuple(Metadatum(key, value) for key, value in self._call.metadata)

    def peer(self) -> str:
        """The address of the client."""
        return self._call.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """The common name of the client's certificate."""
        identity = self._call.identity
        return None if identity is None else [identity.encode()]

    def peer_identity_key(self) -> str | None:
        """Which part of the certificate `peer_identities` is."""
        return None if self._call.identity is None else "x509_common_name"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What is known about the client."""
        identities = self.peer_identities()
        return {} if identities is None else {"x509_common_name": identities}

    def time_remaining(self) -> Any:
        """Seconds until the deadline, None without one."""
        deadline = self._call.deadline
        return None if deadline == math.inf else max(0.0, deadline - time.monotonic())

    def cancelled(self) -> bool:
        """The client has left."""
        return self._call.cancelled

    def done(self) -> bool:
        """The call has ended."""
        return self._call.state == ENDED

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back with this context when the call has ended."""
        self._callbacks.append(callback)

    # What the runner does

    async def only_request(self) -> Any:
        """The request of a method that takes one."""
        request = await self.read()
        if request is grpc.aio.EOF:
            await self.abort(grpc.StatusCode.UNIMPLEMENTED, "the request has no message, and the method takes one")
        if await self.read() is not grpc.aio.EOF:
            await self.abort(
                grpc.StatusCode.UNIMPLEMENTED, "the request has several messages, and the method takes one"
            )
        return request

    async def requests(self) -> AsyncIterator[Any]:
        """The requests of a method that takes many."""
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    def finish(self) -> None:
        """End the call as the handler said."""
        self._call.finish(self._code, self._details, trailing=self._trailing)

    def crash(self) -> None:
        """End the call of a handler that raised."""
        self._call.finish(_INTERNAL, HANDLER_FAILED)

    def close(self) -> None:
        """The task is over."""
        self._call.listener = None
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("%s: a done callback raised", self._call.method)


def _number(code: Any) -> int:
    return int(code.value[0] if isinstance(code, grpc.StatusCode) else code)


class Servicers:
    """Makes routes of generated handlers, and owns the tasks of their calls."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def route(self, method: str, handler: Any) -> Route:
        """A route to a `grpc.RpcMethodHandler`. TypeError when the function behind it would block the loop."""
        behaviour = (
            (handler.stream_stream if handler.response_streaming else handler.stream_unary)
            if handler.request_streaming
            else (handler.unary_stream if handler.response_streaming else handler.unary_unary)
        )
        run = _runner(method, behaviour, streaming=handler.response_streaming)

        def accept(call: StreamCall) -> None:
            context = ServicerContext(call, handler.request_deserializer, handler.response_serializer)
            task = asyncio.get_running_loop().create_task(_serve(context, run, many=handler.request_streaming))
            context._task = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return Route(method, accept, streaming=True, request_streaming=handler.request_streaming)

    async def finish(self, timeout_s: float) -> None:
        """Wait for handlers that clean up after their calls have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)


def _runner(method: str, behaviour: Any, *, streaming: bool) -> Callable[[Any, ServicerContext], Awaitable[None]]:
    """What runs one call of a handler, given its request or its iterator of requests."""

    async def iterate(request: Any, context: ServicerContext) -> None:
        async for response in behaviour(request, context):
            await context.write(response)

    async def answer(request: Any, context: ServicerContext) -> None:
        response = await behaviour(request, context)
        if not context.code():
            await context.write(response)

    async def missing(request: Any, context: ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")

    function = behaviour if inspect.isroutine(behaviour) else type(behaviour).__call__
    if streaming and inspect.isasyncgenfunction(function):
        return iterate
    if inspect.iscoroutinefunction(function):
        # One that streams writes by itself.
        return behaviour if streaming else answer
    if function.__module__.endswith("_pb2_grpc"):
        # What generated base classes have for a method that a servicer leaves out; it is not async.
        return missing
    raise TypeError(f"{method}: its handler is not async, and would block every other call; use the async servicer")


async def _serve(
    context: ServicerContext, run: Callable[[Any, ServicerContext], Awaitable[None]], *, many: bool
) -> None:
    try:
        await run(context.requests() if many else await context.only_request(), context)
        context.finish()
    except _Aborted:
        context.finish()
    except asyncio.CancelledError:
        # The call is over, or the server is; a handler that cancels itself has failed.
        context.crash()
        raise
    except Exception:
        log.exception("the handler of %s raised", context._call.method)
        context.crash()
    finally:
        context.close()
