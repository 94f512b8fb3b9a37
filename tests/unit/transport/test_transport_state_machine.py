"""The state machine alone: bytes and the clock in, calls and bytes out."""

import math
from typing import Any

import ngh2
import pytest

from gateway.transport import TransportOptions
from gateway.transport.fast.admission import Admission
from gateway.transport.fast.deadlines import Deadlines
from gateway.transport.fast.protocol import Call, Route, ServerConnection, StreamCall, UnaryCall
from tests.contract.transport.rig import METHOD, REQUEST, frame

STREAM = "/test.Echo/Stream"


class Pair:
    """A client of ngh2 and our state machine, joined in memory."""

    def __init__(self, **options: Any) -> None:
        self.admission = Admission(100)
        self.deadlines: Deadlines[Call] = Deadlines()
        self.woken = 0
        routes = {
            METHOD.encode(): Route(METHOD, lambda calls: None),
            STREAM.encode(): Route(STREAM, lambda call: None, streaming=True, request_streaming=True),
        }
        self.server = ServerConnection(
            TransportOptions(**options),
            routes,
            lambda path, headers: None,
            self.admission,
            self.deadlines,
            self._wake,
            0.0,
        )
        self.client = ngh2.Connection(ngh2.Role.CLIENT)
        self.client.initiate_connection()
        self.events: list[Any] = []
        self.exchange(0.0)

    def _wake(self) -> None:
        self.woken += 1

    def exchange(self, now: float) -> list[Call]:
        """Move bytes both ways until there are none; return what became ready."""
        ready: list[Call] = []
        while True:
            up = self.client.data_to_send()
            if up:
                ready += self.server.receive(up, now)
            down = self.server.output(now, 2**20)
            if down:
                self.client.receive_data(down)
                self.events += self.client.events()
            if not up and not down:
                return ready

    def call(self, data: bytes = b"", *, path: str = METHOD, end: bool = True, **extra: bytes) -> int:
        headers = [(name, path.encode() if name == b":path" else value) for name, value in REQUEST]
        headers += [(name.replace("_", "-").encode(), value) for name, value in extra.items()]
        stream_id = self.client.send_request(headers, end_stream=end and not data)
        if data:
            self.client.send_data(stream_id, data, end_stream=end)
        return stream_id

    def status(self, stream_id: int) -> bytes | None:
        for event in self.events:
            if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived) and event.stream_id == stream_id:
                for name, value in event.headers:
                    if name == b"grpc-status":
                        return bytes(value)
        return None


def unary(ready: list[Call]) -> UnaryCall:
    (call,) = ready
    assert isinstance(call, UnaryCall)
    return call


def test_a_call_comes_out_when_its_message_is_complete() -> None:
    pair = Pair()
    stream_id = pair.call(frame(b"ab")[:4], end=False)
    assert pair.exchange(1.0) == []
    pair.client.send_data(stream_id, frame(b"ab")[4:], end_stream=True)
    call = unary(pair.exchange(2.0))
    assert (bytes(call.payload), call.arrived, call.deadline) == (b"ab", 2.0, math.inf)
    assert (pair.admission.active, pair.admission.waiting) == (1, 1)
    call.reply(b"cd")
    assert (pair.admission.active, pair.admission.waiting) == (0, 0)
    pair.exchange(3.0)
    assert pair.status(stream_id) == b"0"
    assert pair.server.calls == 0


def test_output_is_asked_for_once() -> None:
    pair = Pair()
    for number in range(5):
        pair.call(frame(b"%d" % number))
    ready = pair.exchange(1.0)
    woken = pair.woken
    for call in ready:
        assert isinstance(call, UnaryCall)
        call.reply(b"")
    assert pair.woken == woken + 1


def test_a_deadline_counts_from_the_headers_and_ends_the_call_once() -> None:
    pair = Pair()
    stream_id = pair.call(frame(b"x"), grpc_timeout=b"500m")
    call = unary(pair.exchange(10.0))
    assert call.deadline == 10.5
    assert pair.deadlines.pop_due(10.49) == []
    (due,) = pair.deadlines.pop_due(10.51)
    pair.server.expire(due, 10.51)
    assert call.cancelled
    call.reply(b"late")
    pair.exchange(10.6)
    assert pair.status(stream_id) == b"4"
    assert len(pair.deadlines) == 0
    assert pair.admission.active == 0


def test_a_deadline_ends_a_request_that_is_still_coming() -> None:
    pair = Pair()
    stream_id = pair.call(b"\x00", end=False, grpc_timeout=b"1S")
    pair.exchange(0.0)
    for due in pair.deadlines.pop_due(1.1):
        pair.server.expire(due, 1.1)
    pair.exchange(1.1)
    assert pair.status(stream_id) == b"4"
    assert (pair.admission.active, pair.admission.waiting) == (0, 0)


def test_a_reset_cancels_and_what_the_call_is_told_then_is_ignored() -> None:
    pair = Pair()
    stream_id = pair.call(frame(b"x"), grpc_timeout=b"1S")
    call = unary(pair.exchange(0.0))
    pair.client.reset_stream(stream_id)
    pair.exchange(0.1)
    assert call.cancelled
    call.reply(b"x")
    call.fail(3, "x")
    assert (pair.admission.active, pair.admission.waiting, len(pair.deadlines)) == (0, 0, 0)


def test_losing_the_connection_cancels_every_call() -> None:
    pair = Pair()
    for _ in range(3):
        pair.call(frame(b"x"))
    pair.call(b"\x00", end=False)
    ready = pair.exchange(0.0)
    pair.server.lost()
    assert [call.cancelled for call in ready] == [True] * 3
    assert (pair.admission.active, pair.admission.waiting) == (0, 0)


def test_a_fatal_error_hands_over_nothing_and_leaves_a_goaway() -> None:
    pair = Pair()
    pair.call(frame(b"x"))
    call = unary(pair.exchange(0.0))
    # A DATA frame on stream 0 ends every connection.
    assert pair.server.receive(b"\x00\x00\x01\x00\x00\x00\x00\x00\x00!", 0.0) == []
    assert pair.server.output(0.0, 2**20)
    assert call.cancelled
    assert pair.server.receive(b"\xff" * 100, 0.0) == []
    assert pair.server.over
    assert pair.admission.active == 0


def test_a_drain_takes_what_is_under_way_and_then_nothing() -> None:
    pair = Pair()
    first = pair.call(frame(b"1"))
    call = unary(pair.exchange(0.0))
    pair.server.drain(1.0)
    goaway = pair.server.output(1.0, 2**20)
    second = pair.call(frame(b"2"))
    ready = pair.server.receive(pair.client.data_to_send(), 1.05)  # sent before the client has heard
    pair.client.receive_data(goaway)
    assert pair.exchange(1.1) == []
    assert bytes(unary(ready).payload) == b"2"
    assert not pair.client.can_send_request
    assert not pair.server.drained
    call.reply(b"")
    unary(ready).reply(b"")
    pair.exchange(1.2)
    assert (pair.status(first), pair.status(second)) == (b"0", b"0")
    assert pair.server.drained


def test_a_client_that_does_not_answer_pings_is_drained_after_a_second() -> None:
    pair = Pair()
    pair.call(frame(b"1"))
    call = unary(pair.exchange(0.0))
    pair.server.drain(1.0)
    pair.server.output(1.0, 2**20)
    assert pair.server.check(1.5)
    call.reply(b"")
    assert not pair.server.drained
    assert pair.server.check(2.1)
    pair.server.output(2.1, 2**20)
    assert pair.server.drained


def test_loans_come_back() -> None:
    options = {
        "max_receive_message_bytes": 100_000,
        "max_buffered_request_bytes": 400_000,
        "max_concurrent_streams": 100,
    }
    pair = Pair(**options)
    for _ in range(20):
        pair.call(frame(b"x" * 100_000))
    served = 0
    for step in range(100):
        for call in pair.exchange(float(step)):
            assert isinstance(call, UnaryCall)
            assert len(call.payload) == 100_000
            call.reply(b"")
            served += 1
    assert served == 20
    assert pair.server._lent_bytes == 0


def test_a_stream_is_read_message_by_message() -> None:
    pair = Pair()
    stream_id = pair.call(frame(b"one") + frame(b"") + frame(b"three")[:6], path=STREAM, end=False)
    (call,) = pair.exchange(0.0)
    assert isinstance(call, StreamCall)
    assert [call.take(), call.take(), call.take()] == [b"one", b"", None]
    assert not call.exhausted
    pair.client.send_data(stream_id, frame(b"three")[6:], end_stream=True)
    pair.exchange(0.1)
    assert call.take() == b"three"
    assert call.exhausted
    call.send(b"answer")
    call.finish(0)
    pair.exchange(0.2)
    assert pair.status(stream_id) == b"0"


def test_a_stream_that_ends_inside_a_message_is_ended() -> None:
    pair = Pair()
    stream_id = pair.call(frame(b"one")[:-1], path=STREAM)
    (call,) = pair.exchange(0.0)
    assert isinstance(call, StreamCall)
    assert call.take() is None
    assert call.cancelled
    pair.exchange(0.1)
    assert pair.status(stream_id) == b"13"


@pytest.mark.parametrize("size", [3_000, 12_000, 60_000])
def test_a_window_of_what_was_acknowledged_but_not_announced_does_not_block_a_stream(size: int) -> None:
    pair = Pair(max_concurrent_streams=1_024)
    stream_id = pair.call(b"".join(frame(b"x" * (5_000 + size * (number % 2))) for number in range(40)), path=STREAM)
    (call,) = pair.exchange(0.0)
    assert isinstance(call, StreamCall)
    taken = 0
    for _ in range(500):
        while call.take() is not None:
            taken += 1
        pair.exchange(0.1)
    assert taken == 40
    assert stream_id


def test_a_connection_that_is_ending_may_be_told_anything() -> None:
    pair = Pair()
    pair.client.send_goaway()
    pair.exchange(1.0)
    pair.server.terminate()
    pair.server.drain(2.0)
    pair.server.refuse_streams()
    assert pair.server.check(100.0) in {True, False}
    pair.server.output(100.0, 2**20)
    pair.server.lost()
    assert pair.server.over
