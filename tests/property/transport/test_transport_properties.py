"""What holds for any input: round trips, any split of the bytes, and any bytes at all."""

import contextlib
import struct
from typing import Any
from urllib.parse import unquote

import ngh2
from hypothesis import given
from hypothesis import strategies as st

from gateway.transport import TransportOptions
from gateway.transport import metadata as rules
from gateway.transport.fast import headers as wire
from gateway.transport.fast.admission import Admission
from gateway.transport.fast.deadlines import Deadlines
from gateway.transport.fast.protocol import ENDED, Call, Route, ServerConnection, UnaryCall

METHOD = b"/test.Echo/Unary"
STREAM = b"/test.Echo/Stream"
OPTIONS = TransportOptions(
    max_receive_message_bytes=50_000,
    max_buffered_request_bytes=200_000,
    max_concurrent_streams=20,
    max_active_calls=15,
    reset_burst=50,
    max_resets_per_s=10,
)
HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"x"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

text_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(str.strip)
keys = st.from_regex(r"[a-z0-9_.]{1,8}", fullmatch=True).filter(lambda key: key not in {"te", "host"})
pairs = st.one_of(st.tuples(keys, text_values), st.tuples(keys.map(lambda key: key + "-bin"), st.binary(max_size=20)))


class Server:
    """A state machine whose handler answers at once, and the books that must balance."""

    def __init__(self) -> None:
        self.admission = Admission(OPTIONS.max_active_calls)
        self.deadlines: Deadlines[Call] = Deadlines()
        routes = {
            METHOD: Route(METHOD.decode(), lambda calls: None),
            STREAM: Route(STREAM.decode(), lambda call: None, streaming=True, request_streaming=True),
        }
        self.state = ServerConnection(
            OPTIONS, routes, lambda path, headers: None, self.admission, self.deadlines, lambda: None, 0.0
        )
        self.seen: list[Call] = []
        self.payloads: list[bytes] = []

    def receive(self, data: bytes, now: float = 0.0) -> None:
        for call in self.state.receive(data, now):
            self.seen.append(call)
            if isinstance(call, UnaryCall):
                if call.compressed:
                    call.inflate()
                self.payloads.append(bytes(call.payload))

    def check_books(self) -> None:
        state = self.state
        assert self.admission.active == state.calls == len(state._calls)
        open_unary = [call for call in state._calls.values() if isinstance(call, UnaryCall) and call.state == 1]
        assert self.admission.waiting == len(open_unary)
        assert state._lent_bytes == sum(call.loan_bytes for call in state._calls.values())
        assert 0 <= state._lent_bytes <= OPTIONS.lendable_request_bytes
        held = sum(call.unacknowledged_bytes for call in state._calls.values())
        assert held <= OPTIONS.max_buffered_request_bytes + 20 * 65_535
        assert all(call.state != ENDED for call in state._calls.values())


@given(st.lists(pairs, max_size=6))
def test_metadata_comes_back(metadata: list[tuple[str, Any]]) -> None:
    rules.check(metadata)
    assert list(wire.decode_metadata(tuple(wire.encode_metadata(metadata)))) == metadata


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_messages_come_back(message: str) -> None:
    encoded = dict(wire.status_headers(3, message)).get(b"grpc-message", b"")
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode()) == message


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60), st.lists(st.floats(0, 110), max_size=10))
def test_deadlines_are_those_of_a_simple_model(items: list[tuple[float, bool]], moments: list[float]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, float] = {}
    for number, (deadline, removed) in enumerate(items):
        deadlines.add(number, deadline)
        model[number] = deadline
        if removed:
            deadlines.discard(number, deadline)
            del model[number]
    for now in sorted(moments):
        due = set(deadlines.pop_due(now))
        assert all(model[number] <= now for number in due)
        assert {number for number, deadline in model.items() if deadline <= now - 0.0041} <= due
        for number in due:
            del model[number]
        assert len(deadlines) == len(model)


def client_bytes(bodies: list[bytes]) -> bytes:
    """What a client sends that makes one call for each body."""
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection()
    for body in bodies:
        stream_id = client.send_request(sorted([*HEADERS, (b":path", METHOD)]))
        client.send_data(stream_id, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
    return client.data_to_send()


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=10), st.data())
def test_any_split_of_the_bytes_gives_the_same_calls(bodies: list[bytes], data: st.DataObject) -> None:
    sent = client_bytes(bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=30)))
    server = Server()
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        server.receive(sent[start:end])
        server.check_books()
    assert server.payloads == bodies


@given(st.binary(max_size=2_000))
def test_any_bytes_at_all_are_survived(data: bytes) -> None:
    for sent in (data, PREFACE + data):
        server = Server()
        server.receive(sent)
        server.state.output(0.0, 2**20)
        server.check_books()
        server.state.lost()
        server.check_books()


frames = st.one_of(
    # Frames that are nearly right ...
    st.builds(
        lambda kind, flags, stream_id, payload: (
            struct.pack(">HBBBI", 0, len(payload) & 0xFF, kind, flags, stream_id) + payload[:255]
        ),
        st.integers(0, 10),
        st.integers(0, 255),
        st.integers(0, 15),
        st.binary(max_size=255),
    ),
    # ... and right ones.
    st.sampled_from(
        [
            struct.pack(">HBBBI", 0, 8, 6, 0, 0) + b"12345678",
            struct.pack(">HBBBI", 0, 0, 4, 1, 0),
            struct.pack(">HBBBI", 0, 4, 8, 0, 0) + struct.pack(">I", 1_000),
            struct.pack(">HBBBI", 0, 8, 7, 0, 0) + bytes(8),
        ]
    ),
)


class Step:
    """One thing that a client, or the server's side, does next."""

    def __init__(self, kind: str, which: int, data: bytes) -> None:
        self.kind, self.which, self.data = kind, which, data

    def __repr__(self) -> str:
        return f"{self.kind}({self.which}, {self.data!r})"


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ["call", "stream", "data", "end", "reset", "raw", "reply", "fail", "take", "flush", "tick", "ack"]
        ),
        st.integers(0, 20),
        st.one_of(
            st.binary(max_size=30),
            st.binary(max_size=30).map(lambda body: struct.pack(">BI", 0, len(body)) + body),
            st.integers(0, 60_000).map(lambda size: struct.pack(">BI", 0, size) + bytes(size)),
            st.integers(0, 2**32 - 1).map(lambda size: struct.pack(">BI", size & 3, size)),
            frames,
        ),
    ),
    max_size=60,
)


@given(steps, st.sampled_from([b"", b"gzip", b"10m"]))
def test_whatever_both_sides_do_the_books_balance(script: list[Step], extra: bytes) -> None:
    server = Server()
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection()
    streams: list[int] = []
    now = 0.0
    for step in script:
        now += 0.003
        # Its own library keeps the client from some of it.
        with contextlib.suppress(ngh2.NGH2Error):
            play(step, client, server, streams, now, extra)
        server.check_books()
    server.state.lost()
    server.check_books()
    assert (server.admission.active, server.admission.waiting, len(server.deadlines)) == (0, 0, 0)
    assert all(call.state == ENDED for call in server.seen)


def play(step: Step, client: ngh2.Connection, server: Server, streams: list[int], now: float, extra: bytes) -> None:
    if step.kind in {"call", "stream"}:
        headers = [*HEADERS, (b":path", METHOD if step.kind == "call" else STREAM)]
        if extra:
            headers.append((b"grpc-encoding" if extra == b"gzip" else b"grpc-timeout", extra))
        streams.append(client.send_request(sorted(headers)))
        client.send_data(streams[-1], step.data)
    elif step.kind in {"data", "end", "reset"}:
        act = {"data": lambda: client.send_data(stream_id, step.data), "end": lambda: client.end_stream(stream_id)}
        stream_id = streams[step.which % len(streams)] if streams else 1
        act.get(step.kind, lambda: client.reset_stream(stream_id))()
    elif step.kind in {"reply", "fail", "take"} and server.seen:
        answer(step, server.seen[step.which % len(server.seen)])
    elif step.kind == "tick":
        server.state.check(now)
        for due in server.deadlines.pop_due(now):
            server.state.expire(due, now)
    elif step.kind == "ack":
        client.receive_data(server.state.output(now, 2**20))
        client.events()
    else:
        server.receive(client.data_to_send() + (step.data if step.kind == "raw" else b""), now)


def answer(step: Step, call: Call) -> None:
    if isinstance(call, UnaryCall):
        if step.kind == "reply":
            call.reply(step.data)
        else:
            call.fail(step.which, "no")
    elif step.kind == "reply":
        call.send(step.data)
    elif step.kind == "fail":
        call.finish(step.which % 5, "no")
    else:
        call.take()
