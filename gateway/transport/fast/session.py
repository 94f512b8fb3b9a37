"""HTTP/2 as bytes in, events out: the only module that knows ngh2.

ngh2 is young, so what we need of it is named here once. The hot methods are ngh2's own bound methods: a wrapper around
each would cost more than the method does.

Invariants: no exception of ngh2 leaves the methods of `Session`; when a connection is beyond repair `output` still
gives the GOAWAY that says why, and then `over` is true. The bound methods raise `StreamGone` when the peer has closed
the stream or the connection is ending.
"""

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import ngh2
from ngh2.events import (
    DataReceived,
    Event,
    PingAcknowledged,
    RequestReceived,
    SettingsAcknowledged,
    StreamClosed,
    TrailersReceived,
)

from gateway.transport.options import HTTP2_WINDOW_MAX_BYTES

__all__ = [
    "DataReceived",
    "Headers",
    "PingAcknowledged",
    "RequestReceived",
    "Session",
    "SettingsAcknowledged",
    "StreamClosed",
    "StreamGone",
    "TrailersReceived",
]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
StreamGone = ngh2.NGH2Error
"""Raised by the sending methods; every one of ngh2's errors there means that the stream or connection is gone."""

_HARD_HEADER_BYTES = 65_536
"""ngh2 ends the connection at its own header limits, so ours, which end a call, are lower and checked by `protocol`."""
_HARD_HEADER_COUNT = 1_024
_GOAWAY = struct.Struct(">HBBBIII")
_HTTP1 = (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"DELE", b"PATC", b"CONN", b"TRAC")
_HTTP1_ANSWER = b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Session:
    """The server's end of one HTTP/2 connection."""

    __slots__ = (
        "_connection",
        "_last_words",
        "_started",
        "acknowledge",
        "events",
        "queued_bytes",
        "reset",
        "send_data",
        "send_headers",
        "send_trailers",
    )

    send_headers: Callable[..., None]
    """(stream_id, headers, *, end_stream=False): the response's headers."""
    send_data: Callable[[int, bytes], None]
    send_trailers: Callable[[int, Headers], None]
    """Ends the stream from our side, after the data that is queued."""
    reset: Callable[[int, int], None]
    """(stream_id, error_code). What is queued on the stream is dropped."""
    acknowledge: Callable[[int, int], None]
    """(amount, stream_id): data is no longer held, the peer may send as much again."""
    queued_bytes: Callable[..., int]
    """(stream_id=None): data that is queued and not yet given out by `output`."""
    events: Callable[[], list[Event]]

    def __init__(
        self,
        *,
        max_concurrent_streams: int,
        stream_window_bytes: int,
        max_header_bytes: int,
        reset_burst: int,
        resets_per_s: int,
    ) -> None:
        self._connection = connection = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                auto_window_update=False,
                max_inbound_header_list_size=max(_HARD_HEADER_BYTES, 2 * max_header_bytes),
                max_inbound_header_count=_HARD_HEADER_COUNT,
                stream_reset_rate_limit=(reset_burst, resets_per_s),
                # The server's own answers: their metadata is not bounded by the client.
                max_send_header_block_length=2**20,
            ),
        )
        connection.initiate_connection(
            {
                ngh2.Setting.MAX_CONCURRENT_STREAMS: max_concurrent_streams,
                ngh2.Setting.INITIAL_WINDOW_SIZE: stream_window_bytes,
                ngh2.Setting.MAX_HEADER_LIST_SIZE: max_header_bytes,
            }
        )
        # What a client may send is bounded by the windows of its streams; the connection's must never be the tighter
        # one, or half-sent messages could fill it and none could be completed.
        connection.set_local_window_size(HTTP2_WINDOW_MAX_BYTES)
        self._last_words: bytes | None = None
        self._started = False
        self.send_headers = connection.send_response
        self.send_data = connection.send_data
        self.send_trailers = connection.send_trailers
        self.reset = connection.reset_stream
        self.acknowledge = connection.acknowledge_received_data
        self.queued_bytes = connection.queued_body_size
        self.events = connection.events

    def receive(self, data: bytes) -> list[Event]:
        """Take what the socket gave and return what it means."""
        if self._last_words is not None:
            return []
        try:
            self._connection.receive_data(data)
        except ngh2.NGH2Error as error:
            return self._give_up(error, data)
        self._started = True
        return self.events()

    def output(self, bytes_max: int) -> bytes:
        """What the socket should send now, in pieces of `bytes_max`."""
        if self._last_words is not None:
            words, self._last_words = self._last_words, b""
            return words
        try:
            return self._connection.data_to_send(bytes_max)
        except (ngh2.NGH2Error, MemoryError):
            self._last_words = b""
            return b""

    @property
    def failed(self) -> bool:
        """What was received is beyond repair; only the last words are left to send."""
        return self._last_words is not None

    def has_output(self) -> bool:
        """Whether `output` would give something."""
        if self._last_words is not None:
            return bool(self._last_words)
        return self._connection.want_write

    def over(self) -> bool:
        """Nothing more can be received or sent: the socket may be closed once `output` is written."""
        if self._last_words is not None:
            return not self._last_words
        return not (self._connection.want_read or self._connection.want_write)

    def widen(self, stream_id: int, window_bytes: int) -> None:
        """Let the peer send up to `window_bytes` on one stream before the first of them is acknowledged."""
        with suppress(ngh2.NGH2Error):
            self._connection.set_local_window_size(window_bytes, stream_id=stream_id)

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; it comes as `PingAcknowledged` with these 8 bytes."""
        with suppress(ngh2.NGH2Error):
            self._connection.ping(payload)

    def announce_shutdown(self) -> None:
        """The first GOAWAY: start no more streams, those under way are still taken."""
        with suppress(ngh2.NGH2Error):
            self._connection.send_shutdown_notice()

    def refuse_streams(self) -> None:
        """The second GOAWAY: streams after those seen so far are not processed."""
        with suppress(ngh2.NGH2Error):
            self._connection.send_goaway(ngh2.ErrorCode.NO_ERROR)

    def terminate(self, error_code: int) -> None:
        """A GOAWAY that ends everything."""
        with suppress(ngh2.NGH2Error):
            self._connection.terminate_connection(error_code)

    def _give_up(self, error: ngh2.NGH2Error, data: bytes) -> list[Event]:
        """ngh2 takes no more calls after a fatal error, so the farewell is written by hand."""
        events = self.events()
        if not self._started and data[:4] in _HTTP1:
            self._last_words = _HTTP1_ANSWER
            return events
        if isinstance(error, ngh2.ConnectionStateError):
            # It has said goodbye already (a flood of resets does that); what comes after is not read.
            self._last_words = self._rest()
            return events
        flood = isinstance(error, ngh2.DenialOfServiceError)
        code = ngh2.ErrorCode.ENHANCE_YOUR_CALM if flood else ngh2.ErrorCode.PROTOCOL_ERROR
        self._last_words = _GOAWAY.pack(0, 8, 7, 0, 0, HTTP2_WINDOW_MAX_BYTES, code)
        return events

    def _rest(self) -> bytes:
        with suppress(ngh2.NGH2Error):
            return self._connection.data_to_send()
        return b""


NO_ERROR = int(ngh2.ErrorCode.NO_ERROR)
SETTINGS_TIMEOUT = int(ngh2.ErrorCode.SETTINGS_TIMEOUT)
