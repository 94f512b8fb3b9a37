"""The rpc `ModelStreamInfer`: each message goes the way of a ModelInfer call; answers keep the order of messages.

    message ──▶ StreamedCall ──▶ those of one pass of the loop ──▶ InferHandler.on_calls ──▶ its answer, in turn

Invariants: a stream has at most `stream_in_flight_max` messages without an answer, and is read no further until one is
there. A message that fails is answered with `error_message`; the stream goes on. When the stream ends before its
answers do, its calls are cancelled, so that their work is skipped.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from gateway.server import wire
from gateway.server.oip.infer import METHOD
from gateway.server.status import describe
from gateway.transport.call import Call, Metadata
from headrace.inference import grpc_service_pb2 as pb

if TYPE_CHECKING:
    import grpc.aio

_INFER_RESPONSE = pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number


class StreamedCall:
    """One message of a stream, as a `Call`."""

    __slots__ = ("_woken", "answer", "arrived", "cancelled", "deadline", "identity", "metadata", "method", "payload",
                 "peer")  # fmt: skip

    def __init__(self, payload: bytes, deadline: float, peer: str, woken: Callable[[], None]) -> None:
        """`woken` is called when there is an answer."""
        self.method = METHOD
        self.payload: bytes | memoryview = payload
        self.arrived = time.monotonic()
        self.deadline = deadline
        self.cancelled = False
        self.metadata: Metadata = ()
        self.peer = peer
        self.identity: str | None = None
        self.answer: bytes | None = None
        """A ModelStreamInferResponse."""
        self._woken = woken

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "open" if self.answer is None else "ended"
        return f"<StreamedCall from {self.peer} {state}>"

    def reply(self, body: bytes, trailing: Metadata = ()) -> None:
        """Answer the message."""
        self._end(wire.delimited(_INFER_RESPONSE, body))

    def fail(self, code: int, message: str, details: bytes = b"", trailing: Metadata = ()) -> None:
        """Answer the message with an error, under its id where it has one."""
        try:
            request_id = pb.ModelInferRequest.FromString(self.payload).id  # type: ignore[arg-type]  # any buffer
        except DecodeError:
            request_id = ""
        answer = pb.ModelStreamInferResponse(error_message=message, infer_response=pb.ModelInferResponse(id=request_id))
        self._end(answer.SerializeToString())

    def _end(self, answer: bytes) -> None:
        if self.answer is None:
            self.answer = answer
            self._woken()


class Streams:
    """Serves ModelStreamInfer."""

    def __init__(self, on_calls: Callable[[list[Call]], None], in_flight_max: int) -> None:
        self._on_calls = on_calls
        self._in_flight_max = in_flight_max
        self._arrived: list[Call] = []

    def __repr__(self) -> str:
        return f"<Streams {len(self._arrived)} messages to hand over>"

    async def serve(self, requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """One stream, from its first message to its last answer."""
        stream = _Stream(self, context, self._in_flight_max)
        reader = asyncio.create_task(stream.read(requests), name="headrace-oip-stream")
        try:
            await stream.write(reader)
        finally:
            reader.cancel()
            stream.leave()

    def hand_over(self, call: Call) -> None:
        """Have a message decoded with the others of this pass of the loop."""
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._flush)
        self._arrived.append(call)

    def _flush(self) -> None:
        calls, self._arrived = self._arrived, []
        try:
            self._on_calls(calls)
        except Exception as error:  # noqa: BLE001 - a bug of ours: these messages end, the streams go on
            code, message, details = describe(error)
            for call in calls:
                call.fail(code.value[0], message, details)


class _Stream:
    """One stream: what has come and has no answer yet, in order."""

    def __init__(self, streams: Streams, context: "grpc.aio.ServicerContext[Any, Any]", in_flight_max: int) -> None:
        self._streams = streams
        self._context = context
        self._room = asyncio.Semaphore(in_flight_max)
        self._calls: deque[StreamedCall] = deque()
        self._changed = asyncio.Event()

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Take messages while there is room."""
        remaining_s: float | None = self._context.time_remaining()
        deadline = math.inf if remaining_s is None else time.monotonic() + remaining_s
        peer = self._context.peer()
        try:
            async for payload in requests:
                await self._room.acquire()
                call = StreamedCall(payload, deadline, peer, self._changed.set)
                self._calls.append(call)
                self._streams.hand_over(call)
        finally:
            self._changed.set()

    async def write(self, reader: "asyncio.Task[None]") -> None:
        """Give answers in order until the client has sent everything and got everything."""
        while True:
            while self._calls and self._calls[0].answer is not None:
                answer = self._calls.popleft().answer
                self._room.release()
                await self._context.write(answer)
            if reader.done() and not self._calls:
                return reader.result()
            self._changed.clear()
            if not (self._calls and self._calls[0].answer is not None) and not (reader.done() and not self._calls):
                await self._changed.wait()

    def leave(self) -> None:
        """Nobody waits any more."""
        for call in self._calls:
            call.cancelled = True
