"""gRPC on one HTTP/2 connection, as a state machine: bytes and the clock in, calls and bytes out. No I/O, no loop.

`receive` takes what the socket gave and returns the calls that can be handled now: a `UnaryCall` when its one message
is complete, a `StreamCall` as soon as its headers are there. `output` gives what the socket should send. In between
somebody ends each call (`reply`, `fail`, `finish`), which queues the answer and tells the connection's owner, through
`on_output`, that there is something to send. `check` looks at the clock.

A call is RECEIVING until its message is complete, then OPEN, then ENDED: by its answer, its deadline, the client, or
with its connection. Only in the last three is it `cancelled`. When our side ends first, the stream is reset with
NO_ERROR after its trailers, so that the client stops sending what nobody will read.

What a client may send is bounded by the windows of its streams. A stream starts with a small window; when the prefix
of a message announces more than fits, and no more than a message may have, the stream is lent what it lacks, for as
long as it lives, out of what the connection has to lend. Those that must wait are served in order, so loans always
come back and no set of half-sent messages can block each other. Bytes are acknowledged when their call ends (unary)
or when their message is taken (streams).

Invariants: `_calls` holds the calls that have not ended; each counts once in `admission.active`; `_lent_bytes` is the
sum of their loans. Once `over`, nothing is received, sent or handed over.
"""

import logging
import math
import struct
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol, TypeAlias

from gateway.transport import metadata as rules
from gateway.transport.call import Metadata
from gateway.transport.fast import headers as wire
from gateway.transport.fast import session as http2
from gateway.transport.fast.admission import Admission
from gateway.transport.fast.compression import BadCompression, TooLarge, gunzip
from gateway.transport.fast.deadlines import Deadlines
from gateway.transport.fast.session import (
    DataReceived,
    PingAcknowledged,
    RequestReceived,
    Session,
    SettingsAcknowledged,
    StreamClosed,
    TrailersReceived,
)
from gateway.transport.options import MESSAGE_PREFIX_BYTES, TransportOptions

log = logging.getLogger(__name__)

CANCELLED: Final = 1
UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
_CODE_MAX: Final = 16

RECEIVING: Final = 0
OPEN: Final = 1
ENDED: Final = 2

HANDLER_FAILED: Final = "The server failed to handle this call; its log says why."
WRITE_AHEAD_BYTES: Final = 65_536
"""A streaming handler that has this much unsent waits before it writes more."""
DRAIN_WAIT_S: Final = 1.0
"""How long a client may take to answer the PING that comes with the first GOAWAY, before the second is sent anyway."""

_PREFIX = struct.Struct(">BI")
_JOIN_MAX_BYTES = 65_536  # below it one copy of the body is cheaper than a second chunk
_COPY_MAX_BYTES = 4_096  # below it a slice is cheaper than a view
_KEEPALIVE_PING = b"alive   "
_DRAIN_PING = b"draining"

Call: TypeAlias = "UnaryCall | StreamCall"


class Listener(Protocol):
    """Who runs a `StreamCall`; told of changes, never asked."""

    def readable(self) -> None:
        """A message, or the end of the messages, may be there to be taken."""
        ...

    def writable(self) -> None:
        """Less than `WRITE_AHEAD_BYTES` are unsent."""
        ...

    def gone(self) -> None:
        """The call has ended without our doing: what it is told now is ignored."""
        ...


class Route:
    """A method that is served. `handler` takes what is ready: a list of `UnaryCall`, or a single `StreamCall`."""

    __slots__ = ("batch", "handler", "method", "request_streaming", "streaming")

    def __init__(
        self, method: str, handler: Callable[..., None], *, streaming: bool = False, request_streaming: bool = False
    ) -> None:
        self.method = method
        self.handler = handler
        self.streaming = streaming
        self.request_streaming = request_streaming
        self.batch: list[UnaryCall] = []
        """The calls of this pass; empty between passes."""


class _ServerCall:
    """What unary and streaming calls share: identity, time, and their part of the connection's state."""

    __slots__ = (
        "arrived",
        "borrowing",
        "cancelled",
        "compressed",
        "connection",
        "deadline",
        "gzip",
        "headers",
        "loan_bytes",
        "payload",
        "received",
        "route",
        "sender_done",
        "state",
        "stream_id",
        "unacknowledged_bytes",
    )

    def __init__(
        self,
        connection: "ServerConnection",
        stream_id: int,
        route: Route,
        head: wire.RequestHead,
        headers: http2.Headers,
    ) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.headers = headers
        self.gzip = head.gzip
        self.received: bytes | bytearray = b""
        self.sender_done = False
        self.unacknowledged_bytes = 0
        self.loan_bytes = 0
        self.borrowing = False
        self.route = route
        self.state = RECEIVING
        self.cancelled = False
        self.payload: bytes | memoryview = b""
        self.compressed = False
        self.arrived = connection.now
        self.deadline = connection.now + head.timeout_s

    @property
    def method(self) -> str:
        """The full name, `/package.Service/Method`."""
        return self.route.method

    @property
    def metadata(self) -> Metadata:
        """Decoded when it is asked for."""
        return wire.decode_metadata(self.headers)

    @property
    def peer(self) -> str:
        """The address of the client, written as grpcio does."""
        return self.connection.peer

    @property
    def identity(self) -> str | None:
        """The common name of the client's certificate."""
        return self.connection.identity

    def append(self, chunk: bytes) -> None:
        received = self.received
        if not received:
            self.received = chunk
        elif isinstance(received, bytearray):
            received += chunk
        else:
            self.received = bytearray(received) + chunk

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else ("receiving", "open", "ended")[self.state]
        return f"<{type(self).__name__} {self.method} from {self.peer} stream {self.stream_id} {state}>"


class UnaryCall(_ServerCall):
    """One call of a batch method; see `call.Call`. While it is `compressed` its payload is gzip: `inflate` it first."""

    __slots__ = ()

    def inflate(self) -> int:
        """Decompress the payload and return its size. A payload that does not decompress ends the call."""
        bytes_max = self.connection.options.max_receive_message_bytes
        self.compressed = False
        try:
            self.payload = gunzip(self.payload, bytes_max)
        except TooLarge:
            self.fail(RESOURCE_EXHAUSTED, f"Received message larger than max (decompressed, max {bytes_max})")
            return bytes_max
        except BadCompression as error:
            self.fail(INTERNAL, f"the message does not decompress: {error}")
        return len(self.payload)

    def reply(self, body: bytes, trailing: Metadata = ()) -> None:
        """End the call with OK and one message."""
        if self.state == ENDED:
            return
        trailers = wire.OK_TRAILERS
        if trailing:
            try:
                rules.check(trailing)
            except rules.InvalidMetadata as error:
                log.error("%s: %s", self.method, error)
                self.fail(INTERNAL, HANDLER_FAILED)
                return
            trailers = [*trailers, *wire.encode_metadata(trailing)]
        size = len(body)
        message = _PREFIX.pack(0, size)
        if size < _JOIN_MAX_BYTES:
            message += body
        else:
            body = bytes(body)  # a handler's mistake shows before anything is sent
        connection = self.connection
        stream_id = self.stream_id
        try:
            connection.send_headers(stream_id, wire.RESPONSE)
            connection.send_data(stream_id, message)
            if size >= _JOIN_MAX_BYTES:
                connection.send_data(stream_id, body)
            connection.send_trailers(stream_id, trailers)
        except http2.StreamGone:
            # The client has reset the stream; that event is still in the queue.
            pass
        connection.admission.completed()
        connection.end(self)

    def fail(self, code: int, message: str, details: bytes = b"", trailing: Metadata = ()) -> None:
        """End the call with a gRPC status code; one that is not an error becomes UNKNOWN."""
        if self.state == ENDED:
            return
        self.connection.admission.completed()
        self.connection.finish(self, _status(self.method, code or UNKNOWN, message, details, trailing), began=False)


class StreamCall(_ServerCall):
    """One call of an ordinary servicer, unary or streaming. Its runner takes messages and sends messages."""

    __slots__ = ("began", "listener")

    def __init__(
        self,
        connection: "ServerConnection",
        stream_id: int,
        route: Route,
        head: wire.RequestHead,
        headers: http2.Headers,
    ) -> None:
        super().__init__(connection, stream_id, route, head, headers)
        self.listener: Listener | None = None
        self.began = False
        """The initial metadata has been sent."""
        if route.request_streaming:
            self.state = OPEN

    @property
    def exhausted(self) -> bool:
        """The client has sent everything, and it has been taken."""
        return self.sender_done and not self.received

    @property
    def unsent_bytes(self) -> int:
        """What has been sent but waits for the client to make room."""
        return 0 if self.state == ENDED else self.connection.unsent_bytes(self.stream_id)

    def take(self) -> bytes | None:
        """The next message; None when it is not there. A message that is wrong ends the call."""
        received = self.received
        if self.state == ENDED or not received:
            return None
        connection = self.connection
        end = MESSAGE_PREFIX_BYTES
        flag = 0
        if len(received) >= end:
            flag, size = _PREFIX.unpack_from(received)
            problem = connection.prefix_problem(self, flag, size)
            if problem is not None:
                self._break(*problem)
                return None
            end += size
        if len(received) < end:
            if self.sender_done:
                self._break(*_CUT_OFF)
            else:
                # Twice the message: up to half of a window may be used up by what is acknowledged but not announced.
                connection.widen(self, 2 * end)
            return None
        message = bytes(received[MESSAGE_PREFIX_BYTES:end])
        if isinstance(received, bytearray):
            del received[:end]
        else:
            self.received = received[end:]
        self.state = OPEN
        connection.consumed(self, end)
        return self._gunzip(message) if flag else message

    def _gunzip(self, message: bytes) -> bytes | None:
        bytes_max = self.connection.options.max_receive_message_bytes
        try:
            return gunzip(message, bytes_max)
        except TooLarge:
            self._break(RESOURCE_EXHAUSTED, f"Received message larger than max (decompressed, max {bytes_max})")
        except BadCompression as error:
            self._break(INTERNAL, f"the message does not decompress: {error}")
        return None

    def _break(self, code: int, message: str) -> None:
        """The client's request is wrong: end the call under its handler."""
        self.connection.abandon(self, code, message)

    def begin(self, initial: Metadata = ()) -> None:
        """Send the initial metadata, which has been checked."""
        if self.state != ENDED and not self.began:
            self.began = True
            self.connection.begin(self.stream_id, [*wire.RESPONSE, *wire.encode_metadata(initial)])

    def send(self, message: bytes) -> None:
        """Send one message."""
        if self.state == ENDED:
            return
        self.begin()
        self.connection.send(self.stream_id, _PREFIX.pack(0, len(message)) + message)

    def finish(self, code: int, message: str = "", details: bytes = b"", trailing: Metadata = ()) -> None:
        """End the call; code 0 is OK."""
        if self.state == ENDED:
            return
        status = _status(self.method, code, message, details, trailing)
        if not code:
            self.begin()
        self.connection.finish(self, status, began=self.began)


class ServerConnection:
    """One connection. `admission` and `deadlines` are shared by all connections of a server.

    `find` gives the route of a path that is not in `routes`. `on_output` is called when there is something to send,
    once until `output` is called.
    """

    def __init__(  # noqa: PLR0917 - what a connection shares with its server, and who it is
        self,
        options: TransportOptions,
        routes: Mapping[bytes, Route],
        find: Callable[[bytes, http2.Headers], Route | None],
        admission: Admission,
        deadlines: "Deadlines[Call]",
        on_output: Callable[[], None],
        now: float,
        peer: str = "",
        identity: str | None = None,
    ) -> None:
        self.options = options
        self.admission = admission
        self.now = now
        self.peer = peer
        self.identity = identity
        self._routes = routes
        self._find = find
        self._deadlines = deadlines
        self._on_output = on_output
        self._message_bytes_max = options.max_receive_message_bytes
        self._reader = wire.RequestReader(options.max_header_bytes, options.max_header_count)
        self._session = session = Session(
            max_concurrent_streams=options.max_concurrent_streams,
            stream_window_bytes=options.stream_window_bytes,
            max_header_bytes=options.max_header_bytes,
            reset_burst=options.reset_burst,
            resets_per_s=options.max_resets_per_s,
        )
        self.send_headers = session.send_headers
        self.send_data = session.send_data
        self.send_trailers = session.send_trailers
        self._calls: dict[int, Call] = {}
        self._wants_output = False
        self._cut_short: list[int] = []
        self._throttled: list[StreamCall] = []
        self._lent_bytes = 0
        self._borrowers: deque[tuple[Call, int]] = deque()
        self._backlogged = False
        self._greeted = False
        self._started = now
        self._heard = now
        self._idle_since = now
        self._sent = now
        self._pinged_at = math.inf
        self._draining_since = math.inf
        self._refusing = False

    # Bytes in, calls out

    def receive(self, data: bytes, now: float) -> list[Call]:  # noqa: C901, PLR0912 - a branch for each kind of event
        """Take bytes of the peer; return the calls that can be handled now."""
        self.now = self._heard = now
        self._pinged_at = math.inf
        session = self._session
        calls = self._calls
        ready: list[Call] = []
        self._backlogged = session.queued_bytes() > self.options.max_buffered_answer_bytes
        for event in session.receive(data):
            if isinstance(event, DataReceived):
                stream_id = event.stream_id
                chunk = event.data
                call = calls.get(stream_id)
                if call is None:
                    # Sent before the client knew that its call has ended.
                    self._acknowledge(len(chunk), stream_id)
                    continue
                size = len(chunk)
                call.unacknowledged_bytes += size
                if event.end_stream:
                    call.sender_done = True
                    if isinstance(call, UnaryCall) and not call.received and size >= MESSAGE_PREFIX_BYTES:
                        # The usual case: one message in one frame.
                        flag, length = _PREFIX.unpack_from(chunk)
                        if not flag and length == size - MESSAGE_PREFIX_BYTES and length <= self._message_bytes_max:
                            call.payload = (
                                chunk[MESSAGE_PREFIX_BYTES:]
                                if size < _COPY_MAX_BYTES
                                else memoryview(chunk)[MESSAGE_PREFIX_BYTES:]
                            )
                            call.state = OPEN
                            self.admission.waiting += 1
                            ready.append(call)
                            continue
                call.append(chunk)
                self._advance(call, ready)
            elif isinstance(event, RequestReceived):
                self._start(event, ready)
            elif isinstance(event, StreamClosed):
                call = calls.get(event.stream_id)
                if call is not None:
                    self._leave(call)
            elif isinstance(event, TrailersReceived):
                call = calls.get(event.stream_id)
                if call is not None:
                    call.sender_done = True
                    self._advance(call, ready)
            elif isinstance(event, SettingsAcknowledged):
                self._greeted = True
                self._lend()
            elif isinstance(event, PingAcknowledged) and event.opaque_data == _DRAIN_PING:
                self.refuse_streams()
        if session.failed:
            self.lost()
            ready.clear()
        if not self._wants_output and (session.has_output() or session.over()):
            self.wake()
        return ready

    def _start(self, event: RequestReceived, ready: list[Call]) -> None:
        """A new stream: refuse it at the door, or make its call."""
        stream_id = event.stream_id
        headers: http2.Headers = event.headers
        head = self._reader.read(headers)
        route = self._routes.get(head.path) or self._find(head.path, headers)
        refusal = head.refusal or self._refusal(route, head.timeout_s)
        if refusal is not None or route is None:
            self._turn_away(event, refusal or wire.NO_METHOD)
            return
        call = (StreamCall if route.streaming else UnaryCall)(self, stream_id, route, head, headers)
        if head.timeout_s != math.inf:
            self._deadlines.add(call, call.deadline)
        self.admission.active += 1
        self._calls[stream_id] = call
        if isinstance(call, StreamCall):
            ready.append(call)
        if event.end_stream:
            call.sender_done = True
            self._advance(call, ready)

    def _refusal(self, route: Route | None, timeout_s: float) -> wire.Refusal | None:
        """Why a well-formed request is refused before anything is done for it."""
        admission = self.admission
        if route is None:
            return wire.NO_METHOD
        if timeout_s <= 0:
            return wire.refusal(DEADLINE_EXCEEDED, "Deadline Exceeded")
        if admission.active >= admission.active_max:
            return wire.refusal(RESOURCE_EXHAUSTED, f"max_active_calls ({admission.active_max}) calls are active")
        if self._backlogged:
            bound = self.options.max_buffered_answer_bytes
            return wire.refusal(RESOURCE_EXHAUSTED, f"max_buffered_answer_bytes ({bound}) wait for this client to read")
        if timeout_s != math.inf and not route.streaming and admission.hopeless(self.now + timeout_s, self.now):
            return wire.refusal(RESOURCE_EXHAUSTED, "overloaded: the answer would come after the deadline")
        return None

    def _turn_away(self, event: RequestReceived, refusal: wire.Refusal) -> None:
        """Answer a stream that never becomes a call."""
        self.admission.turned_away[refusal.code] += 1
        status = wire.status_headers(refusal.code, refusal.message)
        self._send_last(event.stream_id, [(b":status", refusal.http), wire.CONTENT_TYPE, *status, *refusal.extra])
        if not event.end_stream:
            self._cut_short.append(event.stream_id)

    def _advance(self, call: Call, ready: list[Call]) -> None:
        """More of a request is there, or its end."""
        if isinstance(call, StreamCall):
            if call.listener is not None:
                call.listener.readable()
            return
        received = call.received
        if len(received) < MESSAGE_PREFIX_BYTES:
            if call.sender_done:
                self.refuse(call, *(_CUT_OFF if received else _NO_MESSAGE))
            return
        flag, size = _PREFIX.unpack_from(received)
        end = MESSAGE_PREFIX_BYTES + size
        problem = self.prefix_problem(call, flag, size)
        if problem is None and len(received) > end:
            problem = _SEVERAL_MESSAGES
        if problem is None and call.sender_done and len(received) < end:
            problem = _CUT_OFF
        if problem is not None:
            self.refuse(call, *problem)
        elif call.sender_done:
            call.received = b""
            call.payload = memoryview(received)[MESSAGE_PREFIX_BYTES:]
            call.compressed = bool(flag)
            call.arrived = self.now
            call.state = OPEN
            self.admission.waiting += 1
            ready.append(call)
        elif len(received) < end:
            self.widen(call, end)

    def prefix_problem(self, call: Call, flag: int, size: int) -> tuple[int, str] | None:
        """What is wrong with the prefix of a message: decided before anything of the message is kept."""
        if size > self._message_bytes_max:
            return RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {self._message_bytes_max})"
        if flag > 1:
            return INTERNAL, f"the message's compression flag is {flag}, not 0 or 1"
        if flag and not call.gzip:
            return INTERNAL, "the message is compressed, but grpc-encoding names no compression"
        return None

    # The windows of the streams

    def widen(self, call: Call, window_bytes: int) -> None:
        """Let a stream send a message that is larger than its window, now or when others have returned their loans."""
        loan_bytes = window_bytes - self.options.stream_window_bytes
        if loan_bytes <= call.loan_bytes or call.borrowing:
            return
        call.borrowing = True
        self._borrowers.append((call, min(loan_bytes, self.options.lendable_request_bytes)))
        self._lend()

    def _lend(self) -> None:
        borrowers = self._borrowers
        # Before the client has taken our settings it counts from another window size than we do.
        while borrowers and self._greeted:
            call, loan_bytes = borrowers[0]
            if call.state != ENDED:
                extra = loan_bytes - call.loan_bytes
                if self._lent_bytes + extra > self.options.lendable_request_bytes:
                    return
                self._lent_bytes += extra
                call.loan_bytes = loan_bytes
                self._session.widen(call.stream_id, self.options.stream_window_bytes + loan_bytes)
                if not self._wants_output:
                    self.wake()
            call.borrowing = False
            borrowers.popleft()

    def consumed(self, call: Call, size: int) -> None:
        """A part of a stream's request is no longer held."""
        call.unacknowledged_bytes -= size
        self._acknowledge(size, call.stream_id)
        if not self._wants_output and self._session.has_output():
            self.wake()

    def _acknowledge(self, size: int, stream_id: int) -> None:
        try:  # noqa: SIM105 - once for every call, and `suppress` costs more than what is in it
            self._session.acknowledge(size, stream_id)
        except http2.StreamGone:
            pass

    # Answers

    def begin(self, stream_id: int, headers: http2.Headers) -> None:
        """Send the headers of a stream's answer."""
        with suppress(http2.StreamGone):
            self.send_headers(stream_id, headers)
        self.wake()

    def send(self, stream_id: int, data: bytes) -> None:
        """Send a piece of a stream's answer."""
        with suppress(http2.StreamGone):
            self.send_data(stream_id, data)
        self.wake()

    def finish(self, call: Call, status: http2.Headers, *, began: bool) -> None:
        """End a call with its status: as trailers when its answer has begun, else as all there is."""
        try:
            if began:
                self.send_trailers(call.stream_id, status)
            else:
                self.send_headers(call.stream_id, [*wire.RESPONSE, *status], end_stream=True)
        except http2.StreamGone:
            pass
        self.end(call)

    def refuse(self, call: "UnaryCall", code: int, message: str) -> None:
        """End a unary call before a handler has seen it."""
        self.admission.turned_away[code] += 1
        self.finish(call, wire.status_headers(code, message), began=False)

    def _send_last(self, stream_id: int, headers: http2.Headers) -> None:
        with suppress(http2.StreamGone):
            self.send_headers(stream_id, headers, end_stream=True)

    def throttle(self, call: "StreamCall") -> None:
        """Tell the call's listener when less than `WRITE_AHEAD_BYTES` are unsent."""
        self._throttled.append(call)

    def unsent_bytes(self, stream_id: int) -> int:
        """What is queued on a stream."""
        return self._session.queued_bytes(stream_id)

    # The end of calls

    def end(self, call: Call) -> None:
        """Take a call out of the books. Its answer, if it gets one, has been queued."""
        stream_id = call.stream_id
        del self._calls[stream_id]
        admission = self.admission
        admission.active -= 1
        if call.state == OPEN and isinstance(call, UnaryCall):
            admission.waiting -= 1
        call.state = ENDED
        if call.deadline != math.inf:
            self._deadlines.discard(call, call.deadline)
        self._acknowledge(call.unacknowledged_bytes, stream_id)
        if call.loan_bytes:
            self._lent_bytes -= call.loan_bytes
            self._lend()
        if not call.sender_done:
            self._cut_short.append(stream_id)
        if not self._calls:
            self._idle_since = self.now
        if not self._wants_output:
            self.wake()

    def abandon(self, call: Call, code: int, message: str) -> None:
        """End a call that somebody still works on."""
        call.cancelled = True
        self.admission.turned_away[code] += 1
        self.finish(call, wire.status_headers(code, message), began=isinstance(call, StreamCall) and call.began)
        if isinstance(call, StreamCall) and call.listener is not None:
            call.listener.gone()

    def _leave(self, call: Call) -> None:
        """The client has left a call, or the connection has."""
        call.cancelled = True
        call.sender_done = True  # there is no stream that could be cut short
        self.end(call)
        if isinstance(call, StreamCall) and call.listener is not None:
            call.listener.gone()

    def lost(self) -> None:
        """The peer is gone: all its calls are cancelled."""
        for call in list(self._calls.values()):
            self._leave(call)

    # Bytes out

    def wake(self) -> None:
        """There is something to send."""
        if not self._wants_output:
            self._wants_output = True
            self._on_output()

    def output(self, now: float, bytes_max: int) -> bytes:
        """What the socket should send, of which there may be more when it is `bytes_max` bytes."""
        session = self._session
        self._wants_output = False
        data = session.output(bytes_max)
        if self._cut_short and len(data) < bytes_max:
            waiting = [stream_id for stream_id in self._cut_short if session.queued_bytes(stream_id)]
            for stream_id in self._cut_short:
                if stream_id not in waiting:
                    self._reset(stream_id)
            self._cut_short = waiting
            data += session.output(bytes_max)
        if self._throttled:
            for call in [call for call in self._throttled if call.unsent_bytes < WRITE_AHEAD_BYTES]:
                self._throttled.remove(call)
                if call.listener is not None:
                    call.listener.writable()
        if data:
            self._sent = now
        if self._calls and session.over():
            self.lost()
        return data

    def _reset(self, stream_id: int) -> None:
        with suppress(http2.StreamGone):
            self._session.reset(stream_id, http2.NO_ERROR)

    @property
    def over(self) -> bool:
        """The socket may be closed once what `output` gave is written."""
        return self._session.over()

    @property
    def drained(self) -> bool:
        """Draining, and nothing is left to do: the client will close, or may be closed."""
        return self._refusing and not self._calls and not self._session.queued_bytes()

    @property
    def calls(self) -> int:
        """The calls that have not ended."""
        return len(self._calls)

    # The clock

    def expire(self, call: Call, now: float) -> None:
        """The deadline of a call has passed."""
        if call.state != ENDED:
            self.now = now
            if isinstance(call, UnaryCall):
                self.admission.missed(now)
            self.abandon(call, DEADLINE_EXCEEDED, "Deadline Exceeded")

    def check(self, now: float) -> bool:
        """Enforce the timeouts. False when the peer is not worth a farewell: close at once."""
        self.now = now
        options = self.options
        if not self._greeted and now - self._started >= options.handshake_timeout_s:
            self._session.terminate(http2.SETTINGS_TIMEOUT)
            self.wake()
            return True
        for call in list(self._calls.values()):
            if call.state == RECEIVING and now - call.arrived >= options.request_timeout_s:
                self.abandon(call, CANCELLED, f"the request was not complete after {options.request_timeout_s:g} s")
        if now - self._draining_since >= DRAIN_WAIT_S:
            self.refuse_streams()
        queued_bytes = self._session.queued_bytes()
        if queued_bytes > options.max_buffered_answer_bytes:
            return now - self._sent < options.keepalive_interval_s + options.keepalive_timeout_s
        if now - self._pinged_at >= options.keepalive_timeout_s:
            return False
        if self._calls or queued_bytes:
            if self._pinged_at == math.inf and now - self._heard >= options.keepalive_interval_s:
                self._pinged_at = now
                self._session.ping(_KEEPALIVE_PING)
                self.wake()
        elif now - self._idle_since >= options.idle_timeout_s:
            self.drain(now)
        return True

    def drain(self, now: float) -> None:
        """Tell the client to start no more calls; what it has started is served."""
        if self._draining_since == math.inf:
            self._draining_since = now
            self._session.announce_shutdown()
            # Its answer proves that the client has seen the announcement: what it sent before is here by then.
            self._session.ping(_DRAIN_PING)
            self.wake()

    def refuse_streams(self) -> None:
        """The second step of a drain: what the client has sent by now is served, and nothing after it."""
        if self._draining_since < math.inf and not self._refusing:
            self._refusing = True
            self._session.refuse_streams()
            self.wake()

    def terminate(self) -> None:
        """End every call with UNAVAILABLE, and the connection."""
        for call in list(self._calls.values()):
            self.abandon(call, UNAVAILABLE, "the server is shutting down")
        self._refusing = True
        self._draining_since = min(self._draining_since, self.now)
        self._session.refuse_streams()
        self.wake()

    def __repr__(self) -> str:
        state = "over" if self.over else "draining" if self._draining_since < math.inf else "open"
        return f"<ServerConnection {self.peer} {state} calls={len(self._calls)} lent={self._lent_bytes}>"


_NO_MESSAGE: Final = (UNIMPLEMENTED, "the request has no message, and the method takes one")
_SEVERAL_MESSAGES: Final = (UNIMPLEMENTED, "the request has several messages, and the method takes one")
_CUT_OFF: Final = (INTERNAL, "the request ends inside a message")


def _status(method: str, code: int, message: str, details: bytes, trailing: Metadata) -> http2.Headers:
    """The trailers of a call. A handler's mistake in them becomes INTERNAL: a status is always sent."""
    if details:
        trailing = (*trailing, (rules.STATUS_DETAILS_KEY, details))
    try:
        rules.check(trailing)
    except rules.InvalidMetadata as error:
        log.error("%s: %s", method, error)
        return wire.status_headers(INTERNAL, HANDLER_FAILED)
    return [*wire.status_headers(code if 0 <= code <= _CODE_MAX else UNKNOWN, message), *wire.encode_metadata(trailing)]
